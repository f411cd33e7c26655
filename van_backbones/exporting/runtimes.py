"""Runs what `van_backbones.exporting.export` wrote in the format's own runtime."""

import functools
import importlib
import pathlib
import threading

import numpy as np

from van_backbones.exporting.export import FORMATS
from van_backbones.exporting.quantization import is_int8, needs_fixed_sizes

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}  # ours -> OpenVINO's
SIZES_KEPT = 4  # compiled models in memory where OpenVINO needs one for each size


def load_export(path, num_threads=None, precision="float32"):
    """Returns a function: images -> outputs by name, NumPy arrays both, from what `export` wrote.

    The path tells the runtime: a folder is TensorFlow's, ".onnx" ONNX Runtime's, ".xml" OpenVINO's and
    ".tflite" LiteRT's. All run on the CPU, except that TensorFlow chooses the device itself. The function
    does not use Keras. It takes images as the export does, uint8 (batch, height, width, 3) by default.
    Several threads may call it: TensorFlow and ONNX Runtime then run in parallel, OpenVINO and LiteRT one
    call after the other. On CPUs with AMX, an int8 export to OpenVINO for images of any size is compiled
    for each size (half a second), because OpenVINO may crash there otherwise; the latest few are kept.

    Args:
        path: what `export` wrote.
        num_threads: how many threads the runtime may use; None for the runtime's default (LiteRT: one).
            TensorFlow's threads belong to the process: set them before anything has run.
        precision: what OpenVINO computes in, "float32" or "bfloat16"; the others know "float32" only.

    Raises:
        FileNotFoundError: if there is nothing at the path, or a part is missing.
        ImportError: if the runtime is not installed: `pip install "van-backbones[export]"`.
        ValueError: for an unknown suffix, a precision that the runtime lacks, or less than one thread; in the
            function, for images of another shape or dtype than the export takes.
    """
    path = pathlib.Path(path)
    format = _find_format(path)
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, or None. Received: {num_threads!r}")
    if precision not in PRECISIONS or (precision != "float32" and format != "openvino"):
        raise ValueError(
            'precision must be "float32", or "bfloat16" for OpenVINO (.xml). '
            f"Received: {precision!r} for {str(path)!r}"
        )
    if format == "openvino":
        shape, dtype, run = _load_openvino(path, num_threads, PRECISIONS[precision])
    else:
        load = {"saved_model": _load_saved_model, "onnx": _load_onnx, "litert": _load_litert}[format]
        shape, dtype, run = load(path, num_threads)

    def run_export(images):
        images = np.ascontiguousarray(images)
        fits = [side in (None, given) for side, given in zip(shape, images.shape, strict=False)]
        # LiteRT would accept any size, and OpenVINO any dtype, and return wrong results.
        if len(images.shape) != len(shape) or not all(fits) or images.dtype != dtype:
            raise ValueError(
                f"images must be {dtype} of shape {shape}, as {path.name} was exported. "
                f"Received: {images.dtype} of shape {images.shape}"
            )
        return run(images)

    return run_export


def measure_export(path):
    """Returns how many bytes all files of an export take on the disk."""
    path = pathlib.Path(path)
    if path.is_dir():
        return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    parts = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
    return sum(part.stat().st_size for part in parts)


def _find_format(path):
    """Returns the key of `FORMATS` of the export at a path."""
    formats = {suffix: format for format, (suffix, _) in FORMATS.items()}
    suffix = "" if path.is_dir() else path.suffix
    if suffix not in formats:
        suffixes = sorted(filter(None, formats))
        raise ValueError(f"path must be a folder, or end in one of {suffixes}. Received: {str(path)!r}")
    parts = [path if suffix else path / "saved_model.pb"]
    parts += [path.with_suffix(".bin")] if suffix == ".xml" else []
    for part in parts:
        if not part.exists():
            raise FileNotFoundError(f"there is no export at {str(path)!r}: {str(part)!r} is missing")
    return formats[suffix]


def _import_runtime(module):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0].replace("_", "-")
        raise ImportError(f'{package} is not installed: run pip install "van-backbones[export]"') from error


# Each loader gives the images' shape, with None for any side, their dtype, and images -> outputs by name.


def _load_saved_model(path, num_threads):
    tf = _import_runtime("tensorflow")
    found = tf.config.threading.get_intra_op_parallelism_threads()
    if num_threads not in (None, found):
        raise ValueError(
            "num_threads of a SavedModel is that of the process: call "
            f"tf.config.threading.set_intra_op_parallelism_threads({num_threads}) before anything runs. "
            f"Received: num_threads={num_threads}, where TensorFlow has {found or 'its default'}"
        )
    model = tf.saved_model.load(str(path))
    signature = model.signatures["serving_default"]
    spec = signature.structured_input_signature[1]["images"]

    def run(images, model=model):  # the signature does not keep the model's variables alive
        return {name: value.numpy() for name, value in signature(images=tf.constant(images)).items()}

    return tuple(spec.shape), np.dtype(spec.dtype.as_numpy_dtype), run


def _load_onnx(path, num_threads):
    onnxruntime = _import_runtime("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    shape = tuple(side if isinstance(side, int) else None for side in given.shape)
    dtype = np.dtype({"tensor(uint8)": "uint8", "tensor(float)": "float32"}[given.type])

    def run(images):
        return dict(zip(names, session.run(names, {given.name: images}), strict=True))

    return shape, dtype, run


def _load_openvino(path, num_threads, precision):
    openvino = _import_runtime("openvino")
    # Without the first hint, OpenVINO computes in half precision wherever the CPU can.
    options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    if num_threads is not None:
        options["INFERENCE_NUM_THREADS"] = num_threads
    core = openvino.Core()
    model = core.read_model(str(path))
    given = model.input(0)
    shape = tuple(side.get_length() if side.is_static else None for side in given.get_partial_shape())
    if None in shape and is_int8(model) and needs_fixed_sizes(core):

        @functools.lru_cache(maxsize=SIZES_KEPT)
        def compile_size(size):
            fixed = model.clone()
            fixed.reshape(size)
            return core.compile_model(fixed, "CPU", options)
    else:
        compiled = core.compile_model(model, "CPU", options)

        def compile_size(size):
            return compiled

    lock = threading.Lock()  # all calls share the memory of one infer request

    def run(images):
        # Copied, because the runtime may write into arrays that are shared with it.
        with lock:
            compiled = compile_size(images.shape)
            values = compiled(images, share_inputs=False, share_outputs=False)
        return {output.get_any_name(): values[output] for output in compiled.outputs}

    return shape, given.get_element_type().to_dtype(), run


def _load_litert(path, num_threads):
    litert = _import_runtime("ai_edge_litert.interpreter")
    interpreter = litert.Interpreter(str(path), num_threads=num_threads)
    runner = interpreter.get_signature_runner("serving_default")
    given = runner.get_input_details()["images"]
    shape = tuple(None if side < 0 else int(side) for side in given["shape_signature"])

    lock = threading.Lock()  # an interpreter has one set of tensors

    def run(images, interpreter=interpreter):  # which the runner does not keep alive
        with lock:
            return runner(images=images)

    return shape, np.dtype(given["dtype"]), run
