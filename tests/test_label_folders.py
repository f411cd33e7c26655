"""What real folders hold: each file is used correctly or named, and labels that teach nothing are refused."""

import os
import pathlib
import unicodedata
import warnings

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from heads.data import (
    SemanticAugmentation,
    SemanticFolder,
    semantic_evaluation_batches,
    semantic_training_batches,
)
from heads.data.label_folders import read_class_names

NAMES = ("ground", "square")
LABEL = np.eye(6, 8, dtype="uint8")


def add_pair(root, name="a", label=LABEL, suffix=".png", size=(6, 8), **options):
    """Writes an image and its label picture and returns their paths."""
    paths = [root / "images" / "train" / (name + suffix), root / "labels" / "train" / f"{name}.png"]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), "uint8")).save(paths[0], **options)
    (label if isinstance(label, Image.Image) else Image.fromarray(label)).save(paths[1])
    return paths


def open_folder(root, **options):
    return SemanticFolder(root, class_names=options.pop("class_names", NAMES), **options)


# Files and names


def test_hidden_files_and_others_are_ignored(tmp_path):
    add_pair(tmp_path)
    for kind in ("images", "labels"):
        folder = tmp_path / kind / "train"
        for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "a.json", "notes.txt"):
            (folder / name).write_bytes(b"no picture")
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / ".ipynb_checkpoints" / "a-checkpoint.png").write_bytes(b"no picture")
    assert [image.name for image, _ in open_folder(tmp_path).pairs] == ["a.png"]


def test_sub_folders_belong_to_the_split(tmp_path):
    add_pair(tmp_path, "b")
    add_pair(tmp_path, "city/b", suffix=".jpg")
    folder = open_folder(tmp_path)
    assert [image.parent.name for image, _ in folder.pairs] == ["train", "city"]
    assert [label.parent.name for _, label in folder.pairs] == ["train", "city"]
    assert folder.check(progress=False).sum() == 2 * 48
    (tmp_path / "labels" / "train" / "city" / "b.png").unlink()
    with pytest.raises(ValueError, match=r"city/b\.jpg: no label picture"):
        open_folder(tmp_path)


def test_linked_sub_folders_are_followed(tmp_path):
    add_pair(tmp_path / "elsewhere")
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
        (tmp_path / kind / "train" / "city").symlink_to(tmp_path / "elsewhere" / kind / "train")
    assert len(open_folder(tmp_path)) == 1


def test_unicode_forms_are_one_name(tmp_path):
    image, label = add_pair(tmp_path, unicodedata.normalize("NFC", "Grün"))
    label.rename(label.with_name(unicodedata.normalize("NFD", label.name)))
    folder = open_folder(tmp_path)
    assert len(folder) == len(list(folder.load())) == 1
    image.with_name(unicodedata.normalize("NFD", image.name)).write_bytes(image.read_bytes())
    with pytest.raises(ValueError, match="a second image of this name"):
        open_folder(tmp_path)


def test_names_that_are_not_utf8(tmp_path):
    for path in add_pair(tmp_path):
        os.rename(path, os.fsencode(path.parent) + b"/gr\xfcn.png")
    folder = open_folder(tmp_path)
    assert folder.check(progress=False).sum() == 48
    assert len(list(semantic_evaluation_batches(folder))) == 1
    os.unlink(folder.pairs[0][1])
    with pytest.raises(ValueError, match=r"gr\\xfcn\.png: no label picture"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("labels", "b.tif", r"b\.tif: the label picture must be \.png"),
        ("labels", "b.npy", r"b\.npy: the label picture must be \.png"),
        ("labels", "a.jpg", r"a\.jpg: the label picture must be \.png"),
        ("labels", "a.PNG", r"a\.(PNG|png): a second label picture of this name"),
        ("images", "b.webp", r"b\.webp: the image must be \.jpg or \.jpeg or \.png"),
        ("images", "a.jpeg", r"a\.png: a second image of this name"),
    ],
)
def test_pictures_that_cannot_be_used_are_named(tmp_path, kind, name, message):
    add_pair(tmp_path)
    (tmp_path / kind / "train" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path)


# Class names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_class_files_of_each_encoding(tmp_path, encoding):
    (tmp_path / "classes.txt").write_text("Straße\r\n Wald \n\n", encoding=encoding)
    assert read_class_names(tmp_path / "classes.txt") == ("Straße", "Wald")


@pytest.mark.parametrize(
    "data", ["Straße\nWald".encode("latin-1"), "Straße".encode("utf-16-le"), b"\xff\xfea"]
)
def test_class_files_that_are_no_text(tmp_path, data):
    (tmp_path / "classes.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"classes\.txt must be UTF-8 text"):
        read_class_names(tmp_path / "classes.txt")
    with pytest.raises(ValueError, match=r"none\.txt \(No such file"):
        read_class_names(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("count", "zero_label", "message"),
    [
        (1, False, "2 to 255 .*name the background too.*Received: 1 names"),
        (256, False, "2 to 255 .*label 255 is ignored.*Received: 256 names"),
        (255, True, "2 to 254 .*255 is ignored and 0 is no class"),
    ],
)
def test_the_number_of_classes(tmp_path, count, zero_label, message):
    add_pair(tmp_path)
    names = [f"class {k}" for k in range(count)]
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, class_names=names, reduce_zero_label=zero_label)
    if count > 1:
        open_folder(tmp_path, class_names=names[1:], reduce_zero_label=zero_label)


# Labels that teach nothing or something else


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (LABEL * 255, {}, "only 'ground' occurs.*12 pixels are ignored.*masks of 0 and 255 as 0 and 1"),
        (LABEL * 0 + 255, {}, "no class occurs.*96 pixels are ignored"),
        (LABEL * 0, {"reduce_zero_label": True}, "no class occurs.*reduce_zero_label=True ignores number 0"),
        (LABEL, {"reduce_zero_label": True}, "only 'ground' occurs.*reduce_zero_label=True"),
    ],
)
def test_labels_that_leave_nothing_to_learn(tmp_path, label, options, message):
    add_pair(tmp_path, label=label)
    add_pair(tmp_path, "b", label=label)
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, **options).check(progress=False)


@pytest.mark.parametrize(
    ("label", "names", "absent"),
    [(LABEL, ("background", *NAMES), "1 of the 3 classes: square"), (LABEL + 1, ("x", *NAMES), "classes: x")],
)
def test_classes_that_never_occur(tmp_path, label, names, absent):
    add_pair(tmp_path, label=label)
    with pytest.warns(
        UserWarning, match=f"never hold {absent.replace('classes: x', '1 of the 3 classes: x')}"
    ):
        assert open_folder(tmp_path, class_names=names).check(progress=False).sum() == 48


def test_palettes_of_other_order_are_reported(tmp_path):
    for name, colours in (("a", "\0\0\0\xff\0\0"), ("b", "\xff\0\0\0\0\0")):
        label = Image.fromarray(LABEL if name == "a" else 1 - LABEL)
        label.putpalette(colours.encode("latin-1"))
        add_pair(tmp_path, name, label)
    with pytest.warns(
        UserWarning, match=r"palettes of different order.*number 0 in .*a\.png and 1 in .*b\.png"
    ):
        open_folder(tmp_path).check(progress=False)
    labels = [label.numpy() for _, label in open_folder(tmp_path).load()]
    np.testing.assert_array_equal(labels[0], 1 - labels[1])  # the numbers count


def test_one_palette_is_fine(tmp_path):
    label = Image.fromarray(LABEL)
    label.putpalette(b"\0\0\0\xff\0\0")
    add_pair(tmp_path, "a", label)
    add_pair(tmp_path, "b", label)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_folder(tmp_path).check(progress=False)


# EXIF orientation, and files that change


def test_check_tells_what_was_turned(tmp_path, capsys):
    exif = Image.Exif()
    exif[274] = 3
    add_pair(tmp_path, "a", exif=exif)
    exif[274] = 6
    add_pair(tmp_path, "b", exif=exif)  # only the stored pixels have the size
    add_pair(tmp_path, "c", LABEL.T.copy(), exif=exif)
    open_folder(tmp_path).check()
    printed = capsys.readouterr()
    printed = printed.out + printed.err
    assert "2 of 3 images are turned upright" in printed
    assert "1 of 3 images are left as stored" in printed
    assert [image.shape[:2] for image, _ in open_folder(tmp_path).load()] == [(6, 8), (6, 8), (8, 6)]


def resize(path):
    with Image.open(path) as picture:
        picture.resize((5, 4)).save(path)


def number_out_of_range(path):
    Image.fromarray(LABEL * 7).save(path)


@pytest.mark.parametrize(
    ("position", "change"),
    [
        (0, pathlib.Path.unlink),
        (0, lambda path: path.write_bytes(path.read_bytes()[:50])),
        (0, resize),
        (1, pathlib.Path.unlink),
        (1, lambda path: path.write_bytes(path.read_bytes()[:-14])),
        (1, number_out_of_range),
    ],
)
def test_files_that_change_after_the_check_are_named(tmp_path, position, change):
    path = add_pair(tmp_path)[position]
    folder = open_folder(tmp_path)
    folder.check(progress=False)
    change(path)
    with pytest.raises(ValueError, match=f"{path}: ") as found:
        folder.check(progress=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{path}: "):
        list(semantic_training_batches(folder, 1, lambda image, label, seed: (image, label)).take(1))
    assert len(str(found.value).splitlines()) == 2


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_images_have_three_bands(bands):
    image, label = np.zeros((6, 8, bands), "float32"), np.zeros((6, 8), "int32")
    for pad in (True, False):
        augment = SemanticAugmentation((4, 4) if pad else (9, 9))
        with pytest.raises(ValueError, match=r"three of its bands.*Received: "):
            augment(image, label, tf.constant([0, 1]))

    class Source:
        def load(self, indices=None):
            return tf.data.Dataset.from_tensors((image, label))

    for size in (None, (9, 9)):
        with pytest.raises(ValueError, match="three of its bands"):
            semantic_evaluation_batches(Source(), image_size=size)
        other = Source()
        other.num_channels = bands
        assert next(iter(semantic_evaluation_batches(other, image_size=size)))[0].shape[-1] == bands
        other.num_channels = 5
        with pytest.raises(ValueError, match=r"must be \(height, width, 5\)\. Received: \(6, 8, "):
            semantic_evaluation_batches(other, image_size=size)


def test_a_missing_folder_and_one_without_splits_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match=r"path must be a folder that exists\. Received: .*missing"):
        SemanticFolder(tmp_path / "missing")
    (tmp_path / "images" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match="path must hold images and label pictures"):
        SemanticFolder(tmp_path)
    (tmp_path / "annotations").mkdir()
    with pytest.raises(ValueError, match="has no splits: open it with split=None"):
        SemanticFolder(tmp_path)
