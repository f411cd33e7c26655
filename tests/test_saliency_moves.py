import numpy as np
import pytest
import tensorflow as tf

from heads.data import SaliencyAugmentation, SaliencyShapes, SemanticShapes, semantic_training_batches
from heads.pictures import MEAN_PIXEL

SIZES = (48, 64, 80)


def read_batches(source, augment, count, first_step=0):
    batches = semantic_training_batches(source, augment.batch_size, augment, first_step=first_step)
    return list(batches.take(count).as_numpy_iterator())


def test_each_batch_has_a_size_of_its_own():
    source = SaliencyShapes(8, (40, 60))
    batches = read_batches(source, SaliencyAugmentation(4, SIZES), 12)
    sizes = [images.shape[1:3] for images, _ in batches]
    assert {size[0] for size in sizes} == set(SIZES)
    for images, masks in batches:
        side = images.shape[1]
        assert images.shape == (4, side, side, 3)
        assert masks.shape == (4, side, side)
        height = round(40 * side / 60)
        assert (masks[:, height:] == 255).all()
        assert set(np.unique(masks[:, :height])) == {0, 1}
        np.testing.assert_allclose(images[:, height:], np.broadcast_to(MEAN_PIXEL, images[:, height:].shape))
    later = read_batches(source, SaliencyAugmentation(4, SIZES), 2, first_step=5)
    for (images, masks), (same, same_masks) in zip(later, batches[5:7], strict=True):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(masks, same_masks)


def test_images_and_masks_are_mirrored_together():
    image = np.arange(16, dtype="float32").reshape(4, 4, 1).repeat(3, 2)
    mask = (image[..., 0] % 4 < 1).astype("int32")
    augment, seen = SaliencyAugmentation(1, 4), set()
    for number in range(20):
        moved, moved_mask = augment(image, mask, tf.constant([0, number]))
        np.testing.assert_array_equal(moved_mask, moved.numpy()[..., 0] % 4 < 1)
        seen.add(bool(moved_mask[0, 0]))
    assert seen == {True, False}
    kept, _ = SaliencyAugmentation(1, 4, flip=False)(image, mask, tf.constant([0, 0]))
    np.testing.assert_array_equal(kept, image)


def test_one_size_is_a_static_shape():
    source = SaliencyShapes(4, (40, 60))
    batches = semantic_training_batches(source, 2, SaliencyAugmentation(2, (48,)))
    assert batches.element_spec[0].shape == (2, 48, 48, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1. Received: 0"),
        ({"image_sizes": ()}, r"image_sizes must be positive whole numbers. Received: image_sizes=\(\)"),
        ({"flip": 0.5}, "flip must be True or False. Received: 0.5"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SaliencyAugmentation(**{"batch_size": 2, **options})


def test_embedded_masks_are_the_things():
    masks, scenes = SaliencyShapes(3, (48, 64), seed=5), SemanticShapes(3, (48, 64), seed=5)
    assert masks.class_names == ("background", "object")
    assert masks.num_classes == 2
    for index in range(3):
        expected = scenes[index]["masks"].any(axis=0)
        np.testing.assert_array_equal(masks[index]["semantic"], expected)
        np.testing.assert_array_equal(masks[index]["image"], scenes[index]["image"])
    loaded = [mask for _, mask in masks.load().as_numpy_iterator()]
    np.testing.assert_array_equal(loaded[2], masks[2]["semantic"])
    assert masks.check().sum() == 3 * 48 * 64
