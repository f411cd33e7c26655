"""Random label maps, and their scores by slow and obvious loops."""

import numpy as np


def make_maps(num_classes=4, shape=(2, 7, 9), seed=0, ignored=0.2):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, shape).astype("int32")
    labels[generator.random(shape) < ignored] = 255
    return labels, generator.integers(0, num_classes, shape).astype("int32")


def count_by_loop(labels, predictions, num_classes):
    confusion = np.zeros((num_classes, num_classes), "int64")
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label != 255:
            confusion[label, prediction] += 1
    return confusion


def mean_iou_by_loop(confusion):
    values = []
    for k in range(len(confusion)):
        union = confusion[k].sum() + confusion[:, k].sum() - confusion[k, k]
        if union:
            values.append(confusion[k, k] / union)
    return sum(values) / len(values)
