"""TIFF files of many bands: read by one function in checks, training, scores and predictions."""

import builtins

import keras
import numpy as np
import pytest
from PIL import Image
from small_models import SMALL

from heads import SemanticFPN, segment_in_tiles
from heads.bands import read_bands
from heads.data import (
    SemanticAugmentation,
    SemanticFolder,
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
    found = read_bands(path, 6, (20, 30))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, bands.astype("float32"))


@pytest.mark.parametrize("shape", [(20, 30, 1), (1, 30, 6), (20, 1, 6), (1, 1, 6), (6, 6, 6), (20, 30, 2)])
def test_odd_sizes_keep_their_axes(tmp_path, shape):
    bands = make_bands(shape[:2], shape[2])
    options = {"planarconfig": "contig"} if shape[2] > 1 else {}
    tifffile.imwrite(tmp_path / "a.tif", bands, **options, **GREY)
    np.testing.assert_array_equal(read_bands(tmp_path / "a.tif"), bands)


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
