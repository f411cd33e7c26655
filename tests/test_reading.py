import json
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from heads.data import ObjectFolder
from heads.data.formats.reading import (
    Reading,
    find_class_list,
    find_first,
    walk_files,
)
from heads.pictures import read_upright_size


def test_a_reading_is_a_coco_file(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    reading = Reading("YOLO", tmp_path, tmp_path, ["cat", "dog"])
    picture = reading.add_picture(tmp_path / "a.png")
    reading.add_picture(tmp_path / "part" / "b.png", (5, 6))
    reading.add_object("a.txt line 1", picture, 1, np.float32([1, 2, 4, 8]), is_region=True)
    content = reading.to_coco()
    assert content["images"] == [
        {"id": "a.png", "file_name": "a.png", "height": 20, "width": 40},
        {"id": "part/b.png", "file_name": "part/b.png", "height": 5, "width": 6},
    ]
    assert content["categories"] == [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    assert content["annotations"] == [
        {"id": "a.txt line 1", "image_id": "a.png", "category_id": 1, "bbox": [1, 2, 3, 6], "iscrowd": 1}
    ]
    assert type(content["annotations"][0]["bbox"][0]) is float  # types that JSON takes
    with pytest.raises(ValueError, match=r"c\.png: cannot be read"):
        reading.add_picture(tmp_path / "c.png")
    reading.remark_files([], "nothing")
    reading.remark_files([tmp_path / "x.png", tmp_path / "y.png"], "pictures")
    assert reading.remarks == ["2 pictures, such as x.png"]


def test_names_of_files_elsewhere_stay_whole(tmp_path):
    reading = Reading("YOLO", tmp_path / "data", tmp_path / "data", ["cat"])
    assert reading.name(tmp_path / "a.png") == (tmp_path / "a.png").as_posix()
    assert reading.name(tmp_path / "data/b/a.png") == "b/a.png"


def test_names_that_are_not_utf8(tmp_path):
    path = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn.png"))
    Image.new("RGB", (40, 20)).save(path)
    reading = Reading("YOLO", tmp_path, tmp_path, ["cat"])
    reading.add_object("a.txt line 1", reading.add_picture(path), 0, (1, 2, 3, 4))
    dataset = ObjectFolder(reading)
    assert dataset.image_ids == ["gr\\xfcn.png"]
    assert dataset.check(progress=False).tolist() == [1]
    json.dumps(dataset.to_coco())


def test_files_are_walked_in_order_without_hidden_ones(tmp_path):
    for name in ("b.TXT", "a.txt", "._a.txt", "c.png", "sub/d.txt", ".git/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.name for path in walk_files(tmp_path, [".txt"])]
    assert names == ["a.txt", "b.TXT", "d.txt"]
    assert find_first(tmp_path, ".txt", but=["a.txt"]).name == "b.TXT"
    assert find_first(tmp_path, ".xml") is None


def test_class_lists(tmp_path):
    assert find_class_list([tmp_path]) is None
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nb\na\n")
    assert find_class_list([tmp_path / "nowhere", tmp_path]) == ("b", "a")


def test_upright_sizes_are_read_from_the_header(tmp_path):
    for orientation, size in ((1, (20, 40)), (3, (20, 40)), (8, (40, 20))):
        exif = Image.Exif()
        exif[274] = orientation
        Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
        assert read_upright_size(tmp_path / "a.jpg") == size
