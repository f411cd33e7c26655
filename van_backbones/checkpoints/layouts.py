"""How PyTorch names and lays out the weights of each kind of layer."""

import keras
import numpy as np

# What PyTorch calls the variables of Keras's layers.
ATTRIBUTES = (
    ("weight", "kernel"),
    ("weight", "embeddings"),
    ("weight", "gamma"),
    ("bias", "bias"),
    ("bias", "beta"),
    ("running_mean", "moving_mean"),
    ("running_var", "moving_variance"),
)

# How to transpose PyTorch's kernels for Keras. All other arrays (vectors, tables) have the same layout.
KERNEL_AXES = (
    (keras.layers.Conv2D, (2, 3, 1, 0)),  # (out, in, height, width)
    (keras.layers.Conv2DTranspose, (2, 3, 1, 0)),  # (in, out, height, width)
    (keras.layers.DepthwiseConv2D, (2, 3, 0, 1)),  # (channels, 1, height, width)
    (keras.layers.Dense, (1, 0)),  # (out, in)
)


def to_keras(array, part):
    """Returns an array of PyTorch's in the layout of Keras; nothing is copied.

    Args:
        array: a weight as PyTorch stores it.
        part: the Keras layer that it belongs to, or the variable itself.
    """
    array = np.asarray(array)
    return array.transpose(_find_axes(part, array.ndim))


def to_torch(array, part):
    """Returns an array of Keras's in the layout of PyTorch: the inverse of `to_keras`.

    Args:
        array: a weight as Keras stores it.
        part: the Keras layer that it belongs to, or the variable itself.
    """
    array = np.asarray(array)
    return np.asarray(array.transpose(np.argsort(_find_axes(part, array.ndim))), order="C")


def _find_axes(part, rank):
    axes = next((axes for kind, axes in KERNEL_AXES if isinstance(part, kind)), ())
    return axes if len(axes) == rank else range(rank)


def name_parts(model):
    """Returns a model's weights under the names of its PyTorch reference: name -> (variable, its layer).

    Args:
        model: anything with `reference_layers()`, which gives reference name -> Keras layer (a convolution, a
            dense layer, an embedding or a norm) or variable.

    Returns:
        A dict; a backbone's names start with `backbone.`. A variable without a layer stands for its own
        layer.

    Raises:
        ValueError: if the model has no `reference_layers()`.
    """
    if not hasattr(model, "reference_layers"):
        raise ValueError(
            "model must have `reference_layers()`, as our backbones, classifiers and heads do. "
            f"Received: {model!r}"
        )
    named = {}
    for name, part in model.reference_layers().items():
        if isinstance(part, keras.Variable):
            named[name] = part, part
            continue
        for suffix, attribute in ATTRIBUTES:
            variable = getattr(part, attribute, None)
            if variable is not None:
                named[f"{name}.{suffix}"] = variable, part
    return named


def name_variables(model):
    """Returns the variables of `name_parts` alone: name -> variable."""
    return {name: variable for name, (variable, _) in name_parts(model).items()}
