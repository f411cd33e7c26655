import keras
import numpy as np
import pytest
from keras import ops
from small_models import SMALL, build, draw_images

from heads import SemanticFPN, UPerNet
from heads.class_scores import find_class, score_class
from van_backbones import VANBackbone, VANClassifier
from van_backbones.feature_maps import grad_cam, measure_reach, receptive_field
from van_backbones.layer_calls import watch_calls


def test_of_a_classifier_it_is_the_weighted_map():
    """If a mean and a dense layer follow the features, Grad-CAM is CAM: their product with the weights."""
    keras.utils.set_random_seed(0)
    model = VANClassifier("b0", num_classes=5)
    image = draw_images((70, 100), 1)[0]
    maps = grad_cam(model, image, lambda logits: logits[0, 3])
    features = ops.convert_to_numpy(model.backbone(image[None].astype("float32"))["P5"])[0]
    kernel = ops.convert_to_numpy(model.get_layer("head").kernel)[:, 3]
    expected = np.maximum(features @ kernel, 0) / features[..., 0].size
    np.testing.assert_allclose(maps["P5"], expected, rtol=1e-3, atol=1e-6 * expected.max())
    assert expected.max() > 0
    assert {level: each.shape for level, each in maps.items()} == {
        "P2": (18, 25),
        "P3": (9, 13),
        "P4": (5, 7),
        "P5": (3, 4),
    }
    assert not maps["P2"].any()  # the classifier only reads the last level


SLOW_UPERNET = pytest.param(UPerNet, {}, marks=pytest.mark.slow)


@pytest.mark.parametrize(("head", "options"), [(SemanticFPN, {"pyramid_channels": 8}), SLOW_UPERNET])
def test_weights_are_what_a_channel_brings(head, options):
    """With differences: the channels of a level are raised one by one, at all positions together."""
    model = build(head, num_classes=3, channels=8, **options)
    image = draw_images((40, 56), 1)[0]
    inputs = image[None].astype("float32")
    label = find_class(model, model(inputs, training=False))

    def score(logits):
        return ops.mean(logits[..., label])

    maps = grad_cam(model, image, score)
    features = ops.convert_to_numpy(model.pyramid(inputs)["P4"])[0]

    def measure(channel, step):
        def shift(layer, args, outputs):
            return {
                **outputs,
                "P4": outputs["P4"] + step * np.eye(features.shape[-1], dtype="float32")[channel],
            }

        with watch_calls([model.pyramid], shift):
            return float(score(model(inputs, training=False)))

    weights = [(measure(k, 1e-2) - measure(k, -1e-2)) / 2e-2 for k in range(features.shape[-1])]
    expected = np.maximum(features @ np.array(weights) / features[..., 0].size, 0)
    assert maps["P4"].max() > 0
    np.testing.assert_allclose(maps["P4"], expected, rtol=0.05, atol=0.05 * expected.max())


def test_where_the_class_is_is_where_its_reason_is():
    """If a segmenter calls bright pixels class 1, its reasons are there."""
    inputs = keras.Input((None, None, 3))
    features = keras.layers.AveragePooling2D(4)(inputs)
    backbone = keras.Model(inputs, {"P2": features})
    outputs = keras.layers.UpSampling2D(4)(keras.layers.Dense(2, name="classes")(backbone(inputs)["P2"]))
    model = keras.Model(inputs, outputs)
    model.backbone = backbone
    model.get_layer("classes").set_weights([np.array([[-1, 1]] * 3) / 3, np.array([100.0, -100.0])])
    image = np.full((16, 16, 3), 20.0)
    image[4:8, 8:16] = 220.0
    predictions = model(image[None])
    assert find_class(model, predictions) == 0
    maps = grad_cam(model, image, lambda predictions: score_class(model, predictions, 1))
    np.testing.assert_allclose(
        maps["P2"] / maps["P2"].max(), [[1 / 11] * 4, [1 / 11] * 2 + [1] * 2] + [[1 / 11] * 4] * 2, rtol=1e-4
    )


def test_mixed_precision_is_explained():
    model = VANClassifier("b0", num_classes=3, dtype="mixed_bfloat16")
    maps = grad_cam(model, draw_images((64, 64), 1)[0], lambda logits: logits[0, 0])
    assert {each.dtype for each in maps.values()} == {np.dtype("float32")}
    assert np.isfinite(maps["P5"]).all()


def test_wrong_models_and_scores_are_refused():
    image = np.zeros((32, 32, 3))
    with pytest.raises(ValueError, match="model must be a classifier or a head, with a backbone inside"):
        grad_cam(VANBackbone("b0", **SMALL), image, lambda pyramid: pyramid["P5"][0, 0, 0, 0])
    model = build(SemanticFPN, num_classes=3, channels=8, pyramid_channels=8)
    with pytest.raises(ValueError, match=r"score must return a scalar. Received: shape \(1, 32, 32\)"):
        grad_cam(model, image, lambda logits: logits[..., 0])
    assert "call" not in vars(model.pyramid)  # also after an error


def make_backbone(kernel):
    inputs = keras.Input((None, None, 3))
    conv = keras.layers.Conv2D(kernel.shape[-1], len(kernel), strides=4, padding="same", use_bias=False)
    backbone = keras.Model(inputs, {"P2": conv(inputs)})
    backbone.pyramid_outputs = dict(backbone.output)
    conv.set_weights([kernel])
    return backbone


def test_the_receptive_field_of_a_convolution_is_its_kernel():
    random = np.random.default_rng(0)
    kernel = random.uniform(-0.5, 1.0, (4, 4, 3, 2)).astype("float32")
    field = receptive_field(make_backbone(kernel), np.full((2, 16, 24, 3), 100.0), "P2")
    # Position (2, 3) of 4 x 6 covers the pixels 8 .. 11 and 12 .. 15. Pixels that lower the features are left
    # out.
    expected = np.zeros((16, 24))
    expected[8:12, 12:16] = np.maximum(kernel.sum(axis=-1), 0).sum(axis=-1)
    np.testing.assert_allclose(field, expected / expected.max(), rtol=1e-5)


def test_features_below_zero_have_no_receptive_field():
    kernel = np.ones((4, 4, 3, 2), "float32")
    kernel[..., 1] = -1.0
    kernel[0, 0, 0, 1] = -5.0
    field = receptive_field(make_backbone(kernel), iter([np.ones((8, 8, 3), "uint8")] * 3), "P2")
    assert (field[4:, 4:] == 1).all()
    assert not field[:4].any()


def test_receptive_fields_refuse():
    backbone = make_backbone(np.ones((4, 4, 3, 1), "float32"))
    image = np.zeros((8, 8, 3))
    with pytest.raises(ValueError, match=r"level must be one of \['P2'\] of the backbone. Received: 'P5'"):
        receptive_field(backbone, [image])
    with pytest.raises(ValueError, match=r"level must be one of \[\]"):
        receptive_field(keras.Model(backbone.inputs, backbone.output["P2"]), [image])
    with pytest.raises(ValueError, match="at least one picture"):
        receptive_field(backbone, [], "P2")
    with pytest.raises(ValueError, match=r"the same size, \(8, 8\). Received: one of \(8, 12\)"):
        receptive_field(backbone, [image, np.zeros((8, 12, 3))], "P2")
    assert not receptive_field(backbone, [image], "P2").any()  # features of 0: nothing, and no NaN


def test_levels_look_farther_and_farther():
    backbone, images = VANBackbone("b0", **SMALL), draw_images((160, 160), 1)
    # A block reaches 2 + 9 positions in its attention, and one in its feed-forward part.
    most = 2 * (2 + 9 + 1) * 4 + 7
    assert measure_reach(receptive_field(backbone, images, "P2"), 1.0) <= most + 2
    assert measure_reach(receptive_field(backbone, images, "P4"), 1.0) > most + 2


@pytest.mark.parametrize("share", [0.3, 0.5, 0.95, 1.0])
def test_reach_is_the_smallest_square(share):
    field = np.random.default_rng(0).uniform(size=(20, 30))
    reach = measure_reach(field, share)

    def sum_square(side):
        half = side // 2
        return field[max(0, 10 - half) : 10 + half + 1, max(0, 15 - half) : 15 + half + 1].sum()

    assert sum_square(reach) >= share * field.sum() * (1 - 1e-9)
    assert sum_square(reach - 2) < share * field.sum()


def test_reach_of_other_shares_is_refused():
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 1. Received: 95"):
        measure_reach(np.ones((3, 3)), 95)
