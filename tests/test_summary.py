import os
import subprocess
import sys

import keras
import pytest
from benchmarks.multiply_accumulates import CLASSIFIERS, count_multiply_accumulates
from small_models import SMALL, build

from heads import GFL, MaskRCNN, RetinaNet, SparseRCNN, UPerNet
from heads.layers.attention import MultiHeadAttention
from van_backbones import VANBackbone, VANClassifier, deploy
from van_backbones.summary import summarize


def total(parts):
    """Returns the sums of (parameters, multiply-accumulates)."""
    return tuple(sum(part[column] for part in parts) for column in (1, 2))


def count_stage(side, inputs, width, kernel_size, depth, ratio):
    """Returns the sums of one stage, computed by hand for square maps with this side."""
    embedding = kernel_size**2 * inputs * width
    attention = width * width + 25 * width + 49 * width + width * width + width * width
    feed_forward = ratio * width * width + 9 * ratio * width + ratio * width * width
    return side**2 * (embedding + depth * (attention + feed_forward))


def test_stages_by_hand():
    parts = summarize(VANBackbone("b0", **SMALL), (100, 100))  # maps of 25, 13, 7 and 4
    assert [part.name for part in parts] == ["stage 1", "stage 2", "stage 3", "stage 4"]
    assert [part.multiply_accumulates for part in parts] == [
        count_stage(25, 3, 8, 7, 1, 8),
        count_stage(13, 8, 8, 3, 2, 8),
        count_stage(7, 8, 16, 3, 1, 4),
        count_stage(4, 16, 16, 3, 1, 4),
    ]
    width = 8
    # Each has a bias: 3 x 3 to 5 x 5 and so on; norms have two numbers per channel, layer scales one.
    block = 3 * (width * width + width) + (25 + 1 + 49 + 1) * width + 2 * 2 * width + 2 * width
    block += 8 * width * width + 8 * width + (9 + 1) * 8 * width + 8 * width * width + width
    assert parts[0].parameters == 49 * 3 * width + width + 2 * width + block + 2 * width


@pytest.mark.parametrize(
    "variant", ["b0", *(pytest.param(v, marks=pytest.mark.slow) for v in ("b2", *CLASSIFIERS))]
)
def test_classifiers_as_published(variant):
    model = VANClassifier(variant)
    parts = summarize(model, (224, 224))
    assert total(parts)[1] == CLASSIFIERS[variant]
    assert parts[-1] == ("head", model.backbone.widths[-1] * 1000 + 1000, model.backbone.widths[-1] * 1000)
    assert total(parts)[0] == model.count_params() - count_statistics(model)
    expected = CLASSIFIERS[variant] - model.backbone.widths[-1] * 1000
    assert count_multiply_accumulates(model.backbone, (224, 224)) == expected


def count_statistics(model):
    return sum(weight.shape[0] for weight in model.non_trainable_weights)


# FACTS.md: the authors' numbers, 948, 1030, 1098, 1208 and 1658 G, except for what they round or leave out.
UPERNETS = {"b2": 949.9, "b3": 1032.1, "b4": 1099.4, "b5": 1208.2, "b6": 1658.1}


@pytest.mark.slow
@pytest.mark.parametrize("variant", UPERNETS)
def test_upernets_as_published(variant):
    model = UPerNet(VANBackbone(variant), num_classes=150)
    assert round(total(summarize(model, (512, 2048), training=True))[1] / 1e9, 1) == UPERNETS[variant]
    parts = {part.name: part for part in summarize(model, (512, 2048))}
    assert parts["auxiliary"].multiply_accumulates == 0  # only training runs it
    assert parts["auxiliary"].parameters > 0
    assert parts["classifier"].multiply_accumulates == 128 * 512 * 512 * 150


def test_detectors_by_hand():
    model = RetinaNet(VANBackbone("b0"), num_classes=80)
    model.backbone.freeze(4)  # frozen weights count, too
    parts = {part.name: part for part in summarize(model, (256, 256))}
    assert total(parts.values())[0] == 13_386_068
    positions = 32**2 + 16**2 + 8**2 + 4**2 + 2**2  # the levels share the towers
    assert parts["class_tower"].multiply_accumulates == positions * 4 * 9 * 256 * 256
    assert parts["class_output"].multiply_accumulates == positions * 9 * 256 * 9 * 80
    assert "pyramid" not in parts


def test_the_second_stage_runs_for_each_region():
    model = build(MaskRCNN, num_classes=3, channels=8, num_proposals=7, max_detections=5)
    parts = {part.name: part for part in summarize(model, (64, 64))}
    hidden = 1024
    expected = 7 * (49 * 8 * hidden + hidden * hidden + hidden * (4 + 4 * 3))
    assert parts["box_head"].multiply_accumulates == expected
    # Four convolutions at 14 x 14, the transposed one that doubles them, and the last at 28 x 28.
    masks = 14**2 * (4 * 9 * 8 * 8 + 4 * 8 * 8) + 28**2 * 8 * 3
    assert parts["mask_head"].multiply_accumulates == 5 * masks


@pytest.mark.slow
def test_own_weights_and_constants():
    names = [part.name for part in summarize(build(SparseRCNN, num_classes=3, channels=8), (64, 64))]
    assert names[-1] == "weights of its own"  # boxes and features of the proposals
    model = build(GFL, num_classes=3, channels=32)
    parts = summarize(model, (64, 64))
    assert total(parts)[0] == sum(weight.numpy().size for weight in model.trainable_weights)


def test_deployed_models_cost_the_same():
    model = build(RetinaNet, num_classes=3, channels=8)
    assert total(summarize(deploy(model), (64, 96)))[1] == total(summarize(model, (64, 96)))[1]


def make_stranger():
    layers = keras.layers
    inputs = keras.Input((None, None, 4))
    x = layers.Conv2D(6, 3, strides=2, padding="same", groups=2)(inputs)  # 5 x 4
    x = layers.Conv2DTranspose(8, 2, strides=2)(x)  # 10 x 8
    x = layers.SeparableConv2D(5, 3, padding="same", depth_multiplier=2)(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=3)(x)  # 8 x 6
    x = layers.Reshape((-1, 15))(x)
    x = layers.MultiHeadAttention(num_heads=2, key_dim=7)(x, x)
    return keras.Model(inputs, layers.Dense(9)(x))


def test_layers_of_keras_by_hand():
    (part,) = summarize(make_stranger(), (10, 8))
    convolution = 5 * 4 * 9 * (4 // 2) * 6
    transposed = 5 * 4 * 2 * 2 * 8 * 6
    separable = 10 * 8 * (9 * 8 * 2 + 16 * 5)
    depthwise = 8 * 6 * 9 * 5 * 3
    attention = 48 * 4 * 15 * 2 * 7
    assert (
        part.multiply_accumulates
        == convolution + transposed + separable + depthwise + attention + 48 * 15 * 9
    )
    assert part.name == "backbone"


def test_packed_attention_by_hand():
    attention = MultiHeadAttention(16, 2)
    attention.build((None, None, 16))
    inputs = keras.Input((None, None, 16))
    flat = keras.layers.Reshape((-1, 16))(inputs)
    model = keras.Model(inputs, attention(flat, flat[:, :2], flat[:, :2]))
    # Three queries, two keys, two values, three outputs.
    assert total(summarize(model, (1, 3)))[1] == (3 + 2 + 2 + 3) * 16 * 16


def test_the_model_is_left_as_it_was():
    model = build(RetinaNet, num_classes=3, channels=8)
    weights = model.get_weights()
    summarize(model, (64, 64), training=True)
    assert all("call" not in vars(layer) for layer in model._flatten_layers())
    for before, after in zip(weights, model.get_weights(), strict=True):
        assert (before == after).all()


@pytest.mark.parametrize("image_size", [(64,), (0, 64), (64, 64, 3)])
def test_wrong_sizes_are_refused(image_size):
    with pytest.raises(ValueError, match=r"image_size must be \(height, width\), at least 1. Received: \("):
        summarize(VANBackbone("b0", **SMALL), image_size)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_count_the_same(backend):
    pytest.importorskip(backend)
    program = (
        "from heads import SemanticFPN; from van_backbones import VANBackbone\n"
        "from van_backbones.summary import summarize\n"
        f"model = SemanticFPN(VANBackbone('b0', **{SMALL!r}), num_classes=3, channels=8)\n"
        "print(sum(part.multiply_accumulates for part in summarize(model, (50, 70))))\n"
    )
    from heads import SemanticFPN

    expected = total(summarize(SemanticFPN(VANBackbone("b0", **SMALL), num_classes=3, channels=8), (50, 70)))[
        1
    ]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout.splitlines()[-1]) == expected
