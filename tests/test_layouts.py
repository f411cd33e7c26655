"""Layouts of weights in PyTorch and in Keras, layer by layer."""

import keras
import numpy as np
import pytest

from van_backbones.checkpoints.layouts import name_parts, to_keras, to_torch
from van_backbones.checkpoints.loading import load_state_dict, to_state_dict

RANDOM = np.random.default_rng(0)


def build(layer, shape):
    layer.build(shape)
    return layer


def make_table(shape):
    return keras.Variable(RANDOM.normal(size=shape).astype("float32"), name="table")


# kind -> (part, the shape of its array in PyTorch, in Keras)
PARTS = {
    "convolution": (build(keras.layers.Conv2D(4, (3, 2)), (1, 8, 8, 5)), (4, 5, 3, 2), (3, 2, 5, 4)),
    "square convolution": (build(keras.layers.Conv2D(3, 3), (1, 8, 8, 3)), (3, 3, 3, 3), (3, 3, 3, 3)),
    "transposed": (build(keras.layers.Conv2DTranspose(4, 2), (1, 8, 8, 5)), (5, 4, 2, 2), (2, 2, 4, 5)),
    "depthwise": (build(keras.layers.DepthwiseConv2D((3, 2)), (1, 8, 8, 5)), (5, 1, 3, 2), (3, 2, 5, 1)),
    "dense": (build(keras.layers.Dense(4), (1, 5)), (4, 5), (5, 4)),
    "square dense": (build(keras.layers.Dense(4), (1, 4)), (4, 4), (4, 4)),
    "embedding": (build(keras.layers.Embedding(6, 4), (1,)), (6, 4), (6, 4)),
    "square embedding": (build(keras.layers.Embedding(4, 4), (1,)), (4, 4), (4, 4)),
    "table": (make_table((6, 4)), (6, 4), (6, 4)),
    "square table": (make_table((4, 4)), (4, 4), (4, 4)),
    "grid": (make_table((1, 4, 4, 4)), (1, 4, 4, 4), (1, 4, 4, 4)),
    "bias": (build(keras.layers.Dense(4), (1, 5)), (4,), (4,)),
    "norm": (build(keras.layers.BatchNormalization(), (1, 5)), (5,), (5,)),
    "scalar": (make_table(()), (), ()),
}


@pytest.mark.parametrize("kind", PARTS)
def test_the_two_ways_are_inverse(kind):
    part, torch_shape, keras_shape = PARTS[kind]
    array = RANDOM.normal(size=torch_shape)
    moved = to_keras(array, part)
    assert moved.shape == keras_shape
    np.testing.assert_array_equal(to_torch(moved, part), array)
    np.testing.assert_array_equal(to_keras(to_torch(moved, part), part), moved)
    assert to_torch(moved, part).shape == torch_shape
    assert to_torch(moved, part).flags.c_contiguous


@pytest.mark.parametrize("kind", PARTS)
def test_shapes_are_those_of_the_variables(kind):
    part, _, keras_shape = PARTS[kind]
    variables = [part] if isinstance(part, keras.Variable) else part.variables
    assert keras_shape in {tuple(variable.shape) for variable in variables}


def test_square_tables_are_not_transposed_and_square_kernels_are():
    array = RANDOM.normal(size=(4, 4))
    np.testing.assert_array_equal(to_keras(array, PARTS["square table"][0]), array)
    np.testing.assert_array_equal(to_keras(array, PARTS["square embedding"][0]), array)
    np.testing.assert_array_equal(to_keras(array, PARTS["square dense"][0]), array.T)


class Everything(keras.Model):
    """A model of parts of all kinds, whose reference names are their kinds."""

    def __init__(self):
        super().__init__()
        self.parts = {
            "conv": build(keras.layers.Conv2D(4, 3), (1, 9, 9, 4)),
            "up": build(keras.layers.Conv2DTranspose(4, 2, strides=2), (1, 9, 9, 4)),
            "depth": build(keras.layers.DepthwiseConv2D(3), (1, 9, 9, 4)),
            "dense": build(keras.layers.Dense(4), (1, 4)),
            "embedding": build(keras.layers.Embedding(4, 4), (1,)),
            "norm": build(keras.layers.BatchNormalization(epsilon=1e-5), (1, 9, 9, 4)),
            "table": self.add_weight((4, 4), name="table"),
        }

    def reference_layers(self):
        return dict(self.parts)


def test_outputs_are_those_of_pytorchs_layers():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = {
        "conv": torch.nn.Conv2d(4, 4, 3),
        "up": torch.nn.ConvTranspose2d(4, 4, 2, stride=2),
        "depth": torch.nn.Conv2d(4, 4, 3, groups=4),
        "dense": torch.nn.Linear(4, 4),
        "embedding": torch.nn.Embedding(4, 4),
        "norm": torch.nn.BatchNorm2d(4).eval(),
    }
    torch.nn.init.uniform_(layers["norm"].running_var, 0.5, 1.5)
    torch.nn.init.normal_(layers["norm"].running_mean)
    arrays = {"table": RANDOM.normal(size=(4, 4)).astype("float32")}
    for name, layer in layers.items():
        arrays |= {f"{name}.{key}": value.numpy() for key, value in layer.state_dict().items()}
    model = Everything()
    load_state_dict(model, arrays)
    maps = RANDOM.normal(size=(2, 4, 9, 9)).astype("float32")
    rows, numbers = RANDOM.normal(size=(3, 4)).astype("float32"), np.array([3, 0, 1])
    for name, layer in layers.items():
        inputs = {"dense": rows, "embedding": numbers}.get(name, maps)
        expected = layer(torch.from_numpy(inputs)).detach().numpy()
        is_map = inputs.ndim == 4
        got = np.asarray(model.parts[name](inputs.transpose(0, 2, 3, 1) if is_map else inputs))
        got = got.transpose(0, 3, 1, 2) if is_map else got
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(model.parts["table"], arrays["table"])
    back = to_state_dict(model)
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array, err_msg=name)


def test_every_variable_of_a_layer_has_a_name():
    model = Everything()
    named = [variable for variable, _ in name_parts(model).values()]
    assert {id(variable) for variable in named} == {id(variable) for variable in model.variables}
