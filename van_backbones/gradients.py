"""Gradients of any function by each backend's own means: Keras has no function for it."""

import keras
import numpy as np


def differentiate(function, arrays: dict) -> dict[str, np.ndarray]:
    """Returns the gradients of a function at a point, on TensorFlow, JAX and PyTorch.

    Args:
        function: takes a dict of tensors and returns a scalar tensor.
        arrays: name -> float array, the point.

    Returns:
        Name -> the gradient, an array of the same shape; zeros where the function does not depend on it.

    Raises:
        NotImplementedError: on another backend.
    """
    arrays = {name: np.asarray(array, "float32") for name, array in arrays.items()}
    backend = keras.backend.backend()
    if backend not in GRADIENTS:
        raise NotImplementedError(
            f"gradients are available on {', '.join(GRADIENTS)}: choose one with the environment variable "
            f"KERAS_BACKEND. Received: {backend}"
        )
    return GRADIENTS[backend](function, arrays)


def _differentiate_tensorflow(function, arrays):
    import tensorflow as tf

    tensors = {name: tf.constant(array) for name, array in arrays.items()}
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensors)
        value = function(tensors)
    found = tape.gradient(value, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return {name: gradient.numpy() for name, gradient in found.items()}


def _differentiate_jax(function, arrays):
    import jax

    found = jax.grad(function)({name: jax.numpy.asarray(array) for name, array in arrays.items()})
    return {name: np.asarray(gradient) for name, gradient in found.items()}


def _differentiate_torch(function, arrays):
    import torch

    tensors = {name: keras.ops.convert_to_tensor(array).requires_grad_() for name, array in arrays.items()}
    value = function(tensors)
    if not value.requires_grad:  # it depends on none of them
        return {name: np.zeros_like(array) for name, array in arrays.items()}
    found = torch.autograd.grad(value, list(tensors.values()), allow_unused=True, materialize_grads=True)
    return {name: keras.ops.convert_to_numpy(gradient) for name, gradient in zip(tensors, found, strict=True)}


GRADIENTS = {
    "tensorflow": _differentiate_tensorflow,
    "jax": _differentiate_jax,
    "torch": _differentiate_torch,
}
