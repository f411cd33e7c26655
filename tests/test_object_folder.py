import json
import pathlib
import shutil

import numpy as np
import pytest
from format_folders import draw_shapes, write_coco, write_labelme, write_voc, write_yolo
from PIL import Image

from heads.data import (
    CocoDataset,
    DetectionAugmentation,
    ObjectFolder,
    detection_training_batches,
    draw_masks,
    open_detection_folder,
)
from heads.data.detection_moves import Move
from heads.metrics import evaluate_coco

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"needs the data sets in {SHARED_DATA}")
WRITERS = {"COCO": write_coco, "YOLO": write_yolo, "Pascal VOC": write_voc, "labelme": write_labelme}


def list_objects(dataset):
    """Returns (name of the class, box) of each object, picture by picture in the order of their names."""
    order = sorted(range(len(dataset)), key=lambda place: dataset.image_paths[place].stem)
    return [
        sorted((dataset.class_names[label], box.tolist()) for label, box in zip(*found, strict=True))
        for found in ((dataset.labels[place], dataset.boxes[place]) for place in order)
    ]


def assert_same_objects(ours, theirs, tolerance=1e-3):
    for found, wanted in zip(list_objects(ours), list_objects(theirs), strict=True):
        assert [name for name, _ in found] == [name for name, _ in wanted]
        np.testing.assert_allclose(
            np.reshape([box for _, box in found], (-1, 4)),
            np.reshape([box for _, box in wanted], (-1, 4)),
            atol=tolerance,
        )


def draw_all(dataset, index):
    size = dataset.image_sizes[index]
    stay = Move(size, size, np.zeros(2, int), size, np.array(False))
    return draw_masks(dataset.load_segmentations(index), stay, tuple(size))


@pytest.fixture(scope="module")
def shapes():
    return draw_shapes()


@pytest.fixture
def written(shapes, tmp_path):
    """Returns a function that writes both splits in a format, and COCO's data set of the first."""

    def write(name, **options):
        _, content, pixels = shapes
        write_coco(tmp_path / "coco", content, pixels)
        for split in ("train", "val"):
            WRITERS[name](tmp_path / "data", content, pixels, split, **options)
        coco = CocoDataset(tmp_path / "coco/annotations/instances_train.json", tmp_path / "coco/images/train")
        return tmp_path / "data", coco

    return write


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_objects(written, name):
    folder, coco = written(name)
    dataset = open_detection_folder(folder, "train")
    assert dataset.format == name
    assert isinstance(dataset, ObjectFolder) == (name != "COCO")
    assert len(dataset) == 4
    assert sorted(dataset.class_names) == sorted(coco.class_names)
    assert_same_objects(dataset, coco)
    counts = dict(zip(dataset.class_names, dataset.check(progress=False), strict=True))
    assert counts == dict(zip(coco.class_names, coco.check(progress=False), strict=True))
    for ours, theirs in zip(dataset.load(), coco.load(), strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])


@pytest.mark.parametrize(
    ("name", "options"), [("COCO", {}), ("Pascal VOC", {"with_masks": True}), ("labelme", {})]
)
def test_masks_are_those_of_coco(written, shapes, name, options):
    folder, _ = written(name, **options)
    dataset = open_detection_folder(folder, "val", with_masks=True)
    dataset.check(progress=False)
    for index in range(len(dataset)):
        wanted = shapes[0].load_segmentations(index)
        found = draw_all(dataset, index)
        assert len(found) == len(wanted)
        sizes = sorted(int(mask.sum()) for mask in found)
        assert sizes == sorted(int(mask["counts"][1::2].sum()) for mask in wanted)


@pytest.mark.parametrize("name", WRITERS)
def test_training_and_scoring_read_the_same_truth(written, name):
    folder, _ = written(name)
    dataset = open_detection_folder(folder)
    batches = detection_training_batches(dataset, 2, DetectionAugmentation(image_size=64))
    inputs, targets = next(iter(batches))
    assert inputs["images"].shape == (2, 64, 64, 3)
    assert (targets["labels"].numpy() >= 0).any()
    results = [
        {
            "image_id": image_id,
            "category_id": dataset.category_ids[label],
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "score": 0.9,
        }
        for image_id, boxes, labels in zip(dataset.image_ids, dataset.boxes, dataset.labels, strict=True)
        for box, label in zip(boxes, labels, strict=True)
    ]
    scores = evaluate_coco(dataset.to_coco(), json.loads(json.dumps(results)))
    assert scores["bbox_AP"] == pytest.approx(1.0)


@needs_data
@pytest.mark.parametrize("name", ["YOLO", "Pascal VOC", "labelme"])
@pytest.mark.parametrize("source", ["bccd", "chess_pieces"])
def test_real_boxes_come_back(tmp_path, name, source):
    path = SHARED_DATA / source / "annotations/instances_val.json"
    coco = CocoDataset(path, SHARED_DATA / source / "images/val")
    content = coco.to_coco()
    content["images"] = [{**entry, "file_name": entry["file_name"]} for entry in content["images"][:12]]
    kept = {entry["id"] for entry in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    content["categories"] = sorted(content["categories"], key=lambda entry: entry["id"])
    pixels = {
        entry["id"]: np.asarray(Image.open(SHARED_DATA / source / "images/val" / entry["file_name"]))
        for entry in content["images"]
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    coco = CocoDataset(tmp_path / "instances.json", SHARED_DATA / source / "images/val")
    WRITERS[name](tmp_path / "data", content, pixels, "val")
    dataset = open_detection_folder(tmp_path / "data", "val")
    dataset.check(progress=False)
    assert_same_objects(dataset, coco, tolerance=5e-3)  # %g writes six digits


@needs_data
@pytest.mark.parametrize("name", ["YOLO", "labelme"])
def test_real_polygons_come_back(tmp_path, name):
    folder = SHARED_DATA / "facades"
    content = json.loads((folder / "annotations/instances_val.json").read_text())
    content["images"] = content["images"][:3]
    kept = {entry["id"] for entry in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    content["categories"] = sorted(content["categories"], key=lambda entry: entry["id"])
    pixels = {
        entry["id"]: np.asarray(Image.open(folder / "images/val" / entry["file_name"]))
        for entry in content["images"]
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    coco = CocoDataset(tmp_path / "instances.json", folder / "images/val", with_masks=True)
    WRITERS[name](tmp_path / "data", content, pixels, "val")
    dataset = open_detection_folder(tmp_path / "data", "val", with_masks=True)
    dataset.check(progress=False)
    assert len(dataset) == len(coco) == 3
    names = [path.name for path in coco.image_paths]
    for index, path in enumerate(dataset.image_paths):
        ours, theirs = draw_all(dataset, index), draw_all(coco, names.index(path.name))
        assert len(ours) == len(theirs) > 0
        # Rounded shares may be on the other side of a pixel's middle.
        assert np.mean(ours.any(0) != theirs.any(0)) < 3e-3


# Finding.


def test_the_error_lists_what_was_looked_for(tmp_path):
    (tmp_path / "notes.docx").touch()
    with pytest.raises(ValueError, match="holds no objects in a known format") as error:
        open_detection_folder(tmp_path)
    for text in (
        "- COCO: annotations/instances_<split>.json",
        "- YOLO: data.yaml",
        "- Pascal VOC: Ann",
        "- labelme",
    ):
        assert text in str(error.value)
    assert str(error.value).endswith("Received: notes.docx")
    with pytest.raises(ValueError, match=r"path must be a folder that exists\. Received: .*nowhere"):
        open_detection_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("name", WRITERS)
def test_splits_are_found_by_other_names_or_named(written, shapes, tmp_path, name):
    folder, _ = written(name)
    assert len(open_detection_folder(folder)) == 4  # train, of several
    with pytest.raises(
        ValueError, match=rf"split must be one of \['train', 'val'\], those of the {name} data"
    ):
        open_detection_folder(folder, "test")
    WRITERS[name](tmp_path / "other", *shapes[1:], "valid")
    assert len(open_detection_folder(tmp_path / "other", "val")) == 4
    assert len(open_detection_folder(tmp_path / "other")) == 4  # the only one


def flatten(folder, name):
    """Turns a folder that only has train into one without splits."""
    if name == "Pascal VOC":
        shutil.rmtree(folder / "ImageSets")
        return folder
    if name == "labelme":
        return folder / "train"
    if name == "COCO":
        (folder / "annotations/instances_train.json").rename(folder / "instances.json")
    for kind in ("images", *["labels"] * (name == "YOLO")):
        (folder / kind / "train").rename(folder / "moved")
        (folder / kind).rmdir()
        (folder / "moved").rename(folder / kind)
    return folder


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_without_splits_is_opened_whole_and_split(shapes, tmp_path, name):
    WRITERS[name](tmp_path / "data", *shapes[1:], "train")
    folder = flatten(tmp_path / "data", name)
    dataset = open_detection_folder(folder)
    assert (dataset.format, len(dataset)) == (name, 4)
    with pytest.raises(ValueError, match=r"has no splits: .*--val-share 0\.2 .* Received: split='train'"):
        open_detection_folder(folder, "train")
    train, held_out = dataset.split(0.25, seed=3)
    assert (len(train), len(held_out)) in ((3, 1), (2, 2))
    assert {*train.image_ids} | {*held_out.image_ids} == {*dataset.image_ids}
    assert train.class_names == held_out.class_names == dataset.class_names
    assert [entry["id"] for entry in held_out.to_coco()["images"]] == held_out.image_ids
    assert len(held_out.to_coco()["annotations"]) == sum(map(len, held_out.labels))
    assert len(list(train.load())) == len(train)
    again = open_detection_folder(folder).split(0.25, seed=3)
    assert again[1].image_ids == held_out.image_ids


def test_faulty_data_is_not_split_or_scored(shapes, tmp_path):
    write_yolo(tmp_path, *shapes[1:])
    (tmp_path / "labels/train/1.txt").write_text("0 0.5 0.5 half 0.5\n")
    dataset = open_detection_folder(tmp_path)
    for use in (dataset.to_coco, dataset.check):
        with pytest.raises(ValueError, match=r"1\.txt line 1: must be numbers\. Received: '0 0"):
            use()
    with pytest.raises(ValueError, match="has 1 faulty annotations: see `check`"):
        dataset.split(0.25)


def test_no_readable_picture_is_an_error_with_the_reasons(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    (tmp_path / "images/a.jpg").write_text("no picture")
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("thing\n")
    with pytest.raises(ValueError, match=r"must hold pictures with YOLO's labels:\n.*a\.jpg: cannot be read"):
        open_detection_folder(tmp_path)
