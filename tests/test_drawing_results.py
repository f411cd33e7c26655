"""The drawing that fits a result."""

import numpy as np
import pytest
from PIL import Image

from heads.drawing import (
    draw_detections,
    draw_result,
    draw_saliency_map,
    draw_segments,
    draw_skeletons,
    overlay_label_map,
)
from heads.drawing.palette import class_palette
from heads.metrics import encode_mask

IMAGE = np.random.default_rng(0).integers(0, 255, (90, 120, 3), "uint8")
OBJECTS = {
    "path": None,
    "boxes": np.array([[10, 10, 50, 60], [60, 20, 110, 80.0]]),
    "scores": np.array([0.9, 0.4]),
    "labels": np.array([2, 0]),
    "names": ["sheep", "cat"],
}
NAMES = ["cat", "class 1", "sheep"]


def test_objects_are_drawn_with_the_names_in_the_result():
    given = {name: OBJECTS[name] for name in ("boxes", "scores", "labels")}
    np.testing.assert_array_equal(draw_result(IMAGE, OBJECTS), draw_detections(IMAGE, given, NAMES))
    others = ("a", "b", "c", "d")
    expected = draw_detections(IMAGE, given, others, 0.5)
    np.testing.assert_array_equal(draw_result(IMAGE, OBJECTS, others, 0.5), expected)


def test_masks_of_both_forms():
    masks = np.zeros((2, 90, 120), bool)
    masks[0, 10:60, 10:50] = masks[1, 30:60, 70:100] = True
    drawn = draw_result(IMAGE, {**OBJECTS, "masks": masks})
    assert (drawn != draw_result(IMAGE, OBJECTS)).any()
    coded = draw_result(IMAGE, {**OBJECTS, "masks": list(map(encode_mask, masks))})
    np.testing.assert_array_equal(coded, drawn)
    nothing = {name: values[:0] for name, values in OBJECTS.items() if name != "path"}
    assert draw_result(IMAGE, {**nothing, "masks": []}).ndim == 3


def test_label_maps_have_a_legend_and_steady_colours():
    label_map = np.zeros((90, 120), "int32")
    label_map[:, 60:], label_map[0, 0] = 2, 255
    drawn = draw_result(IMAGE, {"label_map": label_map}, ("road", "wall", "tree", "sky"))
    expected = overlay_label_map(IMAGE, label_map, 0.5, class_palette(4))
    np.testing.assert_array_equal(drawn[:90, :120], expected)
    assert len(drawn) > 90
    assert draw_result(IMAGE, {"label_map": label_map}).shape[1] >= 120
    assert draw_result(IMAGE, {"label_map": np.full((90, 120), 255)}).shape[1] >= 120


def test_the_other_kinds():
    segments = np.full((90, 120), -1)
    segments[:40], segments[50:80, 10:60] = 1, 0
    found = {"segments": segments, "labels": np.array([0, 2]), "scores": np.array([0.2, 0.9])}
    expected = draw_segments(IMAGE, found, NAMES)
    np.testing.assert_array_equal(draw_result(IMAGE, {**found, "names": ["cat", "sheep"]}), expected)
    people = {
        "boxes": None,
        "keypoints": np.array([[[20, 30], [60, 50.0]]]),
        "scores": np.array([[0.9, 0.8]]),
    }
    expected = draw_skeletons(IMAGE, people, [(0, 1)])
    np.testing.assert_array_equal(draw_result(IMAGE, people, skeleton=[(0, 1)]), expected)
    saliency_map = np.linspace(0, 1, 90 * 120).reshape(90, 120)
    drawn = draw_result(IMAGE, {"saliency_map": saliency_map})
    np.testing.assert_array_equal(drawn, draw_saliency_map(saliency_map))
    with pytest.raises(ValueError, match=r"result must be of `predict_pictures`.*Received: \['boxes'\]"):
        draw_result(IMAGE, {"boxes": []})


def test_pictures_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(IMAGE).save(tmp_path / "a.png", exif=exif)
    label_map = np.zeros((120, 90), "int32")
    assert draw_result(tmp_path / "a.png", {"label_map": label_map}).shape[0] > 120
