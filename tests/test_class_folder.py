import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from heads.data import ClassAugmentation, ClassFolder, class_training_batches
from heads.data.class_folder import find_class_folders


def write_classes(root, counts, size=(12, 16)):
    """Writes `counts[name]` pictures for each name, each with a grey of its own."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((*size, 3), 10 * number + index, "uint8")
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_pictures_and_classes(tmp_path):
    root = write_classes(tmp_path, {"owl": 2, "crow": 3})
    (root / ".git").mkdir()
    (root / "notes.txt").write_text("no class")
    (root / "owl" / "._0.png").write_text("no picture")
    (root / "owl" / "list.csv").write_text("no picture")
    folder = ClassFolder(root)
    assert folder.class_names == ("crow", "owl")
    assert folder.num_classes == 2
    assert [f"{path.parent.name}/{path.name}" for path in folder.image_paths] == [
        *("crow/0.png", "crow/1.png", "crow/2.png"),
        *("owl/0.png", "owl/1.png"),
    ]
    assert folder.check(progress=False).tolist() == [3, 2]
    loaded = [(int(image[0, 0, 0]), int(label)) for image, label in folder.load().as_numpy_iterator()]
    assert loaded == [(10, 0), (11, 0), (12, 0), (0, 1), (1, 1)]


def test_numbers_are_sorted_as_numbers(tmp_path):
    write_classes(tmp_path, {"10": 1, "2": 1, "0": 1})
    assert [folder.name for folder in find_class_folders(tmp_path)] == ["0", "2", "10"]


def test_validation_folders_have_the_classes_of_the_training(tmp_path):
    train = ClassFolder(write_classes(tmp_path / "train", {"a": 1, "b": 1, "c": 1}))
    validation = ClassFolder(write_classes(tmp_path / "val", {"c": 2}), train.class_names)
    assert validation.labels.tolist() == [2, 2]
    assert validation.check(progress=False).tolist() == [0, 0, 2]
    with pytest.raises(ValueError, match=r"must be classes of the training data. Received also: d, e"):
        ClassFolder(write_classes(tmp_path / "other", {"a": 1, "d": 1, "e": 1}), train.class_names)


def test_check_lists_all_faults(tmp_path):
    root = write_classes(tmp_path, {"a": 2, "b": 2})
    (root / "a" / "0.png").write_bytes(b"no picture")
    (root / "b" / "2.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="faulty files") as caught:
        ClassFolder(root).check(progress=False)
    assert "a/0.png: cannot be read (not a picture" in str(caught.value)
    assert "b/2.jpg: cannot be read" in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "path must hold a folder of pictures for each class"),
        ({"a": 1}, r"at least 2 classes. Received: \('a',\)"),
        ({"a": 1, "b": 0, "c": 0}, r"must hold pictures \(.jpg, .*Received none in: b, c"),
    ],
)
def test_folders_that_are_no_classes_are_refused(tmp_path, counts, message):
    with pytest.raises(ValueError, match=message):
        ClassFolder(write_classes(tmp_path, counts))


def test_split_holds_out_a_share_of_each_class(tmp_path):
    folder = ClassFolder(write_classes(tmp_path, {"a": 10, "b": 2, "c": 1}))
    train, held_out = folder.split(0.3, seed=1)
    assert np.bincount(train.labels).tolist() == [7, 1, 1]
    assert np.bincount(held_out.labels).tolist() == [3, 1]
    assert not set(train.image_paths) & set(held_out.image_paths)
    assert {*train.image_paths, *held_out.image_paths} == set(folder.image_paths)
    for path, label in zip(held_out.image_paths, held_out.labels, strict=True):
        assert path.parent.name == folder.class_names[label]
    assert folder.split(0.3, seed=1)[1].image_paths == held_out.image_paths
    assert folder.split(0.3, seed=2)[1].image_paths != held_out.image_paths
    assert [len(part) for part in folder.split(0.99)] == [3, 10]
    with pytest.raises(ValueError, match=r"share must be below 1.*Received: 1"):
        folder.split(1.0)
    with pytest.raises(ValueError, match="must have two pictures of some class"):
        ClassFolder(write_classes(tmp_path / "single", {"a": 1, "b": 1})).split(0.5)


# Pictures of more than three channels.


def write_bands(root, num_bands, count=2, size=(12, 16), **options):
    """Writes TIFF files whose values tell the class, the file and the band."""
    tifffile = pytest.importorskip("tifffile", reason="pip install 'van-backbones[multispectral]'")
    for number, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            bands = np.full((*size, num_bands), 1000 * number + 100 * index, "uint16")
            bands += np.arange(num_bands, dtype="uint16")
            options = {"planarconfig": "contig", "photometric": "minisblack", **options}
            tifffile.imwrite(root / name / f"{index}.tif", bands, **options)
    return root


def test_pictures_of_many_channels(tmp_path):
    folder = ClassFolder(write_bands(tmp_path, 5), num_channels=None)
    assert folder.num_channels == 5
    assert folder.check(progress=False).tolist() == [2, 2]
    loaded = list(folder.load().as_numpy_iterator())
    assert [(image[0, 0].tolist(), int(label)) for image, label in loaded] == [
        ([start + band for band in range(5)], label)
        for start, label in ((0.0, 0), (100.0, 0), (1000.0, 1), (1100.0, 1))
    ]
    assert loaded[0][0].dtype == np.float32
    assert folder.split(0.5)[1].num_channels == 5
    batches = class_training_batches(folder, 2, ClassAugmentation(8), seed=3)
    assert batches.element_spec[0].shape == (2, 8, 8, 5)
    for images, labels in batches.take(2).as_numpy_iterator():
        np.testing.assert_allclose(images[..., 4] - images[..., 0], 4, atol=1e-2)
        assert ((images[:, 0, 0, 0] > 900) == (labels == 1)).all()  # not limited to 0 .. 255


def test_pages_may_be_channels(tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="pip install 'van-backbones[multispectral]'")
    for name in "ab":
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "0.tif", np.zeros((4, 12, 16), "uint8"), photometric="minisblack")
    assert ClassFolder(tmp_path, num_channels=None).num_channels == 4


def test_faults_among_pictures_of_many_channels(tmp_path):
    root = write_bands(tmp_path, 5)
    write_bands(tmp_path / "other", 4)
    (tmp_path / "other/a/0.tif").rename(root / "b/4.tif")
    shutil.rmtree(tmp_path / "other")
    (root / "a" / "0.tif").write_bytes(b"no picture")
    folder = ClassFolder(root, num_channels=None)
    assert folder.num_channels == 5
    with pytest.raises(ValueError, match="faulty files") as caught:
        folder.check(progress=False)
    assert "a/0.tif: cannot be read" in str(caught.value)
    assert "b/4.tif: the picture must have 5 channels. Received: 4" in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "RGBA"])
def test_grey_and_rgb_tiff_files_are_rgb_without_another_library(tmp_path, mode, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new(mode, (16, 12), 1).save(tmp_path / name / "0.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    folder = ClassFolder(tmp_path, num_channels=None)
    assert folder.num_channels == 3
    folder.check(progress=False)
    assert next(folder.load().as_numpy_iterator())[0].shape == (12, 16, 3)


def test_pictures_of_many_channels_need_a_library(tmp_path, monkeypatch):
    write_bands(tmp_path, 5)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImportError, match=r'pip install "van-backbones\[multispectral\]"'):
        ClassFolder(tmp_path, num_channels=None)


def test_some_tiff_files_among_others_are_rgb(tmp_path):
    root = write_bands(write_classes(tmp_path, {"c": 1}), 3)
    assert ClassFolder(root, num_channels=None).num_channels == 3
    with pytest.raises(ValueError, match=r"must hold pictures \(.tif, .tiff\). Received none in: c"):
        ClassFolder(root, num_channels=3 + 1)


# Batches.


def test_training_batches(tmp_path):
    folder = ClassFolder(write_classes(tmp_path, {"a": 3, "b": 3}))
    batches = class_training_batches(folder, 2, ClassAugmentation(8), seed=3)
    assert batches.element_spec[0].shape == (2, 8, 8, 3)
    seen = list(batches.take(6).as_numpy_iterator())
    for images, labels in seen:
        assert labels.dtype == np.int32
        for image, label in zip(images, labels, strict=True):
            assert np.ptp(image) < 1e-3
            assert round(float(image.mean())) // 10 == label
    greys = sorted(round(float(image.mean())) for images, _ in seen[:3] for image in images)
    assert greys == [0, 1, 2, 10, 11, 12]  # each picture once per epoch
    later = class_training_batches(folder, 2, ClassAugmentation(8), seed=3, first_step=4)
    np.testing.assert_array_equal(next(iter(later))[0], seen[4][0])
