"""What lies between the batches and `fit` on JAX: few shapes, which are equal on all processes."""

import keras
import numpy as np

from heads.processes import gather, gather_numbers, is_first_process, on_this_process
from heads.training.batch_shapes import choose_shape, measure_batch, pad_batch


class ShapedBatches:
    """Passes batches to `fit` in few shapes, the same on all processes, which also agree when to stop.

    JAX compiles a step for each shape. On other backends, batches stay as they are.

    Args:
        find_wish: Function without arguments that returns whether this process should stop: 0 for no, or a
            larger number; the largest of all processes counts.

    Attributes:
        shapes: The shapes of the batches so far.
        wish: What all processes agreed on before the last batch.
    """

    def __init__(self, find_wish):
        self.find_wish = find_wish
        self.shapes, self.wish, self._told = set(), 0, 0

    def shape(self, batches):
        """Returns the batches for `fit`.

        Args:
            batches: A dataset, endless.
        """
        return self._shape(batches) if keras.backend.backend() == "jax" else batches

    def describe_new(self) -> str | None:
        """Returns a text about the steps compiled since the last call; None if there are none."""
        new, self._told = len(self.shapes) - self._told, len(self.shapes)
        if not new:
            return None
        shapes = "shape" if new == 1 else "shapes"
        return f"JAX compiled the training step for {new} {shapes} of batches, {self._told} so far"

    def _shape(self, batches):
        one_size = _has_one_size(batches)
        for batch in batches:
            batch = keras.tree.map_structure(np.asarray, batch)
            measures = gather_numbers([*measure_batch(batch), self.find_wish()]).max(axis=0)
            self.wish = int(measures[-1])
            if measures[:-1].any():
                batch = pad_batch(batch, choose_shape(*measures[:-1], one_size))
            self.shapes.add(tuple(array.shape for array in keras.tree.flatten(batch)))
            yield batch


class SharedValidation(keras.callbacks.Callback):
    """Replaces `validation_data` of `fit` on several processes: each evaluates its share.

    Args:
        dataset: Batches of this process's share.
    """

    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def on_epoch_end(self, epoch, logs=None):
        logs.update({f"val_{name}": value for name, value in self.evaluate(self.model).items()})

    def evaluate(self, model) -> dict:
        """Returns the losses and metrics of a compiled model, on the pictures of all processes."""
        with on_this_process(model) as copy:
            sums = None
            for batch in self.dataset:
                copy.test_on_batch(*keras.tree.map_structure(np.asarray, batch))  # starts from 0 again
                # In 64 bits, as there may be more than 2^31 pixels.
                counts = [np.asarray(each.value, each.dtype[:-2] + "64") for each in _list_variables(copy)]
                sums = counts if sums is None else [*map(np.add, sums, counts)]
            states = gather(sums and [total.tolist() for total in sums])
            scores = None
            if is_first_process():  # it has the first batch, without which metrics may have no variables
                _set_counts(copy.metrics, [state for state in states if state])
                scores = {name: float(value) for name, value in copy.get_metrics_result().items()}
        return gather(scores)[0]


def _list_variables(model):
    return [variable for metric in model.metrics for variable in metric.variables]


def _has_one_size(batches):
    """Returns whether the pictures of all batches have one size."""
    try:
        return None not in batches.element_spec[0]["images"].shape[1:3]
    except (AttributeError, TypeError, KeyError, IndexError):  # no dataset, or one of other batches
        return False


def _set_counts(metrics, states):
    """Sets the variables of metrics to the sums over all processes."""
    first = 0
    for metric in metrics:
        last = first + len(metric.variables)
        counts = [state[first:last] for state in states]
        if hasattr(metric, "merge_counts"):
            metric.merge_counts(counts)
        else:
            for variable, values in zip(metric.variables, zip(*counts, strict=True), strict=True):
                variable.assign(np.sum(values, axis=0).astype(variable.dtype))
        first = last
