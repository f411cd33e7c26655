import keras
import numpy as np
import pytest
from keras import ops

from heads.layers.box_head import BoxHead


def build(num_convs=2, num_denses=1, **options):
    keras.utils.set_random_seed(0)
    head = BoxHead(3, width=6, num_convs=num_convs, num_denses=num_denses, **options)
    head.build((None, None, 5, 5, 4))
    for weight in head.weights:
        generator = np.random.default_rng(len(weight.path))
        weight.assign(generator.uniform(0.2, 0.8, weight.shape) * generator.choice([-1, 1], weight.shape))
        if weight.name in ("gamma", "moving_variance"):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    return head


def draw_regions(count=6):
    return np.random.default_rng(0).normal(size=(2, count, 5, 5, 4)).astype("float32")


@pytest.mark.parametrize("num_denses", [1, 2])
@pytest.mark.parametrize("num_convs", [0, 2])
def test_head_equals_its_layers_by_hand(num_convs, num_denses):
    head, regions = build(num_convs, num_denses), draw_regions()
    x = regions.reshape(12, 5, 5, 4)
    for block in head.convs:
        x = np.maximum(np.asarray(block.norm(block.conv(x), training=False)), 0)
    x = x.transpose(0, 3, 1, 2).reshape(12, 100)  # channels first, as PyTorch's weights are ordered
    for dense in head.shared:
        x = np.maximum(x @ dense.kernel.numpy() + dense.bias.numpy(), 0)
    logits, deltas = head(regions)
    expected = x @ head.classifier.kernel.numpy() + head.classifier.bias.numpy()
    np.testing.assert_allclose(ops.reshape(logits, (12, 4)), expected, rtol=1e-4, atol=1e-4)
    expected = x @ head.regressor.kernel.numpy() + head.regressor.bias.numpy()
    np.testing.assert_allclose(ops.reshape(deltas, (12, 12)), expected, rtol=1e-4, atol=1e-4)


def test_rows_without_a_region_do_not_count_in_the_statistics():
    """Padding changes neither the results of the other rows nor what the norms learn."""
    heads, regions = (build(), build()), draw_regions()
    padded = np.concatenate([regions, np.full((2, 3, 5, 5, 4), 7.0, "float32")], axis=1)
    exists = np.arange(9) < np.array([[6], [6]])
    plain = heads[0](regions, training=True)
    with_padding = heads[1](padded, training=True, exists=exists)
    for ours, theirs in zip(with_padding, plain, strict=True):
        np.testing.assert_allclose(ours[:, :6], theirs, rtol=1e-3, atol=1e-3)
    changed = 0
    for ours, theirs in zip(heads[1].weights, heads[0].weights, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5, err_msg=ours.path)
        changed += "moving" in ours.path
    assert changed == 4
    before = build().convs[0].norm.moving_variance
    assert np.abs(heads[1].convs[0].norm.moving_variance - before).max() > 0.01


def test_no_region_at_all_stays_finite():
    head = build()
    outputs = head(draw_regions(), training=True, exists=np.zeros((2, 6), bool))
    assert all(np.isfinite(values).all() for values in (*outputs, *head.weights))


def test_config_and_names():
    head = build(class_agnostic=True)
    copy = BoxHead.from_config(head.get_config())
    copy.build((None, None, 5, 5, 4))
    assert [weight.shape for weight in copy.weights] == [weight.shape for weight in head.weights]
    assert head(draw_regions())[1].shape == (2, 6, 1, 4)
    names = set(head.reference_layers())
    assert names == {
        *(f"shared_convs.{index}.{layer}" for index in range(2) for layer in ("conv", "bn")),
        "shared_fcs.0",
        "fc_cls",
        "fc_reg",
    }
