"""What an export computes, and how each format is written: beside its place, then moved there."""

import contextlib
import importlib.util
import pathlib
import tempfile
import warnings

import keras
from keras import ops

from van_backbones.deployment import deploy
from van_backbones.exporting.openvino_rewriting import mended_converter, rewrite_openvino
from van_backbones.exporting.quantization import (
    Calibration,
    check_calibration,
    find_kernel_sizes,
    quantize_export,
    read_calibration,
)
from van_backbones.folded_layers import DilatedConvolution, FoldedVANBlock
from van_backbones.normalization import ImageNormalization

# format -> (suffix of the file, packages that write it)
FORMATS = {
    "saved_model": ("", ()),
    "onnx": (".onnx", ("onnx", "tf2onnx")),
    "openvino": (".xml", ("openvino",)),
    "litert": (".tflite", ()),
}
# Suffixes of files: a path with one of them is not meant for a folder.
FILE_SUFFIXES = (".onnx", ".xml", ".bin", ".tflite", ".pb", ".keras", ".h5")
# What TensorFlow writes into a SavedModel's folder; "assets.extra" is for its users.
SAVED_MODEL_PARTS = ("saved_model.pb", "fingerprint.pb", "variables", "assets")


class ServedModel(keras.Model):
    """What an export computes: images -> decoded results by name.

    Args:
        model: a deployed model.

    Raises:
        ValueError: if the model takes anything but images with a known number of channels.
    """

    def __init__(self, model):
        super().__init__(name="served")
        self.autocast = False  # images come as they are
        self.model = model
        inputs = getattr(model, "backbone", model).inputs
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].shape[-1] is None:
            received = {each.name: tuple(each.shape) for each in inputs}
            raise ValueError(
                "model must have one input, images of shape (batch, height, width, channels) with known "
                "channels, to be exported: export the part of it that takes the images, or use Keras's own "
                f"`model.export`. Received: {model.name} with the inputs {received}"
            )
        self.image_shape = tuple(inputs[0].shape[1:])
        self.image_dtype = inputs[0].dtype
        self.built = True

    def call(self, images):
        images = ops.cast(images, self.image_dtype)
        if hasattr(self.model, "operations"):  # its only input may be in a dict or a list
            images = keras.tree.pack_sequence_as(self.model.input, [images])
        outputs = self.model(images, training=False)
        return name_outputs(self.model.decode(outputs) if hasattr(self.model, "decode") else outputs)

    def make_signature(self, image_size, batch_size):
        """Returns the `tf.TensorSpec` of the images."""
        import tensorflow as tf

        layers = list(self.model._flatten_layers())
        is_van = any(isinstance(layer, FoldedVANBlock) for layer in layers)
        is_normalized = is_van and not any(isinstance(layer, ImageNormalization) for layer in layers)
        *sides, channels = self.image_shape
        image_size = sides if image_size is None else image_size
        if not isinstance(image_size, (list, tuple)) or len(image_size) != 2 or not _are_lengths(*image_size):
            raise ValueError(
                "image_size must be (height, width), positive integers or None for any. "
                f"Received: {image_size!r}"
            )
        if not _are_lengths(batch_size):
            raise ValueError(
                f"batch_size must be a positive integer, or None for any. Received: {batch_size!r}"
            )
        if any(own not in (None, side) for own, side in zip(sides, image_size, strict=True)):
            raise ValueError(
                f"image_size must be {tuple(sides)}, what the model was built for. Received: {image_size}"
            )
        shape = (batch_size, *image_size, channels)
        return tf.TensorSpec(shape, tf.float32 if is_normalized else tf.uint8, name="images")


def _are_lengths(*values):
    return all(value is None or (isinstance(value, int) and value >= 1) for value in values)


def name_outputs(outputs):
    """Returns outputs by name: the keys of a dict, "output_0", ... for a list, "outputs" for a single one."""
    if not isinstance(outputs, dict):
        outputs = {"output" if isinstance(outputs, (list, tuple)) else "outputs": outputs}
    return {"_".join(map(str, path)): value for path, value in keras.tree.flatten_with_path(outputs)}


def check_path(path, format):
    """Refuses an unknown format, and a path where a format cannot be written.

    Raises:
        ValueError: for an unknown format, a suffix of another format, a file where a folder is written or the
            reverse, and a folder that holds anything but an earlier SavedModel.
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {list(FORMATS)}. Received: {format!r}")
    suffix = FORMATS[format][0]
    if suffix:
        if path.suffix != suffix:
            raise ValueError(f'path must end in "{suffix}" for format="{format}". Received: {str(path)!r}')
        if path.is_dir():
            raise ValueError(f"path must be a file, not an existing folder. Received: {str(path)!r}")
        return
    if path.suffix.lower() in FILE_SUFFIXES or path.is_file():
        formats = {suffix: f'format="{name}"' for name, (suffix, _) in FORMATS.items() if suffix}
        way_out = f": pass {formats[path.suffix]} for this file" if path.suffix in formats else ""
        raise ValueError(
            f'path must be the name of a folder for format="saved_model"{way_out}. Received: {str(path)!r}'
        )
    if path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists():
        names = sorted(part.name for part in path.iterdir())[:3]
        raise ValueError(
            "path must be a new folder, an empty one or that of an earlier SavedModel, which is replaced. "
            f"Received: {str(path)!r}, which holds {', '.join(names)}"
        )


def write_export(served, path, format, signature, freeze_weights=False, calibration=None):
    """Writes a `ServedModel`. A failure or a kill leaves the path as it was before.

    Args:
        served: the model.
        path: where to write, a `pathlib.Path` that `check_path` accepts.
        format: one of `FORMATS`.
        signature: what `ServedModel.make_signature` returned.
        freeze_weights: whether a SavedModel holds its weights as constants.
        calibration: a `Calibration`, for int8.

    Returns:
        What `quantize_export` returns; None without a calibration.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        written = pathlib.Path(folder, path.name)
        with _traced_for(format, served), warnings.catch_warnings():
            if format == "saved_model":
                _write_saved_model(served, written, signature, freeze_weights)
            else:
                _convert(served, written, format, signature)
        if format == "saved_model":
            _replace_folder(written, path, pathlib.Path(folder, "earlier"))
            return None
        kept = None if calibration is None else quantize_export(written, format, calibration)
        for part in sorted(written.parent.iterdir()):  # of OpenVINO's two files the ".bin" comes first
            part.replace(path.parent / part.name)
    return kept


def _replace_folder(written, path, earlier):
    """Moves a SavedModel to its place; other files in the folder stay there."""
    if path.exists():
        path.rename(earlier)
    try:
        written.rename(path)
    except OSError:
        if earlier.exists():
            earlier.rename(path)
        raise
    if earlier.exists():
        for part in earlier.iterdir():
            if part.name not in SAVED_MODEL_PARTS:
                part.rename(path / part.name)


def _convert(served, path, format, signature):
    options = {}
    if format == "litert":
        import tensorflow as tf

        # Otherwise, operations unknown to LiteRT would be left to TensorFlow, which LiteRT's runtime lacks.
        options["target_spec"] = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    warnings.simplefilter("ignore", FutureWarning)  # Keras asks NumPy for a name on tf2onnx's behalf
    with mended_converter() if format == "openvino" else contextlib.nullcontext():
        served.export(str(path), format=format, input_signature=[signature], verbose=False, **options)
    if format == "openvino":
        rewrite_openvino(path)


def _write_saved_model(served, path, signature, freeze_weights):
    import tensorflow as tf

    call = _freeze(served) if freeze_weights else served.call
    run = tf.function(call, input_signature=[signature], autograph=False)  # one graph for both signatures

    def serve(images):
        # TensorFlow checks no shapes when it serves: a missing axis would crash its process.
        return run(tf.ensure_shape(images, signature.shape))

    archive = keras.export.ExportArchive()
    archive.add_endpoint("serve", serve, input_signature=[signature])
    if signature.dtype == tf.uint8 and signature.shape[-1] == 3:
        picture = tf.TensorSpec(signature.shape[1:], tf.uint8)

        def serve_encoded(images):
            images = tf.ensure_shape(images, signature.shape[:1])
            pixels = tf.map_fn(_decode_picture, images, fn_output_signature=picture)
            return run(tf.ensure_shape(pixels, signature.shape))

        encoded = tf.TensorSpec(signature.shape[:1], tf.string, name="images")
        archive.add_endpoint("serve_encoded", serve_encoded, input_signature=[encoded])
    archive.write_out(str(path), verbose=False)


def _decode_picture(encoded):
    import tensorflow as tf

    def decode_jpeg():
        # As Pillow does; TensorFlow's default is quicker, but its pixels differ.
        return tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")

    def decode_others():
        return tf.io.decode_image(encoded, channels=3, expand_animations=False)

    return tf.ensure_shape(tf.cond(tf.io.is_jpeg(encoded), decode_jpeg, decode_others), (None, None, 3))


def _freeze(served):
    """Returns `served.call` as a function with constants for weights."""
    import tensorflow as tf

    weights = [(variable, variable.numpy()) for variable in served.variables]

    def call(images):
        # oneDNN reorders constants once, but variables in every call. Constants made outside would be inputs.
        constants = [(variable, tf.constant(value)) for variable, value in weights]
        with keras.StatelessScope(state_mapping=constants):
            return served.call(images)

    return call


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


def export(
    model,
    path,
    format="saved_model",
    image_size=None,
    batch_size=None,
    freeze_weights=False,
    calibration=None,
    max_drop=None,
    evaluate=None,
):
    """Writes a model for another runtime: images in, decoded results out, nothing of Keras needed.

    The model is deployed first (`deploy`). The export takes "images", uint8 (batch, height, width, 3), RGB,
    or float32 (batch, height, width, channels) where the backbone has `normalization=None`. The outputs have
    names: the levels of a backbone; "boxes", "scores", "labels" and "masks" of a detector; "outputs" where
    there is only one, such as a segmenter's label maps or a classifier's logits; "output_0", "output_1", ...
    of a model with a list of outputs. All formats allow any height and width; fixed sizes run faster in
    OpenVINO and TensorFlow.

    A SavedModel has one more signature, "serve_encoded": its "images" are strings (batch,), the contents of
    files whose pictures share one size: JPEG, PNG, BMP, or the first frame of a GIF. Pixels are used as they
    are stored: grey is repeated, an alpha channel is ignored, 16 bits are cut to their upper 8, and the EXIF
    orientation is not applied, so turn such pictures first. Only CMYK files give other pixels than Pillow.

    Images of another shape or dtype than the export takes are an error in a SavedModel, ONNX Runtime and
    OpenVINO. LiteRT itself checks nothing; `van_backbones.exporting.load_export` does.

    A failure or a kill leaves an earlier export at the path as it was: files are written beside it and moved
    when they are complete. TensorFlow keeps some of what it traces for as long as the process lives.

    With `calibration` the weights and inputs of convolutions and dense layers are int8. Everything else stays
    in float. See docs/deployment.md for what that brings.

    Args:
        model: what `deploy` takes or returns.
        path: a folder for "saved_model": a new one, an empty one, or that of an earlier SavedModel; else a
            file, which must end in ".onnx" for "onnx", ".xml" for "openvino" (weights go beside it, into
            ".bin") and ".tflite" for "litert".
        format: "saved_model", "onnx", "openvino" or "litert". All but the first are exported in float32;
            OpenVINO computes in bfloat16 if its runtime is told so.
        image_size: (height, width) of the images, either or both None for any. Default: what the model was
            built for, usually any size.
        batch_size: number of images; None for any.
        freeze_weights: whether a SavedModel holds its weights as constants; those of the other formats
            always are. TensorFlow runs them faster, the more so the smaller the images (not at 800 x 1280),
            but takes about 20 times their size in memory, and 30 times to write them: for small models.
        calibration: pictures that show which values occur, for int8: an iterable of batches as the export
            takes them (float32 0 .. 255, too, and the first element of tuples, "images" of dicts: pipelines
            of `heads.data` fit), or a path, whose pictures a head reads as in `predict_pictures`. About 100
            are enough, at most the first 300 are used. None for float32.
        max_drop: how many percentage points the score may drop in "openvino"; layers that cost more stay in
            float. Each attempt computes the score once. None for no limit, without `evaluate`. On CPUs with
            AMX it needs a fixed image size and batch size.
        evaluate: a function that scores in percent, higher is better. It gets a function like that of
            `load_export`: images -> outputs by name.

    Returns:
        With `max_drop`, a list of texts: the layers that stayed in float; with `calibration` alone an empty
        list, else None.

    Raises:
        TypeError: if `deploy` does not take the model.
        ValueError: for an unknown format, a path that does not fit it, an image size that the model does not
            take, a model with inputs other than one of images, a model that is quantized or was deployed in
            half precision for a format other than "saved_model", or a backend other than TensorFlow; for int8
            in a format without it, without pictures, or with pictures that the export would not take; for
            `max_drop` with any size on a CPU with AMX.
        ImportError: if the format's converter is not installed: `pip install 'van-backbones[export]'`, and
            "[int8]" for int8.
    """
    path = pathlib.Path(path)
    check_path(path, format)
    _check_installation(format)
    check_calibration(format, calibration, max_drop, evaluate)
    deployed = deploy(model, None if format == "saved_model" else "float32")
    layers = list(deployed._flatten_layers())
    dtypes = {layer.dtype_policy.name for layer in layers if _is_leaf(layer)}
    if format != "saved_model" and dtypes != {"float32"}:
        raise ValueError(
            f'format="{format}" wants float32: export the model itself, before `deploy` and `quantize`. '
            f"Received: {deployed.name} with layers in {sorted(dtypes)}"
        )
    served = ServedModel(deployed)
    signature = served.make_signature(image_size, batch_size)
    if calibration is not None:
        batches = read_calibration(calibration, model, signature)
        calibration = Calibration(batches, find_kernel_sizes(deployed), max_drop, evaluate)
    return write_export(served, path, format, signature, freeze_weights, calibration)


def _is_leaf(layer):
    return bool(layer.weights) and not list(layer._flatten_layers(include_self=False, recursive=False))


def _check_installation(format):
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            "export runs on the TensorFlow backend: set KERAS_BACKEND=tensorflow and load the model there. "
            f"Received: backend {keras.backend.backend()!r}"
        )
    packages = FORMATS[format][1]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f'format="{format}" needs {", ".join(missing)}: run pip install "van-backbones[export]"'
        )
