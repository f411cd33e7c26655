import keras
import numpy as np
import pytest

from van_backbones.layer_calls import watch_calls


def make_model():
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="dense")])
    inputs = keras.Input((2,))
    return keras.Model(inputs, keras.layers.Dense(1)(inner(inputs))), inner


def test_calls_are_seen_and_outputs_replaced():
    model, inner = make_model()
    inputs = np.ones((4, 2), "float32")
    expected = keras.ops.convert_to_numpy(model(inputs))
    seen = []

    def watch(layer, args, outputs):
        seen.append((layer, args[0].shape, outputs.shape))
        return outputs * 0

    with watch_calls([inner.get_layer("dense")], watch):
        replaced = model(inputs)
    assert seen == [(inner.get_layer("dense"), (4, 2), (4, 3))]
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(replaced), np.zeros((4, 1)))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(inputs)), expected)


def test_layers_are_as_before_after_an_error():
    model, inner = make_model()
    with pytest.raises(RuntimeError), watch_calls(model.layers, lambda *_: None):
        raise RuntimeError
    assert all("call" not in vars(layer) for layer in (*model.layers, *inner.layers))
