import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from heads.data.label_pictures import decode_label, shift_zero_label
from heads.data.semantic_batches import semantic_evaluation_batches, semantic_training_batches
from heads.data.semantic_folder import SemanticFolder
from heads.pictures import MEAN_PIXEL

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = ("wall", "window", "door")


def save_image(path, size=(6, 8), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype="uint8")
    Image.fromarray(pixels).save(path)
    return pixels


def save_label(path, size=(6, 8), seed=0, highest=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    label = np.random.default_rng(seed).integers(0, highest + 1, size, dtype="uint8")
    Image.fromarray(label).save(path)
    return label


def write_folder(root, count=3, sizes=None, split="train"):
    """Writes layout (a), with PNG images, so that pixels survive; returns the images and labels by stem."""
    written = {}
    for index in range(count):
        size = sizes[index] if sizes else (6, 8)
        stem = f"picture_{index:02d}"
        image = save_image(root / "images" / split / f"{stem}.png", size, seed=index)
        label = save_label(root / "labels" / split / f"{stem}.png", size, seed=100 + index)
        written[stem] = (image, label)
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return written


# Finding the files


def test_folder_pairs_files_by_stem(tmp_path):
    written = write_folder(tmp_path)
    (tmp_path / "images" / "train" / ".hidden.png").write_bytes(b"")
    (tmp_path / "images" / "train" / "notes.txt").write_text("no image")
    folder = SemanticFolder(tmp_path)
    assert folder.class_names == NAMES
    assert folder.num_classes == 3
    assert [(i.stem, i.parent.parent.name) for i, _ in folder.pairs] == [(s, "images") for s in written]
    assert [(p.stem, p.parent.parent.name) for _, p in folder.pairs] == [(s, "labels") for s in written]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG", ".png"])
def test_folder_takes_each_image_suffix(tmp_path, suffix):
    save_image(tmp_path / "images" / "val" / f"a{suffix}")
    save_label(tmp_path / "labels" / "val" / "a.png")
    assert len(SemanticFolder(tmp_path, "val", NAMES).pairs) == 1


def test_ade20k_layout_shifts_labels(tmp_path):
    for split, long_name in (("train", "training"), ("val", "validation")):
        save_image(tmp_path / "images" / long_name / "ADE_1.jpg")
        label = save_label(tmp_path / "annotations" / long_name / "ADE_1.png", highest=3)
        for name in (split, long_name):
            folder = SemanticFolder(tmp_path, name, NAMES, reduce_zero_label=True)
            (_, loaded), *others = folder.load()
            assert not others
            np.testing.assert_array_equal(loaded, np.where(label == 0, 255, label.astype(int) - 1))
            counts = folder.check(progress=False)
            np.testing.assert_array_equal(counts, [np.sum(label == k) for k in (1, 2, 3)])


def test_ade20k_layout_needs_class_names(tmp_path):
    save_image(tmp_path / "images" / "training" / "a.jpg")
    save_label(tmp_path / "annotations" / "training" / "a.png")
    with pytest.raises(ValueError, match="class_names must be given"):
        SemanticFolder(tmp_path)


def test_class_names_from_text_file(tmp_path):
    write_folder(tmp_path)
    names = tmp_path / "names.txt"
    names.write_text("a\n b \n\n\n")
    assert SemanticFolder(tmp_path, class_names=names).class_names == ("a", "b")
    assert SemanticFolder(tmp_path, class_names=str(names)).class_names == ("a", "b")
    names.write_text("a\n\nb\n")  # a gap would shift the labels that follow
    with pytest.raises(ValueError, match="non-empty names"):
        SemanticFolder(tmp_path, class_names=names)


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"path must be a folder that exists\. Received: .*nowhere"):
        SemanticFolder(tmp_path / "nowhere")
    write_folder(tmp_path, split="train")
    write_folder(tmp_path, split="val")
    with pytest.raises(ValueError, match=r"\['train', 'val'\].*Received: 'test'"):
        SemanticFolder(tmp_path, "test")
    (tmp_path / "images" / "test").mkdir()
    (tmp_path / "labels" / "test").mkdir()
    with pytest.raises(ValueError, match="The split must hold"):
        SemanticFolder(tmp_path, "test")


def test_missing_counterparts_are_listed(tmp_path):
    write_folder(tmp_path)
    save_image(tmp_path / "images" / "train" / "lonely_image.png")
    save_image(tmp_path / "images" / "train" / "picture_00.jpg")
    save_label(tmp_path / "labels" / "train" / "lonely_label.png")
    with pytest.raises(ValueError, match="Every image must have one label") as error:
        SemanticFolder(tmp_path)
    message = str(error.value)
    assert "lonely_image.png: no label picture" in message
    assert "lonely_label.png: no image" in message
    assert "picture_00.png: a second image of this name" in message
    assert "more" not in message


def test_long_lists_are_cut(tmp_path):
    write_folder(tmp_path)
    for index in range(25):
        save_image(tmp_path / "images" / "train" / f"lonely_{index}.png")
    with pytest.raises(ValueError, match="and 5 more") as error:
        SemanticFolder(tmp_path)
    assert str(error.value).count("no label picture") == 20


# Decoding


def test_load_gives_pixels_in_file_order(tmp_path):
    sizes = [(6, 8), (5, 3), (1, 1)]
    written = write_folder(tmp_path, sizes=sizes)
    loaded = list(SemanticFolder(tmp_path).load())
    assert len(loaded) == 3
    for (image, label), (true_image, true_label) in zip(loaded, written.values(), strict=True):
        assert image.dtype == tf.uint8
        assert label.dtype == tf.int32
        np.testing.assert_array_equal(image, true_image)
        np.testing.assert_array_equal(label, true_label)


def test_palette_label_gives_indices(tmp_path):
    indices = np.array([[0, 1, 2], [2, 255, 1]], "uint8")
    picture = Image.fromarray(indices)
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    picture.save(tmp_path / "palette.png")
    with Image.open(tmp_path / "palette.png") as saved:
        assert saved.mode == "P"
    np.testing.assert_array_equal(decode_label(tmp_path / "palette.png"), indices)
    few = Image.fromarray(np.array([[0, 1, 2], [2, 0, 1]], "uint8"))
    few.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    few.save(tmp_path / "few.png", bits=2)
    np.testing.assert_array_equal(decode_label(tmp_path / "few.png"), [[0, 1, 2], [2, 0, 1]])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "bool"])
def test_grey_label_depths(tmp_path, dtype):
    label = np.array([[0, 1, 1], [1, 0, 1]], dtype)
    Image.fromarray(label).save(tmp_path / "label.png")
    decoded = decode_label(str(tmp_path / "label.png").encode())
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, label.astype(int))


def test_16_bit_label_keeps_large_values(tmp_path):
    Image.fromarray(np.array([[0, 300, 65535]], "uint16")).save(tmp_path / "label.png")
    np.testing.assert_array_equal(decode_label(tmp_path / "label.png"), [[0, 300, 65535]])


def test_colour_label_is_refused(tmp_path):
    save_image(tmp_path / "label.png")
    with pytest.raises(ValueError, match=r"map its colours.*'RGB'"):
        decode_label(tmp_path / "label.png")


def test_shift_zero_label():
    np.testing.assert_array_equal(shift_zero_label(np.array([0, 1, 150, 255])), [255, 0, 149, 255])


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P"])
def test_other_image_modes_become_rgb(tmp_path, mode):
    written = write_folder(tmp_path, count=1)
    path = tmp_path / "images" / "train" / "picture_00.png"
    rgb = Image.fromarray(written["picture_00"][0])
    picture = rgb.convert(mode)
    if mode == "RGBA":
        picture.putalpha(7)
    picture.save(path)
    ((image, _),) = SemanticFolder(tmp_path).load()
    np.testing.assert_array_equal(image, np.asarray(Image.open(path).convert("RGB")))


def test_jpeg_pixels_equal_pillow_and_ignore_orientation(tmp_path):
    smooth = np.add.outer(np.arange(40), 2 * np.arange(60)).astype("uint8")
    path = tmp_path / "images" / "train" / "a.jpg"
    path.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.fromarray(np.stack([smooth, 255 - smooth, smooth // 2], -1)).save(path, exif=exif)
    save_label(tmp_path / "labels" / "train" / "a.png", (40, 60))
    folder = SemanticFolder(tmp_path, class_names=NAMES)
    ((image, _),) = folder.load()
    assert image.shape == (40, 60, 3)
    np.testing.assert_array_equal(image, np.asarray(Image.open(path)))
    assert folder.check(progress=False).sum() == 40 * 60


# Checking


def test_check_counts_pixels(tmp_path):
    written = write_folder(tmp_path)
    label = written["picture_01"][1]
    label[:2] = 255
    Image.fromarray(label).save(tmp_path / "labels" / "train" / "picture_01.png")
    counts = SemanticFolder(tmp_path).check(num_threads=2)
    expected = [sum(int(np.sum(label == k)) for _, label in written.values()) for k in range(3)]
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)


def test_check_lists_every_problem_at_once(tmp_path):
    write_folder(tmp_path, count=9)
    images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
    save_image(images / "truncated.jpg", (64, 64))
    (images / "truncated.jpg").write_bytes((images / "truncated.jpg").read_bytes()[:-200])
    save_label(labels / "truncated.png", (64, 64))
    (images / "picture_01.png").write_bytes(b"not a picture")
    save_label(labels / "picture_02.png", (8, 6))
    save_label(labels / "picture_03.png", highest=40, seed=3)
    save_image(labels / "picture_04.png")
    (labels / "picture_05.png").write_bytes((labels / "picture_05.png").read_bytes()[:40])
    Image.fromarray(np.zeros((6, 8, 3), "uint8")).save(images / "picture_06.png", format="WEBP")
    with pytest.raises(ValueError, match="faulty files in 'train'") as error:
        SemanticFolder(tmp_path).check(progress=False)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 7
    assert "picture_01.png: cannot be read" in lines[0]
    assert "labels" in lines[1]
    assert "(8, 6)" in lines[1]
    assert "(6, 8)" in lines[1]
    assert "0 .. 2 or 255. Received: 3, " in lines[2]
    assert "map its colours" in lines[3]
    assert "picture_05.png: cannot be read" in lines[4]
    assert "WEBP" in lines[5]
    assert "truncated.jpg: cannot be read" in lines[6]


def test_check_range_follows_zero_label(tmp_path):
    save_image(tmp_path / "images" / "train" / "a.png")
    save_label(tmp_path / "labels" / "train" / "a.png", highest=3)
    assert SemanticFolder(tmp_path, "train", NAMES, reduce_zero_label=True).check(progress=False).sum() > 0
    with pytest.raises(ValueError, match="Received: 3"):
        SemanticFolder(tmp_path, "train", NAMES).check(progress=False)


# Batches


def first_pixels(dataset, count):
    return [tuple(image.numpy()[0, 0]) for image, _ in dataset.take(count)]


def test_load_takes_positions(tmp_path):
    write_folder(tmp_path, count=3)
    folder = SemanticFolder(tmp_path)
    ordered = first_pixels(folder.load(), 3)
    positions = tf.data.Dataset.from_tensor_slices(np.array([2, 0, 2]))
    assert first_pixels(folder.load(positions), 4) == [ordered[k] for k in (2, 0, 2)]
    assert folder.load().cardinality() == len(folder) == 3


def add_noise(image, label, seed):
    noise = tf.random.stateless_uniform(tf.shape(image), seed)
    return tf.ensure_shape(tf.cast(image, tf.float32) + noise, (6, 8, 3)), label


def test_training_batches_repeat_exactly_with_one_seed(tmp_path):
    write_folder(tmp_path, count=3)
    folder = SemanticFolder(tmp_path)

    def take(seed):
        return [image.numpy() for image, _ in semantic_training_batches(folder, 2, add_noise, seed).take(6)]

    first, again, other = take(5), take(5), take(6)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len({image[0].tobytes() for image in first}) == 6  # each image has its own noise


def test_training_batches_shapes_and_order(tmp_path):
    written = write_folder(tmp_path, count=3)

    def keep(image, label, seed):
        return image, label

    batches = list(semantic_training_batches(SemanticFolder(tmp_path), 2, keep, shuffle=False).take(3))
    assert [images.shape for images, _ in batches] == [(2, 6, 8, 3)] * 3
    assert batches[0][0].dtype == tf.float32
    assert batches[0][1].dtype == tf.int32
    images = np.concatenate([images for images, _ in batches])
    true_images = np.stack([image for image, _ in written.values()])
    np.testing.assert_array_equal(images, np.concatenate([true_images, true_images]))


def test_batch_size_is_checked(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        semantic_training_batches(SemanticFolder(tmp_path), 0, add_noise)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        semantic_evaluation_batches(SemanticFolder(tmp_path), -1)


def test_evaluation_batches_keep_sizes(tmp_path):
    written = write_folder(tmp_path, sizes=[(6, 8), (5, 3), (1, 1)])
    batches = list(semantic_evaluation_batches(SemanticFolder(tmp_path)))
    for (images, labels), (image, label) in zip(batches, written.values(), strict=True):
        assert images.dtype == tf.float32
        np.testing.assert_array_equal(images[0], image)
        np.testing.assert_array_equal(labels[0], label)


def test_evaluation_batches_of_one_size(tmp_path):
    write_folder(tmp_path, count=3)
    batches = semantic_evaluation_batches(SemanticFolder(tmp_path), batch_size=2)
    assert [labels.shape for _, labels in batches] == [(2, 6, 8), (1, 6, 8)]


def test_evaluation_batches_of_different_sizes_are_refused(tmp_path):
    write_folder(tmp_path, sizes=[(6, 8), (6, 8), (8, 6)])
    folder = SemanticFolder(tmp_path)
    with pytest.raises(ValueError, match=r"picture_00.*\(6, 8\).*picture_02.*\(8, 6\).*batch_size=2"):
        semantic_evaluation_batches(folder, batch_size=2)
    shapes = [images.shape for images, _ in semantic_evaluation_batches(folder, 2, image_size=(7, 9))]
    assert shapes == [(2, 7, 9, 3), (1, 7, 9, 3)]


def test_evaluation_batches_fit_and_pad(tmp_path):
    sizes = [(4, 10), (10, 4), (8, 8)]
    written = write_folder(tmp_path, sizes=sizes)
    # Fitted into 8 x 20: twice as large, 0.8 times as large, unchanged.
    fitted = [(8, 20), (8, 3), (8, 8)]
    batches = semantic_evaluation_batches(SemanticFolder(tmp_path), image_size=(8, 20))
    for (images, labels), (height, width) in zip(batches, fitted, strict=True):
        image, label = images[0].numpy(), labels[0].numpy()
        assert image.shape == (8, 20, 3)
        assert label[:height, :width].max() < 255
        for rest in (label[height:], label[:, width:]):
            assert (rest == 255).all()
        for rest in (image[height:], image[:, width:]):
            np.testing.assert_array_equal(rest, np.broadcast_to(np.float32(MEAN_PIXEL), rest.shape))
    (_, enlarged), _, (same, _) = batches
    true_label = written["picture_00"][1]
    np.testing.assert_array_equal(enlarged[0], true_label.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(same[0, :8, :8], written["picture_02"][0])


def test_other_sources_work():
    class TwoPictures:
        class_names = ("a",)
        num_classes = 1

        def __len__(self):
            return 2

        def load(self, indices=None):
            indices = tf.data.Dataset.range(2) if indices is None else indices
            return indices.map(lambda _: (tf.zeros((6, 8, 3), tf.uint8), tf.zeros((6, 8), tf.int32)))

    ((images, labels),) = semantic_evaluation_batches(TwoPictures(), batch_size=2)
    assert images.shape == (2, 6, 8, 3)
    assert labels.shape == (2, 6, 8)
    assert next(iter(semantic_training_batches(TwoPictures(), 3, add_noise)))[0].shape == (3, 6, 8, 3)


# Real data


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"needs the data sets in {SHARED_DATA}")
def test_real_folders():
    coating = SemanticFolder(SHARED_DATA / "coating_ebc", "val")
    counts = coating.check(progress=False)
    assert coating.class_names == ("background", "oxide", "crack")
    np.testing.assert_allclose(counts / counts.sum(), [0.812, 0.185, 0.0031], atol=6e-4)  # its README

    facades = SemanticFolder(SHARED_DATA / "facades", "train")
    assert (len(facades.pairs), facades.num_classes) == (200, 10)
    for (image, label), (image_path, label_path) in zip(facades.load().take(2), facades.pairs, strict=False):
        np.testing.assert_array_equal(image, np.asarray(Image.open(image_path).convert("RGB")))
        np.testing.assert_array_equal(label, np.asarray(Image.open(label_path)))
