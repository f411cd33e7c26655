import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_reference import check, checkpoint, load

from heads import FPN
from van_backbones import VANBackbone
from van_backbones.checkpoints.loading import load_state_dict, name_variables

SIZES = ((9, 13), (5, 7), (3, 4), (2, 1))
WIDTHS = (3, 4, 5, 6)


def make_features(sizes=SIZES, seed=0):
    generator = np.random.default_rng(seed)
    shapes = [(2, *size, width) for size, width in zip(sizes, WIDTHS, strict=True)]
    return [generator.normal(size=shape).astype("float32") for shape in shapes]


def make_fpn(channels=4, **options):
    keras.utils.set_random_seed(0)
    fpn = FPN(channels, **options)
    fpn.build([(None, None, None, width) for width in WIDTHS])
    for layer in (*fpn.lateral_convs, *fpn.output_convs, *fpn.extra_convs):
        layer.bias.assign(np.random.default_rng(1).normal(size=channels))
    return fpn


def convolve_by_loop(maps, layer):
    kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
    side, margin = kernel.shape[0], kernel.shape[0] // 2
    padded = np.pad(maps, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    outputs = np.zeros((*maps.shape[:3], len(bias)))
    for y in range(maps.shape[1]):
        for x in range(maps.shape[2]):
            outputs[:, y, x] = np.tensordot(padded[:, y : y + side, x : x + side], kernel, 3) + bias
    return outputs


def fpn_by_loop(fpn, features):
    maps = [convolve_by_loop(level, conv) for level, conv in zip(features, fpn.lateral_convs, strict=True)]
    for level in (2, 1, 0):
        fine, coarse = maps[level], maps[level + 1]
        for y in range(fine.shape[1]):
            for x in range(fine.shape[2]):
                row, column = y * coarse.shape[1] // fine.shape[1], x * coarse.shape[2] // fine.shape[2]
                fine[:, y, x] += coarse[:, row, column]
    return [convolve_by_loop(level, conv) for level, conv in zip(maps, fpn.output_convs, strict=True)]


def test_fpn_equals_loop():
    fpn, features = make_fpn(), make_features()
    for got, expected in zip(fpn(features), fpn_by_loop(fpn, features), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_fpn_in_a_graph_without_sizes():
    fpn = make_fpn()
    signature = [[tf.TensorSpec((None, None, None, width)) for width in WIDTHS]]
    run = tf.function(lambda features: fpn(features), input_signature=signature)
    for sizes in (SIZES, ((16, 8), (8, 4), (4, 2), (2, 1)), ((1, 1),) * 4):
        features = make_features(sizes)
        outputs = run(features)
        assert [tuple(level.shape) for level in outputs] == [(2, *size, 4) for size in sizes]
        for got, expected in zip(outputs, fpn(features), strict=True):
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["pool", "input", "output"])
def test_extra_levels_equal_loop(source):
    fpn = make_fpn(num_extra_levels=2, extra_levels_from=source)
    features = make_features(((40, 23), (20, 12), (10, 6), (5, 3)))
    expected = fpn_by_loop(fpn, features)
    level = features[-1] if source == "input" else expected[-1]
    for index in range(2):
        # A convolution of stride 2 is every second output of one of stride 1.
        level = level[:, ::2, ::2] if source == "pool" else convolve_by_loop(level, fpn.extra_convs[index])
        level = level if source == "pool" else level[:, ::2, ::2]
        expected.append(level)
    got = fpn(features)
    assert [level.shape[1:3] for level in got[4:]] == [(3, 2), (2, 1)]
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("source", ["pool", "input", "output"])
def test_gradients_are_those_of_a_linear_map(source):
    """Except for biases, all is linear: <gradient of <outputs, y>, x> is <outputs(x) - outputs(0), y>."""
    fpn = make_fpn(num_extra_levels=1, extra_levels_from=source)
    features = [tf.constant(level) for level in make_features()]
    with tf.GradientTape() as tape:
        tape.watch(features)
        outputs = fpn(features)
        weights = [np.random.default_rng(3).normal(size=level.shape).astype("float32") for level in outputs]
        total = sum(tf.reduce_sum(level * weight) for level, weight in zip(outputs, weights, strict=True))
    gradients = tape.gradient(total, features)
    products = sum(np.sum(gradient * level) for gradient, level in zip(gradients, features, strict=True))
    at_zero = fpn([tf.zeros_like(level) for level in features])
    constant = sum(np.sum(level * weight) for level, weight in zip(at_zero, weights, strict=True))
    assert float(products) == pytest.approx(float(total) - float(constant), rel=1e-4)


@pytest.mark.parametrize("source", ["pool", "input", "output"])
def test_extra_levels_have_names_shapes_and_a_config(source):
    fpn = make_fpn(num_extra_levels=2, extra_levels_from=source)
    names = [name for name in fpn.reference_layers() if name.startswith("fpn_convs")]
    assert names == [f"fpn_convs.{index}.conv" for index in range(4 if source == "pool" else 6)]
    if source != "pool":
        assert fpn.extra_convs[0].kernel.shape[2] == (WIDTHS[-1] if source == "input" else 4)
    copy = FPN.from_config(fpn.get_config())
    assert copy.get_config() == fpn.get_config()
    shapes = [(2, *size, width) for size, width in zip(SIZES, WIDTHS, strict=True)]
    assert copy.compute_output_shape(shapes)[4:] == [(2, 1, 1, 4), (2, 1, 1, 4)]
    symbolic = copy([keras.Input((None, None, width)) for width in WIDTHS])
    assert [level.shape for level in symbolic] == [(None, None, None, 4)] * 6


def test_fpn_refuses_other_levels():
    with pytest.raises(ValueError, match=r"num_extra_levels must be at least 0\. Received: -1"):
        FPN(num_extra_levels=-1)
    with pytest.raises(ValueError, match=r"extra_levels_from must be one of .*Received: 'p5'"):
        FPN(extra_levels_from="p5")


def test_fpn_does_not_change_its_inputs():
    fpn, features = make_fpn(), make_features()
    before = list(features)
    first, second = fpn(features), fpn(features)
    assert all(ours is theirs for ours, theirs in zip(before, features, strict=True))
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_fpn_names():
    names = name_variables(make_fpn())
    expected = {
        f"{part}_convs.{index}.conv.{kind}"
        for part in ("lateral", "fpn")
        for index in range(4)
        for kind in ("weight", "bias")
    }
    assert set(names) == expected
    assert len(make_fpn().trainable_variables) == len(expected)


def test_fpn_start():
    fpn = FPN(64)
    fpn.build([(None, None, None, 64)] * 4)
    for layer in (*fpn.lateral_convs, *fpn.output_convs):
        area = layer.kernel_size[0] ** 2
        limit = np.sqrt(6.0 / (area * (64 + 64)))
        kernel = layer.kernel.numpy()
        assert 0.98 * limit < np.abs(kernel).max() <= limit * 1.0001
        assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
        np.testing.assert_array_equal(layer.bias, np.zeros(64))


def test_fpn_config_and_shapes():
    fpn = FPN(7, name="neck")
    copy = FPN.from_config(fpn.get_config())
    assert copy.get_config() == fpn.get_config()
    symbolic = copy([keras.Input((None, None, width)) for width in WIDTHS])
    assert [level.shape for level in symbolic] == [(None, None, None, 7)] * 4


@pytest.mark.parametrize("case", ["forward", "forward_odd"])
def test_fpn_equals_mmsegmentation(case):
    reference = load(f"semfpn_b0/{case}.npz")
    arrays = checkpoint("semfpn_b0")
    backbone = VANBackbone("b0", normalization=None, layer_norm_epsilon=1e-5)
    fpn = FPN(256)
    fpn.build([(None, None, None, width) for width in backbone.widths])
    for part, prefix in ((backbone, "backbone."), (fpn, "neck.")):
        load_state_dict(part, {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)})
    pyramid = backbone(reference["input"].transpose(0, 2, 3, 1), training=False)
    for level, outputs in enumerate(fpn(list(pyramid.values()))):
        check(reference[f"fpn_{level}"], np.asarray(outputs).transpose(0, 3, 1, 2))
