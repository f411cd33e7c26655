"""What the page of serve.py shows of a picture."""

import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import contracts
from served_pictures import (
    Seen,
    UnusablePictureError,
    draw,
    keep_segments,
    look_at,
    name_classes,
    open_picture,
    percent,
    reduce_size,
    tabulate,
)

from heads import (
    EDN,
    Mask2Former,
    MaskRCNN,
    Resizing,
    RetinaNet,
    SemanticFPN,
    SimpleBaseline,
)
from heads.coco.segmentations import decode_mask, encode_mask

IMAGE = np.random.default_rng(0).integers(0, 256, (61, 80, 3), "uint8")
NAMES = ["cat", "dog", "sky"]
SEGMENTS = {
    "path": None,
    "segments": np.repeat([[0, 1, 2, -1]], 4, axis=0),
    "labels": np.array([0, 2, 1]),
    "scores": np.array([0.9, 0.5, 0.7]),
    "names": ["cat", "sky", "dog"],
}


class Model:
    """Stands in for a model."""

    class_names = None

    def __init__(self, **attributes):
        vars(self).update(attributes)


# Files.


def test_pictures_are_read_upright_and_their_files_deleted(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE).save(path, exif=exif)
    np.testing.assert_array_equal(open_picture(str(path), IMAGE[..., 0].size), np.rot90(IMAGE, -1))
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"^a\.png: cannot be read \(not a picture"),
        (b"no picture", r"^a\.png: cannot be read \(not a picture"),
        (None, r"^a\.png: a picture must have at most 0.00487 million pixels .* Received: 80 x 61$"),
    ],
)
def test_unusable_pictures_are_named_without_their_folder(tmp_path, content, message):
    path = tmp_path / "a.png"
    Image.fromarray(IMAGE).save(path)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnusablePictureError, match=message) as caught:
        open_picture(path, IMAGE[..., 0].size - 10)
    assert str(tmp_path) not in str(caught.value)
    assert not path.exists()


def test_a_damaged_picture_behind_a_good_header(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(IMAGE).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UnusablePictureError, match=r"^a\.jpg: cannot be read \("):
        open_picture(path, 10**6)


def test_huge_pictures_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.new("1", (9000, 9000)).save(path)
    monkeypatch.setattr("served_pictures.read_picture", lambda path: pytest.fail("it was decoded"))
    with pytest.raises(UnusablePictureError, match="Received: 9000 x 9000"):
        open_picture(path, 80_000_000)


# Predictions.


def test_people_are_looked_for_in_the_boxes_of_a_detector():
    calls = []

    def predict_pictures(image, boxes, progress):
        calls.append(boxes)
        return [{"path": None, "keypoints": np.zeros((1, 3, 2))}]

    boxes = np.array([[1, 2, 3, 4.0]])
    seen = look_at(
        Model(predict_pictures=predict_pictures), lambda path, image: (boxes, [0.9]), IMAGE, "a.png"
    )
    np.testing.assert_array_equal(calls, [[boxes]])
    assert seen.text.startswith("a.png: 80 x 61 pixels, 0.0")


def test_small_results_stay_as_they_are():
    image, result = reduce_size(IMAGE, SEGMENTS, 80)
    assert image is IMAGE
    assert result is SEGMENTS


def test_large_results_are_reduced_by_a_whole_factor():
    mask = np.zeros((61, 80), bool)
    mask[20:40, 30:55] = True
    label_map = np.arange(61 * 80).reshape(61, 80)
    result = {"boxes": np.array([[30, 20, 55, 40.0]]), "masks": [encode_mask(mask)], "label_map": label_map}
    result |= {"segments": label_map + 1, "saliency_map": label_map / 5000, "scores": np.array([0.5])}
    result |= {"keypoints": np.array([[[9, 3.0]]])}
    image, reduced = reduce_size(IMAGE, result, 39)
    assert image.shape == (21, 27, 3)
    np.testing.assert_allclose(image[0, 0], IMAGE[:3, :3].mean((0, 1)), atol=0.6)
    for name in ("label_map", "segments", "saliency_map"):
        np.testing.assert_array_equal(reduced[name], result[name][::3, ::3])
    np.testing.assert_array_equal(decode_mask(reduced["masks"][0]), mask[::3, ::3])
    np.testing.assert_allclose(reduced["boxes"], [[10, 20 / 3, 55 / 3, 40 / 3]])
    np.testing.assert_allclose(reduced["keypoints"], [[[3, 1]]])
    np.testing.assert_array_equal(reduced["scores"], [0.5])
    assert result["label_map"] is label_map


# Drawings and tables.


def test_names_of_classes():
    assert name_classes(Model(class_names=("cat",), num_classes=1)) == ("cat",)
    assert name_classes(Model(num_classes=2)) == ["class 0", "class 1"]
    assert name_classes(Model()) == []


def test_segments_below_the_threshold_are_left_out():
    kept = keep_segments(SEGMENTS, 0.6)
    np.testing.assert_array_equal(kept["segments"][0], [0, -1, 1, -1])
    np.testing.assert_array_equal(kept["labels"], [0, 1])
    objects = {"scores": np.array([0.1])}
    assert keep_segments(objects, 0.6) is objects  # the drawing has a threshold


@pytest.mark.parametrize(
    ("result", "threshold", "headers", "rows"),
    [
        (
            {"labels": np.array([1, 0, 0]), "scores": np.array([0.876, 0.5, 0.2])},
            0.5,
            ["class", "score"],
            [["dog", "0.88"], ["cat", "0.50"]],
        ),
        ({"labels": np.zeros(0, int), "scores": np.zeros(0)}, 0.5, ["class", "score"], []),
        (
            SEGMENTS,
            0.6,
            ["class", "score", "% of pixels"],
            [["cat", "0.90", "25.0"], ["dog", "0.70", "25.0"]],
        ),
        (
            {"label_map": np.array([[0, 2, 2, 2, 255]])},
            0.6,
            ["class", "% of pixels"],
            [["sky", "60.0"], ["cat", "20.0"]],
        ),
        (
            {"saliency_map": np.array([[0.1, 0.5, 0.7, 0.9]])},
            0.6,
            ["saliency", "% of pixels"],
            [["0.5 and above", "75.0"], ["below", "25.0"]],
        ),
        (
            {"keypoints": np.zeros((2, 3, 2)), "scores": np.array([[0.1, 0.7, 0.6], [0, 0, 0]])},
            0.6,
            ["person", "keypoints"],
            [["1", "2 of 3"], ["2", "0 of 3"]],
        ),
    ],
)
def test_tables(result, threshold, headers, rows):
    assert tabulate(result, threshold, NAMES) == (headers, rows)


def test_shares():
    assert [percent(share) for share in (0, 0.0001, 0.0006, 0.12345, 1)] == [
        *("0.0", "< 0.1", "0.1", "12.3", "100.0")
    ]


def test_the_threshold_hides_segments_in_the_drawing():
    model = Model(class_names=NAMES)
    image = np.zeros((4, 4, 3), "uint8")
    counts = [
        (draw(model, Seen("", image, SEGMENTS), threshold)[:4] > 0).sum() for threshold in (0.0, 0.6, 1.0)
    ]
    assert counts[0] > counts[1] > counts[2] == 0


# A head of each kind; other heads have results of the same form.
KINDS = {
    SemanticFPN: {"num_classes": 3, "channels": 8, "pyramid_channels": 8},
    RetinaNet: {"num_classes": 3, "channels": 8, "score_threshold": 0.0},
    MaskRCNN: {"num_classes": 3, "channels": 8},
    EDN: {},
    SimpleBaseline: {"num_keypoints": 3, "channels": 8, "skeleton": [(0, 1)]},
    Mask2Former: {"num_things": 2, "num_stuff": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("head", KINDS, ids=lambda head: head.__name__)
def test_every_kind_of_head_is_shown(head, monkeypatch):
    monkeypatch.setattr("served_pictures.LARGEST_SIDE", 40)
    model = head(contracts.PooledBackbone(), **KINDS[head], resizing=Resizing(image_size=(64, 64)))
    contracts.shake_weights(model)
    find_boxes = (lambda path, image: (np.array([[0, 0, 80, 61.0]]), [1])) if head is SimpleBaseline else None
    seen = look_at(model, find_boxes, IMAGE, "a.png")
    for threshold in (0.0, 0.5, 1.0):
        headers, rows = tabulate(seen.result, threshold, name_classes(model))
        assert {len(row) for row in rows} <= {len(headers)}
        drawn = draw(model, seen, threshold)
        assert drawn.dtype == np.uint8
        assert drawn.shape[2] == 3
