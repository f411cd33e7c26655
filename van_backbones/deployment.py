"""Models for use: norms and layer scales become part of the convolutions."""

import keras
import numpy as np

from van_backbones.folded_layers import FoldedPatchEmbedding, FoldedVANBlock
from van_backbones.layers import OverlapPatchEmbedding, VANBlock


@keras.saving.register_keras_serializable(package="van_backbones")
class DeployedBackbone(keras.Model):
    """What `deploy` makes of a `VANBackbone`: the same pyramid, from fewer layers.

    A functional model like any other: it saves and loads, and heads take it as their backbone.
    """

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self.autocast = False  # the first layer casts
        self.pyramid_outputs = dict(self.output)
        self.pyramid_level_inputs = {f"P{stage + 1}": f"stage{stage}_norm" for stage in (1, 2, 3, 4)}

    def reference_layers(self):
        """Raises a ValueError: there are no norms any more that checkpoints could name."""
        raise ValueError("a deployed backbone has no weights to load or save by name: deploy after loading")


def deploy(model, dtype=None):
    """Returns a model for inference with equal outputs, its norms and layer scales folded into convolutions.

    Works for a `VANBackbone`, a `VANClassifier`, every head of `heads` on any backbone, and functional and
    `Sequential` models with one of these inside, whatever their inputs and outputs. LoRA becomes part of the
    kernels. The result saves and loads like any Keras model, and is not for training. The model itself stays
    as it is. A deployed model is returned as it is. The norms of heads stay, as folding them makes nothing
    faster (`tests/benchmarks/folding.py`).

    Args:
        model: the model, built.
        dtype: dtype policy of the result, such as "mixed_bfloat16". None keeps the model's. A deployed model
            keeps its own.

    Returns:
        A model with the same inputs, outputs and, in heads, the same verbs.

    Raises:
        TypeError: if the model is none of these, or has its backbone or head inside a layer or a model with
            a `call` of its own, where it cannot be replaced.
        ValueError: if `dtype` is given and a layer is quantized.
    """
    layers = list(model._flatten_layers()) if isinstance(model, keras.Model) else []
    is_unfolded, has_head = (any(map(test, layers)) for test in (_is_unfolded, _is_head))
    is_done = any(map(_is_folded, layers))
    if has_head:  # a new one may be on a deployed backbone, or on one that is not ours
        is_done = not model.trainable and (is_done or dtype is None)
    if is_done and not is_unfolded:
        return model
    if not (is_unfolded or has_head) or not model.built:
        raise TypeError(
            "model must be a VANBackbone, a VANClassifier, a head, or a functional or Sequential model with "
            f"one of them inside, and built. Received: {model!r}"
        )
    deployed = _fold(model, dtype)
    _copy_weights(model, deployed)
    deployed.trainable = False
    return deployed


def _is_folded(layer):
    return getattr(layer, "folded", False)


def _is_unfolded(layer):
    return isinstance(layer, (OverlapPatchEmbedding, VANBlock))


def _is_head(layer):
    return hasattr(layer, "decode") and hasattr(layer, "backbone")


def _fold(layer, dtype):
    """Returns the replacement of a layer or a model, whose weights are not copied yet."""
    if not isinstance(layer, keras.layers.Layer):  # an operation of `keras.ops`
        return layer
    options = {"name": layer.name, "dtype": dtype or layer.dtype_policy}
    # A subclass may compute something else.
    if type(layer) is OverlapPatchEmbedding:
        return FoldedPatchEmbedding(layer.width, layer.kernel_size, layer.strides, **options)
    if type(layer) is VANBlock:
        return FoldedVANBlock(layer.expansion_ratio, **options)
    if _is_head(layer):
        return _fold_head(layer, dtype)
    if isinstance(layer, keras.Sequential) and type(layer).call is keras.Sequential.call:
        inputs = [keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name) for x in layer.inputs]
        return keras.Sequential([*inputs, *(_fold(part, dtype) for part in layer.layers)], name=layer.name)
    if isinstance(layer, keras.Model) and hasattr(layer, "operations"):
        # Through a plain model: `clone_model` would compile the clone of a compiled one.
        plain = keras.Model(layer.input, layer.output)
        if type(layer).call is type(plain).call:
            clone = keras.models.clone_model(plain, clone_function=lambda part: _fold(part, dtype))
            model_class = DeployedBackbone if _gives_pyramid(layer) else keras.Model
            return model_class(clone.input, clone.output, name=layer.name)
    return _copy(layer, dtype)


def _gives_pyramid(model):
    """Returns whether a functional model's outputs are its pyramid, as a head needs of its backbone."""
    pyramid, outputs = getattr(model, "pyramid_outputs", None), model.output
    if not pyramid or not isinstance(outputs, dict):
        return False
    return all(outputs.get(level) is tensor for level, tensor in pyramid.items())


def _fold_head(head, dtype):
    config = head.get_config()
    del config["frozen_parts"]  # what is deployed is not trained
    is_van = any(isinstance(layer, (VANBlock, FoldedVANBlock)) for layer in head.backbone._flatten_layers())
    config["backbone"] = _fold(head.backbone, dtype) if is_van else _copy(head.backbone, dtype)
    if is_van and not isinstance(config["backbone"], DeployedBackbone):
        raise TypeError(
            f"to be deployed, {head.name} must have a VANBackbone as its backbone, or a functional model "
            f"whose outputs are its `pyramid_outputs`. Received: {head.backbone!r}"
        )
    config["resizing"] = head.resizing  # the configuration has it as a dict
    if dtype is not None:
        config["dtype"] = dtype
    return type(head)(**config)


def _copy(layer, dtype):
    """Returns a layer like this one, of another dtype if wanted, whose weights are not copied yet."""
    inside = [part for part in layer._flatten_layers(include_self=False) if _is_unfolded(part)]
    if inside or _is_unfolded(layer):
        raise TypeError(
            "model must have its backbone or head in a functional or Sequential model, where it can be "
            f"replaced: {layer.name} is a {type(layer).__name__}, which has a `call` of its own. Deploy the "
            f"backbone or head itself, and build the rest around the result. Received: {layer!r}"
        )
    if isinstance(layer, keras.layers.Lambda):  # without weights, and Keras would not load its function
        return layer
    config = layer.get_config()
    for name in ("lora_rank", "lora_alpha"):
        config.pop(name, None)
    if dtype is not None and not isinstance(layer, keras.Model):
        if isinstance(layer.dtype_policy, keras.dtype_policies.QuantizedDTypePolicy):
            raise ValueError(
                f"dtype must be None for a model that is quantized, as {layer.name} is "
                f"({layer.dtype_policy.name}): deploy or export it before `quantize`. Received: {dtype!r}"
            )
        config["dtype"] = dtype
    return type(layer).from_config(config)


def _copy_weights(source, target):
    """Copies the weights of a model or a layer to its deployed version."""
    if hasattr(target, "fold") and _is_folded(target) and not _is_folded(source):
        target.fold(source)
        return
    state = {}
    source.save_own_variables(state)  # with LoRA in the kernels
    if state:
        # Copied, because on JAX both models would share arrays, and `predict` of one would invalidate the
        # other's.
        copies = {name: np.array(keras.ops.convert_to_numpy(value)) for name, value in state.items()}
        target.load_own_variables(copies)
    sources, targets = (
        list(part._flatten_layers(include_self=False, recursive=False)) for part in (source, target)
    )
    for old, new in zip(sources, targets, strict=True):
        _copy_weights(old, new)
