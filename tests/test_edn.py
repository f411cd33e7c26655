import functools

import contracts
import keras
import numpy as np
import pytest
import tensorflow as tf
from slow_layers import assert_close, randomize, slow_norm, weights_of
from test_pyramid_pooling import interpolation_matrix

from heads import EDN, Resizing
from heads.edn import ExtraLevel, FusionBlock, compute_mask_loss
from van_backbones import VANBackbone

# Two branches instead of four: graphs of half the size.
SMALL = {
    "channels": (4, 6, 5, 8, 4, 4),
    "extra_channels": 6,
    "dilations": ((1, 2), (1, 2), (1, 3), (1, 3), (1, 1), (1, 1)),
}


def make_on_pooled_backbone(**options):
    keras.utils.set_random_seed(0)
    return EDN(contracts.PooledBackbone(), **{**SMALL, **options})


@pytest.fixture(scope="module")
def model():
    return make_on_pooled_backbone()


def make_small_van():
    keras.utils.set_random_seed(0)
    return EDN(VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1)), **SMALL)


def make_batch(size=(64, 64), count=3):
    generator = np.random.default_rng(sum(size))
    images = generator.uniform(0, 255, (count, *size, 3)).astype("float32")
    masks = generator.integers(0, 2, (count, *size)).astype("int32")
    masks[generator.random(masks.shape) < 0.1] = 255
    return images, masks


# Parameters, computed from the paper's tables: kernels, biases, and two numbers per channel of a norm.


def count_convolution(inputs, outputs, side=1, bias=False):
    return side**2 * inputs * outputs + (outputs if bias else 0)


def count_block(inputs, outputs, side=1, bias=False):
    return count_convolution(inputs, outputs, side, bias) + 2 * outputs


def count_fusion(channels, width):
    branches = 4 * count_block(width, width, 3)
    return count_block(channels, 4 * width) + branches + count_block(4 * width, channels)


def count_head(p2, p3, p4, p5):
    extra = count_block(p5, 256, 3, True) + 3 * count_block(256, 256, 3, True)
    laterals = count_block(p2, 16) + count_block(p3, 32) + count_block(p4, 64) + count_block(p5, 128)
    laterals += count_block(256, 64) + count_block(256, 128)
    coarse = count_block(64, 16) + count_block(128, 32) + count_block(256, 64) + count_block(128, 128)
    coarse += count_block(128, 64)
    # c * base / 64: 32 * 32 / 64 = 16, 64 * 24 / 64 = 24, and so on.
    fusion = count_fusion(32, 16) + count_fusion(64, 24) + count_fusion(128, 48) + count_fusion(256, 96)
    fusion += 2 * count_fusion(128, 48)
    outputs = sum(channels + 1 for channels in (32, 64, 128, 256, 128))
    return extra + laterals + coarse + 2 * fusion + outputs


def test_one_fusion_block_by_hand():
    # 32 * 64 + 2 * 64, 4 * (9 * 16 * 16 + 2 * 16), 64 * 32 + 2 * 32
    assert count_fusion(32, 16) == 2176 + 9344 + 2112
    block = FusionBlock(32, (1, 2, 4, 8))
    block.build((None, None, None, 32))
    assert sum(int(np.prod(variable.shape)) for variable in block.trainable_variables) == 13_632


@pytest.mark.parametrize(
    ("widths", "expected"), [((32, 64, 160, 256), 4_459_173), ((64, 128, 320, 512), 5_094_565)]
)
def test_parameters(widths, expected):
    assert count_head(*widths) == expected
    model = EDN(contracts.PooledBackbone(widths))
    counts = [sum(int(np.prod(w.shape)) for w in m.trainable_variables) for m in (model, model.pyramid)]
    assert counts[0] - counts[1] == expected
    rates = [(1, 2, 4, 8)] * 4 + [(1, 2, 3, 4)] * 4 + [(1, 1, 1, 1)] * 4
    assert [block.dilations for block in model.fusion_blocks] == rates


# The blocks against slow loops.


def convolve_by_loop(maps, kernel, rate):
    """One position and one tap after the other, with zeros outside."""
    height, width = maps.shape[1:3]
    outputs = np.zeros((*maps.shape[:3], kernel.shape[-1]))
    reach = kernel.shape[0] // 2
    for y in range(height):
        for x in range(width):
            for i in range(kernel.shape[0]):
                for j in range(kernel.shape[1]):
                    row, column = y + rate * (i - reach), x + rate * (j - reach)
                    if 0 <= row < height and 0 <= column < width:
                        outputs[:, y, x] += maps[:, row, column] @ kernel[i, j]
    return outputs


def block_by_loop(block, maps, rate=1):
    kernel, *bias = weights_of(block.conv)
    outputs = convolve_by_loop(maps, kernel, rate)
    return np.maximum(slow_norm(block.norm, outputs + bias[0] if bias else outputs), 0.0)


def fusion_by_loop(block, maps):
    wide = block_by_loop(block.input_block, maps)
    width = maps.shape[-1] * block.base // 64
    results, before = [], 0.0
    for index, rate in enumerate(block.dilations):
        group = wide[..., index * width : (index + 1) * width]
        before = block_by_loop(block.branches[index], group + before, rate)
        results.append(before)
    kernel = weights_of(block.output_conv)[0]
    outputs = convolve_by_loop(np.concatenate(results, -1), kernel, 1)
    return np.maximum(maps + slow_norm(block.output_norm, outputs), 0.0)


@pytest.mark.parametrize(
    ("shape", "base", "dilations"), [((2, 7, 5, 8), 32, (1, 2, 4, 8)), ((1, 3, 4, 6), 24, (1, 2, 3, 4))]
)
def test_fusion_block_equals_loop(shape, base, dilations):
    random = np.random.default_rng(0)
    block = FusionBlock(base, dilations)
    block.build(shape)
    randomize(block, random)
    maps = random.normal(size=shape).astype("float32")
    assert_close(block(maps, training=False), fusion_by_loop(block, maps.astype("float64")))


@pytest.mark.parametrize("size", [(5, 6), (4, 1), (1, 1), (3, 2)])
def test_extra_level_equals_loop(size):
    random = np.random.default_rng(0)
    level = ExtraLevel(4)
    level.build((None, None, None, 3))
    randomize(level, random)
    maps = random.normal(size=(2, *size, 3))
    height, width = max(size[0] // 2, 1), max(size[1] // 2, 1)
    pooled = np.zeros((2, height, width, 3))
    for y in range(height):
        for x in range(width):
            pooled[:, y, x] = maps[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].max((1, 2))
    expected = block_by_loop(level.parts[1], block_by_loop(level.parts[0], pooled))
    assert_close(level(maps.astype("float32"), training=False), expected)
    run = tf.function(
        lambda x: level(x, training=False), input_signature=[tf.TensorSpec((None, None, None, 3))]
    )
    assert_close(run(maps.astype("float32")), expected)


def resize_by_matrices(maps, size):
    rows, columns = (interpolation_matrix(old, new) for old, new in zip(maps.shape[1:3], size, strict=True))
    return np.einsum("yi,bijc,xj->byxc", rows, maps, columns)


def test_outputs_are_wired_as_in_the_paper():
    model = make_on_pooled_backbone()  # not the fixture: its weights are changed
    random = np.random.default_rng(0)
    for layer in model.layers:
        if layer is not model.pyramid and layer is not model.backbone:
            randomize(layer, random)
    images, _ = make_batch((70, 97), count=2)
    levels = [np.asarray(level, "float64") for level in model.pyramid(images).values()]
    for block in model.extra_blocks:
        levels.append(np.asarray(block(levels[-1].astype("float32"), training=False), "float64"))
    attention = 1 / (1 + np.exp(-levels[5].mean((1, 2))))[:, None, None]
    levels[5], levels[4] = levels[5] * attention, levels[4] * attention
    fused, outputs = None, []
    for index in (5, 4, 3, 2, 1, 0):
        maps = block_by_loop(model.lateral_blocks[index], levels[index])
        if fused is not None:
            coarse = block_by_loop(model.coarse_blocks[index], fused)
            maps = np.concatenate([resize_by_matrices(coarse, maps.shape[1:3]), maps], -1)
        assert maps.shape[-1] == model.channels[index]
        for block in model.fusion_blocks[2 * index : 2 * index + 2]:
            maps = np.asarray(block(maps.astype("float32"), training=False), "float64")
        fused = maps
        if index < 5:
            kernel, bias = weights_of(model.output_convs[index])
            outputs.insert(0, resize_by_matrices(fused @ kernel[0, 0] + bias, (70, 97)))
    assert_close(model(images, training=False), outputs[0], 1e-4)
    # In training, all of them; the norms in evaluation show which is which.
    for index, expected in enumerate(outputs):
        output = model.output_convs[index](model.compute_levels(images, training=False)[index])
        assert_close(resize_by_matrices(np.asarray(output, "float64"), (70, 97)), expected, 1e-4)


# Losses and results.


def loss_by_loop(masks, logits):
    entropies, shared, scores, objects = 0.0, 0.0, 0.0, 0.0
    for mask, logit in zip(masks.ravel(), logits.ravel().astype("float64"), strict=True):
        if mask == 255:
            continue
        score = 1 / (1 + np.exp(-logit))
        entropies -= np.log(score if mask else 1 - score)
        shared, scores, objects = shared + score * mask, scores + score, objects + mask
    return entropies / masks.size + 1 - (2 * shared + 1e-5) / (scores + objects + 1e-5)


def test_losses_equal_a_loop(model):
    _, masks = make_batch((9, 7))
    logits = np.random.default_rng(1).normal(size=(*masks.shape, 5)).astype("float32")
    expected = [loss_by_loop(masks, logits[..., index]) for index in range(5)]
    losses = model.compute_losses(masks, logits)
    assert list(losses) == ["saliency_loss", "auxiliary_loss"]
    assert float(losses["saliency_loss"]) == pytest.approx(expected[0], rel=1e-5)
    assert float(losses["auxiliary_loss"]) == pytest.approx(sum(expected[1:]), rel=1e-5)
    losses = model.compute_losses(masks[..., None], logits[..., :1])
    assert {name: float(loss) for name, loss in losses.items()} == {
        "saliency_loss": pytest.approx(expected[0], rel=1e-5)
    }


def test_a_mask_without_object_costs_what_is_predicted():
    masks = np.zeros((1, 4, 4), "int32")
    assert float(compute_mask_loss(masks, np.full((1, 4, 4), -30.0, "float32"))) < 1e-4
    assert float(compute_mask_loss(masks, np.full((1, 4, 4), 3.0, "float32"))) > 3.9


@pytest.mark.parametrize("value", [2, -1, 254])
def test_other_numbers_in_masks_raise(model, value):
    masks = np.zeros((1, 4, 4), "int32")
    masks[0, 1, 2] = value
    with pytest.raises(
        ValueError, match=rf"labels must be class numbers 0 .. 1, or 255.*Received: {value} at"
    ):
        model.compute_losses(masks, np.zeros((1, 4, 4, 1), "float32"))


def test_outputs(model):
    images, _ = make_batch((33, 49), count=2)
    assert model(images, training=True).shape == (2, 33, 49, 5)
    logits = np.asarray(model(images))
    assert logits.shape == (2, 33, 49, 1)
    maps = model.predict(images, verbose=0)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, 1 / (1 + np.exp(-logits[..., 0])), rtol=1e-5)
    symbolic = model(keras.Input((None, None, 3)))
    assert tuple(symbolic.shape) == (None, None, None, 1)
    assert symbolic.dtype == "float32"


def test_saliency_maps_of_pictures_have_their_size():
    model = make_on_pooled_backbone(resizing=Resizing(image_size=(64, 96)))
    pictures = [make_batch(size, count=1)[0][0] for size in ((40, 30), (64, 96))]
    shapes = [result["saliency_map"].shape for result in model.predict_pictures(pictures, progress=False)]
    assert shapes == [(40, 30), (64, 96)]
    (result,) = model.predict_pictures(pictures[1])
    np.testing.assert_allclose(
        result["saliency_map"], model.predict_on_batch(pictures[1][None])[0], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("channels", (8, 8), "channels must have an entry for each of 6 levels"),
        ("channels", (8, 8, 8, 8, 8, 0), "channels must be positive whole numbers"),
        ("channels", (2,) * 6, "a branch must have at least one channel"),
        ("channels", (8, 8, 8, 8, 8, 1), "channels must be at least 2"),
        ("extra_channels", 0, "extra_channels must be at least 1"),
        ("bases", (32,), "bases must have an entry for each of 6 levels"),
        ("dilations", [(1, 2)], "dilations must have an entry for each of 6 levels"),
        ("dilations", [(1, 0)] * 6, "dilations must be positive whole numbers"),
        ("class_names", ["a", "b"], "class_names must be None: the model has no classes"),
    ],
)
def test_arguments_out_of_range_raise(name, value, message):
    with pytest.raises(ValueError, match=rf"(?s){message}.*Received"):
        make_on_pooled_backbone(**{name: value})


# What every head must do.

# The bias of a convolution before a batch norm changes nothing.
BIASES = [f"extra_{level}/block_{index}/conv/bias" for level in range(2) for index in range(2)]


@pytest.mark.parametrize(
    "make_model", [make_on_pooled_backbone, pytest.param(make_small_van, marks=pytest.mark.slow)]
)
def test_every_weight_gets_a_gradient(make_model):
    # Large enough that each level has several positions.
    batch = make_batch((128, 160))
    contracts.check_every_weight_gets_a_gradient(make_model, batch, (*BIASES, "_embedding/proj/bias"))


@pytest.mark.slow
def test_fit():
    contracts.check_fit(make_on_pooled_backbone, make_batch((128, 160)))


@pytest.mark.slow
def test_masks_without_truth():
    images, masks = make_batch()
    contracts.check_targets_without_truth(make_on_pooled_backbone, images, np.full_like(masks, 255))


@pytest.mark.slow
def test_image_sizes():
    contracts.check_image_sizes(make_on_pooled_backbone, make_batch)


@pytest.mark.slow
def test_unknown_sizes():
    contracts.check_unknown_sizes(make_on_pooled_backbone, make_batch)


@pytest.mark.slow
def test_saving(tmp_path):
    contracts.check_saving(make_on_pooled_backbone, make_batch(), tmp_path / "model.keras")


@pytest.mark.slow
@pytest.mark.parametrize("make_model", [make_on_pooled_backbone, make_small_van])
def test_deployment(make_model, tmp_path):
    contracts.check_deployment(make_model, make_batch((49, 64))[0], tmp_path / "model.keras")


def test_config():
    contracts.check_config(make_on_pooled_backbone)


@pytest.mark.slow
def test_config_of_other_options():
    contracts.check_config(functools.partial(make_on_pooled_backbone, dilations=[[1, 3]] * 6, name="other"))


@pytest.mark.slow
def test_mixed_precision():
    maps = contracts.check_mixed_precision(make_small_van, make_batch())
    assert maps.dtype == np.float32
    assert maps.shape == (3, 64, 64)


@pytest.mark.slow
def test_frozen_backbone(tmp_path):
    contracts.check_frozen_backbone(make_on_pooled_backbone, make_batch(), tmp_path / "model.keras")


@pytest.mark.slow
def test_evaluate():
    contracts.check_evaluate(make_on_pooled_backbone, make_batch(), ["loss", "saliency_loss"])


@pytest.mark.slow
def test_sample_weight_and_options():
    contracts.check_sample_weight(make_on_pooled_backbone, make_batch())
    options = {"metrics": ["mae"], "weighted_metrics": ["mae"]}
    contracts.check_refused_options(make_on_pooled_backbone, make_batch(), **options)


@pytest.mark.slow
def test_no_images():
    contracts.check_no_images(make_on_pooled_backbone, make_batch())


def test_backbones_without_pyramid():
    contracts.check_backbones_without_pyramid(EDN)
