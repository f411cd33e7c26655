import numpy as np
import pytest
import tensorflow as tf

from heads.layers.blocks import Chain
from heads.layers.mask_head import MASK_SIZE, POOLED_SIZE, MaskHead, compute_mask_loss
from heads.layers.roi_align import align_regions
from heads.ops.masks import crop_masks

CHANNELS = 4


def make_head():
    head = MaskHead(3, CHANNELS)
    head.build((None, None, POOLED_SIZE, POOLED_SIZE, CHANNELS))
    random = np.random.default_rng(0)
    for weight in head.weights:
        weight.assign(random.normal(size=weight.shape) / 3)
    return head


def test_the_mask_of_the_wanted_class_is_drawn():
    head, random = make_head(), np.random.default_rng(1)
    regions = random.normal(size=(2, 3, POOLED_SIZE, POOLED_SIZE, CHANNELS)).astype("float32")
    labels = np.array([[0, 2, 1], [1, 1, 0]], "int32")
    logits = np.asarray(head(regions, labels))
    assert logits.shape == (2, 3, MASK_SIZE, MASK_SIZE)
    for image in range(2):
        of_all_classes = np.asarray(Chain.call(head, regions[image]))
        for region, label in enumerate(labels[image]):
            np.testing.assert_allclose(
                logits[image, region], of_all_classes[region, ..., label], rtol=1e-4, atol=1e-5
            )


def test_sizes_double_without_overlap():
    # A transposed convolution of 2 x 2 with stride 2: each pixel of the regions makes four of its own.
    head = make_head()
    regions = np.zeros((1, 1, POOLED_SIZE, POOLED_SIZE, CHANNELS), "float32")
    for conv in head.convs:
        kernel = np.zeros(conv.kernel.shape, "float32")
        kernel[1, 1] = np.eye(CHANNELS)
        conv.kernel.assign(kernel)
        conv.bias.assign(np.zeros(CHANNELS))
    without = np.asarray(head(regions, np.zeros((1, 1), "int32")))
    regions[0, 0, 5, 9] = 1.0
    changed = np.asarray(head(regions, np.zeros((1, 1), "int32")))[0, 0] != without[0, 0]
    rows, columns = np.nonzero(changed)
    assert set(rows) <= {10, 11}
    assert set(columns) <= {18, 19}
    assert changed.any()


def make_samples():
    """Three regions of two images: two objects and background, then padding and background alone."""
    boxes = [[[2, 3, 20, 25], [10, 8, 30, 30], [0, 0, 9, 9]], [[0, 0, 8, 8], [4, 4, 12, 12], [0, 0, 0, 0]]]
    return {
        "boxes": tf.constant(boxes, "float32"),
        "kinds": tf.constant([[1, 1, 0], [0, 0, -1]]),
        "labels": tf.constant([[2, 0, 3], [3, 3, -1]]),
        "matches": tf.constant([[1, 0, 0], [0, 0, 0]]),
    }


def make_pyramid_and_targets():
    random = np.random.default_rng(2)
    pyramid = [
        random.normal(size=(2, 32 // stride, 32 // stride, CHANNELS)).astype("float32")
        for stride in (4, 8, 16, 32)
    ]
    return pyramid, {"masks": (random.uniform(size=(2, 2, 32, 32)) < 0.5).astype("uint8")}


def test_loss_is_the_mean_of_the_objects():
    head, samples = make_head(), make_samples()
    pyramid, targets = make_pyramid_and_targets()
    loss = float(compute_mask_loss(head, pyramid, targets, samples, 2))

    truth = np.asarray(crop_masks(targets["masks"], samples["boxes"], samples["matches"], MASK_SIZE))
    regions = align_regions(pyramid, samples["boxes"], POOLED_SIZE)
    logits = np.asarray(head(regions, np.array([[2, 0, 0], [0, 0, 0]])), "float64")
    entropies = []
    for image, region in ((0, 0), (0, 1)):
        for row in range(MASK_SIZE):
            for column in range(MASK_SIZE):
                share = 1 / (1 + np.exp(-logits[image, region, row, column]))
                is_inside = truth[image, region, row, column]
                entropies.append(-np.log(share if is_inside else 1 - share))
    assert 0.2 < np.mean(truth[0, :2]) < 0.8
    assert loss == pytest.approx(np.mean(entropies), rel=1e-4)


def test_loss_without_objects_is_zero():
    head, samples = make_head(), make_samples()
    pyramid, targets = make_pyramid_and_targets()
    samples["kinds"] = tf.zeros((2, 3), "int32")
    with tf.GradientTape() as tape:
        loss = compute_mask_loss(head, pyramid, targets, samples, 2)
    assert float(loss) == 0.0
    variables = [weight.value for weight in head.trainable_variables]
    assert not any(np.any(gradient) for gradient in tape.gradient(loss, variables))
