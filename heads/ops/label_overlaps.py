"""The IoU of each class from a confusion matrix, for `fit` and for the metrics."""

from keras import ops


def measure_overlaps(counts, arrays=ops):
    """Returns the IoU of each class, and whether it occurs in the truth or in the predictions.

    Args:
        counts: (classes, classes) numbers of pixels, rows are the truth, columns the predictions. An optional
            last column counts pixels whose prediction is not a class.
        arrays: the module to compute with, `keras.ops`, or `numpy` for float64.

    Returns:
        The IoU, 0 where a class does not occur, and bool, whether it occurs, each (classes,).
    """
    num_classes = counts.shape[0]
    correct = arrays.diagonal(counts)
    truth, predicted = arrays.sum(counts, axis=1), arrays.sum(counts, axis=0)[:num_classes]
    union = truth + predicted - correct
    return correct / arrays.maximum(union, 1), union > 0
