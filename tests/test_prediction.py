"""From pictures to results in their own pixels."""

import functools

import contracts
import keras
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from heads import MaskRCNN, Resizing, RetinaNet, SemanticFPN
from heads.data import detection_evaluation_batches
from heads.ops.resizing import resize_bilinear
from heads.pictures import read_picture
from heads.prediction import find_pictures, prepare_picture
from heads.semantic_model import score_images

SIZES = {"a.png": (40, 60), "b.webp": (40, 60), "c.jpg": (64, 33)}
MEAN = np.array([123.675, 116.28, 103.53], "float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes pictures of two sizes; the last one is stored on its side."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for name, size in SIZES.items():
        image = Image.fromarray(generator.integers(0, 255, (*size, 3), "uint8"))
        exif = Image.Exif()
        if name == "c.jpg":
            exif[274] = 6
        image.save(folder / name, exif=exif, **({"lossless": True} if name.endswith("webp") else {}))
    (folder / "._a.png").write_bytes(b"what macOS notes")
    (folder / "notes.txt").write_text("no picture")
    return folder


def make_detector(resizing=None, head=RetinaNet, **options):
    keras.utils.set_random_seed(0)
    options = {"channels": 8, "max_detections": 5, "score_threshold": 0.0, **options}
    model = head(contracts.PooledBackbone(), 2, class_names=["cat", "dog"], resizing=resizing, **options)
    for variable in model.trainable_variables:
        variable.assign(keras.random.normal(variable.shape, stddev=0.1, seed=len(variable.path)))
    return model


def make_segmenter(resizing=None):
    keras.utils.set_random_seed(0)
    return SemanticFPN(contracts.PooledBackbone(), 3, 8, 8, resizing=resizing)


def test_folders_files_and_arrays(folder):
    names = ["a.png", "b.webp", "c.jpg"]
    assert [path.name for path in find_pictures(folder)] == names
    assert [path.name for path in find_pictures(str(folder / "a.png"))] == ["a.png"]
    image = np.zeros((4, 5, 3), "uint8")
    assert len(find_pictures(image)) == 1
    assert len(find_pictures(np.stack([image, image]))) == 2
    mixed = find_pictures([folder / "a.png", image])
    assert [type(each).__name__ for each in mixed] == ["PosixPath", "ndarray"]


def test_prepared_pictures_are_upright_resized_and_padded(folder):
    path = folder / "c.jpg"
    assert prepare_picture(path, Resizing()).image.shape == (33, 64, 3)
    prepared = prepare_picture(path, Resizing((40, 96)), 32)
    assert prepared.original_size == (33, 64)
    assert prepared.image_size == (40, 78)
    assert prepared.image.shape == (40, 96, 3)
    np.testing.assert_array_equal(prepared.image[:, 78:], np.broadcast_to(MEAN, (40, 18, 3)))
    assert prepare_picture(path, Resizing(), 32).image.shape == (64, 64, 3)


@pytest.mark.parametrize(
    "resizing",
    [
        pytest.param(None, marks=pytest.mark.slow),
        pytest.param(Resizing((64, 96)), marks=pytest.mark.slow),
        Resizing(short_side=48),
    ],
)
def test_detectors_see_what_scoring_sees(folder, resizing):
    """The same pixels, sizes and detections as through the batches that are scored."""
    model = make_detector(resizing)
    found = model.predict_pictures(folder, batch_size=2, progress=False)
    assert [each["path"].name for each in found] == list(SIZES)

    class Source:
        class_names, num_classes, image_ids, with_masks = ("cat", "dog"), 2, [1, 2, 3], False

        def load(self, indices=None):
            import tensorflow as tf

            spec = {
                "index": tf.TensorSpec((), tf.int64),
                "image": tf.TensorSpec((None, None, 3), tf.uint8),
                "boxes": tf.TensorSpec((None, 4), tf.float32),
                "labels": tf.TensorSpec((None,), tf.int32),
            }
            return tf.data.Dataset.from_generator(self.read, output_signature=spec)

        def read(self):
            for index, path in enumerate(find_pictures(folder)):
                pixels = prepare_picture(path, Resizing()).image.astype("uint8")
                yield {"index": index, "image": pixels, "boxes": np.zeros((0, 4)), "labels": np.zeros(0)}

    batches = detection_evaluation_batches(Source(), **model.resizing.get_config())
    for result, (inputs, _) in zip(found, batches.as_numpy_iterator(), strict=True):
        expected = {name: values[0] for name, values in model.predict_on_batch(inputs).items()}
        kept = expected["labels"] >= 0
        assert len(result["boxes"]) == kept.sum() > 0
        np.testing.assert_allclose(result["boxes"], expected["boxes"][kept], atol=1e-3)
        np.testing.assert_allclose(result["scores"], expected["scores"][kept], rtol=1e-4)
        assert result["names"] == [("cat", "dog")[label] for label in expected["labels"][kept]]
        assert (result["boxes"] <= np.array([64, 60, 64, 60])).all()


def test_pictures_of_many_sizes_do_not_pile_up(monkeypatch):
    """Each picture waits for another one of its size, but not for ever."""
    model, waiting, most = make_segmenter(), 0, 0

    def predict(images, image_sizes, original_sizes):
        nonlocal waiting, most
        waiting -= len(images)
        return [{"label_map": np.full(size, size[1])} for size in original_sizes.tolist()]

    def prepare(*arguments, **options):
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        return prepare_picture(*arguments, **options)

    monkeypatch.setattr(model, "predict_resized", predict)
    monkeypatch.setattr("heads.prediction.prepare_picture", prepare)
    pictures = [np.zeros((4, width, 3), "uint8") for width in (*range(1, 40), 3, 3)]
    results = model.predict_pictures(pictures, batch_size=2, progress=False)
    assert [each["label_map"][0, 0] for each in results] == [picture.shape[1] for picture in pictures]
    assert waiting == 0
    assert most <= 9


def test_score_threshold_and_classes_without_names(folder):
    model = make_detector()
    model.class_names = None
    (everything,) = model.predict_pictures(folder / "a.png")
    threshold = float(np.median(everything["scores"]))
    (some,) = model.predict_pictures(folder / "a.png", score_threshold=threshold)
    assert 0 < len(some["boxes"]) < len(everything["boxes"])
    assert (some["scores"] >= threshold).all()
    assert set(everything["names"]) <= {"class 0", "class 1"}


def test_masks_have_the_size_of_the_picture(folder):
    make = functools.partial(make_detector, head=MaskRCNN, num_proposals=20, num_samples=8)
    model = make(Resizing(64))
    (pasted,) = model.predict_pictures(folder / "c.jpg")
    assert pasted["masks"].shape == (len(pasted["boxes"]), 33, 64)
    assert pasted["masks"].dtype == bool
    (coded,) = model.predict_pictures(folder / "c.jpg", masks="run_lengths")
    assert len(pasted["masks"]) > 0
    for mask, runs in zip(pasted["masks"], coded["masks"], strict=True):
        np.testing.assert_array_equal(run_lengths.decode(runs), mask)
    (nothing,) = model.predict_pictures(folder / "c.jpg", score_threshold=1.1)
    assert nothing["masks"].shape == (0, 33, 64)


@pytest.mark.parametrize(
    "resizing", [None, pytest.param(Resizing((50, 80)), marks=pytest.mark.slow), Resizing(short_side=20)]
)
def test_label_maps_have_the_size_of_the_picture(folder, resizing):
    model = make_segmenter(resizing)
    together = model.predict_pictures(folder, batch_size=2, progress=False)
    assert [each["label_map"].shape for each in together] == [(40, 60), (40, 60), (33, 64)]
    for each in together:
        (alone,) = model.predict_pictures(each["path"])
        np.testing.assert_array_equal(alone["label_map"], each["label_map"])
        assert alone["label_map"].dtype == np.int32
    if resizing is None:
        image = prepare_picture(folder / "a.png", Resizing()).image
        np.testing.assert_array_equal(together[0]["label_map"], model.predict_on_batch(image[None])[0])


def test_label_maps_of_several_views(folder):
    """The views are of the resized picture; what is averaged is resized back, and then a label map."""
    views, image = {"scales": (1.0, 1.5), "flip": True}, read_picture(folder / "c.jpg")
    (plain,) = make_segmenter().predict_pictures(image, **views)
    np.testing.assert_array_equal(plain["label_map"], make_segmenter().segment(image[None], **views)[0])
    (window,) = make_segmenter().predict_pictures(image, crop=(32, 32), stride=(20, 20))
    expected = make_segmenter().segment(image[None], (32, 32), (20, 20))[0]
    np.testing.assert_array_equal(window["label_map"], expected)
    model = make_segmenter(Resizing((50, 80)))
    (resized,) = model.predict_pictures(image, **views)
    prepared = prepare_picture(image, model.resizing)
    assert prepared.image_size == (41, 80)
    scores = score_images(model, prepared.image[None], **views)
    scores = resize_bilinear(scores[:, :41], (33, 64))
    np.testing.assert_array_equal(resized["label_map"], np.asarray(scores)[0].argmax(-1))
    with pytest.raises(TypeError, match="windows"):
        model.predict_pictures(image, windows=3)


def test_a_saved_model_is_all_that_it_takes(folder, tmp_path):
    model = make_detector(Resizing(short_side=48, long_side=64))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.class_names == ["cat", "dog"]
    assert loaded.resizing.get_config() == model.resizing.get_config()
    for ours, theirs in zip(*(each.predict_pictures(folder) for each in (model, loaded)), strict=True):
        np.testing.assert_array_equal(ours["boxes"], theirs["boxes"])
        assert ours["names"] == theirs["names"]


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ("missing.png", "there is no such picture or folder. Received: .*missing.png"),
        ("", "the folder must hold pictures .*jpg"),
        ("notes.txt", r"notes\.txt: cannot be read \(not a picture"),
        (np.zeros((4, 5)), r"RGB pixels .* Received: float64 of shape \(5,\)"),
        (np.zeros((4, 5, 3), "int64"), "Received: int64"),
        ([np.zeros((4, 5, 4), "uint8")], r"Received: uint8 of shape \(4, 5, 4\)"),
    ],
)
def test_what_is_no_picture(tmp_path, pictures, message):
    (tmp_path / "notes.txt").write_text("no picture")
    pictures = tmp_path / pictures if isinstance(pictures, str) else pictures
    with pytest.raises(ValueError, match=message):
        make_segmenter().predict_pictures(pictures)


def test_other_options_are_refused(folder):
    with pytest.raises(ValueError, match=r"masks must be one of .* Received: 'polygons'"):
        make_segmenter().predict_pictures(folder, masks="polygons")
    with pytest.raises(ValueError, match=r"batch_size must be at least 1. Received: 0"):
        make_segmenter().predict_pictures(folder, batch_size=0)
    with pytest.raises(ValueError, match=r"class_names must be a text for each of the 2 classes"):
        RetinaNet(contracts.PooledBackbone(), 2, channels=8, class_names=["cat"])
