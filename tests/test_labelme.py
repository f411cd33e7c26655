import json
import math

import numpy as np
import pytest
from format_folders import draw_shapes, make_labelme, make_shapes, write_labelme
from PIL import Image

from heads.data import open_detection_folder
from heads.data.formats.labelme import join_outlines, list_splits, trace_shape
from heads.pictures import read_picture

PICTURE = {"file_name": "a.jpg", "height": 20, "width": 40}
SQUARE = [[4, 5], [14, 5], [14, 15], [4, 15]]


def polygon(points=SQUARE, label="cat", **fields):
    return {
        "label": label,
        "points": points,
        "group_id": None,
        "shape_type": "polygon",
        "flags": {},
        **fields,
    }


def write(folder, *shapes, name="a", **fields):
    Image.new("RGB", (40, 20)).save(folder / f"{name}.jpg")
    content = make_labelme({**PICTURE, "file_name": f"{name}.jpg"}, list(shapes), **fields)
    (folder / f"{name}.json").write_text(json.dumps(content))
    return open_detection_folder(folder)


# Shapes.


def test_polygons_and_rectangles(tmp_path):
    dataset = write(tmp_path, polygon(), *make_shapes("dog", (20, 2, 30, 12)))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.boxes[0].tolist() == [[4, 5, 14, 15], [20, 2, 30, 12]]
    entries = dataset.to_coco()["annotations"]
    assert [entry["id"] for entry in entries] == ["a.json shape 1", "a.json shape 2"]
    assert entries[1]["segmentation"] == [[20, 2, 30, 2, 30, 12, 20, 12]]
    assert dataset.check(progress=False).tolist() == [1, 1]
    (polygon_of_first,) = open_detection_folder(tmp_path, with_masks=True).load_segmentations(0)[0]
    np.testing.assert_array_equal(polygon_of_first.reshape(-1, 2), SQUARE)


def test_early_files_have_polygons_without_a_type():
    shape = {"label": "cat", "line_color": None, "fill_color": None, "points": SQUARE}
    np.testing.assert_array_equal(trace_shape(shape), SQUARE)
    np.testing.assert_array_equal(trace_shape({**shape, "shape_type": None}), SQUARE)


def test_circles_are_a_centre_and_a_point_on_them():
    corners = trace_shape(polygon([[10, 8], [13, 12]], shape_type="circle"))
    np.testing.assert_allclose(np.hypot(*(corners - [10, 8]).T), 5)
    x, y = corners.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    assert area == pytest.approx(25 * math.pi, rel=2e-3)
    assert [*corners.min(0), *corners.max(0)] == pytest.approx([5, 3, 15, 13], abs=0.01)


def test_turned_rectangles_have_four_points():
    corners = [[10, 2], [14, 6], [10, 10], [6, 6]]
    for kind in ("rectangle", "oriented_rectangle"):
        np.testing.assert_array_equal(trace_shape(polygon(corners, shape_type=kind)), corners)


def test_shapes_of_one_group_are_one_object(tmp_path):
    left, right = polygon(group_id=1), polygon([[20, 5], [30, 5], [30, 9]], group_id=1)
    dataset = write(tmp_path, left, right, polygon(group_id=1, label="dog"), polygon(), polygon())
    entries = dataset.to_coco()["annotations"]
    assert [entry["id"] for entry in entries] == [f"a.json shape {number}" for number in (1, 3, 4, 5)]
    assert entries[0]["bbox"] == [4, 5, 26, 10]
    assert [len(entry["segmentation"]) for entry in entries] == [2, 1, 1, 1]


def test_shapes_without_area_are_left_out(tmp_path, capsys):
    points = {"point": [[1, 2]], "line": [[1, 2], [3, 4]], "linestrip": SQUARE}
    dataset = write(tmp_path, *[polygon(value, shape_type=kind) for kind, value in points.items()], polygon())
    dataset.check()
    assert len(dataset.labels[0]) == 1
    assert "3 points and lines are left out, such as a.json shape 1" in capsys.readouterr().out


def test_masks_lie_at_their_first_point():
    mask = np.ones((3, 4), bool)
    mask[0, 0] = False
    box, runs = join_outlines([{"mask": mask, "left_top": np.array([5, 2])}], (20, 40))
    assert box == [5, 2, 9, 5]
    from pycocotools import mask as run_lengths

    drawn = run_lengths.decode(runs)
    assert drawn.sum() == 11
    assert drawn[2:5, 5:9].sum() == 11
    # Beyond the edges, with a polygon, and with nothing left.
    joined = [{"mask": mask, "left_top": np.array([-2, -1])}, {"mask": mask, "left_top": np.array([38, 19])}]
    box, runs = join_outlines([*joined, np.array(SQUARE, float)], (20, 40))
    assert box == [0, 0, 40, 20]
    assert run_lengths.decode(runs).sum() == 4 + 1 + 100
    box, runs = join_outlines([{"mask": mask, "left_top": np.array([50, 50])}], (20, 40))
    assert box == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (polygon([[1, 2], [3, 4]]), "a polygon of 3 points or more, .* Received: 'polygon' of 2"),
        (polygon(shape_type="circle"), "Received: 'circle' of 4"),
        (polygon(shape_type="star"), "Received: 'star' of 4"),
        (polygon([[1, 2], [3, "4"], [5, 6]]), r"points must be a list of \[x, y\]"),
        (polygon([[1, 2], [3, math.nan], [5, 6]]), r"points must be a list of \[x, y\]"),
        (polygon([[1, 2, 3]]), r"points must be a list of \[x, y\]"),
        (polygon([]), r"points must be .* Received: \[\]"),
        (polygon(None), r"points must be .* Received: None"),
        (polygon(SQUARE[:2], shape_type="mask"), "the mask must be a PNG in base64"),
        (polygon(SQUARE[:2], shape_type="mask", mask="abcd"), "the mask must be a PNG in base64"),
    ],
)
def test_faulty_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        trace_shape(shape)


def test_all_faults_are_in_one_error(tmp_path):
    write(tmp_path, polygon(SQUARE[:2]), polygon(), polygon(label=None), polygon(label="horse"))
    write(tmp_path, polygon(), name="b", imageHeight=21)
    write(tmp_path, polygon([[60, 5], [70, 5], [70, 9]]), name="c")
    write(tmp_path, polygon(), name="d")
    (tmp_path / "d.jpg").unlink()
    (tmp_path / "e.json").write_text('{"shapes": ')
    (tmp_path / "f.json").write_text('{"shapes": null}')
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    dataset = open_detection_folder(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    with pytest.raises(ValueError, match="has faulty files or annotations") as error:
        dataset.check(progress=False)
    for part in (
        "a.json shape 1: the shape must be",
        "a.json shape 3: the label must be one of cat, dog. Received: None",
        "a.json shape 4: the label must be one of cat, dog. Received: 'horse'",
        "b.jpg: the picture must have the (height, width) of its annotation, (21, 40)",
        "'c.json shape 1': the box [60, 5, 10, 4] lies outside of the picture",
        "d.jpg: cannot be read (No such file",
        "e.json (",
        'f.json: must hold a list of "shapes". Received: None',
    ):
        assert part in str(error.value), part
    assert "shape 2" not in str(error.value)


# Pictures.


def test_a_picture_in_the_file_itself(tmp_path):
    _, content, pixels = draw_shapes(2)
    write_labelme(tmp_path, content, pixels, embedded=True)
    dataset = open_detection_folder(tmp_path)
    assert dataset.image_ids == ["train/1.json", "train/2.json"]
    dataset.check(progress=False)
    for example, wanted in zip(dataset.load(), pixels.values(), strict=True):
        np.testing.assert_array_equal(example["image"], wanted)
    np.testing.assert_array_equal(read_picture(tmp_path / "train/2.json"), pixels[2])
    (tmp_path / "other.json").write_text('{"imageData": null}')
    with pytest.raises(ValueError, match=r"other\.json: cannot be read"):
        read_picture(tmp_path / "other.json")


def test_where_pictures_are_found(tmp_path):
    (tmp_path / "labels").mkdir()
    for name, path in (("a", "..\\a.jpg"), ("b", "C:\\pictures\\b.jpg"), ("c", None)):
        write(tmp_path, polygon(), name=name, imagePath=path)
        (tmp_path / f"{name}.json").rename(tmp_path / f"labels/{name}.json")
        if name != "a":
            (tmp_path / f"{name}.jpg").rename(tmp_path / f"labels/{name}.jpg")
    dataset = open_detection_folder(tmp_path / "labels")
    assert [path.resolve() for path in dataset.image_paths] == [
        tmp_path / "a.jpg",
        tmp_path / "labels/b.jpg",
        tmp_path / "labels/c.jpg",
    ]
    dataset.check(progress=False)


def test_sizes_that_are_missing_are_looked_up(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "alone.png")
    dataset = write(tmp_path, polygon(), imageHeight=None)
    assert dataset.image_sizes.tolist() == [[20, 40]]
    dataset.check()
    assert "1 pictures have no JSON file and are left out, such as alone.png" in capsys.readouterr().out


# Layouts.


def test_both_splits_have_the_classes_of_the_folder(tmp_path):
    for split, label in (("train", "cat"), ("validation", "dog")):
        (tmp_path / split).mkdir()
        write(tmp_path / split, polygon(label=label))
    train, val = (open_detection_folder(tmp_path, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("cat", "dog")
    assert (train.labels[0].tolist(), val.labels[0].tolist()) == ([0], [1])


def test_other_json_is_not_taken_for_labelme(tmp_path):
    assert list_splits(tmp_path) == {}
    (tmp_path / "a.json").write_text("[1")
    assert list_splits(tmp_path) == {}


def test_other_json_may_lie_beside(tmp_path, capsys):
    (tmp_path / "Dataset.json").write_text('{"images": []}')
    write(tmp_path, polygon()).check()
    assert "1 JSON files are not labelme's and are left out, such as Dataset.json" in capsys.readouterr().out


def test_no_label_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"must hold labelme's files with labels\. Received: none"):
        write(tmp_path)
