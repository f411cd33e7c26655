"""Slices, mirror images and scales of pictures against the whole picture, with a detector that is exact."""

import functools

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths
from scipy import ndimage
from test_prediction import make_detector

from heads import MaskRCNN, Resizing, detect_in_slices, detect_in_views
from heads.views import find_parts

COLOURS = ((255, 0, 0), (0, 0, 255))


class BlobDetector:
    """Finds red and blue rectangles of at least 3 pixels, exactly; small ones, such as parts, score best."""

    class_names, num_classes, size_divisor, iou_threshold = ["red", "blue"], 2, 16, 0.5
    max_detections = 300

    def __init__(self, resizing=None, sees=lambda box, size: True):
        self.resizing = Resizing() if resizing is None else resizing
        self.sees, self.batches = sees, []

    def predict_resized(self, images, image_sizes, original_sizes):
        self.batches.append(images.shape)
        return [self.detect(*each) for each in zip(images, image_sizes, original_sizes, strict=True)]

    def detect(self, image, image_size, original_size):
        boxes, labels = [], []
        for label, colour in enumerate(COLOURS):
            places, _ = ndimage.label(np.abs(image - np.array(colour)).max(axis=2) < 120)
            for rows, columns in ndimage.find_objects(places):
                box = columns.start, rows.start, columns.stop, rows.stop
                if min(box[2] - box[0], box[3] - box[1]) >= 3 and self.sees(box, image_size):
                    boxes.append(box)
                    labels.append(label)
        count = len(boxes)
        boxes = (
            np.array(boxes, "float32").reshape(-1, 4) * np.tile(original_size / image_size, 2)[[1, 0, 3, 2]]
        )
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        masks = np.zeros((self.max_detections, 28, 28), "float32")
        masks[:count, :, :14] = 1  # the left half
        pad = self.max_detections - count
        return {
            "boxes": np.pad(boxes, ((0, pad), (0, 0))).astype("float32"),
            "scores": np.pad(0.9 - areas / 1e5, (0, pad)).astype("float32"),
            "labels": np.pad(labels, (0, pad), constant_values=-1).astype("int32"),
            "masks": masks,
        }


def draw_objects(boxes, size=(200, 300)):
    picture = np.full((*size, 3), 128, "uint8")
    for index, (left, top, right, bottom) in enumerate(boxes):
        picture[top:bottom, left:right] = COLOURS[index % 2]
    return picture


def sort_boxes(result):
    return result["boxes"][np.lexsort(result["boxes"].T)]


def scatter_boxes(seed, most=20):
    """Returns boxes of 6 .. 20 pixels, one in each cell of a grid, anywhere in it."""
    random = np.random.default_rng(seed)
    boxes = []
    for top in range(0, 175, most + 5):
        for left in range(0, 275, most + 5):
            width, height = random.integers(6, most + 1, 2)
            x, y = left + random.integers(0, most + 2 - width), top + random.integers(0, most + 2 - height)
            boxes.append((x, y, x + width, y + height))
    return boxes


@pytest.mark.parametrize("with_whole", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_slices_find_each_object_once_and_whole(seed, with_whole):
    """Objects no larger than the overlap, many of which are cut by slices; their parts have higher scores."""
    boxes = scatter_boxes(seed)
    picture, model = draw_objects(boxes), BlobDetector()
    (whole,) = model_results(model, picture)
    assert len(whole["boxes"]) == len(boxes)
    (found,) = detect_in_slices(model, picture, (80, 100), 0.25, with_whole, batch_size=3)
    np.testing.assert_array_equal(sort_boxes(found), sort_boxes(whole))
    np.testing.assert_array_equal(sort_boxes(found), np.array(boxes)[np.lexsort(np.array(boxes).T)])
    assert (np.diff(found["scores"]) <= 0).all()
    assert found["names"] == [("red", "blue")[label] for label in found["labels"]]
    assert {shape[0] for shape in model.batches[1:]} <= {1, 2, 3}
    assert 3 in {shape[0] for shape in model.batches}


def model_results(model, picture):
    """Returns what the model finds in the picture as it is."""
    return detect_in_views(model, picture, flip=False)


@pytest.mark.parametrize("axis", [0, 1])
def test_objects_at_every_place_of_a_border(axis):
    """An object is moved over the border of slices pixel by pixel."""
    for start in range(30, 90):
        box = (start, 40, start + 18, 52) if axis else (40, start, 52, start + 18)
        (found,) = detect_in_slices(BlobDetector(), draw_objects([box], (160, 160)), 80, 0.25, False)
        np.testing.assert_array_equal(found["boxes"], [box], err_msg=str(start))


def test_objects_larger_than_a_slice_come_from_the_whole_picture():
    box = (20, 30, 250, 180)
    picture = draw_objects([box])
    (found,) = detect_in_slices(BlobDetector(), picture, 80, 0.2)
    # A slice in the middle of the object contains only the object, which touches all its borders.
    np.testing.assert_array_equal(found["boxes"], [box])
    (parts,) = detect_in_slices(BlobDetector(), picture, 80, 0.2, with_whole=False)
    assert len(parts["boxes"]) > 1


def test_small_objects_are_seen_in_slices_alone():
    boxes = scatter_boxes(0, most=12)
    picture = draw_objects(boxes)
    # The whole picture is resized to a third, where no object has 6 pixels.
    model = BlobDetector(Resizing((64, 96)), lambda box, size: min(box[2] - box[0], box[3] - box[1]) >= 6)
    assert len(model_results(model, picture)[0]["boxes"]) == 0
    (found,) = detect_in_slices(model, picture, (64, 96), 0.25)
    np.testing.assert_array_equal(sort_boxes(found), np.array(boxes)[np.lexsort(np.array(boxes).T)])


def test_masks_move_with_their_boxes():
    boxes = scatter_boxes(1)
    picture = draw_objects(boxes)
    (whole,) = model_results(BlobDetector(), picture)
    (found,) = detect_in_slices(BlobDetector(), picture, 80, 0.25)
    assert found["masks"].shape == (len(boxes), 200, 300)
    orders = [np.lexsort(each["boxes"].T) for each in (found, whole)]
    np.testing.assert_array_equal(found["masks"][orders[0]], whole["masks"][orders[1]])
    (coded,) = detect_in_slices(BlobDetector(), picture, 80, 0.25, masks="run_lengths")
    for mask, runs in zip(found["masks"], coded["masks"], strict=True):
        np.testing.assert_array_equal(run_lengths.decode(runs), mask)


def test_mirror_images_are_mirrored_back():
    boxes = scatter_boxes(2)
    picture = draw_objects(boxes)

    def sees_left(box, size):
        return box[2] <= size[1] / 2 + 20

    alone = BlobDetector(sees=sees_left)
    assert len(model_results(alone, picture)[0]["boxes"]) < len(boxes)
    (found,) = detect_in_views(alone, picture)
    np.testing.assert_array_equal(sort_boxes(found), np.array(boxes)[np.lexsort(np.array(boxes).T)])
    for mask, (left, top, right, bottom) in zip(found["masks"], found["boxes"].astype(int), strict=True):
        columns = np.flatnonzero(mask.any(axis=0))
        # The left half of what the model saw: of the objects that only the mirror image shows, it is the
        # right one.
        middle, width = columns.mean() + 0.5, right - left
        assert mask[:top].sum() == mask[bottom:].sum() == 0
        expected = left + (0.25 if right <= 170 else 0.75) * width
        assert abs(middle - expected) <= 1 or 130 <= left + width / 2 <= 170


def test_scales_make_small_objects_visible():
    boxes = [(20, 20, 22, 22), (60, 40, 90, 90)]
    picture, model = draw_objects(boxes), BlobDetector()
    assert len(model_results(model, picture)[0]["boxes"]) == 1
    (found,) = detect_in_views(model, picture, scales=(1, 2), flip=False)
    assert len(found["boxes"]) == 2
    np.testing.assert_allclose(sort_boxes(found), np.array(boxes), atol=1)
    assert [shape[1:3] for shape in model.batches] == [(208, 304), (208, 304), (400, 608)]
    fixed = BlobDetector(Resizing((100, 150)))
    detect_in_views(fixed, picture, scales=(1, 1.5), flip=False)
    assert [shape[1:3] for shape in fixed.batches] == [(100, 150), (160, 240)]


def test_several_pictures_files_and_nothing_found(tmp_path):
    pictures = [draw_objects([]), draw_objects([(5, 5, 25, 25)], (60, 40)), draw_objects(scatter_boxes(3))]
    for name, picture in zip("abc", pictures, strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    found = detect_in_slices(BlobDetector(), tmp_path, 80, batch_size=4, progress=False)
    assert [each["path"].name for each in found] == ["a.png", "b.png", "c.png"]
    assert [len(each["boxes"]) for each in found] == [0, 1, len(scatter_boxes(3))]
    assert found[0]["masks"].shape == (0, 200, 300)
    (limited,) = detect_in_slices(BlobDetector(), pictures[2], 80, max_detections=7)
    assert len(limited["boxes"]) == 7
    (none,) = detect_in_slices(BlobDetector(), pictures[2], 80, score_threshold=0.95)
    assert len(none["boxes"]) == 0


def test_doubtful_boxes_and_other_classes_remove_nothing():
    boxes = np.array([(0, 0, 10, 10), (0, 0, 30, 10), (0, 0, 10, 40), (50, 0, 60, 9)], "float32")
    num_cuts = np.array([1, 0, 0, 1])
    part = [True, False, False, False]
    certain = np.array([0.9, 0.5, 0.9, 0.9])
    assert find_parts(boxes, certain, np.array([0, 0, 1, 0]), num_cuts).tolist() == part
    doubtful = np.array([0.9, 0.4, 0.9, 0.9])
    assert not find_parts(boxes, doubtful, np.array([0, 0, 1, 0]), num_cuts).any()
    assert not find_parts(boxes, certain, np.array([0, 1, 1, 0]), num_cuts).any()
    assert not find_parts(boxes, certain, np.array([0, 0, 1, 0]), num_cuts * 0).any()


@pytest.mark.parametrize("head", [None, pytest.param(MaskRCNN, marks=pytest.mark.slow)])
def test_one_view_is_what_predict_pictures_gives(head):
    options = {} if head is None else {"head": head, "num_proposals": 20, "num_samples": 8}
    model = functools.partial(make_detector, **options)(Resizing(short_side=48))
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), "uint8")
    (expected,) = model.predict_pictures(picture)
    assert len(expected["boxes"])
    for (found,) in (
        detect_in_views(model, picture, flip=False),
        detect_in_slices(model, picture, 64),  # one slice, which is the whole picture
    ):
        assert found.keys() == expected.keys()
        np.testing.assert_allclose(found["boxes"], expected["boxes"], rtol=1e-6)
        np.testing.assert_array_equal(found["labels"], expected["labels"])
        np.testing.assert_array_equal(found.get("masks"), expected.get("masks"))
    (found,) = detect_in_views(model, picture, scales=(0.5, 1.0), batch_size=2)
    assert len(found["boxes"]) <= model.max_detections
    (found,) = detect_in_slices(model, picture, 32, batch_size=2, max_detections=9)
    assert 0 < len(found["boxes"]) <= 9
    assert (found["boxes"] <= [60, 40, 60, 40]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slice_size": 0}, r"slice_size must be .* Received: 0"),
        ({"overlap": 1.0}, r"overlap must be a number from 0 to below 1. Received: 1.0"),
        ({"max_detections": 0}, "max_detections must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"masks": "polygons"}, "masks must be one of"),
        ({"with_whole": "yes"}, "with_whole must be True or False. Received: 'yes'"),
        ({"model": object()}, "model must be a detector, which gives boxes. Received: object"),
    ],
)
def test_slices_refuse(options, message):
    options = {"model": BlobDetector(), "pictures": draw_objects([]), "slice_size": 80, **options}
    with pytest.raises(ValueError, match=message):
        detect_in_slices(**options)


@pytest.mark.parametrize("scales", [(), (0,), (1, -2), "12", None, (np.inf,)])
def test_scales_are_checked(scales):
    with pytest.raises(ValueError, match=r"scales must be one or more numbers above 0. Received: "):
        detect_in_views(BlobDetector(), draw_objects([]), scales)
