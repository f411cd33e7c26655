"""The base class of all heads: what `fit`, `evaluate` and `predict` need."""

import inspect
from collections.abc import Sequence

import keras
import numpy as np

from heads.ops.backends import sum_over_devices
from heads.picture_sizes import Resizing


class DenseModel(keras.Model):
    """A backbone with a head, in three verbs.

    A head writes `call` (images -> raw predictions), `compute_losses` (targets, predictions -> a dict of
    named losses) and `decode` (predictions -> what a user wants). This class makes `fit` minimise the sum of
    the losses and log each by name, and `predict` give decoded results, on every backend of Keras.

    The other arguments of Keras's `compile` and `fit` work as in any Keras model, or raise: losses of layers
    (regularizers, `add_loss`) are part of the loss; `loss`, `loss_weights`, `class_weight` and
    `sample_weight` are refused, `metrics` and `weighted_metrics` where `takes_metrics` is False.

    Args:
        backbone: a functional Keras model with `pyramid_outputs`, a dict level -> symbolic output.
        levels: the levels that the head reads, such as `("P2", "P3", "P4", "P5")`.
        loss_names: the keys of `compute_losses`.
        arguments: `locals()` of the head's constructor. The constructor's arguments become attributes of the
            same names, which `get_config` writes; other local variables are ignored. None if it has no
            arguments, or a `get_config` of its own.
        class_names: names of the classes, in the order of their labels; kept in the model's file.
        resizing: how pictures are resized, a `Resizing`; kept in the model's file. None keeps their size.
        **kwargs: `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if the backbone has no `pyramid_outputs` or lacks a level, or `class_names` is not one
            text for each of `num_classes`.
    """

    # Whether `compute_metrics` passes targets and predictions to the metrics of `compile`.
    takes_metrics = False
    # Whether targets have a fixed shape per image, rather than as many rows as the batch has objects.
    has_fixed_targets = False
    # Whether targets and detections have masks.
    with_masks = False
    # `predict_pictures` pads pictures to multiples of this: the coarsest stride of the backbones.
    size_divisor = 32

    def __init__(
        self,
        backbone,
        levels,
        loss_names,
        arguments=None,
        class_names: Sequence[str] | None = None,
        resizing: Resizing | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.argument_names = _list_arguments(arguments["__class__"]) if arguments else []
        for name in self.argument_names:
            setattr(self, name, arguments[name])
        self.class_names = _check_class_names(class_names, getattr(self, "num_classes", None))
        self.resizing = Resizing() if resizing is None else resizing
        outputs = getattr(backbone, "pyramid_outputs", None)
        if outputs is None or any(level not in outputs for level in levels):
            found = "no pyramid_outputs" if outputs is None else f"levels {list(outputs)}"
            raise ValueError(
                f"backbone must be a Keras model whose `pyramid_outputs` has the levels {list(levels)}. "
                f"Received: {backbone!r} with {found}"
            )
        # The number of objects differs between batches: XLA would compile anew for each.
        self.supports_jit = self.has_fixed_targets or keras.backend.backend() != "tensorflow"
        self.autocast = False  # half precision cannot hold resized pixels: the backbone casts
        if not backbone.trainable:
            # A frozen backbone that was loaded has only its own flag set, but the pyramid looks at its
            # layers'.
            for layer in backbone.layers:
                layer.trainable = False
        self.backbone = backbone
        levels_read = {level: outputs[level] for level in levels}
        self.pyramid = keras.Model(backbone.input, levels_read, name="pyramid")
        self.level_shapes = [tuple(outputs[level].shape) for level in levels]
        self.loss_trackers = {name: keras.metrics.Mean(name=name) for name in loss_names}
        self.built = True  # a head builds its layers in the constructor

    @property
    def image_channels(self) -> int:
        """Channels of the images that the backbone takes; 3 is RGB."""
        return self.pyramid.inputs[0].shape[-1]

    def compute_losses(self, targets, predictions):
        """Returns the named losses: name -> scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_losses(targets, predictions)")

    def decode(self, predictions):
        """Returns what `predict` returns, from what `call` returned."""
        raise NotImplementedError(f"{type(self).__name__} must define decode(predictions)")

    def compile(
        self,
        optimizer="rmsprop",
        loss=None,
        loss_weights=None,
        metrics=None,
        weighted_metrics=None,
        **kwargs,
    ):
        way_out = f"the losses are {list(self.loss_trackers)}; override `compute_losses` for others"
        _refuse(way_out, loss=loss, loss_weights=loss_weights)
        if not self.takes_metrics:
            way_out = "predictions are not compared with targets one by one; score with a callback"
            _refuse(way_out, metrics=metrics, weighted_metrics=weighted_metrics)
        for metric in keras.tree.flatten([metrics, weighted_metrics]):
            if isinstance(metric, keras.metrics.IoU) and (metric.sparse_y_pred or not metric.sparse_y_true):
                raise ValueError(
                    "metrics must take class numbers and logits: sparse_y_true=True, sparse_y_pred=False. "
                    f"Received: {metric!r} with {metric.sparse_y_true} and {metric.sparse_y_pred}"
                )
        super().compile(optimizer, metrics=metrics, weighted_metrics=weighted_metrics, **kwargs)

    def compile_from_config(self, config):
        # As Keras's own, which does nothing where `compile` is overridden.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def fit(self, x=None, y=None, *args, class_weight=None, validation_data=None, **kwargs):
        _refuse_weights(class_weight=class_weight)
        if isinstance(validation_data, (tuple, list)) and len(validation_data) == 3:
            _refuse_weights(sample_weight=validation_data[2])
        _refuse_nothing(x)
        history = super().fit(x, y, *args, validation_data=validation_data, **kwargs)
        if history.epoch and not history.history:
            raise ValueError(f"x must hold at least one batch. Received: {x!r}, which has none")
        return history

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        _refuse_weights(class_weight=class_weight)
        return super().train_on_batch(x, y, sample_weight=sample_weight, return_dict=return_dict)

    def evaluate(self, x=None, *args, **kwargs):
        _refuse_nothing(x)
        results = super().evaluate(x, *args, **kwargs)
        if isinstance(results, (dict, list)) and not results:
            raise ValueError(f"x must hold at least one batch. Received: {x!r}, which has none")
        return results

    def predict(self, x, *args, **kwargs):
        if _count_rows(x) == 0:
            # A network is not run on zero images: the results of a blank image show the shapes and dtypes.
            blank = keras.tree.map_structure(lambda array: np.ones((1, *array.shape[1:]), array.dtype), x)
            return keras.tree.map_structure(lambda array: np.asarray(array)[:0], self.predict_on_batch(blank))
        try:
            return super().predict(x, *args, **kwargs)
        except UnboundLocalError as problem:  # Keras raises this where there is no batch
            raise ValueError(f"x must hold at least one batch. Received: {x!r}, which has none") from problem

    def predict_pictures(
        self,
        pictures,
        batch_size: int = 1,
        score_threshold: float = 0.0,
        masks: str = "pasted",
        progress: bool = True,
        **options,
    ) -> list[dict]:
        """Returns the results of pictures, in the pixels of each.

        Pictures are read upright, then resized and padded as `resizing` says; those of equal size go through
        the model together.

        Args:
            pictures: a picture file (what Pillow reads: JPEG, PNG, WebP, BMP, TIFF ...), a folder of them, an
                array (height, width, 3), uint8 or float 0 .. 255, or a sequence of files and arrays. Where
                the backbone takes other than 3 channels, TIFF files of so many bands (see
                `heads.bands.read_bands`), or arrays.
            batch_size: most pictures that go through the model at once.
            score_threshold: detections below are left out.
            masks: "pasted" for bool arrays of the picture's size, "run_lengths" for COCO's compressed run
                lengths, which take about a hundredth of the memory.
            progress: whether to show a progress bar, for two pictures or more.
            **options: further arguments of the head's `predict_resized`: `task` for `Mask2Former`; for
                semantic segmenters `crop`, `stride`, `scales` and `flip`, see `segment_images`.

        Returns:
            A list with a dict for each picture, in their order: "path" (None for arrays), and

            - for a detector "boxes" (n, 4), xyxy pixels, "scores" (n,), "labels" (n,), "names", n texts, the
              best first, and perhaps "masks", bool (n, height, width) or a list of n dicts;
            - for a semantic segmenter "label_map", int32 (height, width);
            - for a saliency model "saliency_map", float32 (height, width), 0 .. 1;
            - for a panoptic segmenter "segments", int32 (height, width), rows of "labels" (n,), "scores" (n,)
              and "names", n texts; -1 where there is no segment.

        Raises:
            ValueError: if a file cannot be read, starting with its path, or an array is no picture.
        """
        from heads.prediction import predict_pictures  # with Pillow, which nothing else here needs

        return predict_pictures(self, pictures, batch_size, score_threshold, masks, progress, **options)

    def prepare_pictures(self, pictures, image_size: tuple[int, int] | None = None):
        """Returns an iterator of pictures as the model's exports take them, each a batch of its own.

        They are read, resized and padded as in `predict_pictures`. `van_backbones.export` calibrates int8
        with them.

        Args:
            pictures: see `predict_pictures`.
            image_size: (height, width) to fit the pictures into, for an export of this size; None follows
                `resizing`.

        Returns:
            An iterator of uint8 (1, height, width, 3).

        Raises:
            ValueError: if there is no such file, no picture in a folder, or one that cannot be read.
        """
        from heads.prediction import prepare_pictures

        return prepare_pictures(self, pictures, image_size)

    def predict_resized(self, images, image_sizes, original_sizes):
        """Returns the results of resized and padded images, a dict for each: see `predict_pictures`.

        Args:
            images: (batch, height, width, 3).
            image_sizes: (batch, 2), (height, width) without padding.
            original_sizes: (batch, 2), (height, width) of the pictures.
        """
        inputs = {"images": images, "image_sizes": image_sizes, "original_sizes": original_sizes}
        detections = self.predict_on_batch(inputs)
        return [{name: values[row] for name, values in detections.items()} for row in range(len(images))]

    def predict_raw(self, inputs):
        """Returns the outputs of `call` for one batch as NumPy arrays, from a graph as in `predict`."""
        if "_find_network" not in vars(self):
            network = _Network(self)
            # In a function, as Keras would save an attribute with the model.
            self._find_network = lambda: network
        return self._find_network().predict_on_batch(inputs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        _refuse_weights(sample_weight=sample_weight)
        losses = self.compute_losses(y, y_pred)
        # Weighted by the batch size, like Keras's own tracker: a last batch may be smaller, or empty if a
        # dataset's length is unknown. On several devices all have the same share in the mean.
        batch_size = keras.ops.shape(keras.tree.flatten(y if x is None else x)[0])[0]
        joint_size, num_devices = sum_over_devices(keras.ops.cast(batch_size, "float32"))
        for name, loss in losses.items():
            self.loss_trackers[name].update_state(loss, sample_weight=joint_size / num_devices)
        # As Keras adds a loss: divided by the number of replicas, whose gradients are summed.
        return sum(self._aggregate_additional_loss(loss) for loss in (*losses.values(), *self.losses))

    def make_train_function(self, force=False):
        # Otherwise TensorFlow traces the training step twice, the first time to create the variables.
        if self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        return super().make_train_function(force)

    def predict_step(self, *args):
        outputs = super().predict_step(*args)
        # On JAX, a step also returns the state of the metrics.
        return (self.decode(outputs[0]), *outputs[1:]) if isinstance(outputs, tuple) else self.decode(outputs)

    def build_from_config(self, config):
        """Does nothing: a head is built by its constructor."""

    def get_config(self):
        # While Keras writes a file, it marks objects that it has seen before, so that heads that share a
        # backbone share it again after loading. Serialised twice, so that the first head's backbone is
        # marked, too.
        keras.saving.serialize_keras_object(self.backbone)
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "frozen_parts": [path for path, part in self._walk_parts() if not part.trainable],
            **{name: getattr(self, name) for name in self.argument_names},
            "class_names": self.class_names,
            "resizing": keras.saving.serialize_keras_object(self.resizing),
            "name": self.name,
            "trainable": self.trainable,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        parts = {
            name: keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
            for name in ("backbone", "resizing")
        }
        head = cls(**{name: config[name] for name in config.keys() - {"frozen_parts"}} | parts)
        for path, part in head._walk_parts() if "frozen_parts" in config else ():
            part.trainable = path not in config["frozen_parts"]
        return head

    def _walk_parts(self, layer=None, prefix=""):
        """Yields (path, part) of all parts with weights, except the backbone's, which keeps its own state."""
        for part in (layer or self)._layers:
            if part is not self.backbone and part is not self.pyramid and part.weights:
                yield f"{prefix}{part.name}", part
                yield from self._walk_parts(part, f"{prefix}{part.name}/")


class _Network(keras.Model):
    """A head whose `predict` does not decode."""

    def __init__(self, head):
        super().__init__(name="network")
        self.head = head
        self.built = True

    def call(self, inputs, training=None):
        return self.head(inputs, training=False)


def _list_arguments(head_class):
    parameters = inspect.signature(head_class.__init__).parameters.values()
    names = [each.name for each in parameters if each.kind != each.VAR_KEYWORD]
    return [name for name in names if name not in ("self", "backbone")]


def _check_class_names(class_names, num_classes):
    if class_names is None:
        return None
    if num_classes is None:
        raise ValueError(f"class_names must be None: the model has no classes. Received: {class_names!r}")
    names = list(class_names)
    if len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"class_names must be a text for each of the {num_classes} classes. Received: {class_names!r}"
        )
    return names


def _refuse(way_out, **options):
    """Raises a ValueError if one of these options of Keras is given."""
    for name, value in options.items():
        if value:
            raise ValueError(f"{name} must be None: {way_out}. Received: {name}={value!r}")


def _refuse_weights(**weights):
    for name, value in weights.items():
        if value is not None:
            raise ValueError(
                f"{name} is not supported: pass (images, targets) and mark what must not count in the "
                f"targets themselves, or override `compute_losses`. Received: {name}={value!r}"
            )


def _count_rows(x):
    """Returns the number of images of arrays; None for datasets, generators and no input."""
    arrays = keras.tree.flatten(x) if isinstance(x, (dict, list, tuple)) else [x]
    shape = getattr(arrays[0], "shape", None) if arrays else None
    return None if not shape else shape[0]


def _refuse_nothing(x):
    if _count_rows(x) == 0:
        raise ValueError(
            f"x must hold at least one image. Received: shape {keras.tree.map_structure(np.shape, x)}"
        )
