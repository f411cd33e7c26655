"""Losses: pure functions, targets first."""

from keras import ops


def semantic_cross_entropy(labels, logits, ignore_label=255):
    """Gives the cross-entropy of a label map, averaged over all pixels.

    Ignored pixels add nothing to the sum but count in the average, as in mmsegmentation (its
    `avg_non_ignore=False`): a picture that is mostly ignored weighs little.

    Args:
        labels: (batch, height, width), integers; `ignore_label` is left out.
        logits: (batch, height, width, classes).
        ignore_label: the label of pixels without truth.

    Returns:
        A float32 scalar.
    """
    logits = ops.cast(logits, "float32")
    labels = ops.cast(labels, "int32")
    known = ops.not_equal(labels, ignore_label)
    losses = ops.sparse_categorical_crossentropy(ops.where(known, labels, 0), logits, from_logits=True)
    return ops.mean(ops.where(known, losses, 0.0))
