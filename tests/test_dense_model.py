"""What all heads share: arguments, configurations, losses by name, Keras's options."""

import contracts
import keras
import numpy as np
import pytest
import tensorflow as tf

from heads import EDN, DenseModel, Resizing, RetinaNet, SemanticFPN


@keras.saving.register_keras_serializable(package="tests")
class Shift(DenseModel):
    """Adds one weight to the mean of the images; the loss is the distance from the targets."""

    def __init__(self, backbone, **kwargs):
        super().__init__(backbone, ("P2",), ("distance",), **kwargs)
        self.shift = self.add_weight(shape=(), initializer="zeros", name="shift")
        self.built = True

    def call(self, images, training=None):
        return keras.ops.mean(self.pyramid(images)["P2"], axis=(1, 2, 3)) + self.shift

    def compute_losses(self, targets, predictions):
        return {"distance": keras.ops.mean(keras.ops.abs(targets - predictions))}

    def decode(self, predictions):
        return predictions


def make_shift(**options):
    images = keras.Input((4, 4, 1))
    convolution = keras.layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones", **options)
    backbone = keras.Model(images, convolution(images))
    backbone.pyramid_outputs = {"P2": backbone.output}
    return Shift(backbone)


def make_numbers():
    return np.ones((5, 4, 4, 1), "float32"), np.arange(5, dtype="float32")


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # a dataset whose length is not known
def test_named_losses_equal_the_loss():
    """A smaller last batch, and a dataset whose length is not known."""
    model = make_shift()
    model.compile("sgd")
    batches = tf.data.Dataset.from_tensor_slices(make_numbers()).batch(2)
    for dataset in (batches, batches.filter(lambda images, targets: True)):
        scores = model.evaluate(dataset, verbose=0, return_dict=True)
        assert scores["distance"] == pytest.approx(scores["loss"])
        assert scores["loss"] == pytest.approx(1.4)


def test_raw_predictions_follow_the_weights(tmp_path):
    model, (images, _) = make_shift(), make_numbers()
    model.decode = lambda predictions: -predictions
    for shift in (2.0, 5.0):
        model.shift.assign(shift)
        np.testing.assert_allclose(model.predict_raw(images), np.full(5, 1 + shift))
        np.testing.assert_allclose(model.predict_on_batch(images), np.full(5, -1 - shift))
    model.save_weights(tmp_path / "model.weights.h5")  # nothing of the network is saved
    other = make_shift()
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(other.predict_raw(images), np.full(5, 6.0))


def test_xla_is_for_targets_of_one_shape():
    assert not make_shift().supports_jit  # each batch might have its own number of objects
    assert not RetinaNet(contracts.PooledBackbone(), channels=8, num_convs=0).supports_jit
    for head in (SemanticFPN(contracts.PooledBackbone(), 3, channels=8), EDN(contracts.PooledBackbone())):
        assert head.supports_jit


def test_losses_of_layers_count():
    images, targets = make_numbers()
    for options, expected in (
        ({"kernel_regularizer": keras.regularizers.L2(0.5)}, 0.5),
        ({"activity_regularizer": keras.regularizers.L2(0.5)}, 0.5 * 16),
    ):
        model = make_shift(**options)
        model.compile(keras.optimizers.SGD(0.1))
        scores = model.evaluate(images, targets, batch_size=5, verbose=0, return_dict=True)
        assert scores["loss"] - scores["distance"] == pytest.approx(expected, rel=1e-4)
    kernel = model.backbone.layers[-1].kernel
    model.fit(images, targets, batch_size=5, verbose=0)
    assert float(kernel[0, 0, 0, 0]) < 1.0


def test_a_compiled_model_comes_back(tmp_path):
    model = make_shift()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
    images, targets = make_numbers()
    model.fit(images, targets, verbose=0)
    model.save(tmp_path / "model.keras")
    optimizer = keras.saving.deserialize_keras_object(model.get_compile_config()["optimizer"])
    assert optimizer.momentum == 0.9
    copy = make_shift()
    copy.compile_from_config(model.get_compile_config())
    assert copy.optimizer.built
    assert copy.optimizer.momentum == 0.9


@keras.saving.register_keras_serializable("tests")
class MeanHead(DenseModel):
    """Predicts one number for each image: as small as a head can be."""

    def __init__(self, backbone, units=2, scale=1.0, **kwargs):
        super().__init__(backbone, ("P5",), ("mean_loss",), locals(), **kwargs)
        self.dense = keras.layers.Dense(units, dtype=self.dtype_policy, name="dense")
        self.dense.build((None, self.level_shapes[0][-1]))

    def call(self, images, training=None):
        features = keras.ops.mean(self.pyramid(images, training=training)["P5"], axis=(1, 2))
        return self.scale * self.dense(features)

    def compute_losses(self, targets, predictions):
        return {"mean_loss": keras.ops.mean((targets - predictions) ** 2)}

    def decode(self, predictions):
        return predictions


@keras.saving.register_keras_serializable("tests")
class OtherMeanHead(MeanHead):
    """Passes its arguments on."""

    def __init__(self, backbone, **kwargs):
        super().__init__(backbone, units=5, **kwargs)


def test_arguments_become_attributes_and_configuration():
    model = MeanHead(contracts.PooledBackbone(), units=3, name="mean")
    assert (model.units, model.scale) == (3, 1.0)
    assert model.built
    model.scale = 2.0  # later changes are kept too
    copy = MeanHead.from_config(model.get_config())
    assert (copy.units, copy.scale, copy.name) == (3, 2.0, "mean")
    assert copy.dense.kernel.shape == (16, 3)


def test_a_head_of_a_head_keeps_the_arguments_of_its_base():
    model = OtherMeanHead(contracts.PooledBackbone(), scale=4.0, class_names=None)
    config = model.get_config()
    assert (config["units"], config["scale"]) == (5, 4.0)


def test_class_names_and_resizing_are_in_the_file(tmp_path):
    resizing = Resizing(short_side=32, long_side=64)
    model = MeanHead(contracts.PooledBackbone(), resizing=resizing)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.resizing.get_config() == resizing.get_config()
    assert loaded.class_names is None
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), model.predict(images, verbose=0))


def test_a_backbone_without_the_levels_is_refused():
    with pytest.raises(ValueError, match=r"`pyramid_outputs` has the levels \['P5'\].*\['P2', 'P3'\]"):
        MeanHead(contracts.PooledBackbone(levels=("P2", "P3")))
    with pytest.raises(ValueError, match="no pyramid_outputs"):
        MeanHead(keras.Sequential([keras.Input((None, None, 3))]))


def test_a_head_must_have_its_verbs():
    model = DenseModel(contracts.PooledBackbone(), ("P5",), ())
    for verb in ("compute_losses", "decode"):
        with pytest.raises(NotImplementedError, match=f"DenseModel must define {verb}"):
            getattr(model, verb)(*[None] * (2 if verb == "compute_losses" else 1))


def test_gradients_of_two_batches_are_those_of_a_large_one():
    """If the loss is a mean over the pictures, and no batch norm is trained."""
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype("float32")
    labels = np.arange(4 * 64 * 64).reshape(4, 64, 64) % 3
    weights = []
    for size, accumulate in ((4, None), (2, 2)):
        keras.utils.set_random_seed(0)
        model = SemanticFPN(contracts.PooledBackbone(), 3, 8, 8, dropout_rate=0.0)
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=accumulate))
        for start in [*range(0, 4, size)] * 2:
            model.train_on_batch(images[start : start + size], labels[start : start + size])
        assert int(model.optimizer.iterations) == 2
        weights.append([np.array(weight) for weight in model.trainable_weights])
    for whole, parts in zip(*weights, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)
