"""TIFF files of many bands: read by one function in checks, training, scores and predictions."""

import builtins
import json

import keras
import numpy as np
import pytest
from PIL import Image
from small_models import SMALL

from heads import SemanticFPN, segment_in_tiles
from heads.bands import count_bands, find_num_channels, read_bands, read_data_picture, read_size
from heads.data import (
    CocoDataset,
    DetectionAugmentation,
    SemanticAugmentation,
    SemanticFolder,
    detection_evaluation_batches,
    detection_training_batches,
    open_detection_folder,
    open_semantic_folder,
    semantic_evaluation_batches,
    semantic_training_batches,
)
from heads.picture_sizes import Resizing
from heads.pictures import read_picture
from heads.prediction import prepare_picture, read_pixels
from van_backbones import VANBackbone

tifffile = pytest.importorskip("tifffile", reason="pip install 'van-backbones[multispectral]'")

GREY = {"photometric": "minisblack"}
NAMES = ("soil", "plants")


def make_bands(size=(20, 30), num_bands=6, dtype="uint16", seed=0):
    values = np.random.default_rng(seed).integers(0, 200, (*size, num_bands))
    return (values * 3 if dtype != "uint8" else values).astype(dtype)


def write_bands(path, bands, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, bands, planarconfig="contig", **GREY, **options)
    return bands


def write_folder(root, sizes=((20, 30), (33, 26)), dtype="uint16"):
    """Returns the bands by split and place."""
    written = {}
    for split in ("train", "val"):
        for place, size in enumerate(sizes):
            bands = make_bands(size, dtype=dtype, seed=place)
            written[split, place] = write_bands(root / f"images/{split}/{place}.tif", bands)
            label = (bands[..., 3] > bands[..., 3].mean()).astype("uint8")
            (root / f"labels/{split}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(label).save(root / f"labels/{split}/{place}.png")
    return written


def make_segmenter(num_channels=6, **options):
    keras.utils.set_random_seed(0)
    backbone = VANBackbone("b0", (None, None, num_channels), normalization=None, **SMALL)
    return SemanticFPN(backbone, 2, channels=8, pyramid_channels=8, class_names=NAMES, **options)


# The reader


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages", "tiled"])
def test_bands_are_read_as_they_are_stored(tmp_path, dtype, layout):
    bands, path = make_bands(dtype=dtype), tmp_path / "a.tif"
    if layout == "contig":
        tifffile.imwrite(path, bands, planarconfig="contig", **GREY)
    elif layout == "tiled":
        tifffile.imwrite(path, bands, planarconfig="contig", tile=(16, 16), compression="zlib", **GREY)
    else:
        separate = {"planarconfig": "separate"} if layout == "separate" else {}
        tifffile.imwrite(path, bands.transpose(2, 0, 1), **separate, **GREY)
    assert count_bands(path) == 6
    found = read_bands(path, 6, (20, 30))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, bands.astype("float32"))


@pytest.mark.parametrize("shape", [(20, 30, 1), (1, 30, 6), (20, 1, 6), (1, 1, 6), (6, 6, 6), (20, 30, 2)])
def test_odd_sizes_keep_their_axes(tmp_path, shape):
    bands = make_bands(shape[:2], shape[2])
    options = {"planarconfig": "contig"} if shape[2] > 1 else {}
    tifffile.imwrite(tmp_path / "a.tif", bands, **options, **GREY)
    np.testing.assert_array_equal(read_bands(tmp_path / "a.tif"), bands)
    assert count_bands(tmp_path / "a.tif") == shape[2]


def test_what_pillow_writes_is_read(tmp_path):
    bands = make_bands(num_bands=4, dtype="uint8")
    Image.fromarray(bands).save(tmp_path / "a.tif", compression="tiff_deflate")
    np.testing.assert_array_equal(read_bands(tmp_path / "a.tif", 4), bands)
    Image.fromarray(bands[..., 0]).save(tmp_path / "b.tiff")
    np.testing.assert_array_equal(read_bands(str(tmp_path / "b.tiff"), 1), bands[..., :1])


def test_faults_are_named(tmp_path):
    path = tmp_path / "a.tif"

    def refuse(match, *arguments):
        with pytest.raises(ValueError, match=match):
            read_bands(path, *arguments)

    refuse(r"^/.*a\.tif: cannot be read \(No such file")
    path.write_bytes(b"")
    refuse(r"a\.tif: cannot be read \(")
    Image.new("RGB", (30, 20)).save(path, "PNG")
    refuse(r"a\.tif: cannot be read \(not a TIFF file")
    write_bands(path, make_bands())
    refuse(r"a\.tif: the picture must have 4 channels\. Received: 6", 4)
    refuse(r"of its label, \(30, 20\)\. Received: \(20, 30\)", 6, (30, 20), "its label")
    path.write_bytes(path.read_bytes()[:-500])
    refuse(r"a\.tif: cannot be read \(")
    write_bands(path, make_bands(dtype="uint32"))
    refuse(r"8 or 16 bits, or floats\. Received: uint32")
    bands = make_bands(dtype="float64")
    bands[0, 0, 0], bands[1, 1, 1] = np.nan, 1e300  # beyond float32
    write_bands(path, bands)
    refuse(r"must be finite; .* Received: 2 that are not")
    tifffile.imwrite(path, np.zeros((2, 3, 20, 30), "uint8"), metadata={"axes": "TCYX"}, imagej=False, **GREY)
    refuse(r"one picture with its bands\. Received: shape \(2, 3, 20, 30")
    with pytest.raises(
        ValueError, match=r"a\.tif: .*one picture with its bands\. Received: shape \(2, 3, 20"
    ):
        count_bands(path)


def test_without_the_reader_its_name_is_told(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        if name == "tifffile":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install \"van-backbones\[multispectral\]\""):
        read_bands(tmp_path / "a.tif")


def test_many_bands_are_no_rgb_picture(tmp_path):
    write_bands(tmp_path / "a.tif", make_bands(dtype="uint8"))
    message = r"a\.tif: cannot be read \(.*many bands, which is not an RGB picture"
    with pytest.raises(ValueError, match=message):
        read_picture(tmp_path / "a.tif")


# Folders and batches


def test_a_folder_is_checked_and_loaded(tmp_path):
    written = write_folder(tmp_path)
    folder = open_semantic_folder(tmp_path, "train", NAMES, num_channels=6)
    assert isinstance(folder, SemanticFolder)
    assert folder.check(1, progress=False).sum() == 20 * 30 + 33 * 26
    for place, (image, label) in enumerate(folder.load()):
        assert image.dtype == "float32"
        np.testing.assert_array_equal(image, written["train", place])
        assert label.shape == image.shape[:2]


def test_all_files_of_other_channels_are_listed(tmp_path):
    write_folder(tmp_path)
    write_bands(tmp_path / "images/train/1.tif", make_bands((33, 26), 5))
    with pytest.raises(ValueError, match=r"1\.tif: the picture must have 6 channels\. Received: 5") as error:
        SemanticFolder(tmp_path, "train", NAMES, num_channels=6).check(1, progress=False)
    assert "0.tif" not in str(error.value)
    with pytest.raises(ValueError, match=r"0\.tif: .* 4 channels\. Received: 6\n.*1\.tif.*Received: 5"):
        SemanticFolder(tmp_path, "train", NAMES, num_channels=4).check(1, progress=False)


def test_suffixes_and_arguments(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match=r"0\.tif: the image must be \.jpg.*num_channels=.*TIFF"):
        SemanticFolder(tmp_path, "train", NAMES)
    (tmp_path / "images/train/0.tif").rename(tmp_path / "images/train/0.png")
    with pytest.raises(ValueError, match=r"0\.png: the image must be \.tif or \.tiff$"):
        SemanticFolder(tmp_path, "train", NAMES, num_channels=6)
    with pytest.raises(ValueError, match=r"num_channels must be .* Received: 0"):
        SemanticFolder(tmp_path, "train", NAMES, num_channels=0)


def test_channels_are_found(tmp_path):
    """In the first image, where all are TIFF files: else they are RGB, and what is none is named."""
    write_folder(tmp_path)
    folder = open_semantic_folder(tmp_path, "train", NAMES, num_channels=None)
    assert folder.num_channels == 6
    assert folder.split(0.5)[0].num_channels == 6
    write_bands(tmp_path / "images/train/1.tif", make_bands((33, 26), 5))
    folder = SemanticFolder(tmp_path, "train", NAMES, num_channels=None)
    with pytest.raises(ValueError, match=r"1\.tif: the picture must have 6 channels\. Received: 5"):
        folder.check(1, progress=False)
    (tmp_path / "images/train/1.tif").unlink()
    Image.new("RGB", (26, 33)).save(tmp_path / "images/train/1.png")
    with pytest.raises(ValueError, match=r"0\.tif: the image must be \.jpg.*num_channels=N reads TIFF"):
        SemanticFolder(tmp_path, "train", NAMES, num_channels=None)
    (tmp_path / "images/train/0.tif").unlink()
    Image.new("RGB", (30, 20)).save(tmp_path / "images/train/0.jpg")
    assert SemanticFolder(tmp_path, "train", NAMES, num_channels=None).num_channels == 3
    (tmp_path / "images/val/0.tif").write_bytes(b"II")
    with pytest.raises(ValueError, match=r"0\.tif: cannot be read"):
        SemanticFolder(tmp_path, "val", NAMES, num_channels=None)


def test_batches_are_padded_with_zeros_and_colours_are_refused(tmp_path):
    written = write_folder(tmp_path, dtype="float32")
    folder = SemanticFolder(tmp_path, "train", NAMES, num_channels=6)
    with pytest.raises(ValueError, match=r"RGB: .*photometric=False leaves colours as they are\. Received"):
        semantic_training_batches(folder, 2, SemanticAugmentation(40))
    augment = SemanticAugmentation(40, (1.0, 1.0), max_class_share=1, flip=False, photometric=False)
    images, labels = next(iter(semantic_training_batches(folder, 2, augment, shuffle=False)))
    assert images.shape == (2, 40, 40, 6)
    np.testing.assert_allclose(images[0, :20, :30], written["train", 0], rtol=1e-6)
    assert not images[0, 20:].numpy().any()
    assert (labels[0, 20:].numpy() == 255).all()
    images, labels = next(iter(semantic_evaluation_batches(folder, 2, (40, 40))))
    assert images.shape == (2, 40, 40, 6)
    assert not images[0, 30:].numpy().any()
    assert images[0, :26].numpy().all(axis=(1, 2)).any()


# Objects


def write_objects(root, sizes=((20, 30), (33, 26)), dtype="uint16"):
    """Writes COCO's format, a square in each picture; returns the bands."""
    (root / "annotations").mkdir(parents=True)
    written, images, annotations = [], [], []
    for place, (height, width) in enumerate(sizes):
        bands = make_bands((height, width), dtype=dtype, seed=place)
        written.append(write_bands(root / f"images/train/{place}.tif", bands))
        images.append({"id": place, "file_name": f"{place}.tif", "height": height, "width": width})
        box = [4, 6, 8, 10]
        corners = [[4, 6, 12, 6, 12, 16, 4, 16]]
        entry = {"id": place, "image_id": place, "category_id": 1, "bbox": box, "area": 80, "iscrowd": 0}
        annotations.append({**entry, "segmentation": corners})
    categories = [{"id": 1, "name": "field"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_train.json").write_text(json.dumps(content))
    return written


def test_objects_on_bands(tmp_path):
    """The same pixels in the check, in batches and in label maps of outlines; zeros beyond the pictures."""
    written = write_objects(tmp_path)
    dataset = open_detection_folder(tmp_path, "train", with_masks=True, num_channels=None)
    assert isinstance(dataset, CocoDataset)
    assert dataset.num_channels == 6
    np.testing.assert_array_equal(dataset.check(1, progress=False), [2])
    for example, bands in zip(dataset.load(), written, strict=True):
        assert example["image"].dtype == "float32"
        np.testing.assert_array_equal(example["image"], bands)
    inputs, targets = next(iter(detection_evaluation_batches(dataset, 2)))
    assert inputs["images"].shape == (2, 64, 32, 6)
    np.testing.assert_array_equal(inputs["images"][0, :20, :30], written[0])
    assert not inputs["images"][0, 20:].numpy().any()
    np.testing.assert_array_equal(targets["boxes"][:, 0], [[4, 6, 12, 16]] * 2)
    augment = DetectionAugmentation(image_size=40, scale_range=(0.8, 1.2))
    inputs, targets = next(iter(detection_training_batches(dataset, 2, augment)))
    assert inputs["images"].shape == (2, 40, 40, 6)
    assert targets["masks"].shape == (2, 1, 40, 40)
    augment = DetectionAugmentation(image_size=40, photometric=True)
    with pytest.raises(ValueError, match="photometric=False leaves colours as they are"):
        detection_training_batches(dataset, 2, augment)
    maps = open_semantic_folder(tmp_path, "train", num_channels=None)
    assert (maps.layout, maps.num_channels) == ("objects in COCO's format", 6)
    maps.check(1, progress=False)
    for (image, label_map), bands in zip(maps.load(), written, strict=True):
        np.testing.assert_array_equal(image, bands)
        assert label_map.numpy().sum() == 80
    held_out = write_objects(tmp_path / "more", sizes=((20, 30),) * 4) and open_detection_folder(
        tmp_path / "more", num_channels=None
    ).split(0.5)
    assert [part.num_channels for part in held_out] == [6, 6]


def test_faults_of_objects_on_bands_are_listed(tmp_path):
    write_objects(tmp_path)
    write_bands(tmp_path / "images/train/1.tif", make_bands((33, 26), 5))
    dataset = open_detection_folder(tmp_path, "train", num_channels=None)
    with pytest.raises(ValueError, match=r"image 1: .*1\.tif: .*must have 6 channels\. Received: 5") as error:
        dataset.check(1, progress=False)
    assert "image 0" not in str(error.value)
    with pytest.raises(ValueError, match=r"image 0: .*0\.tif: cannot be read"):
        open_detection_folder(tmp_path, "train").check(1, progress=False)
    for wrong in (0, 2.5):
        with pytest.raises(ValueError, match=rf"num_channels must be .* Received: {wrong}"):
            open_detection_folder(tmp_path, "train", num_channels=wrong)


def test_other_formats_know_the_size_of_bands(tmp_path):
    """YOLO's label files have none: it is in the picture's header."""
    write_bands(tmp_path / "images/train/a.tif", make_bands((20, 40)))
    (tmp_path / "labels/train").mkdir(parents=True)
    (tmp_path / "labels/train/a.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    (tmp_path / "classes.txt").write_text("field\n")
    dataset = open_detection_folder(tmp_path, "train", num_channels=None)
    assert (dataset.format, dataset.num_channels) == ("YOLO", 6)
    np.testing.assert_array_equal(dataset.check(1, progress=False), [1])
    np.testing.assert_allclose(dataset.boxes[0], [[15, 5, 25, 15]])


def test_channels_and_sizes_of_files(tmp_path):
    write_bands(tmp_path / "a.tif", make_bands((20, 40)))
    Image.new("RGB", (30, 10)).save(tmp_path / "b.png")
    assert find_num_channels([]) == 3
    assert find_num_channels(iter([tmp_path / "a.tif"])) == 6
    assert find_num_channels([tmp_path / "a.tif", tmp_path / "b.png"]) == 3
    assert (read_size(tmp_path / "a.tif"), read_size(tmp_path / "b.png")) == ((20, 40), (10, 30))
    assert read_data_picture(tmp_path / "a.tif", 6, (20, 40)).pixels.shape == (20, 40, 6)
    assert read_data_picture(tmp_path / "b.png").pixels.dtype == np.uint8
    (tmp_path / "c.tif").write_bytes(b"II")
    (tmp_path / "d.png").write_bytes(b"II")
    for name in ("c.tif", "d.png"):
        with pytest.raises(ValueError, match=rf"{name}: cannot be read"):
            read_size(tmp_path / name)


# Models


def test_predictions_see_what_scores_see(tmp_path):
    """The same pixels, sizes and label maps as through the batches that are scored."""
    write_folder(tmp_path)
    model = make_segmenter()
    assert model.image_channels == 6
    results = model.predict_pictures(tmp_path / "images/val", progress=False)
    batches = semantic_evaluation_batches(SemanticFolder(tmp_path, "val", NAMES, num_channels=6))
    for result, (images, _) in zip(results, batches, strict=True):
        np.testing.assert_array_equal(result["label_map"], model.predict_on_batch(images)[0])
        (same,) = model.predict_pictures(images[0].numpy().astype("uint16"), progress=False)
        np.testing.assert_array_equal(same["label_map"], result["label_map"])
        tiles = segment_in_tiles(model, result["path"], 64, progress=False)
        np.testing.assert_array_equal(tiles, result["label_map"])


def test_resized_pictures_are_padded_with_zeros(tmp_path):
    write_bands(tmp_path / "a.tif", make_bands((20, 30)) + np.uint16(1))
    prepared = prepare_picture(tmp_path / "a.tif", Resizing((40, 40)), num_channels=6)
    assert prepared.image.shape == (40, 40, 6)
    assert prepared.image_size == (27, 40)
    assert not prepared.image[27:].any()
    assert (prepared.image[:27] > 0).all()


def test_other_pictures_are_refused(tmp_path):
    write_bands(tmp_path / "a.tif", make_bands(num_bands=5))
    model = make_segmenter()
    with pytest.raises(ValueError, match=r"a\.tif: the picture must have 6 channels\. Received: 5"):
        model.predict_pictures(tmp_path / "a.tif")
    for wrong in (make_bands(num_bands=3), make_bands(dtype="int32"), np.zeros((0, 4, 6), "uint8")):
        with pytest.raises(ValueError, match=rf"\(height, width, 6\), uint8, .*Received: {wrong.dtype} of"):
            read_pixels(wrong, 6)
    with pytest.raises(ValueError, match=r"RGB pixels .* Received: uint16"):
        read_pixels(make_bands(num_bands=3))
    with pytest.raises(ValueError, match=r"only RGB pictures .* Received: a model of 6 channels"):
        next(model.prepare_pictures(tmp_path / "a.tif"))


@pytest.mark.slow
def test_a_segmenter_learns_from_a_band_that_rgb_lacks(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for place in range(4):
            label = random.integers(0, 2, (4, 4), "uint8").repeat(16, 0).repeat(16, 1)
            bands = random.integers(200, 800, (64, 64, 5), "uint16")
            bands[label == 1, 4] += 2000
            write_bands(tmp_path / f"images/{split}/{place}.tif", bands)
            (tmp_path / f"labels/{split}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(label).save(tmp_path / f"labels/{split}/{place}.png")
    train, val = (SemanticFolder(tmp_path, split, NAMES, num_channels=5) for split in ("train", "val"))
    model = make_segmenter(5)
    model.compile(keras.optimizers.AdamW(1e-2))
    augment = SemanticAugmentation(64, (1.0, 1.0), photometric=False)
    batches = semantic_training_batches(train, 4, augment)
    model.fit(batches, steps_per_epoch=40, verbose=0, shuffle=False)
    scores = model.evaluate(semantic_evaluation_batches(val), return_dict=True, verbose=0)
    assert scores["mean_iou"] > 0.7, scores
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    found = loaded.predict_pictures(val.image_paths, progress=False)
    truths = [np.asarray(Image.open(label)) for _, label in val.pairs]
    assert np.mean([each["label_map"] == truth for each, truth in zip(found, truths, strict=True)]) > 0.8
