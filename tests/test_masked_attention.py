import numpy as np
from slow_layers import randomize
from test_attention import attend

from heads.layers.attention import NUM_HEADS
from heads.layers.masked_attention import HIDDEN_CHANNELS, MaskedAttentionLayer

CHANNELS = 2 * NUM_HEADS


def make_layer():
    layer = MaskedAttentionLayer(CHANNELS)
    layer.build((None, None, CHANNELS))
    randomize(layer, np.random.default_rng(0))
    return layer


def draw(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype("float32")


def normalize(norm, x):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * np.asarray(norm.gamma) + np.asarray(norm.beta)


def test_layer_equals_loop():
    layer = make_layer()
    features, positions = draw(2, 5, CHANNELS), draw(2, 5, CHANNELS) + 1
    keys, values = draw(2, 7, CHANNELS), draw(2, 7, CHANNELS) - 1
    visible = np.random.default_rng(0).uniform(size=(2, 5, 7)) < 0.5
    visible[..., 3] = True

    # The paper's order: masked cross-attention, self-attention, feed-forward; each norm follows its sum.
    expected = normalize(
        layer.norms[0], features + attend(layer.cross_attention, features + positions, keys, values, visible)
    )
    everything = np.ones((2, 5, 5), bool)
    asking = expected + positions
    attended = attend(layer.self_attention, asking, asking, expected, everything)
    expected = normalize(layer.norms[1], expected + attended)
    hidden, output = layer.feed_forward
    x = np.maximum(expected @ np.asarray(hidden.kernel) + np.asarray(hidden.bias), 0)
    x = x @ np.asarray(output.kernel) + np.asarray(output.bias)
    expected = normalize(layer.norms[2], expected + x)

    outputs = layer(features, positions, keys, values, visible)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


def test_what_is_hidden_has_no_influence():
    layer = make_layer()
    features, positions = draw(1, 5, CHANNELS), draw(1, 5, CHANNELS)
    keys, values = draw(1, 7, CHANNELS), draw(1, 7, CHANNELS)
    visible = np.ones((1, 5, 7), bool)
    visible[..., 2] = False
    outputs = layer(features, positions, keys, values, visible)
    keys[:, 2], values[:, 2] = 9.0, -9.0
    np.testing.assert_array_equal(layer(features, positions, keys, values, visible), outputs)


def test_parameters():
    attention = 4 * CHANNELS * CHANNELS + 4 * CHANNELS
    feed_forward = 2 * CHANNELS * HIDDEN_CHANNELS + HIDDEN_CHANNELS + CHANNELS
    assert make_layer().count_params() == 2 * attention + feed_forward + 3 * 2 * CHANNELS
