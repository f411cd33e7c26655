"""Models for use: norms folded into convolutions, and exports that other runtimes load."""

import contextlib
import importlib.util
import pathlib
import warnings

import keras
from keras import ops

from van_backbones.backbone import VANBackbone
from van_backbones.folded_layers import DilatedConvolution, FoldedPatchEmbedding, FoldedVANBlock
from van_backbones.layers import OverlapPatchEmbedding, VANBlock
from van_backbones.normalization import ImageNormalization

# format -> (suffix of the file, packages that write it)
FORMATS = {
    "saved_model": ("", ()),
    "onnx": (".onnx", ("onnx", "tf2onnx")),
    "openvino": (".xml", ("openvino",)),
    "litert": (".tflite", ()),
}


@keras.saving.register_keras_serializable(package="van_backbones")
class DeployedBackbone(keras.Model):
    """What `deploy` makes of a `VANBackbone`: the same pyramid, from fewer layers.

    A functional model like any other: it saves and loads, and heads take it as their backbone.
    """

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self.autocast = False  # the first layer casts
        self.pyramid_outputs = dict(self.output)
        self.pyramid_level_inputs = {f"P{stage + 1}": f"stage{stage}_norm" for stage in (1, 2, 3, 4)}

    def reference_layers(self):
        """Raises: there are no norms any more that checkpoints could name."""
        raise ValueError("a deployed backbone has no weights to load or save by name: deploy after loading")


def deploy(model, dtype=None):
    """Gives a model for inference with equal outputs: norms and layer scales are part of the convolutions.

    Works for a `VANBackbone`, a `VANClassifier`, every head of `heads` on any backbone, and functional models
    with a `VANBackbone` inside. The result saves and loads like any Keras model, and is not for training. The
    model itself stays as it is. What is deployed already is given back as it is.

    Args:
        model: the model, built.
        dtype: dtype policy of the result, such as "mixed_bfloat16". None keeps the model's. What is deployed
            already keeps its own.

    Returns:
        A model with the same inputs, outputs and, in heads, the same verbs.

    Raises:
        TypeError: if the model is none of these.
    """
    layers = list(model._flatten_layers()) if isinstance(model, keras.Model) else []
    is_head = hasattr(model, "backbone") and hasattr(model, "decode")
    if getattr(model, "folded", False) if is_head else any(map(_is_folded, layers)):
        return model
    if is_head:
        deployed = _deploy_head(model, dtype)
    elif any(isinstance(layer, VANBlock) for layer in layers) and hasattr(model, "operations"):
        deployed = _deploy_functional(model, dtype)
    else:
        raise TypeError(
            "model must be a VANBackbone, a VANClassifier, a head, or a functional model with a VANBackbone "
            f"inside. Received: {model!r}"
        )
    _copy_weights(model, deployed)
    deployed.trainable = False
    return deployed


def _is_folded(layer):
    return getattr(layer, "folded", False)


def _deploy_head(head, dtype):
    config = {**head.get_config(), "folded": True}
    del config["frozen_parts"]  # what is deployed is not trained
    is_van = isinstance(head.backbone, VANBackbone)
    config["backbone"] = _deploy_functional(head.backbone, dtype) if is_van else _copy(head.backbone, dtype)
    if dtype is not None:
        config["dtype"] = dtype
    return type(head)(**config)


def _deploy_functional(model, dtype):
    """Gives a functional model of folded layers, with weights still to come."""

    def fold_layer(layer):
        options = {"name": layer.name, "dtype": dtype or layer.dtype_policy}
        if isinstance(layer, OverlapPatchEmbedding):
            return FoldedPatchEmbedding(layer.width, layer.kernel_size, layer.strides, **options)
        if isinstance(layer, VANBlock):
            return FoldedVANBlock(layer.expansion_ratio, **options)
        if isinstance(layer, keras.Model) and hasattr(layer, "operations"):
            return _deploy_functional(layer, dtype)
        return _copy(layer, dtype)

    # Through a plain model: `clone_model` would compile the clone of a compiled one.
    clone = keras.models.clone_model(keras.Model(model.input, model.output), clone_function=fold_layer)
    model_class = DeployedBackbone if isinstance(model, VANBackbone) else keras.Model
    return model_class(clone.input, clone.output, name=model.name)


def _copy(layer, dtype):
    """Gives a layer like this one, of another dtype if wanted, with weights still to come."""
    config = layer.get_config()
    if dtype is not None and not isinstance(layer, keras.Model):
        config["dtype"] = dtype
    return type(layer).from_config(config)


def _copy_weights(source, target):
    """Gives a deployed model, or a layer in it, the weights of the original."""
    if _is_folded(target) and hasattr(target, "fold") and not _is_folded(source):
        target.fold(source)
        return
    sources, targets = (
        list(part._flatten_layers(include_self=False, recursive=False)) for part in (source, target)
    )
    inherited = {id(variable) for layer in (*sources, *targets) for variable in layer.variables}
    own = [[v for v in part.variables if id(v) not in inherited] for part in (source, target)]
    for old, new in zip(*own, strict=True):
        new.assign(old)
    for old, new in zip(sources, targets, strict=True):
        _copy_weights(old, new)


def export(model, path, format="saved_model", image_size=None, batch_size=None, freeze_weights=False):
    """Writes a model for another runtime: images in, decoded results out, nothing of Keras needed.

    The model is deployed first (`deploy`). The export takes "images", uint8 (batch, height, width, 3), RGB,
    or float32 (batch, height, width, channels) where the backbone has `normalization=None`. What it gives has
    names: the levels of a backbone; "boxes", "scores", "labels" and "masks" of a detector; "outputs" where
    there is only one, such as a segmenter's label maps or a classifier's logits.

    A SavedModel has one more signature, "serve_encoded": "images" are then strings (batch,), JPEG or PNG
    files whose pictures share one size. All formats allow any height and width; fixed ones run faster in
    OpenVINO and TensorFlow.

    Args:
        model: what `deploy` takes, or gave.
        path: a folder for "saved_model"; else a file, which must end in ".onnx" for "onnx", ".xml" for
            "openvino" (weights go beside it, into ".bin") and ".tflite" for "litert".
        format: "saved_model", "onnx", "openvino" or "litert". All but the first are exported in float32;
            OpenVINO computes in bfloat16 where its runtime is told so.
        image_size: (height, width) of the images, either or both None for any. None gives what the model was
            built for, which is any as a rule.
        batch_size: number of images; None for any.
        freeze_weights: whether a SavedModel holds its weights as constants; those of the other formats always
            are. TensorFlow runs them faster, the more so the smaller the images (not at 800 x 1280), but
            takes about 20 times their size in memory, and 30 times to write them: for small models.

    Raises:
        ValueError: at an unknown format, another suffix, an image size that the model does not take, a model
            that was deployed in half precision for a format other than "saved_model", or on another backend
            than TensorFlow.
        ImportError: if the format's converter is not installed: `pip install 'van-backbones[export]'`.
    """
    path = pathlib.Path(path)
    _check_export(path, format)
    deployed = deploy(model, None if format == "saved_model" else "float32")
    dtypes = {layer.compute_dtype for layer in deployed._flatten_layers(recursive=True) if _is_leaf(layer)}
    if format != "saved_model" and dtypes != {"float32"}:
        raise ValueError(
            f'format="{format}" wants float32: export the model itself, not what `deploy` made of it. '
            f"Received: {deployed.name} with layers in {sorted(dtypes)}"
        )
    served = ServedModel(deployed)
    signature = served.make_signature(image_size, batch_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _traced_for(format, served), warnings.catch_warnings():
        if format == "saved_model":
            _write_saved_model(served, path, signature, freeze_weights)
            return
        options = {}
        if format == "litert":
            import tensorflow as tf

            # Else what LiteRT does not know would be left to TensorFlow, which its own runtime lacks.
            options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
        warnings.simplefilter("ignore", FutureWarning)  # Keras asks NumPy for a name on tf2onnx's behalf
        served.export(str(path), format=format, input_signature=[signature], verbose=False, **options)


class ServedModel(keras.Model):
    """What an export does: images -> decoded results by name.

    Args:
        model: a deployed model.
    """

    def __init__(self, model):
        super().__init__(name="served")
        self.autocast = False  # images come as they are
        self.model = model
        self.built = True

    def call(self, images):
        model_input = self._read_input()
        outputs = self.model(ops.cast(images, model_input.dtype), training=False)
        outputs = self.model.decode(outputs) if hasattr(self.model, "decode") else outputs
        return outputs if isinstance(outputs, dict) else {"outputs": outputs}

    def make_signature(self, image_size, batch_size):
        """Gives the `tf.TensorSpec` of the images."""
        import tensorflow as tf

        layers = list(self.model._flatten_layers())
        is_van = any(isinstance(layer, FoldedVANBlock) for layer in layers)
        is_normalized = is_van and not any(isinstance(layer, ImageNormalization) for layer in layers)
        *sides, channels = self._read_input().shape[1:]
        image_size = sides if image_size is None else image_size
        if any(own not in (None, side) for own, side in zip(sides, image_size, strict=True)):
            raise ValueError(
                f"image_size must be {tuple(sides)}, what the model was built for. Received: {image_size}"
            )
        shape = (batch_size, *image_size, channels)
        return tf.TensorSpec(shape, tf.float32 if is_normalized else tf.uint8, name="images")

    def _read_input(self):
        return getattr(self.model, "backbone", self.model).inputs[0]


def _is_leaf(layer):
    return bool(layer.weights) and not list(layer._flatten_layers(include_self=False, recursive=False))


def _check_export(path, format):
    if format not in FORMATS:
        raise ValueError(f"format must be one of {list(FORMATS)}. Received: {format!r}")
    suffix, packages = FORMATS[format]
    if path.suffix != suffix and suffix:
        raise ValueError(f'path must end in "{suffix}" for format="{format}". Received: {str(path)!r}')
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "export runs on the TensorFlow backend: set KERAS_BACKEND=tensorflow and load the model there. "
            f"Received: backend {keras.backend.backend()!r}"
        )
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f'format="{format}" needs {", ".join(missing)}: run pip install "van-backbones[export]"'
        )


def _write_saved_model(served, path, signature, freeze_weights):
    import tensorflow as tf

    serve = _freeze(served, signature) if freeze_weights else served.call
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serve", serve, input_signature=[signature])
    if signature.dtype == tf.uint8 and signature.shape[-1] == 3:
        picture = tf.TensorSpec(signature.shape[1:], tf.uint8)

        def decode_picture(encoded):
            pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            return tf.ensure_shape(pixels, picture.shape)

        def serve_encoded(images):
            return serve(tf.map_fn(decode_picture, images, fn_output_signature=picture))

        encoded = tf.TensorSpec(signature.shape[:1], tf.string, name="images")
        archive.add_endpoint("serve_encoded", serve_encoded, input_signature=[encoded])
    archive.write_out(str(path), verbose=False)


def _freeze(served, signature):
    """Gives `served.call` as a function with constants for weights."""
    import tensorflow as tf

    weights = [(variable, variable.numpy()) for variable in served.variables]

    @tf.function(input_signature=[signature], autograph=False)
    def serve(images):
        # oneDNN reorders constants once, and variables in every call. Made outside, tensors would be inputs.
        constants = [(variable, tf.constant(value)) for variable, value in weights]
        with keras.StatelessScope(state_mapping=constants):
            return served.call(images)

    return serve


@contextlib.contextmanager
def _traced_for(format, model):
    """Lets dilated convolutions be traced as the one operation that the format's runtime knows."""
    import tensorflow as tf

    def convolve(inputs, kernel, dilation_rate):
        options = {"padding": "SAME"}
        if format == "onnx":  # ONNX Runtime wants the numbers
            top, left = (rate * (side // 2) for rate, side in zip(dilation_rate, kernel.shape, strict=False))
            options = {"padding": "EXPLICIT", "explicit_paddings": [0, 0, top, top, left, left, 0, 0]}
        return tf.raw_ops.DepthwiseConv2dNative(
            input=inputs, filter=kernel, strides=[1] * 4, dilations=[1, *dilation_rate, 1], **options
        )

    layers = [layer for layer in model._flatten_layers() if isinstance(layer, DilatedConvolution)]
    try:
        for layer in layers:
            # TensorFlow itself could not run that.
            layer.single_operation = None if format == "saved_model" else convolve
        yield
    finally:
        for layer in layers:
            layer.single_operation = None
