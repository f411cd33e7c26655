import numpy as np
import pytest
from format_folders import draw_shapes, write_yolo
from PIL import Image

from heads.data import open_detection_folder
from heads.data.formats.yolo import find_label_path, list_splits, read_line, read_split

EXIF_ORIENTATION = 274


@pytest.fixture
def folder(tmp_path):
    """Writes two pictures of 20 x 40 with a label file each, without splits."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (40, 20)).save(tmp_path / f"images/{name}.jpg")
        (tmp_path / f"labels/{name}.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    return tmp_path


def label(folder, *lines):
    (folder / "labels/a.txt").write_text("\n".join(lines))
    return open_detection_folder(folder)


# Lines.


def test_boxes_and_polygons(folder):
    dataset = label(folder, "0 0.5 0.5 0.25 1", "", "1 0.1 0.2 0.5 0.2 0.5 0.8", "1.0 .5 .5 .1 .1 ")
    assert dataset.boxes[0].tolist() == [[15, 0, 25, 20], [4, 4, 20, 16], [18, 9, 22, 11]]
    assert dataset.labels[0].tolist() == [0, 1, 1]
    entries = dataset.to_coco()["annotations"]
    assert [entry["id"] for entry in entries[:3]] == [f"labels/a.txt line {line}" for line in (1, 3, 4)]
    assert entries[1]["segmentation"] == [[4, 4, 20, 4, 20, 16]]
    assert dataset.check(progress=False).tolist() == [1, 3]
    with pytest.raises(ValueError, match=r"labels/a\.txt line 1': no segmentation"):
        open_detection_folder(folder, with_masks=True).check(progress=False)


def test_boxes_over_the_edge_are_clipped(folder):
    dataset = label(folder, "0 0.1 0.5 0.3 1.005")
    assert dataset.boxes[0].tolist() == pytest.approx(np.array([[0, 0, 10, 20]]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.5", "must be class x y width height, or .* Received: 4 numbers$"),
        ("0 0.5 0.5 0.5 0.5 0.9", "Received: 6 numbers; is the last one a score"),
        ("0 .1 .2 .3 .4 .5 .6 .7", "Received: 8 numbers$"),
        ("2 0.5 0.5 0.5 0.5", r"the class must be 0 \.\. 1\. Received: 2"),
        ("-1 0.5 0.5 0.5 0.5", "Received: -1"),
        ("0.5 0.5 0.5 0.5 0.5", r"Received: 0\.5"),
        ("nan 0.5 0.5 0.5 0.5", "Received: nan"),
        ("dog 0.5 0.5 0.5 0.5", "must be numbers. Received: 'dog 0.5"),
        ("0 200 100 50 50", r"shares of the picture's sides, 0 \.\. 1 \(are they pixels\?\)"),
        ("0 nan 0.5 0.5 0.5", "shares of the picture's sides"),
        ("0 -0.5 0.5 0.5 0.5", "shares of the picture's sides"),
        ("", "must be numbers"),
    ],
)
def test_faulty_lines(line, message):
    with pytest.raises(ValueError, match=message):
        read_line(line, 2)


def test_all_faults_are_in_one_error(folder):
    (folder / "labels/b.txt").write_bytes(b"\xff\xfe\x00")
    Image.new("RGB", (8, 8)).save(folder / "images/c.gif")
    (folder / "images/d.png").write_text("no picture")
    dataset = label(folder, "0 1.5 0.5 0.5 0.5", "1 0.5 0.5 0.5 0.5", "7 0.5 0.5 0.5 0.5", "0 1 1 0 0 0.5 -1")
    with pytest.raises(ValueError, match="has faulty files or annotations") as error:
        dataset.check(progress=False)
    text = str(error.value)
    for part in (
        "labels/a.txt line 1: coordinates must be",
        "labels/a.txt line 3: the class must be",
        "labels/a.txt line 4: coordinates must be",
        "labels/b.txt: cannot be read",
        "c.gif: cannot be read (the format must be one of",
        "d.png: cannot be read",
    ):
        assert part in text
    assert "line 2" not in text


def test_keypoints_are_left_alone(folder):
    (folder / "data.yaml").write_text("train: images\nnames: [cat, dog]\nkpt_shape: [2, 3]\n")
    dataset = label(folder, "0 0.5 0.5 0.5 0.5 0.1 0.2 2 0.3 0.4 1")
    assert dataset.boxes[0].tolist() == [[10, 5, 30, 15]]


def test_pictures_without_a_label_file_have_no_objects(folder, capsys):
    (folder / "labels/b.txt").unlink()
    (folder / "labels/c.txt").write_text("")
    Image.new("RGB", (40, 20)).save(folder / "images/c.png")
    dataset = open_detection_folder(folder)
    dataset.check()
    assert [len(labels) for labels in dataset.labels] == [1, 0, 0]
    printed = capsys.readouterr().out
    assert (
        "1 pictures have no label file, and count as pictures without objects, such as images/b.jpg"
        in printed
    )


def test_no_label_file_at_all_is_an_error(folder):
    for name in ("a", "b"):
        (folder / f"labels/{name}.txt").rename(folder / f"labels/other_{name}.txt")
    with pytest.raises(ValueError, match=r"2 pictures, and not one label file such as .*labels/a\.txt"):
        open_detection_folder(folder)


def test_shares_are_those_of_the_upright_picture(folder):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    Image.new("RGB", (40, 20)).save(folder / "images/a.jpg", exif=exif)
    dataset = label(folder, "0 0.5 0.25 1 0.5")
    assert dataset.image_sizes[0].tolist() == [40, 20]
    assert dataset.boxes[0].tolist() == [[0, 0, 20, 20]]
    dataset.check(progress=False)
    assert next(iter(dataset.load()))["image"].shape == (40, 20, 3)


# Layouts.


def test_the_label_file_of_a_picture():
    import pathlib

    path = pathlib.Path
    assert find_label_path(path("images/images/train/a.b.jpg")) == path("images/labels/train/a.b.txt")
    assert find_label_path(path("data/a.png")) == path("data/a.txt")


@pytest.fixture(scope="module")
def shapes():
    return draw_shapes(3, with_masks=False)[1:]


def write_settings(root, text):
    (root / "classes.txt").unlink()
    (root / "data.yaml").write_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "path: /content/somewhere\ntrain: images/train\nval: images/val\nnames: {NAMES}\n",
        "train: ../images/train\nval: ../images/val\nnc: 7\nnames: {NAMES}\n",  # as Roboflow writes it
        "train: [images/train]\nval: val.txt\ntest:\nnames: {DICT}\n",
    ],
)
def test_settings(shapes, tmp_path, text):
    for split in ("train", "val"):
        write_yolo(tmp_path, *shapes, split)
    names = (tmp_path / "classes.txt").read_text().splitlines()
    (tmp_path / "val.txt").write_text("./images/val/1.png\n\nimages/val/2.png\nimages/val/nowhere.png\n")
    numbered = {number: name for number, name in enumerate(names)}
    write_settings(tmp_path, text.replace("{NAMES}", str(names)).replace("{DICT}", str(numbered)))
    train = open_detection_folder(tmp_path)
    assert (len(train), list(train.class_names)) == (3, names)
    val = open_detection_folder(tmp_path, "val")
    assert val.image_ids[0] == "images/val/1.png"
    if "val.txt" in text:
        assert len(val) == 2
        with pytest.raises(
            ValueError, match=r"val\.txt line 4: there is no picture 'images/val/nowhere\.png'"
        ):
            val.check(progress=False)
    else:
        val.check(progress=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images\nnames: {0: cat, 2: dog}", "names must be a list of names, or name by number from 0"),
        ("train: images\nnames: 3", "Received: 3"),
        ("train: nowhere\nnames: [cat]", "Received: no pictures in"),
        ("train: [images", "data.yaml must be a YAML file"),
        ("train: !!python/object/apply:os.getcwd []\nnames: [cat]", "data.yaml must be a YAML file"),
    ],
)
def test_faulty_settings(folder, text, message):
    write_settings(folder, text)
    with pytest.raises(ValueError, match=message):
        open_detection_folder(folder)


def test_splits_that_hold_images_and_labels(shapes, tmp_path):
    write_yolo(tmp_path / "flat", *shapes, "x")
    for kind in ("images", "labels"):
        (tmp_path / "data/valid").mkdir(parents=True, exist_ok=True)
        (tmp_path / "flat" / kind / "x").rename(tmp_path / "data/valid" / kind)
    assert list(list_splits(tmp_path / "data")) == ["valid"]
    with pytest.raises(ValueError, match=r"write the names of the classes, .* into .*data/classes\.txt"):
        open_detection_folder(tmp_path / "data")
    (tmp_path / "flat/classes.txt").rename(tmp_path / "data/classes.txt")
    dataset = open_detection_folder(tmp_path / "data", "val")
    assert len(dataset) == 3
    dataset.check(progress=False)


def test_label_files_beside_the_pictures(folder):
    for name in ("a", "b"):
        (folder / f"images/{name}.jpg").rename(folder / f"{name}.jpg")
        (folder / f"labels/{name}.txt").rename(folder / f"{name}.txt")
    (folder / "images").rmdir()
    (folder / "labels").rmdir()
    dataset = open_detection_folder(folder)
    assert dataset.image_ids == ["a.jpg", "b.jpg"]
    assert dataset.check(progress=False).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("place", "names", "split"),
    [
        ("train", "train/_darknet.labels", "train"),  # Roboflow's
        ("valid", "classes.txt", "val"),
        ("obj_train_data", "obj.names", "train"),  # CVAT's
        ("obj_valid_data/batch", "obj.names", "val"),
    ],
)
def test_label_files_beside_the_pictures_of_a_split(folder, tmp_path_factory, place, names, split):
    root = tmp_path_factory.mktemp("data")
    (root / place).mkdir(parents=True)
    (root / "obj.data").write_text("classes = 2\n")
    (folder / "classes.txt").rename(root / names)
    for name in ("a", "b"):
        (folder / f"images/{name}.jpg").rename(root / place / f"{name}.jpg")
        (folder / f"labels/{name}.txt").rename(root / place / f"{name}.txt")
    for wanted in (split, None):
        dataset = open_detection_folder(root, wanted)
        assert dataset.image_ids == [f"{place}/a.jpg", f"{place}/b.jpg"]
        assert dataset.check(progress=False).tolist() == [0, 2]


def test_other_folders_are_not_taken_for_yolo(tmp_path):
    assert list_splits(tmp_path) == {}
    for name in ("images", "labels"):
        (tmp_path / name / "train").mkdir(parents=True)
    (tmp_path / "labels/train/a.png").touch()
    (tmp_path / "labels/classes.txt").touch()
    (tmp_path / "other.yaml").write_text("a: [")
    assert list_splits(tmp_path) == {}


def test_class_names_may_lie_with_the_labels(folder):
    (folder / "classes.txt").rename(folder / "labels/classes.txt")
    reading = read_split(folder, list_splits(folder)[None])
    assert reading.class_names == ("cat", "dog")
