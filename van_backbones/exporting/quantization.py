"""Exports in int8: their calibration, and how each format's own tool quantises the network's layers."""

import importlib.util
import itertools
import logging
import os
import platform
import re
import warnings
from typing import NamedTuple

import numpy as np

from van_backbones.exporting.openvino_rewriting import spell_out_slices

# format -> packages that quantise it
TOOLS = {"openvino": ("nncf",), "onnx": ("onnxruntime",), "litert": ("ai_edge_quantizer",)}
# Enough for the ranges of activations; endless pipelines need a limit.
MOST_PICTURES = 300
# Batches by which accuracy control ranks the layers: each layer is tried on them.
MOST_RANKED = 16
# Kinds of operations, as OpenVINO calls them. A matrix product counts as a layer only with a dense layer's
# weights: attention, pooling and the pasting of masks multiply matrices, too.
CONVOLUTIONS = (
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
)
# Operations that move values without computing: int8 may pass through them.
MOVES = ("Concat", "MaxPool", "Relu", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


class Calibration(NamedTuple):
    """What an export in int8 needs besides the model.

    Attributes:
        batches: arrays of images, as the export takes them.
        kernel_sizes: the sorted shapes of the dense layers' kernels.
        max_drop: how many percentage points the score may drop; None for no limit.
        evaluate: (images -> outputs by name) -> a score in percent.
    """

    batches: list
    kernel_sizes: frozenset
    max_drop: float | None = None
    evaluate: object = None


def check_calibration(format, calibration, max_drop, evaluate):
    """Raises an error for what cannot be quantised, before anything is computed.

    Raises:
        ValueError: for a format without int8, or if `calibration`, `max_drop` and `evaluate` do not fit.
        ImportError: if the format's tool is not installed.
    """
    if calibration is None:
        if max_drop is not None or evaluate is not None:
            raise ValueError(
                "max_drop and evaluate are for int8: pass calibration (pictures of the kind that the model "
                f"will see) too, or leave both out. Received: max_drop={max_drop!r}, evaluate={evaluate!r}"
            )
        return
    if format not in TOOLS:
        raise ValueError(
            f'format="{format}" has no int8: pass one of {list(TOOLS)}, or calibration=None. '
            f"Received: a calibration for {format!r}"
        )
    if (max_drop is None) != (evaluate is None):
        raise ValueError(
            "max_drop and evaluate need each other: pass how many percentage points the score may drop, and "
            "a function that takes a model (images -> outputs by name) and returns its score. "
            f"Received: max_drop={max_drop!r}, evaluate={evaluate!r}"
        )
    if max_drop is not None:
        if format != "openvino":
            raise ValueError(
                'max_drop is for format="openvino" only: leave out max_drop and evaluate, and compare the '
                f"scores of both exports. Received: {max_drop!r} for {format!r}"
            )
        if isinstance(max_drop, bool) or not isinstance(max_drop, (int, float)) or not max_drop >= 0:
            raise ValueError(f"max_drop must be a number, at least 0. Received: {max_drop!r}")
        if not callable(evaluate):
            raise ValueError(f"evaluate must be a function. Received: {evaluate!r}")
    missing = [package for package in TOOLS[format] if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f'int8 for format="{format}" needs {", ".join(missing)}: run pip install "van-backbones[int8]"'
        )


def read_calibration(calibration, model, signature):
    """Returns batches of images, as an export takes them, from the argument of `export`.

    Args:
        calibration: an iterable of batches, or a path of pictures.
        model: the model, which reads the pictures of a path.
        signature: what `ServedModel.make_signature` returned.

    Raises:
        ValueError: if there are no pictures, or their shape or dtype is not what the export takes.
    """
    batch_size, *image_shape = signature.shape
    if isinstance(calibration, (str, os.PathLike)):
        if not hasattr(model, "prepare_pictures"):
            raise ValueError(
                "calibration must be batches of images for a model that reads no pictures itself, which "
                f"only heads do. Received: {str(calibration)!r} for {model.name}"
            )
        size = None if None in image_shape[:2] else tuple(image_shape[:2])
        calibration = model.prepare_pictures(calibration, image_size=size)
    if not hasattr(calibration, "__iter__"):
        raise ValueError(
            "calibration must be an iterable of batches of images, or the path of pictures. "
            f"Received: {calibration!r}"
        )
    dtype = signature.dtype.as_numpy_dtype
    batches = (_read_batch(element, image_shape, dtype) for element in calibration)
    images = itertools.islice(itertools.chain.from_iterable(batches), MOST_PICTURES)
    if batch_size in (None, 1):
        found = [image[None] for image in images]
    else:
        images = list(images)
        starts = range(0, len(images) - batch_size + 1, batch_size)
        found = [np.stack(images[start : start + batch_size]) for start in starts]
    if not found:
        raise ValueError(
            f"calibration must have at least {batch_size or 1} pictures, better about 100 of the kind that "
            f"the model will see. Received: {calibration!r}, which has fewer"
        )
    return found


def _read_batch(element, image_shape, dtype):
    """Returns the images of a batch, which may be inside tuples and dicts, as in pipelines for training."""
    while isinstance(element, (tuple, list, dict)):
        if isinstance(element, dict):
            if "images" not in element:
                raise ValueError(
                    f'calibration must have "images" in its dicts. Received: {sorted(map(str, element))}'
                )
            element = element["images"]
        elif not len(element):
            raise ValueError("calibration must have images in its tuples. Received: an empty one")
        else:
            element = element[0]
    images = np.asarray(element)
    fits = images.ndim == 4 and all(
        wanted in (None, side) for wanted, side in zip(image_shape, images.shape[1:], strict=True)
    )
    if fits and dtype == np.uint8 and images.dtype == np.float32:  # as pipelines for training give them
        fits = not images.size or (images.min() >= 0 and images.max() <= 255 and not 0 < images.max() <= 1)
        images = np.round(images).astype(dtype) if fits else images
    if not fits or images.dtype != dtype:
        raise ValueError(
            f"calibration must be batches of images, {np.dtype(dtype)} of shape {(None, *image_shape)}, "
            "as the export takes them; float32 may be 0 .. 255 instead of uint8. "
            f"Received: {images.dtype} of shape {images.shape}"
            + (f", {images.min():.4g} .. {images.max():.4g}" if images.size else "")
        )
    return images


def find_kernel_sizes(model):
    """Returns the sorted shapes of the dense layers' kernels."""
    kernels = (getattr(layer, "kernel", None) for layer in model._flatten_layers())
    return frozenset(
        tuple(sorted(kernel.shape)) for kernel in kernels if kernel is not None and len(kernel.shape) == 2
    )


def quantize_export(path, format, calibration):
    """Quantises an export in place.

    Args:
        path: the export in float32.
        format: one of `TOOLS`.
        calibration: a `Calibration`.

    Returns:
        With a `max_drop`, a list of texts: the layers that stayed in float. Otherwise an empty list.
    """
    quantize = {"openvino": _quantize_openvino, "onnx": _quantize_onnx, "litert": _quantize_litert}[format]
    return quantize(path, calibration)


def _quantize_openvino(path, calibration):
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    spell_out_slices(model)
    layers = [node for node in model.get_ordered_ops() if _is_layer(node, calibration.kernel_sizes)]
    names = {node.get_friendly_name() for node in layers}
    others = [node for node in model.get_ordered_ops() if node.get_friendly_name() not in names]
    kinds = {*CONVOLUTIONS, "MatMul"}
    options = {
        # GELU has a short negative side; asymmetric ranges waste fewer numbers on it.
        "preset": nncf.QuantizationPreset.MIXED,
        "subset_size": len(calibration.batches),
        # Norms, softmaxes, resizing, sums and all of decoding stay precise in float, and are no slower.
        "ignored_scope": nncf.IgnoredScope(
            names=[node.get_friendly_name() for node in others if node.get_type_name() in kinds],
            types=sorted({node.get_type_name() for node in others} - kinds - {*MOVES}),
            validate=False,
        ),
    }
    dataset = nncf.Dataset(calibration.batches)
    logging.getLogger("nncf").addFilter(_is_news)
    kept = []
    if calibration.evaluate is None:
        quantized = nncf.quantize(model, dataset, **options)
    else:
        quantized, lost = _limit_drop(model, dataset, calibration, options)
        layers = [node for node in quantized.get_ordered_ops() if node.get_friendly_name() in names]
        kept = [_describe(node) for node in layers if not _is_quantized(node)]
        if lost > calibration.max_drop:
            raise ValueError(
                f"int8 costs {lost:.3g} points even with {len(kept)} of {len(layers)} layers in float: pass "
                f"a larger max_drop, or export in float32. Received: max_drop={calibration.max_drop}"
            )
    # Beside the float32 file, whose weights are read from the disk until the end.
    written = path.with_name(f"int8-{path.name}")
    openvino.save_model(quantized, written, compress_to_fp16=False)
    for suffix in (".xml", ".bin"):
        written.with_suffix(suffix).replace(path.with_suffix(suffix))
    return kept


def is_int8(model):
    """Returns whether an `openvino.Model` is quantised."""
    return any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())


def needs_fixed_sizes(core):
    """Returns whether OpenVINO may crash here when it runs int8 models for images of any size.

    It ends the process on small maps (https://github.com/openvinotoolkit/openvino/issues/37577), on CPUs with
    AMX. OpenVINO does not tell of AMX itself, but of half precision, which all of these have, and few others.
    """
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return is_x86 and "FP16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _is_news(record):
    """Returns whether a log line of NNCF says more than that one of a thousand operations stays in float."""
    return "Not adding activation input quantizer" not in record.getMessage()


def _limit_drop(model, dataset, calibration, options):
    """Returns the quantised model with as many layers in float as its score needs, and the lost points."""
    import nncf
    import openvino

    # Not `model.is_dynamic()`, which detectors of a fixed size are, too, by the numbers of their objects.
    if model.input(0).get_partial_shape().is_dynamic and needs_fixed_sizes(openvino.Core()):
        raise ValueError(
            "max_drop needs a fixed image_size and batch_size on this CPU, where OpenVINO's int8 models for "
            "any size may crash: pass both, or leave out max_drop and evaluate. "
            f"Received: images of shape {model.input(0).get_partial_shape()}"
        )
    scores = []

    def score(compiled, batches):
        def run(images):
            values = compiled(np.ascontiguousarray(images), share_inputs=False, share_outputs=False)
            return {output.get_any_name(): values[output] for output in compiled.outputs}

        scores.append(float(calibration.evaluate(run)))
        # The tool ranks the layers by the outputs for each picture, which it subtracts: hence floats.
        return scores[-1], [
            [values.astype("float32") for values in run(images).values()] for images in batches
        ]

    quantized = nncf.quantize_with_accuracy_control(
        model,
        dataset,
        dataset,
        score,
        max_drop=calibration.max_drop,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            ranking_subset_size=MOST_RANKED
        ),
        **options,
    )
    score(openvino.compile_model(quantized, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}), [])
    return quantized, scores[0] - scores[-1]


def _is_layer(node, kernel_sizes):
    """Returns whether an operation is a convolution or a dense layer with weights of the model."""
    kind = node.get_type_name()
    if kind not in (*CONVOLUTIONS, "MatMul"):
        return False
    weights = node.input_value(1).get_node()
    if weights.get_type_name() != "Constant":
        return False
    return kind != "MatMul" or tuple(sorted(weights.get_output_shape(0))) in kernel_sizes


def _is_quantized(node):
    return node.input_value(1).get_node().get_type_name() != "Constant"  # but what makes numbers of int8


def _describe(node):
    shapes = [port.get_partial_shape() for port in (node.input(0), node.input(1), node.output(0))]
    return f"{node.get_type_name()} {shapes[0]} x {shapes[1]} -> {shapes[2]}"


def _quantize_onnx(path, calibration):
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name(f"prepared-{path.name}")
    quant_pre_process(path, prepared, skip_symbolic_shape=True)
    model = onnx.load(prepared)
    weights = {each.name: tuple(sorted(each.dims)) for each in model.graph.initializer}
    sizes = calibration.kernel_sizes

    def is_layer(node):
        if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
            return False
        return node.input[1] in weights and ("Conv" in node.op_type or weights[node.input[1]] in sizes)

    quantization.quantize_static(
        prepared,
        path,
        _ProgressReader(calibration.batches, model.graph.input[0].name),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        op_types_to_quantize=["Conv", "ConvTranspose", "MatMul", "Gemm"],
        nodes_to_quantize=[node.name for node in model.graph.node if is_layer(node)],
    )
    prepared.unlink()
    return []


def _quantize_litert(path, calibration):
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.calibrator import CalibrationMode

    tool = quantizer.Quantizer(str(path))
    for kind, name in _list_litert_layers(path, calibration.kernel_sizes):
        tool.add_static_config(f"^{re.escape(name)}$", kind, activation_num_bits=8, weight_num_bits=8)
    with warnings.catch_warnings():
        # That all values of a picture are kept in memory, which is what calibration needs.
        warnings.filterwarnings("ignore", ".*experimental_preserve_all_tensors", UserWarning)
        ranges = tool.calibrate(
            {"serving_default": [{"images": images} for images in calibration.batches]},
            num_threads=os.cpu_count(),
            # The other mode asks for tensors that detectors never fill.
            mode=CalibrationMode.CALIBRATION_PROFILER_BASED,
        )
        quantized = tool.quantize(ranges, enable_progress_report=False)
    path.write_bytes(quantized.quantized_model)
    _try_litert(path, calibration.batches[0])
    return []


def _try_litert(path, images):
    """Raises a ValueError if LiteRT does not run a file; the tool does not tell."""
    try:
        _run_litert(path, images)
    except RuntimeError as error:
        raise ValueError(
            "LiteRT cannot run this model in int8: export it in float32 (calibration=None), or for "
            f'"openvino". Received from LiteRT: {error}'
        ) from error


def _run_litert(path, images):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))  # which the runner does not keep alive
    interpreter.get_signature_runner("serving_default")(images=images)


def _list_litert_layers(path, kernel_sizes):
    """Yields kind and name of a LiteRT file's convolutions and dense layers, but not the depthwise ones.

    LiteRT takes three times as long for those in int8 as in float32, on x86 at least.
    """
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as files

    model = files.read_model(path.read_bytes())
    graph = model.subgraphs[0]  # the others are bodies of loops: decoding
    codes = {
        files.TFL_OP_NAME_TO_CODE[kind]: kind
        for kind in (
            TFLOperationName.CONV_2D,
            TFLOperationName.CONV_2D_TRANSPOSE,
            TFLOperationName.FULLY_CONNECTED,
        )
    }
    for operation in graph.operators:
        kind = codes.get(model.operatorCodes[operation.opcodeIndex].builtinCode)
        if kind is None:
            continue
        weights = graph.tensors[operation.inputs[1]]
        is_constant = model.buffers[weights.buffer].data is not None
        is_dense = kind == TFLOperationName.FULLY_CONNECTED
        if is_constant and (not is_dense or tuple(sorted(weights.shape)) in kernel_sizes):
            yield kind, files.get_op_scope(operation, graph.tensors)


class _ProgressReader:
    """Gives ONNX Runtime one batch after the other, with a progress bar."""

    def __init__(self, batches, name):
        from tqdm import tqdm

        self.batches = iter(tqdm(batches, desc="calibration", unit="batch"))
        self.name = name

    def get_next(self):
        images = next(self.batches, None)
        return None if images is None else {self.name: images}
