import json

import pytest
from format_folders import draw_shapes, save_pictures, write_coco

from heads.data import open_detection_folder
from heads.data.formats.coco_layouts import list_splits


@pytest.fixture(scope="module")
def shapes():
    return draw_shapes(2, with_masks=False)[1:]


def write_file(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("pictures", ["images/train2017", "train2017", "images"])
def test_coco_itself(shapes, tmp_path, pictures):
    content, pixels = shapes
    write_file(tmp_path / "annotations/instances_train2017.json", content)
    write_file(tmp_path / "annotations/captions_train2017.json", content)
    save_pictures(tmp_path / pictures, content, pixels)
    assert list(list_splits(tmp_path)) == ["train2017"]
    for split in (None, "train", "train2017"):
        dataset = open_detection_folder(tmp_path, split)
        assert dataset.image_paths[0] == tmp_path / pictures / "1.png"
        dataset.check(progress=False)


@pytest.mark.parametrize(
    ("file", "pictures"),
    [("_annotations.coco.json", "."), ("labels.json", "data"), ("labels.json", "images")],
)
def test_a_folder_for_each_split(shapes, tmp_path, file, pictures):
    content, pixels = shapes
    for split in ("train", "valid"):
        write_file(tmp_path / split / file, content)
        save_pictures(tmp_path / split / pictures, content, pixels)
    assert sorted(list_splits(tmp_path)) == ["train", "valid"]
    dataset = open_detection_folder(tmp_path, "val")
    assert dataset.path == tmp_path / "valid" / file
    dataset.check(progress=False)


@pytest.mark.parametrize(
    ("file", "start"),
    [("instances.json", "images"), ("result.json", ""), ("annotations/instances_default.json", "images")],
)
def test_one_file_without_splits(shapes, tmp_path, file, start):
    content, pixels = shapes
    save_pictures(tmp_path / "images", content, pixels)
    if not start:  # Label Studio names the folder in the file
        names = [{**entry, "file_name": f"images\\{entry['file_name']}"} for entry in content["images"]]
        content = {**content, "images": names}
    write_file(tmp_path / file, content)
    dataset = open_detection_folder(tmp_path)
    assert dataset.format == "COCO"
    dataset.check(progress=False)


def test_a_damaged_file_is_named(shapes, tmp_path):
    (tmp_path / "instances.json").write_text("{")
    with pytest.raises(ValueError, match=r"must be a JSON file\. Received: .*instances\.json"):
        open_detection_folder(tmp_path)


def test_other_json_is_not_taken_for_coco(shapes, tmp_path):
    write_file(tmp_path / "annotations.json", {"shapes": []})
    assert list_splits(tmp_path) == {}


def test_coco_comes_before_other_formats(shapes, tmp_path):
    write_coco(tmp_path, *shapes)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/1.txt").touch()
    assert open_detection_folder(tmp_path).format == "COCO"
