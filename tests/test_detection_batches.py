import pathlib

import numpy as np
import pytest
import tensorflow as tf

from heads.data.coco import CocoDataset
from heads.data.detection_batches import detection_evaluation_batches, detection_training_batches
from heads.data.detection_moves import DetectionAugmentation, Move, count_runs, move_image
from heads.pictures import MEAN_PIXEL

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


class Pictures:
    """A source of pictures of the given sizes; each object is a bright rectangle on black.

    Picture k has the value k in its top left corner, so that it can be recognised.
    """

    class_names = ("a", "b", "c")
    num_classes = 3

    def __init__(self, sizes, boxes=None, labels=None, with_masks=False):
        self.image_sizes = np.array(sizes, np.int32)
        self.image_ids = list(range(len(sizes)))
        self.boxes = [np.reshape(found, (-1, 4)) for found in boxes or [[]] * len(sizes)]
        self.labels = labels or [[1] * len(found) for found in self.boxes]
        self.with_masks = with_masks

    def load(self, indices=None):
        def read(index):
            image = np.zeros((*self.image_sizes[index], 3), np.uint8)
            for x1, y1, x2, y2 in self.boxes[index].astype(int):
                image[y1:y2, x1:x2] = 255
            image[0, 0] = index
            return image, self.boxes[index].astype(np.float32), np.array(self.labels[index], np.int32)

        def load(index):
            image, boxes, labels = tf.numpy_function(read, [index], (tf.uint8, tf.float32, tf.int32))
            return {
                "index": index,
                "image": tf.ensure_shape(image, (None, None, 3)),
                "boxes": tf.ensure_shape(boxes, (None, 4)),
                "labels": tf.ensure_shape(labels, (None,)),
            }

        return (tf.data.Dataset.range(len(self.image_ids)) if indices is None else indices).map(load)

    def load_segmentations(self, index):
        found = []
        for number, (x1, y1, x2, y2) in enumerate(self.boxes[index]):
            mask = np.zeros(self.image_sizes[index], bool)
            mask[int(y1) : int(y2), int(x1) : int(x2)] = True
            polygon = np.array([x1, y1, x2, y1, x2, y2, x1, y2], float)
            is_crowd = self.labels[index][number] == -2
            found.append(None if is_crowd else [polygon] if number % 2 else count_runs(mask))
        return found


def keep(image, seed):
    """Returns an augmentation that changes nothing."""
    size = tf.shape(image)[:2]
    return tf.cast(image, tf.float32), Move(size, size, tf.zeros(2, tf.int32), size, tf.constant(False))


def tight_box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


# Training batches


def test_batches_are_padded():
    sizes, boxes = [(20, 40), (33, 30), (10, 10)], [[[2, 3, 10, 9], [20, 5, 40, 20]], [[1, 1, 30, 33]], []]
    source = Pictures(sizes, boxes, with_masks=True)
    ((inputs, targets),) = detection_training_batches(
        source, 3, keep, shuffle=False, group_by_ratio=False
    ).take(1)
    assert set(inputs) == {"images", "image_sizes"}
    assert inputs["images"].shape == (3, 64, 64, 3)  # the largest, 33 x 40, rounded up
    assert [value.dtype for value in (*inputs.values(), *targets.values())] == [
        *(tf.float32, tf.int32),
        *(tf.float32, tf.int32, tf.uint8),
    ]
    np.testing.assert_array_equal(inputs["image_sizes"], sizes)
    for image, example, (height, width) in zip(inputs["images"].numpy(), source.load(), sizes, strict=True):
        np.testing.assert_array_equal(image[:height, :width], example["image"])
        image[:height, :width] = MEAN_PIXEL
        np.testing.assert_array_equal(image, np.broadcast_to(np.float32(MEAN_PIXEL), image.shape))
    expected = [boxes[0], [*boxes[1], [0] * 4], [[0] * 4] * 2]
    np.testing.assert_array_equal(targets["boxes"], expected)
    np.testing.assert_array_equal(targets["labels"], [[1, 1], [1, -1], [-1, -1]])
    assert targets["masks"].shape == (3, 2, 64, 64)
    for masks, found in zip(targets["masks"].numpy(), source.boxes, strict=True):
        for mask, (x1, y1, x2, y2) in zip(masks, found.astype(int), strict=False):
            assert np.all(mask[y1:y2, x1:x2] == 1)
            assert mask.sum() == (y2 - y1) * (x2 - x1)
        assert not masks[len(found) :].any()


@pytest.mark.parametrize("with_masks", [False, True])
def test_images_without_objects_have_one_empty_slot(with_masks):
    source = Pictures([(20, 40), (8, 8)], with_masks=with_masks)
    batches = [
        *detection_training_batches(source, 2, DetectionAugmentation(image_size=(16, 16))).take(2),
        *detection_evaluation_batches(source, 2),
    ]
    for _, targets in batches:
        np.testing.assert_array_equal(targets["boxes"], np.zeros((2, 1, 4)))
        np.testing.assert_array_equal(targets["labels"], [[-1], [-1]])
        assert ("masks" in targets) == with_masks
        if with_masks:
            assert targets["masks"].shape[:2] == (2, 1)
            assert not np.any(targets["masks"])


@pytest.mark.parametrize("image_size", [None, (48, 64)])
def test_boxes_and_masks_follow_the_pixels(image_size):
    sizes = [(40, 60), (60, 40), (50, 50)]
    boxes = [[[10, 8, 30, 30]], [[5, 30, 35, 52]], [[20, 20, 45, 45]]]
    options = {"short_sides": (30, 45)} if image_size is None else {"scale_range": (0.5, 2.0)}
    augment = DetectionAugmentation(image_size=image_size, **options)
    source = Pictures(sizes, boxes, with_masks=True)
    found = 0
    for inputs, targets in detection_training_batches(source, 2, augment, seed=3).take(20):
        for image, size, (box, *_), (label, *_), (mask, *_) in zip(
            *inputs.values(), *(targets[key].numpy() for key in ("boxes", "labels", "masks")), strict=True
        ):
            height, width = size.numpy()
            bright = image.numpy()[:height, :width, 0] > 127
            if not bright.any():
                assert label == -1 or not mask.any()
                continue
            found += 1
            assert label == 1
            # A pixel whose centre is on the edge may belong to either side.
            np.testing.assert_allclose(box, tight_box(bright), atol=1.01)
            np.testing.assert_allclose(box, tight_box(mask), atol=0.51)
            assert np.mean(bright != mask[:height, :width]) < 0.05
            assert not mask[height:].any()
            assert not mask[:, width:].any()
    assert found > 20


def test_fixed_sizes_have_static_shapes():
    source = Pictures([(20, 40), (8, 8)], with_masks=True)
    augment = DetectionAugmentation(image_size=(24, 40))
    inputs, targets = detection_training_batches(source, 2, augment).element_spec
    assert inputs["images"].shape == (2, 24, 40, 3)
    assert inputs["image_sizes"].shape == (2, 2)
    assert targets["boxes"].shape.as_list() == [2, None, 4]
    assert targets["labels"].shape.as_list() == [2, None]
    assert targets["masks"].shape.as_list() == [2, None, 24, 40]
    ((inputs, targets),) = detection_training_batches(source, 2, augment).take(1)
    assert inputs["images"].shape == (2, 24, 40, 3)
    assert targets["masks"].shape[2:] == (24, 40)

    inputs, targets = detection_training_batches(source, 2, DetectionAugmentation((20,))).element_spec
    assert inputs["images"].shape.as_list() == [2, None, None, 3]
    assert targets["masks"].shape.as_list() == [2, None, None, None]


def indices_of(dataset, count):
    return [
        images[:, 0, 0, 0].numpy().astype(int).tolist()
        for images in (inputs["images"] for inputs, _ in dataset.take(count))
    ]


def test_each_epoch_has_each_image_once():
    source = Pictures([(8, 8)] * 6)
    batches = indices_of(detection_training_batches(source, 2, keep, seed=1), 6)
    epochs = np.reshape(batches, (2, 6)).tolist()
    assert [sorted(epoch) for epoch in epochs] == [list(range(6))] * 2
    assert epochs[0] != epochs[1]
    ordered = indices_of(detection_training_batches(source, 4, keep, shuffle=False), 3)
    assert ordered == [[0, 1, 2, 3], [4, 5, 0, 1], [2, 3, 4, 5]]


def test_batches_repeat_exactly_with_one_seed():
    source = Pictures([(20, 30), (30, 20)] * 2, [[[3, 3, 15, 15]]] * 4, with_masks=True)
    augment = DetectionAugmentation(image_size=(24, 24), scale_range=(0.5, 2))

    def take(seed):
        batches = detection_training_batches(source, 2, augment, seed).take(4)
        return [value.numpy().tobytes() for batch in batches for value in tf.nest.flatten(batch)]

    tf.random.set_seed(1)
    first = take(7)
    tf.random.set_seed(2)
    assert first == take(7)
    other = take(8)
    assert first[1::5] != other[1::5]  # the images: order and augmentation


def test_wide_and_tall_pictures_are_batched_apart():
    sizes = [(8, 16), (16, 8), (8, 9), (9, 8), (8, 8), (12, 4), (8, 20)]
    is_wide = [True, False, True, False, True, False, True]
    source = Pictures(sizes)
    batches = indices_of(detection_training_batches(source, 2, keep), 35)
    epochs = np.reshape(batches, (10, 7))
    assert np.array_equal(np.sort(epochs), np.tile(np.arange(7), (10, 1)))
    # One batch may hold what is left of an epoch, another may reach into the next epoch.
    assert sum(is_wide[first] != is_wide[second] for first, second in batches) <= 2 * 10
    apart = indices_of(detection_training_batches(Pictures(sizes[:4]), 2, keep), 20)
    assert all(is_wide[first] == is_wide[second] for first, second in apart)
    mixed = indices_of(detection_training_batches(source, 2, keep, group_by_ratio=False), 20)
    assert any(is_wide[first] != is_wide[second] for first, second in mixed)
    fixed = detection_training_batches(source, 2, DetectionAugmentation(image_size=(16, 16), flip=False))
    assert len({tuple(inputs["image_sizes"][:, 0].numpy() == 16) for inputs, _ in fixed.take(20)}) > 2


def cut_left_half(image, seed):
    """Returns the left 10 columns of a picture that is 20 wide."""
    pairs = (tf.constant(pair) for pair in ([20, 20], [20, 20], [0, 0], [20, 10]))
    move = Move(*pairs, tf.constant(False))
    return move_image(image, move), move


class Triangle(Pictures):
    """Returns a picture of 20 x 20 with three things; the first is a triangle with its tip at the left."""

    def load_segmentations(self, index):
        triangle = [np.array([4.0, 18, 20, 2, 20, 18])]
        outside = [np.array([12.0, 0, 20, 0, 20, 4, 12, 4])]
        return [triangle, outside, None][: len(self.boxes[index])]


def test_what_a_crop_leaves():
    boxes = [[[4, 2, 20, 18], [2, 0, 20, 4], [5, 5, 20, 10], [10, 5, 20, 10]]]
    labels = [[0, 1, -2, 2]]
    plain = detection_training_batches(Pictures([(20, 20)], boxes, labels), 1, cut_left_half)
    ((_, targets),) = plain.take(1)
    np.testing.assert_array_equal(targets["boxes"], [[[4, 2, 10, 18], [2, 0, 10, 4], [5, 5, 10, 10]]])
    np.testing.assert_array_equal(targets["labels"], [[0, 1, -2]])

    # The second thing's box reaches into the window, its mask does not; a crowd has no mask to decide by.
    source = Triangle([(20, 20)], [boxes[0][:3]], [labels[0][:3]], with_masks=True)
    ((_, targets),) = detection_training_batches(source, 1, cut_left_half).take(1)
    np.testing.assert_array_equal(targets["labels"], [[0, -2]])
    mask = targets["masks"][0, 0].numpy()
    np.testing.assert_array_equal(targets["boxes"], [[tight_box(mask), [5, 5, 10, 10]]])
    x1, y1, x2, y2 = tight_box(mask)
    assert (x1, x2, y2) == (4, 10, 18)
    assert 11 <= y1 <= 13  # at column 10 the triangle is 6 high
    assert not targets["masks"][0, 1].numpy().any()


def test_batch_size_is_checked():
    source = Pictures([(8, 8)])
    with pytest.raises(ValueError, match=r"batch_size must be at least 1. Received: 0"):
        detection_training_batches(source, 0, keep)
    with pytest.raises(ValueError, match=r"batch_size must be at least 1. Received: -1"):
        detection_evaluation_batches(source, -1)


# Evaluation batches


def test_evaluation_keeps_order_and_pixels():
    sizes = [(20, 40), (33, 30), (10, 10)]
    boxes = [[[2, 3, 10, 9]], [], [[0, 0, 0.005, 8], [1, 1, 5, 5]]]
    source = Pictures(sizes, boxes)
    batches = list(detection_evaluation_batches(source, 2))
    assert [inputs["images"].shape for inputs, _ in batches] == [(2, 64, 64, 3), (1, 32, 32, 3)]
    for key in ("image_sizes", "original_sizes"):
        np.testing.assert_array_equal(np.concatenate([inputs[key] for inputs, _ in batches]), sizes)
    images = [image for inputs, _ in batches for image in inputs["images"].numpy()]
    for image, example, (height, width) in zip(images, source.load(), sizes, strict=True):
        np.testing.assert_array_equal(image[:height, :width], example["image"])
        assert np.all(image[height:] == np.float32(MEAN_PIXEL))
    np.testing.assert_array_equal(batches[0][1]["labels"], [[1], [-1]])
    np.testing.assert_allclose(batches[1][1]["boxes"], [boxes[2]])  # nothing is left out


def test_evaluation_resizes():
    source = Pictures([(20, 40), (40, 30)], [[[10, 5, 20, 10]], [[3, 4, 30, 40]]], with_masks=True)
    (first, second) = detection_evaluation_batches(source, short_side=30, long_side=50)
    assert first[0]["images"].shape == (1, 32, 64, 3)
    np.testing.assert_array_equal(first[0]["image_sizes"], [[25, 50]])
    np.testing.assert_array_equal(first[0]["original_sizes"], [[20, 40]])
    np.testing.assert_allclose(first[1]["boxes"], [[[12.5, 6.25, 25, 12.5]]])
    np.testing.assert_array_equal(second[0]["image_sizes"], [[40, 30]])
    np.testing.assert_array_equal(
        second[0]["images"][0, :40, :30, 0] > 127, second[1]["masks"][0, 0, :40, :30]
    )

    ((inputs, targets),) = detection_evaluation_batches(source, 2, image_size=(24, 40))
    assert inputs["images"].shape == (2, 24, 40, 3)
    np.testing.assert_array_equal(inputs["image_sizes"], [[20, 40], [24, 18]])
    np.testing.assert_array_equal(inputs["original_sizes"], [[20, 40], [40, 30]])
    assert targets["masks"].shape == (2, 1, 24, 40)
    spec = detection_evaluation_batches(source, 2, image_size=(24, 40)).element_spec
    assert spec[0]["images"].shape.as_list() == [None, 24, 40, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (64, 64), "short_side": 32}, "short_side must be .*short_side=32.*64"),
        ({"short_side": 100, "long_side": 50}, "not above long_side.*long_side=50"),
        ({"short_side": 0}, "short_side must be at least 1"),
        ({"image_size": 64 * (1,)}, "image_size must be"),
    ],
)
def test_bad_evaluation_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        detection_evaluation_batches(Pictures([(8, 8)]), **arguments)


# Real data


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"needs the data sets in {SHARED_DATA}")
@pytest.mark.parametrize(
    ("name", "with_masks", "options"),
    [
        ("bccd", False, {"image_size": (160, 160), "scale_range": (0.1, 2.0)}),
        ("nuclei", True, {"image_size": (128, 128), "scale_range": (0.8, 1.25)}),
        ("coco_cc", True, {"short_sides": (96, 128), "long_side": 213}),
    ],
)
def test_real_batches(name, with_masks, options):
    folder = SHARED_DATA / name
    source = CocoDataset(folder / "annotations/instances_val.json", folder / "images/val", with_masks)
    batches = detection_training_batches(source, 2, DetectionAugmentation(**options))
    for inputs, targets in batches.take(3):
        boxes, labels = targets["boxes"].numpy(), targets["labels"].numpy()
        sizes = inputs["image_sizes"].numpy()
        assert np.isfinite(inputs["images"]).all()
        assert np.all(boxes >= 0)
        assert np.all(boxes[..., 2:] <= sizes[:, None, ::-1])
        assert np.all(boxes[..., 2:] > boxes[..., :2], axis=-1)[labels != -1].all()
        assert labels.max() < source.num_classes
        if not with_masks:
            continue
        masks = targets["masks"].numpy()
        assert not masks[labels < 0].any()
        for mask, box in zip(masks[labels >= 0], boxes[labels >= 0], strict=True):
            if mask.any():  # the masks were drawn by hand, and the boxes computed from them
                np.testing.assert_allclose(tight_box(mask), box, atol=2.5)
