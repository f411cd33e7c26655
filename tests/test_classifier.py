"""VANClassifier against Hugging Face's model, and its preprocessing against Pillow."""

import socket

import keras
import numpy as np
import pytest
from PIL import Image

from van_backbones import VARIANTS, VANClassifier
from van_backbones.checkpoints.loading import load_checkpoint
from van_backbones.classifier import decode_predictions, preprocess_images


def make_reference(variant, seed=0):
    """Returns Hugging Face's model with random weights with which every tensor matters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="4.57")
    row = VARIANTS[variant]
    config = transformers.VanConfig(
        hidden_sizes=list(row.widths),
        depths=list(row.depths),
        mlp_ratios=list(row.expansion_ratios),
        num_labels=1000,
    )
    torch.manual_seed(seed)
    model = transformers.VanForImageClassification(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.1)
            elif "_scaling" in name:
                tensor.uniform_(0.01, 0.1)
    return torch, model


@pytest.mark.parametrize(
    ("variant", "sizes"),
    [
        ("b0", [(224, 224), (97, 131), (64, 256)]),
        pytest.param("b1", [(96, 64)], marks=pytest.mark.slow),
        pytest.param("b2", [(64, 96)], marks=pytest.mark.slow),
        pytest.param("b3", [(64, 64)], marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_logits_equal_hugging_face(tmp_path, variant, sizes):
    torch, reference = make_reference(variant)
    torch.save(reference.state_dict(), tmp_path / "pytorch_model.bin")
    random = np.random.default_rng(0)
    for dtype, tolerance in (("float32", 2e-5), ("float64", 1e-9)):
        model = VANClassifier(variant, normalization=None, dtype=dtype)
        load_checkpoint(model, tmp_path / "pytorch_model.bin")
        reference = reference.to(getattr(torch, dtype))
        for size in sizes:
            images = random.normal(size=(1, *size, 3)).astype(dtype)
            with torch.no_grad():
                expected = reference(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
            logits = keras.ops.convert_to_numpy(model(images))
            assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()


def test_preprocessing_equals_pillow():
    random = np.random.default_rng(0)
    small = random.integers(0, 255, (9, 12, 3)).astype("uint8")
    for size in ((300, 400), (431, 333), (120, 150)):
        picture = Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)
        height, width = size
        scaled = (248 * width // min(size), 248 * height // min(size))
        resized = np.asarray(picture.resize(scaled, Image.Resampling.BICUBIC))
        top, left = (round((side - 224) / 2) for side in resized.shape[:2])
        expected = resized[top : top + 224, left : left + 224].astype("float32")
        images = keras.ops.convert_to_numpy(preprocess_images(np.asarray(picture)[None]))
        assert images.shape == (1, 224, 224, 3)
        # Pillow rounds after each of its two passes.
        assert np.abs(images[0] - expected).max() <= 2
        assert np.abs(images[0] - expected).mean() < 0.3


def test_preprocessing_of_a_single_image_gives_a_batch_of_one():
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3)).astype("uint8")
    np.testing.assert_array_equal(preprocess_images(image, 32), preprocess_images(image[None], 32))
    for shape in ((60, 80), (60, 80, 1), (1, 1, 60, 80, 3)):
        with pytest.raises(ValueError, match=r"images must be \(batch, height, width, 3\)\. Received"):
            preprocess_images(np.zeros(shape))


def test_preprocessing_of_other_channels_keeps_their_values():
    image = np.random.default_rng(0).uniform(-500, 3000, (60, 80, 5)).astype("float32")
    found = keras.ops.convert_to_numpy(preprocess_images(image, 32, num_channels=5))
    assert found.shape == (1, 32, 32, 5)
    assert found.min() < -1
    assert found.max() > 1000
    scaled = image / 100 + 100  # within 0 .. 255
    rgb = [preprocess_images(scaled[..., [band] * 3], 32) for band in range(5)]
    expected = np.stack([keras.ops.convert_to_numpy(each)[..., 0] for each in rgb], -1)
    np.testing.assert_allclose(found / 100 + 100, expected, atol=0.51)  # which is rounded
    with pytest.raises(ValueError, match=r"images must be \(batch, height, width, 5\)\. Received"):
        preprocess_images(image[..., :3], 32, num_channels=5)


def test_decode_predictions_names_the_best(monkeypatch):
    for name in ("create_connection", "getaddrinfo", "socket"):  # the names come with the package
        monkeypatch.setattr(socket, name, lambda *args, **options: pytest.fail("downloads"))
    logits = np.zeros((2, 1000), "float32")
    logits[0, 7], logits[0, 3] = 9.0, 8.0
    logits[1, 999] = 1.0
    (best, second), (other, _) = decode_predictions(logits, top=2)
    assert best[:2] == ("n01514668", "cock")
    assert second[:2] == ("n01491361", "tiger_shark")
    assert other[:2] == ("n15075141", "toilet_tissue")
    total = np.exp(9.0) + np.exp(8.0) + 998
    np.testing.assert_allclose([best[2], second[2]], np.exp([9.0, 8.0]) / total, rtol=1e-5)
    assert len(decode_predictions(logits)[0]) == 5
    assert decode_predictions(logits[:0]) == []


def test_decode_predictions_refuses_other_classes():
    with pytest.raises(ValueError, match=r"logits must be \(batch, 1000\)\. Received: shape \(2, 10\)"):
        decode_predictions(np.zeros((2, 10)))
    with pytest.raises(ValueError, match=r"\(batch, 1000\)\. Received: shape \(1000,\)"):
        decode_predictions(np.zeros(1000))
    with pytest.raises(ValueError, match=r"top must be at least 1\. Received: 0"):
        decode_predictions(np.zeros((1, 1000)), top=0)


@pytest.mark.slow
def test_parameters_and_round_trip(tmp_path):
    model = VANClassifier("b0", num_classes=10, input_shape=(64, 64, 3))
    trained = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    assert trained == 3_848_800 + 257 * 10
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, VANClassifier)
    np.testing.assert_allclose(loaded.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-6)
    with pytest.raises(ValueError, match=r"num_classes must be at least 1\. Received: 0"):
        VANClassifier("b0", num_classes=0)


def test_thousand_classes_have_the_published_size():
    model = VANClassifier("b0")
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == 4_105_800
