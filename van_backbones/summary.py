"""How large a model is, and what it costs: parameters and multiply-accumulates of each of its parts."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import keras

from van_backbones.folded_layers import FoldedPatchEmbedding, FoldedVANBlock
from van_backbones.layer_calls import watch_calls
from van_backbones.layers import OverlapPatchEmbedding, VANBlock

# Every kernel inside these is applied once at each position of their outputs. They are counted as a whole,
# because blocks do not call their inner layers where a norm is folded in.
WHOLES = (OverlapPatchEmbedding, VANBlock, FoldedPatchEmbedding, FoldedVANBlock)


class Part(NamedTuple):
    """A part of a model.

    Attributes:
        name: "stage 1" .. "stage 4" of the backbone, "backbone" for one that is not ours, and the names of a
            head's layers, such as "neck"; "weights of its own" for weights outside of all these.
        parameters: trainable numbers, including those of frozen layers; statistics of batch norms do not
            count.
        multiply_accumulates: of one image.
    """

    name: str
    parameters: int
    multiply_accumulates: int


def summarize(model, image_size: Sequence[int], training: bool = False) -> list[Part]:
    """Returns the parameters and multiply-accumulates of a model, part by part.

    Counts products of weights with activations, in convolutions and dense layers, as the papers' tables do.
    Biases, norms, activations, resizing, and products of two activations, as inside attention, do not count.

    Args:
        model: a `VANBackbone`, a `VANClassifier`, a head on any Keras backbone, or what `deploy` made of it.
        image_size: (height, width) of the image.
        training: whether to count the forward pass in training, with auxiliary heads, and without the second
            stage of two-stage detectors.

    Raises:
        ValueError: if `image_size` is not two positive numbers.
    """
    if len(image_size) != 2 or min(image_size) < 1:
        raise ValueError(f"image_size must be (height, width), at least 1. Received: {image_size!r}")
    parts = _find_parts(model)
    counted = {layer for layers in parts.values() for top in layers for layer in _find_counted(top)}
    costs = _trace(model, counted, image_size, training)
    rows, seen = [], set()
    for name, layers in parts.items():
        cost = sum(costs.get(id(layer), 0) for top in layers for layer in _find_counted(top))
        rows.append(Part(name, sum(_count_parameters(layer, seen) for layer in layers), cost))
    own = Part("weights of its own", _count_parameters(model, seen), 0)
    return [row for row in [*rows, own] if row.parameters]


def _find_parts(model):
    """Returns the name of each part -> its layers."""
    parts = {}
    backbone = getattr(model, "backbone", model)
    for layer in backbone.layers:
        stage = re.match(r"stage([1-4])_", layer.name)
        parts.setdefault(f"stage {stage[1]}" if stage else "backbone", []).append(layer)
    if backbone is not model:
        # The pyramid is a view of the backbone.
        views = (backbone, getattr(model, "pyramid", None))
        for layer in model._flatten_layers(include_self=False, recursive=False):
            if layer not in views:
                parts.setdefault(layer.name, []).append(layer)
    return parts


def _find_counted(layer):
    """Yields the layers in a layer whose kernels are counted together."""
    if isinstance(layer, WHOLES):
        yield layer
        return
    if any(map(_is_kernel, layer._trainable_variables + layer._non_trainable_variables)):
        yield layer
    for part in layer._flatten_layers(include_self=False, recursive=False):
        yield from _find_counted(part)


def _is_kernel(variable):
    return variable.name.endswith("kernel")


def _count_parameters(layer, seen):
    """Returns how many parameters of a layer were not counted before."""
    count = 0
    for part in layer._flatten_layers():
        for variable in part._trainable_variables:  # those that can be trained, frozen or not
            if id(variable) not in seen:
                seen.add(id(variable))
                count += math.prod(variable.shape)
    return count


def _trace(model, layers, image_size, training):
    """Returns the id of each called layer -> its multiply-accumulates, without computing anything."""
    costs = {}
    images = getattr(model, "backbone", model).inputs[0]

    def watch(layer, args, outputs):
        costs[id(layer)] = costs.get(id(layer), 0) + _count_call(layer, args, outputs)
        return outputs

    def run(images):
        costs.clear()  # some backends trace twice
        model(images, training=training)
        return images

    with watch_calls(layers, watch):
        shape = (1, *image_size, images.shape[-1])
        keras.layers.Lambda(run, dtype=images.dtype)(keras.KerasTensor(shape, images.dtype))
    return costs


def _count_call(layer, args, outputs):
    """Returns the multiply-accumulates of one call of a layer."""
    kernels = [weight for weight in layer.weights if _is_kernel(weight)]
    if isinstance(layer, keras.layers.EinsumDense):
        (kernel,) = kernels
        _, labels, output_labels = re.split(",|->", layer.equation)
        sides = zip(reversed(output_labels), reversed(outputs.shape), strict=False)  # "..." comes first
        shared = math.prod(side for label, side in sides if label in labels)
        return math.prod(outputs.shape) // shared * math.prod(kernel.shape)
    if hasattr(layer, "packed_kernel"):
        # Queries, keys and values use a third of the kernel each: see `heads.layers.attention`.
        return sum(math.prod(inputs.shape[:-1]) for inputs in args[:3]) * math.prod(kernels[0].shape) // 3
    is_transposed = isinstance(layer, keras.layers.Conv2DTranspose)
    maps = args[0] if is_transposed else outputs
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else -1
    positions = math.prod(maps.shape) // maps.shape[axis]
    return positions * sum(math.prod(kernel.shape) for kernel in kernels)
