"""From a confusion matrix to the IoU of each class: the one place of it, for `fit` and for the metrics."""

from keras import ops


def measure_overlaps(counts, arrays=ops):
    """Returns the IoU of each class, and whether it occurs in the truth or in the predictions.

    Args:
        counts: (classes, classes) numbers of pixels, rows are the truth, columns the predictions. One column
            more counts pixels whose prediction is no class.
        arrays: the module that computes, `keras.ops`, or `numpy` for the precision of float64.

    Returns:
        (IoU, 0 where a class does not occur; bool), each (classes,).
    """
    num_classes = counts.shape[0]
    correct = arrays.diagonal(counts)
    truth, predicted = arrays.sum(counts, axis=1), arrays.sum(counts, axis=0)[:num_classes]
    union = truth + predicted - correct
    return correct / arrays.maximum(union, 1), union > 0
