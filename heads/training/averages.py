"""Moving averages of a model's weights, which are scored and saved; training goes on from the weights."""

import contextlib

import keras
from keras import ops


class WeightAverages(keras.callbacks.Callback):
    """Scores and saves a model with the moving averages of its weights, and trains on from the weights.

    For optimizers with `use_ema=True`; with others it does nothing. Put it before the callbacks that score
    and save, in `fit(callbacks=[...])`. When `fit` ends, the model has the averages; if it is called again
    with the same callback, training goes on from the weights.

    Optimizers do not average statistics of batch norms and frozen weights, which stay as in the latest step.
    """

    # Not keras.callbacks.SwapEMAWeights: on TensorFlow it swaps by sums and differences, which changes the
    # last bits of the weights at each score; it loses the weights when `fit` ends; and a model that is saved
    # between its swaps has the weights in its optimizer's place for the averages.

    def __init__(self):
        super().__init__()
        self._weights = None

    def put_in(self):
        """Puts the averages into the model, if the optimizer has any yet."""
        optimizer = find_optimizer(self.model)
        if self._weights is not None or not has_averages(optimizer):
            return
        variables, averages = optimizer._trainable_variables, optimizer._model_variables_moving_average
        self._weights = [_copy(variable) for variable in variables]
        for variable, average in zip(variables, averages, strict=True):
            variable.assign(_copy(average))

    def put_back(self):
        """Puts the weights back into the model, if the averages are in it."""
        if self._weights is None:
            return
        for variable, value in zip(
            find_optimizer(self.model)._trainable_variables, self._weights, strict=True
        ):
            variable.assign(value)
        self._weights = None

    def on_epoch_begin(self, epoch, logs=None):
        self.put_back()

    def on_epoch_end(self, epoch, logs=None):
        self.put_in()

    def on_test_begin(self, logs=None):
        self.put_in()

    def on_test_end(self, logs=None):
        self.put_back()


@contextlib.contextmanager
def keep_weights(model):
    """Keeps `fit` from putting the averages into the model at its end, until the block ends.

    On JAX `fit` does so even if an error or Ctrl-C ends it, and the weights would be lost.

    Args:
        model: A compiled model.
    """
    optimizer = find_optimizer(model)
    optimizer.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values


def find_optimizer(model):
    """Returns the optimizer of a compiled model, without the wrapper of half precision."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def has_averages(optimizer) -> bool:
    """Returns whether an optimizer has averages, which are zeros before its first step."""
    return getattr(optimizer, "use_ema", False) and bool(ops.convert_to_numpy(optimizer.iterations) > 0)


def _copy(variable):
    """Returns a copy of a variable's value, as PyTorch and JAX may overwrite the variable's memory."""
    return ops.copy(ops.convert_to_tensor(variable))
