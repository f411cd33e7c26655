import keras
import numpy as np
import pytest

from heads.ops.resizing import resize_bilinear
from heads.semantic_model import predict_logits, segment_images


def make_images(shape=(2, 9, 11, 3), seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype("float32")


class WindowModel:
    """Logits that depend on the whole window and on the position in it, so that every mistake is visible."""

    def __init__(self, num_classes=4):
        self.weights = np.random.default_rng(1).normal(size=(3, num_classes)).astype("float32")
        self.sizes = []

    def __call__(self, images, training=None):
        assert training is False
        images = np.asarray(images, "float32") / 64
        self.sizes.append(images.shape[1:3])
        place = np.arange(images.shape[2], dtype="float32")[:, None] / 8
        contrast = images - images.mean((1, 2), keepdims=True)
        return keras.ops.convert_to_tensor((contrast + place) @ self.weights)


def predict_by_loop(model, images, crop, stride):
    """Segments window after window from the top left corner, each moved back into the image."""
    batch, height, width = images.shape[:3]
    total, count = 0.0, np.zeros((height, width))
    tops = {min(top, max(height - crop[0], 0)) for top in range(0, height, stride[0])}
    lefts = {min(left, max(width - crop[1], 0)) for left in range(0, width, stride[1])}
    for top in sorted(tops):
        for left in sorted(lefts):
            window = np.zeros((batch, height, width, 4))
            inside = np.s_[top : top + crop[0], left : left + crop[1]]
            window[:, *inside] = model(images[:, *inside], training=False)
            total += window
            count[inside] += 1
    return total / count[:, :, None]


@pytest.mark.parametrize(
    ("crop", "stride"),
    [((4, 5), (3, 2)), ((4, 4), (4, 4)), ((9, 11), (6, 7)), ((20, 4), (9, 3)), ((30, 30), (1, 1))],
)
def test_sliding_equals_loop(crop, stride):
    images = make_images()
    expected = predict_by_loop(WindowModel(), images, crop, stride)
    logits = np.asarray(predict_logits(WindowModel(), images, crop, stride))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_default_stride_is_two_thirds():
    images = make_images()
    expected = predict_logits(WindowModel(), images, (6, 5), (4, 3))
    np.testing.assert_array_equal(predict_logits(WindowModel(), images, (6, 5)), expected)
    assert predict_logits(WindowModel(), images, (1, 1)).shape == (2, 9, 11, 4)


def test_windows_have_the_crop_size():
    model = WindowModel()
    predict_logits(model, make_images(), (4, 20), (3, 20))
    assert set(model.sizes) == {(4, 11)}


def test_without_crop_the_whole_image_is_seen():
    model, images = WindowModel(), make_images()
    np.testing.assert_array_equal(predict_logits(model, images), WindowModel()(images, training=False))
    assert model.sizes == [(9, 11)]


def test_half_precision_logits_become_float32():
    def model(images, training):
        return keras.ops.cast(WindowModel()(images, training), "bfloat16")

    for crop in (None, (4, 5)):
        logits = predict_logits(model, make_images(), crop)
        assert keras.backend.standardize_dtype(logits.dtype) == "float32"
        expected = predict_logits(WindowModel(), make_images(), crop)
        np.testing.assert_allclose(logits, expected, rtol=0, atol=0.1)


def softmax(logits):
    powers = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("crop", [None, (5, 6)])
def test_one_view_is_the_argmax(crop):
    images = make_images()
    label_map = segment_images(WindowModel(), images, crop)
    assert isinstance(label_map, np.ndarray)
    assert label_map.dtype == np.int32
    expected = np.asarray(predict_logits(WindowModel(), images, crop)).argmax(-1)
    np.testing.assert_array_equal(label_map, expected)
    assert len(np.unique(label_map)) > 2


def test_views_average_probabilities():
    model, images = WindowModel(), make_images()
    total = 0.0
    # 9 x 11 by 0.5 and 1.5: 4.5 -> 5, 5.5 -> 6; 13.5 -> 14, 16.5 -> 17.
    for size in ((5, 6), (9, 11), (14, 17)):
        view = np.asarray(resize_bilinear(images, size))
        for step in (1, -1):
            logits = np.asarray(model(view[:, :, ::step], training=False))[:, :, ::step]
            total += softmax(np.asarray(resize_bilinear(logits, (9, 11)), "float64"))
    model.sizes = []
    label_map = segment_images(model, images, scales=(0.5, 1.0, 1.5), flip=True)
    assert model.sizes == [(5, 6)] * 2 + [(9, 11)] * 2 + [(14, 17)] * 2
    np.testing.assert_array_equal(label_map, total.argmax(-1))
    assert (label_map != segment_images(model, images)).any()


def test_flip_by_hand():
    # Class 0 has 60 % on the left, 45 % on the right; with the mirrored answer both have 52.5 %.
    logits = np.log(np.array([[[[0.6, 0.4], [0.45, 0.55]]]], "float32"))

    def model(images, training):
        return keras.ops.convert_to_tensor(logits)

    images = np.zeros((1, 1, 2, 3), "float32")
    np.testing.assert_array_equal(segment_images(model, images), [[[0, 1]]])
    np.testing.assert_array_equal(segment_images(model, images, flip=True), [[[0, 0]]])


def test_views_average_probabilities_and_not_logits():
    answers = iter([[9.0, 0.0, 8.0], [0.0, 9.0, 8.0]])

    def model(images, training):
        return keras.ops.broadcast_to(np.array(next(answers), "float32"), (1, 2, 2, 3))

    # The sums of the logits are 9, 9, 16: class 2. Those of the probabilities are 0.73, 0.73, 0.54.
    label_map = segment_images(model, np.zeros((1, 2, 2, 3), "float32"), flip=True)
    np.testing.assert_array_equal(label_map, np.zeros((1, 2, 2)))


def test_images_may_be_integers():
    images = make_images().astype("uint8")
    np.testing.assert_array_equal(
        segment_images(WindowModel(), images), segment_images(WindowModel(), images.astype("float32"))
    )


@pytest.mark.parametrize(
    ("crop", "stride"),
    [((4, 4), (5, 4)), ((4, 4), (4, 5)), ((4, 0), None), ((4, 4), (0, 4)), ((-3, 4), None)],
)
def test_bad_windows_raise(crop, stride):
    with pytest.raises(ValueError, match=r"crop and stride must be positive.*Received: crop="):
        segment_images(WindowModel(), make_images(), crop, stride)


@pytest.mark.parametrize("shape", [(9, 11, 3), (1, 2, 9, 11, 3)])
def test_wrong_rank_raises(shape):
    with pytest.raises(ValueError, match=r"images must be \(batch, height, width, 3\)\. Received: shape"):
        segment_images(WindowModel(), np.zeros(shape, "float32"))
