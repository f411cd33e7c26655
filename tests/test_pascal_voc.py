from xml.etree import ElementTree

import numpy as np
import pytest
from format_folders import draw_shapes, make_tree, save_palette, write_voc
from PIL import Image

from heads.data import open_detection_folder
from heads.data.formats.pascal_voc import list_splits, read_box
from heads.metrics import evaluate_coco

PICTURE = {"file_name": "a.jpg", "height": 20, "width": 40}
CAT = ("cat", (4, 5, 14, 15))


def write(folder, *objects, name="a", **fields):
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "JPEGImages").mkdir(exist_ok=True)
    Image.new("RGB", (40, 20)).save(folder / f"JPEGImages/{name}.jpg")
    tree = make_tree({**PICTURE, "file_name": f"{name}.jpg"}, objects, **fields)
    tree.write(folder / f"Annotations/{name}.xml")
    return tree


def read(text):
    return read_box(ElementTree.fromstring(f"<object>{text}</object>"))


# Objects.


def test_pixels_count_from_one_and_boxes_hold_both_ends(tmp_path):
    assert read("<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>20</ymax></bndbox>") == (
        0,
        0,
        40,
        20,
    )
    write(tmp_path, CAT)
    text = (tmp_path / "Annotations/a.xml").read_text()
    assert "<xmin>5</xmin><ymin>6</ymin><xmax>14</xmax><ymax>15</ymax>" in text
    dataset = open_detection_folder(tmp_path)
    assert dataset.boxes[0].tolist() == [[4, 5, 14, 15]]
    assert dataset.image_ids == ["JPEGImages/a.jpg"]
    assert dataset.to_coco()["annotations"][0]["id"] == "Annotations/a.xml object 1"
    assert dataset.check(progress=False).tolist() == [1]


def test_boxes_of_parts_are_not_those_of_the_object():
    part = "<part><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    box = "<bndbox><ymin>3.5</ymin><xmin> 4 </xmin><ymax>9</ymax><xmax>8</xmax></bndbox>"
    assert read(part + box) == (3, 2.5, 8, 9)
    with pytest.raises(ValueError, match=r"xmin, ymin, xmax, ymax, numbers\. Received: None, None"):
        read(part)


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        (("8", "3", "4", "9"), "xmin <= xmax and ymin <= ymax. Received: 8, 3, 4, 9"),
        (("nan", "3", "4", "9"), "xmin <= xmax"),
        (("left", "3", "4", "9"), "numbers. Received: 'left', '3', '4', '9'"),
    ],
)
def test_faulty_boxes(corners, message):
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    with pytest.raises(ValueError, match=message):
        read(f"<bndbox>{''.join(f'<{tag}>{text}</{tag}>' for tag, text in tags)}</bndbox>")


def test_difficult_objects_are_neither_right_nor_wrong(tmp_path):
    write(tmp_path, CAT, difficult="1")
    write(tmp_path, CAT, name="b", difficult="0")
    dataset = open_detection_folder(tmp_path)
    assert [labels.tolist() for labels in dataset.labels] == [[-2], [0]]
    assert dataset.check(progress=False).tolist() == [1]
    results = [
        {"image_id": image_id, "category_id": 0, "bbox": [4, 5, 10, 10], "score": score}
        for image_id, score in zip(dataset.image_ids, (0.9, 0.5), strict=True)
    ]
    truth = dataset.to_coco()
    assert evaluate_coco(truth, results)["bbox_AP"] == pytest.approx(1)  # found: not counted as wrong
    assert evaluate_coco(truth, results[1:])["bbox_AP"] == pytest.approx(1)  # not found: not counted missed


def test_all_faults_are_in_one_error(tmp_path):
    write(tmp_path, CAT, ("dog", (4, 5, 14, 15)), ("cat", (60, 5, 70, 15)), ("cat", (9, 5, 4, 15)))
    write(tmp_path, CAT, name="b", difficult="perhaps")
    write(tmp_path, CAT, name="c")
    (tmp_path / "JPEGImages/c.jpg").unlink()
    (tmp_path / "Annotations/d.xml").write_text("<annotation><object>")
    (tmp_path / "Annotations/e.xml").write_text("<annotations/>")
    Image.new("RGB", (30, 20)).save(tmp_path / "JPEGImages/f.jpg")
    make_tree(PICTURE, [CAT]).write(tmp_path / "Annotations/f.xml")
    (tmp_path / "classes.txt").write_text("cat\nhorse\n")
    with pytest.raises(ValueError, match="has faulty files or annotations") as error:
        open_detection_folder(tmp_path).check(progress=False)
    for part in (
        "Annotations/a.xml object 2: the name must be one of the classes, cat, horse. Received: 'dog'",
        "'Annotations/a.xml object 3': the box [60, 5, 10, 10] lies outside of the picture",
        "Annotations/a.xml object 4: bndbox must have xmin <= xmax",
        "Annotations/b.xml object 1: difficult must be 0 or 1. Received: 'perhaps'",
        "Annotations/c.xml: there is no picture of this name, nor 'c'",
        "d.xml: must be an XML file",
        "e.xml: must hold <annotation>. Received: <annotations>",
        "f.jpg: the picture must have the (height, width) of its annotation, (20, 40). Received: (20, 30)",
    ):
        assert part in str(error.value)


def test_sizes_that_are_missing_are_looked_up(tmp_path):
    for name, size in (
        ("a", None),
        ("b", "<size><width>0</width><height>0</height></size>"),
        ("c", "<size/>"),
    ):
        tree = write(tmp_path, CAT, name=name)
        tree.getroot().remove(tree.find("size"))
        if size:
            tree.getroot().append(ElementTree.fromstring(size))
        tree.write(tmp_path / f"Annotations/{name}.xml")
    dataset = open_detection_folder(tmp_path)
    assert dataset.image_sizes.tolist() == [[20, 40]] * 3
    dataset.check(progress=False)


def test_remarks(tmp_path, capsys):
    write(tmp_path, ("cat", (-1, 5, 14, 15)), CAT)
    Image.new("RGB", (40, 20)).save(tmp_path / "JPEGImages/alone.png")
    dataset = open_detection_folder(tmp_path)
    assert dataset.boxes[0][0].tolist() == [0, 5, 14, 15]
    dataset.check()
    printed = capsys.readouterr().out
    assert "1 pictures have no XML file and are left out, such as JPEGImages/alone.png" in printed
    assert "1 boxes begin at 0, where Pascal VOC counts pixels from 1" in printed


# Masks.


def test_masks_are_the_numbers_of_the_objects(tmp_path):
    numbers = np.zeros((20, 40), np.uint8)
    numbers[5:15, 4:14] = 1
    numbers[5:10, 20:30] = 2
    numbers[4, 4:14] = 255  # the border of the objects
    others = [("dog", (20, 5, 30, 10)), ("dog", (0, 0, 4, 4))]
    write(tmp_path, CAT, *others[:1])
    write(tmp_path, CAT, name="b")  # without masks
    (tmp_path / "SegmentationObject").mkdir()
    save_palette(numbers, tmp_path / "SegmentationObject/a.png")
    dataset = open_detection_folder(tmp_path, with_masks=True)
    assert dataset.image_ids == ["JPEGImages/a.jpg"]
    sizes = [int(mask["counts"][1::2].sum()) for mask in dataset.load_segmentations(0)]
    assert sizes == [100, 50]
    assert dataset.check(progress=False).tolist() == [1, 1]
    assert len(open_detection_folder(tmp_path)) == 2

    write(tmp_path, CAT, *others)
    with pytest.raises(
        ValueError, match=r"object 3: must have pixels of number 3 in its mask\. Received: \[1, 2\]"
    ):
        open_detection_folder(tmp_path, with_masks=True).check(progress=False)
    write(tmp_path, CAT, *others, difficult="1")
    dataset = open_detection_folder(tmp_path, with_masks=True)
    assert dataset.labels[0].tolist() == [-2, -2, -2]
    save_palette(numbers[:10], tmp_path / "SegmentationObject/a.png")
    with pytest.raises(ValueError, match=r"a\.png: must have \(20, 40\)\. Received: \(10, 40\)"):
        open_detection_folder(tmp_path, with_masks=True).check(progress=False)


def test_masks_that_are_missing(tmp_path):
    write(tmp_path, CAT)
    with pytest.raises(ValueError, match="with_masks needs SegmentationObject/ in"):
        open_detection_folder(tmp_path, with_masks=True)


# Layouts.


def test_lists_and_the_folder_of_the_year(tmp_path):
    year = tmp_path / "VOCdevkit/VOC2012"
    year.mkdir(parents=True)
    write_voc(year, *draw_shapes(2, with_masks=False)[1:])
    (year / "ImageSets/Main/ball_train.txt").write_text("1 -1\n")
    (year / "ImageSets/Main/val.txt").write_text("2\nnowhere\n")
    assert list(list_splits(tmp_path)) == ["train", "val"]
    for folder in (tmp_path, tmp_path / "VOCdevkit", year):
        assert open_detection_folder(folder).image_ids == ["JPEGImages/1.png", "JPEGImages/2.png"]
    val = open_detection_folder(tmp_path, "val")
    assert val.class_names == open_detection_folder(tmp_path).class_names
    with pytest.raises(ValueError, match=r"Annotations/nowhere\.xml: is missing, but val\.txt lists it"):
        val.check(progress=False)
    (year / "ImageSets/Main/val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"val\.txt must list pictures\. Received: none"):
        open_detection_folder(tmp_path, "val")


def test_files_beside_the_pictures_and_folders_of_splits(tmp_path):
    write(tmp_path, CAT)
    write(tmp_path, ("dog", (1, 2, 3, 4)), name="b")
    for split, name in (("train", "a"), ("valid", "b")):
        (tmp_path / "data" / split).mkdir(parents=True)
        (tmp_path / f"Annotations/{name}.xml").rename(tmp_path / f"data/{split}/{name}.xml")
        (tmp_path / f"JPEGImages/{name}.jpg").rename(tmp_path / f"data/{split}/{name}.jpg")
    train, val = (open_detection_folder(tmp_path / "data", split) for split in ("train", "val"))
    assert (train.image_ids, val.image_ids) == (["train/a.jpg"], ["valid/b.jpg"])
    assert train.class_names == val.class_names == ("cat", "dog")
    assert open_detection_folder(tmp_path / "data/train").class_names == ("cat",)


def test_other_xml_is_not_taken_for_pascal_voc(tmp_path):
    (tmp_path / "annotations.xml").write_text("<annotations/>")  # CVAT's
    assert list_splits(tmp_path) == {}


def test_objects_without_names(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match="must hold objects with names"):
        open_detection_folder(tmp_path)
