import types

import numpy as np
import pytest
from keras import ops
from small_models import build, draw_images

from heads import EDN, FasterRCNN, Mask2Former, RetinaNet, SimpleBaseline, SparseRCNN, UPerNet
from heads.class_scores import find_class, score_class

MODEL = types.SimpleNamespace(num_classes=3)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def call(function, *arguments, **options):
    return float(ops.convert_to_numpy(function(MODEL, *arguments, **options)))


def test_pixels(random):
    logits = random.normal(size=(1, 6, 8, 3)).astype("float32")
    logits[..., 2] += 0.8
    labels = logits[0].argmax(axis=-1)
    assert find_class(MODEL, logits) == np.bincount(labels.ravel()).argmax() == 2
    for label in range(3):
        expected = np.mean(
            [logits[0, y, x, label] for y in range(6) for x in range(8) if labels[y, x] == label]
        )
        assert call(score_class, logits, label) == pytest.approx(expected, rel=1e-5)
        assert call(score_class, {"logits": logits}, label) == pytest.approx(expected, rel=1e-5)
    assert find_class(MODEL, logits, point=(7, 5)) == labels[5, 7]
    assert call(score_class, logits, 0, point=(7, 5)) == pytest.approx(logits[0, 5, 7, 0])


def test_a_class_without_pixels_is_asked_of_all(random):
    logits = random.normal(size=(1, 4, 4, 3)).astype("float32")
    logits[..., 1] -= 100.0
    assert call(score_class, logits, 1) == pytest.approx(logits[..., 1].mean(), rel=1e-5)


def test_saliency_is_what_is_above_zero(random):
    logits = random.normal(size=(1, 5, 5, 1)).astype("float32")
    assert find_class(MODEL, logits) == 0
    assert call(score_class, logits, 0) == pytest.approx(logits[logits > 0].mean(), rel=1e-5)


def test_objects_with_a_sigmoid(random):
    logits = random.normal(size=(1, 50, 3)).astype("float32")
    best = logits[0].max(axis=0).argmax()
    assert find_class(MODEL, {"class_logits": logits}) == best
    expected = sorted(logits[0, :, best])[-10:]
    assert call(score_class, {"class_logits": logits}, best) == pytest.approx(np.mean(expected), rel=1e-5)
    few = {"class_logits": logits[:, :4]}
    assert call(score_class, few, 1) == pytest.approx(logits[0, :4, 1].mean(), rel=1e-5)


def test_objects_with_a_background(random):
    logits = random.normal(size=(1, 20, 4)).astype("float32")
    logits[0, 7] = (0, 3, 0, 9)  # surely background, however high the second class is
    logs = logits[0] - np.log(np.exp(logits[0]).sum(axis=-1, keepdims=True))
    best = logs[:, :3].max(axis=0).argmax()
    assert find_class(MODEL, {"class_logits": logits}) == best
    expected = np.mean(sorted(logs[:, best])[-10:])
    assert call(score_class, {"class_logits": logits}, best) == pytest.approx(expected, rel=1e-4)


def test_of_several_stages_the_last_counts(random):
    logits = random.normal(size=(1, 6, 20, 3)).astype("float32")
    last = {"class_logits": logits[:, -1]}
    assert call(score_class, {"class_logits": logits}, 1) == call(score_class, last, 1)


HEADS = (
    (UPerNet, {"num_classes": 3, "channels": 8, "auxiliary_channels": 8}),
    (RetinaNet, {"num_classes": 3, "channels": 8}),
    (FasterRCNN, {"num_classes": 3, "channels": 8, "num_proposals": 10}),
    (SparseRCNN, {"num_classes": 3, "channels": 8, "num_proposals": 4, "num_stages": 2}),
    (
        Mask2Former,
        {
            "num_things": 2,
            "num_stuff": 1,
            "num_queries": 4,
            "channels": 32,
            "num_encoder_layers": 1,
            "num_decoder_layers": 1,
        },
    ),
    (EDN, {}),
)


@pytest.mark.parametrize(("head", "options"), HEADS)
def test_heads_can_be_asked(head, options):
    model = build(head, **options)
    predictions = model(draw_images((40, 56), 1).astype("float32"), training=False)
    label = find_class(model, predictions)
    assert 0 <= label < 3
    assert np.isfinite(float(ops.convert_to_numpy(score_class(model, predictions, label))))


def test_wrong_questions_are_refused(random):
    logits = random.normal(size=(1, 4, 6, 3)).astype("float32")
    for label in (-1, 3):
        with pytest.raises(ValueError, match=rf"label must be in 0 .. 2. Received: {label}"):
            score_class(MODEL, logits, label)
    for point in ((6, 0), (0, 4)):
        with pytest.raises(ValueError, match=r"within the image of 6 x 4 pixels. Received"):
            score_class(MODEL, logits, 0, point=point)
    with pytest.raises(ValueError, match=r"must be those of one image. Received: those of 2"):
        find_class(MODEL, np.concatenate([logits, logits]))
    pose = build(SimpleBaseline, num_keypoints=3, channels=8)
    with pytest.raises(ValueError, match="model must be a segmenter, a detector or a saliency model"):
        find_class(pose, logits)
    with pytest.raises(ValueError, match="model must be a segmenter"):
        find_class(MODEL, {"boxes": logits})
