"""The base class of all heads: what `fit`, `evaluate` and `predict` need."""

import keras


class DenseModel(keras.Model):
    """A backbone with a head, in three verbs.

    A head writes `call` (images -> raw predictions), `compute_losses` (targets, predictions -> a dict of
    named losses) and `decode` (predictions -> what a user wants). This class makes `fit` minimise the sum of
    the losses and log each by name, and `predict` give decoded results, on every backend of Keras.

    Args:
        backbone: a functional Keras model with `pyramid_outputs`, a dict level -> symbolic output.
        levels: the levels that the head reads, such as `("P2", "P3", "P4", "P5")`.
        loss_names: the keys of `compute_losses`.
        folded: whether norms are part of the convolutions before them, where the head has any. For
            inference; `van_backbones.deployment.deploy` makes such a head of a trained one.
        **kwargs: `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if the backbone has no `pyramid_outputs` or lacks a level.
    """

    def __init__(self, backbone, levels, loss_names, folded=False, **kwargs):
        super().__init__(**kwargs)
        self.folded = folded
        outputs = getattr(backbone, "pyramid_outputs", None)
        if outputs is None or any(level not in outputs for level in levels):
            found = "no pyramid_outputs" if outputs is None else f"levels {list(outputs)}"
            raise ValueError(
                f"backbone must be a Keras model whose `pyramid_outputs` has the levels {list(levels)}. "
                f"Received: {backbone!r} with {found}"
            )
        self.autocast = False  # half precision cannot hold resized pixels: the backbone casts
        if not backbone.trainable:
            # A frozen backbone that was loaded has the flag on itself alone, and the pyramid asks its layers.
            for layer in backbone.layers:
                layer.trainable = False
        self.backbone = backbone
        levels_read = {level: outputs[level] for level in levels}
        self.pyramid = keras.Model(backbone.input, levels_read, name="pyramid")
        self.level_shapes = [tuple(outputs[level].shape) for level in levels]
        self.loss_trackers = {name: keras.metrics.Mean(name=name) for name in loss_names}

    def compute_losses(self, targets, predictions):
        """Gives the named losses: name -> scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_losses(targets, predictions)")

    def decode(self, predictions):
        """Gives what `predict` returns, from what `call` returned."""
        raise NotImplementedError(f"{type(self).__name__} must define decode(predictions)")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if sample_weight is not None:
            raise ValueError(
                "sample_weight is not supported: give (images, targets) and mark what must not count in the "
                f"targets themselves. Received: sample_weight={sample_weight!r}"
            )
        losses = self.compute_losses(y, y_pred)
        for name, loss in losses.items():
            self.loss_trackers[name].update_state(loss)
        return sum(losses.values())

    def make_train_function(self, force=False):
        # Otherwise TensorFlow traces the training step twice, the first time to create the variables.
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def predict_step(self, *args):
        outputs = super().predict_step(*args)
        if not isinstance(outputs, tuple):
            return self.decode(outputs)
        # On JAX a step takes and returns the state, which `decode` may need: a mask head runs there.
        variables = (*self.trainable_variables, *self.non_trainable_variables)
        values = (value for part in args[0] for value in part)
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return (self.decode(outputs[0]), *outputs[1:])

    def build_from_config(self, config):
        """Does nothing: a head is built by its constructor."""

    def get_config(self):
        # While a file is written, Keras marks what it has seen before; the mark makes heads that share a
        # backbone share it again. So that the first of them has it too, each shows its backbone twice.
        keras.saving.serialize_keras_object(self.backbone)
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "frozen_parts": [path for path, part in self._walk_parts() if not part.trainable],
            "folded": self.folded,
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        backbone = keras.saving.deserialize_keras_object(config["backbone"], custom_objects=custom_objects)
        head = cls(**{key: config[key] for key in config.keys() - {"frozen_parts"}} | {"backbone": backbone})
        for path, part in head._walk_parts() if "frozen_parts" in config else ():
            part.trainable = path not in config["frozen_parts"]
        return head

    def _walk_parts(self, layer=None, prefix=""):
        """Yields (path, part) of all parts with weights but the backbone's, which tells its own state."""
        for part in (layer or self)._layers:
            if part is not self.backbone and part is not self.pyramid and part.weights:
                yield f"{prefix}{part.name}", part
                yield from self._walk_parts(part, f"{prefix}{part.name}/")
