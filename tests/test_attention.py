import keras
import numpy as np

from heads.layers.attention import MultiHeadAttention


def make_layer():
    layer = MultiHeadAttention(6, 2)
    layer.build((None, None, 6))
    for weight in layer.weights:
        weight.assign(np.random.default_rng(len(weight.path)).normal(size=weight.shape))
    return layer


def attend(layer, queries, keys, values, visible):
    """A loop over images, heads and queries."""
    kernel, bias = layer.packed_kernel.numpy(), layer.packed_bias.numpy()
    channels = kernel.shape[1]
    size = channels // layer.num_heads
    expected = np.zeros(queries.shape)
    for image in range(len(queries)):
        query, key, value = (
            each[image] @ kernel[i : i + channels].T + bias[i : i + channels]
            for i, each in ((0, queries), (channels, keys), (2 * channels, values))
        )
        for head in (slice(start, start + size) for start in range(0, channels, size)):
            for row in range(len(query)):
                seen = [other for other in range(len(key)) if visible[image, row, other]]
                weights = np.exp([query[row, head] @ key[other, head] / np.sqrt(size) for other in seen])
                expected[image, row, head] = weights @ value[seen][:, head] / weights.sum()
    return expected @ layer.output_dense.kernel.numpy() + layer.output_dense.bias.numpy()


def test_attention_equals_loop():
    keras.utils.set_random_seed(0)
    layer = make_layer()
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(2, 4, 6)).astype("float32")
    expected = attend(layer, inputs, inputs, inputs, np.ones((2, 4, 4), bool))
    np.testing.assert_allclose(layer(inputs, inputs, inputs), expected, rtol=1e-4, atol=1e-5)
    keys, values = generator.normal(size=(2, 2, 5, 6)).astype("float32")
    visible = generator.uniform(size=(2, 4, 5)) < 0.5
    visible[..., 0] = True
    expected = attend(layer, inputs, keys, values, visible)
    np.testing.assert_allclose(layer(inputs, keys, values, visible), expected, rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_sees_all_alike():
    layer, inputs = make_layer(), np.random.default_rng(0).normal(size=(1, 3, 6)).astype("float32")
    outputs = layer(inputs, inputs, inputs, np.zeros((1, 3, 3), bool))
    kernel, bias = layer.packed_kernel.numpy(), layer.packed_bias.numpy()
    mean = (inputs[0] @ kernel[12:].T + bias[12:]).mean(axis=0)
    expected = mean @ layer.output_dense.kernel.numpy() + layer.output_dense.bias.numpy()
    np.testing.assert_allclose(outputs[0], np.tile(expected, (3, 1)), rtol=1e-4, atol=1e-5)
