"""The checks that every head must pass: plain functions of a factory of small models and a batch.

`make_model()` returns a new, small head that is not compiled; `batch` is (images, targets) of at least three
pictures, the images float32 (batch, height, width, 3). Each check raises an AssertionError.
"""

import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from van_backbones.deployment import deploy

LEVELS = ("P2", "P3", "P4", "P5")


@keras.saving.register_keras_serializable(package="tests")
class PooledBackbone(keras.Model):
    """Returns a backbone without norms whose output is a vector; it has `pyramid_outputs` besides."""

    def __init__(self, widths=(8, 8, 16, 16), levels=LEVELS, **kwargs):
        images = keras.Input((None, None, 3))
        x = keras.layers.Rescaling(1 / 128, -1.0)(images)
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same", activation="gelu")(x)
        pyramid = {}
        for level, width in zip(LEVELS, widths, strict=True):
            x = keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="gelu")(x)
            pyramid[level] = x
        super().__init__(images, keras.layers.GlobalAveragePooling2D()(x), **kwargs)
        self.widths = tuple(widths)
        self.levels = tuple(levels)
        self.pyramid_outputs = {level: pyramid[level] for level in levels}

    def get_config(self):
        config = {"widths": self.widths, "levels": self.levels}
        return {**config, "name": self.name, "trainable": self.trainable}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def check_every_weight_gets_a_gradient(make_model, batch, without_gradient=()):
    """Every trainable weight has a gradient that is finite and not all zero.

    `without_gradient` names, by parts of their paths, the weights that cannot change the loss, such as the
    bias of a convolution right before a batch norm.
    """
    model = make_model()
    images, targets = batch
    weights = [w for w in model.trainable_variables if not any(part in w.path for part in without_gradient)]
    with tf.GradientTape() as tape:
        losses = model.compute_losses(targets, model(images, training=True))
        total = sum(losses.values())
    assert set(losses) == set(model.loss_trackers)
    gradients = tape.gradient(total, [weight.value for weight in weights])
    for weight, gradient in zip(weights, gradients, strict=True):
        assert gradient is not None, f"{weight.path} has no gradient"
        assert np.isfinite(gradient).all(), f"{weight.path} has a gradient that is not finite"
        assert np.any(gradient), f"{weight.path} has a gradient of zero"


def check_fit(make_model, batch, metrics=(), without_gradient=()):
    """A step changes the weights and the norms' statistics; history holds each named loss and metric.

    `without_gradient` names, by parts of their paths, the weights that nothing in the batch uses.
    """
    model = make_model()
    images, targets = batch
    # Adam's steps are visible, however small the gradients are.
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    before = get_values(model.variables)
    history = model.fit(images, targets, batch_size=len(images), epochs=2, verbose=0).history
    assert set(history) == {"loss", *model.loss_trackers, *metrics}
    for name, values in history.items():
        assert len(values) == 2, name
        assert np.isfinite(values).all(), name
    named = sum(np.array(history[name]) for name in model.loss_trackers)
    np.testing.assert_allclose(history["loss"], named, rtol=1e-4)
    assert history["loss"][0] != history["loss"][1]
    for variable in model.trainable_variables:
        if "kernel" in variable.path.rsplit("/")[-1] and not any(
            part in variable.path for part in without_gradient
        ):
            changed = np.abs(variable.numpy() - before[id(variable)]).max()
            assert changed > 0, f"{variable.path} did not change"
    statistics = [v for v in model.non_trainable_variables if "moving_" in v.path]
    for variable in statistics:
        assert (variable.numpy() != before[id(variable)]).any(), f"{variable.path} did not change"
    assert int(model.optimizer.iterations) == 2


def check_targets_without_truth(make_model, images, empty_targets):
    """With nothing to learn from, losses and weights stay finite."""
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    losses = model.compute_losses(empty_targets, model(images, training=True))
    assert all(np.isfinite(float(loss)) for loss in losses.values())
    model.fit(images, empty_targets, batch_size=len(images), verbose=0)
    for variable in model.variables:
        assert np.isfinite(variable.numpy().astype("float64")).all(), variable.path


def check_image_sizes(make_model, make_batch, sizes=((64, 64), (33, 49), (1, 70))):
    """One model trains on and predicts images of any size; `make_batch(size)` returns a batch."""
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    for size in sizes:
        images, targets = make_batch(size)
        history = model.fit(images, targets, batch_size=len(images), verbose=0).history
        assert np.isfinite(history["loss"]).all()
        for array in flatten(model.predict(images, verbose=0)):
            assert len(array) == len(images)
            assert np.isfinite(array).all()


def check_unknown_sizes(make_model, make_batch, sizes=((64, 64), (33, 49))):
    """A dataset of shape (None, None, None, 3) trains, is scored and predicted like arrays."""
    batches = [make_batch(size) for size in sizes]
    targets_spec = tf.nest.map_structure(
        lambda array: tf.TensorSpec((None,) * array.ndim, array.dtype), batches[0][1]
    )
    spec = (tf.TensorSpec((None, None, None, 3)), targets_spec)
    dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(sizes)))
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    history = model.fit(dataset, shuffle=False, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert np.isfinite(model.evaluate(dataset, verbose=0, return_dict=True)["loss"])
    from_dataset = model.predict(dataset.take(1).map(lambda images, _: images), verbose=0)
    assert_nearly_equal(from_dataset, model.predict_on_batch(batches[0][0]))


def check_saving(make_model, batch, path):
    """A loaded model has its class, weights, predictions and optimizer, and continues to train."""
    images, targets = batch
    model = make_model()
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    model.fit(images, targets, batch_size=len(images), verbose=0)
    model.save(path)
    loaded = keras.saving.load_model(path)
    assert type(loaded) is type(model)
    assert type(loaded.backbone) is type(model.backbone)
    raw = [tf.nest.flatten(each(images)) for each in (model, loaded)]
    for ours, theirs in zip(*raw, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(model.weights, loaded.weights, strict=True):
        if "seed" not in ours.path:
            np.testing.assert_array_equal(ours.numpy(), theirs.numpy(), err_msg=ours.path)
    assert int(loaded.optimizer.iterations) == 1
    history = loaded.fit(images, targets, batch_size=len(images), verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert int(loaded.optimizer.iterations) == 2


def check_deployment(make_model, images, path):
    """The deployed head predicts what the head predicts, is not trainable, saves and loads."""
    model = make_model()
    shake_weights(model)
    before = model.get_weights()
    expected = drop_second_stage(model(images, training=False))
    deployed = deploy(model)
    assert deploy(deployed) is deployed
    assert type(deployed) is type(model)
    assert not deployed.trainable_variables
    # Folding the norms of heads makes nothing faster: see tests/benchmarks/folding.py.
    classes = [type(layer) for layer in deployed._flatten_layers()]
    names = {each.__name__ for each in classes if each.__module__.startswith("van_backbones.")}
    assert not names & {"BatchNormalization", "VANBlock", "OverlapPatchEmbedding"}
    outputs = drop_second_stage(deployed(images, training=False))
    for ours, theirs in zip(flatten(outputs), flatten(expected), strict=True):
        ours, theirs = (np.asarray(values).astype("float64") for values in (ours, theirs))
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()

    deployed.save(path)
    loaded = keras.saving.load_model(path)
    results = (flatten(each.predict_on_batch(images)) for each in (loaded, deployed))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    assert model.trainable_variables


def drop_second_stage(predictions):
    """Returns raw predictions without those that depend on the order of proposals: near-ties may swap."""
    if not isinstance(predictions, dict):
        return predictions
    if "proposals" not in predictions:
        return predictions
    after = ("proposals", "proposal_scores", "class_logits", "box_deltas", "detections", "mask_logits")
    return {name: values for name, values in predictions.items() if name not in after}


def shake_weights(model):
    """Gives vectors and statistics visible values: initially, the norms and biases do nothing."""
    random = np.random.default_rng(0)
    for variable in model.weights:
        if len(variable.shape) == 1 and variable.dtype == "float32":
            positive = variable.name in ("gamma", "moving_variance") or "layer_scale" in variable.name
            variable.assign(random.uniform(*((0.5, 1.5) if positive else (-0.5, 0.5)), variable.shape))


def check_config(make_model):
    """The configuration is JSON, and the same model is made from it."""
    model = make_model()
    config = model.get_config()
    json.dumps(config)
    copy = type(model).from_config(config)
    assert normalize(copy.get_config()) == normalize(config)
    assert [v.shape for v in copy.variables] == [v.shape for v in model.variables]
    assert [v.dtype for v in copy.variables] == [v.dtype for v in model.variables]
    assert copy.name == model.name


def check_mixed_precision(make_model, batch, inner=()):
    """In mixed bfloat16 the raw predictions are float32, the weights float32, and fit and predict work.

    `inner` names the raw predictions that stay in half precision.
    """
    images, targets = batch
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = make_model()
        raw = model(images)
        if isinstance(raw, dict):
            raw = {name: arrays for name, arrays in raw.items() if name not in inner}
        for array in tf.nest.flatten(raw):
            assert keras.backend.standardize_dtype(array.dtype) in ("float32", "int32")
        assert {v.dtype for v in model.trainable_variables} == {"float32"}
        layers = [layer for layer in model._flatten_layers() if layer.weights and layer is not model]
        assert {layer.compute_dtype for layer in layers if not isinstance(layer, keras.Model)} == {"bfloat16"}
        model.compile(optimizer=keras.optimizers.SGD(0.01))
        history = model.fit(images, targets, batch_size=len(images), verbose=0).history
        assert np.isfinite(history["loss"]).all()
        return model.predict(images, verbose=0)
    finally:
        keras.config.set_dtype_policy(policy)


def check_frozen_backbone(make_model, batch, path):
    """A frozen backbone keeps its weights and statistics while the head learns, also after loading."""
    images, targets = batch
    model = make_model()
    model.backbone.trainable = False
    for attempt in range(2):
        model.compile(optimizer=keras.optimizers.SGD(0.1))
        backbone, everything = get_values(model.backbone.variables), get_values(model.trainable_variables)
        assert not model.backbone.trainable_variables
        assert everything
        assert not backbone.keys() & everything.keys()
        model.fit(images, targets, batch_size=len(images), verbose=0)
        for variable in model.backbone.weights:
            np.testing.assert_array_equal(variable.numpy(), backbone[id(variable)], err_msg=variable.path)
        assert any((v.numpy() != everything[id(v)]).any() for v in model.trainable_variables)
        if attempt == 0:
            model.save(path)
            model = keras.saving.load_model(path)


def check_evaluate(make_model, batch, names):
    """`evaluate` and validation in `fit` return these names, and the loss is that of the predictions."""
    images, targets = batch
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    scores = model.evaluate(images, targets, batch_size=len(images), verbose=0, return_dict=True)
    assert set(scores) == set(names)
    losses = model.compute_losses(targets, model(images, training=False))
    assert scores["loss"] == pytest.approx(float(sum(losses.values())), rel=1e-4)
    history = model.fit(
        images, targets, batch_size=len(images), validation_data=(images, targets), verbose=0
    ).history
    assert {name for name in history if name.startswith("val_")} == {f"val_{name}" for name in names}


def check_sample_weight(make_model, batch):
    """Weights of samples are refused, not ignored."""
    images, targets = batch
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    with pytest.raises(ValueError, match=r"sample_weight is not supported.*Received: sample_weight="):
        model.fit(images, targets, sample_weight=np.ones(len(images)), batch_size=len(images), verbose=0)


def check_refused_options(make_model, batch, **options):
    """Options that `compile` and `fit` cannot use are refused by name; `options` are more of `compile`'s."""
    images, targets = batch
    model = make_model()
    for name, value in {"loss": "mse", "loss_weights": {"class_loss": 2.0}, **options}.items():
        with pytest.raises(ValueError, match=rf"^{name} must be None: .*Received: {name}="):
            model.compile("sgd", **{name: value})
    model.compile("sgd")
    for train in (model.fit, model.train_on_batch):
        with pytest.raises(ValueError, match=r"class_weight is not supported"):
            train(images, targets, class_weight={0: 1.0})
    with pytest.raises(ValueError, match=r"sample_weight is not supported"):
        model.fit(images, targets, validation_data=(images, targets, np.ones(len(images))))


def check_no_images(make_model, batch):
    """Predictions for no images are empty and of the right shapes; training or scoring on nothing raises."""
    nothing = tf.nest.map_structure(lambda array: array[:0], batch)
    model = make_model()
    model.compile("sgd")
    for empty, full in zip(
        flatten(model.predict(nothing[0], verbose=0)),
        flatten(model.predict(batch[0], verbose=0)),
        strict=True,
    ):
        assert empty.shape == (0, *full.shape[1:])
        assert empty.dtype == full.dtype
    for use in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="x must hold at least one image"):
            use(*nothing, verbose=0)
    dataset = tf.data.Dataset.from_tensor_slices(batch).batch(1).take(0)
    for use in (model.fit, model.evaluate, model.predict):
        with warnings.catch_warnings(action="ignore"):  # Keras warns that the data ran out
            with pytest.raises(ValueError, match="x must hold at least one batch"):
                use(dataset, verbose=0)


def check_backbones_without_pyramid(make_head):
    """A backbone without the pyramid or a level is refused; `make_head(backbone)` returns a head."""
    images = keras.Input((None, None, 3))
    plain = keras.Model(images, keras.layers.Conv2D(4, 3)(images))
    with pytest.raises(ValueError, match=r"pyramid_outputs.*Received: .* with no pyramid_outputs"):
        make_head(plain)
    with pytest.raises(ValueError, match=r"Received: .* with levels \['P2', 'P3'\]"):
        make_head(PooledBackbone(levels=("P2", "P3")))


def get_values(variables):
    return {id(variable): variable.numpy() for variable in variables}


def flatten(structure):
    return [np.asarray(array) for array in tf.nest.flatten(structure)]


def assert_nearly_equal(ours, theirs):
    """Integer results may differ at a near-tie: one position in a thousand."""
    for first, second in zip(flatten(ours), flatten(theirs), strict=True):
        assert first.shape == second.shape
        assert first.dtype == second.dtype
        if first.dtype.kind == "f":
            np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
        else:
            assert np.mean(first != second) <= 1e-3


def normalize(config):
    """Tuples become lists in JSON."""
    return json.loads(json.dumps(config))
