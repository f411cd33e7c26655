"""Compares a model with what `deploy` and `export` make of it: milliseconds per call, megabytes, errors.

    python examples/benchmark_exports.py --variant b1 --image-size 512 512
    python examples/benchmark_exports.py runs/demo/best.keras --image-size 512 512 --formats openvino onnx

All run on the CPU, in turns, on images of one size, which the exports are made for. The error is the largest
difference from the Keras model's answer, in units of its largest value. Of detectors it is that of the sorted
scores, of label maps the share of pixels with another label. The machine should be idle: the threads of a
runtime wait for each other, and a single other process can cost ONNX Runtime or LiteRT half their speed.
"""

import pathlib

from options import (
    EXPORT_FORMATS,
    INT8_FORMATS,
    VARIANTS,
    check_model_or_variant,
    load_keras,
    make_parser,
    whole_number,
)


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser, count = make_parser(__doc__), whole_number(1)
    add = parser.add_argument
    add("model", type=pathlib.Path, nargs="?", help="a .keras file; default: see --variant")
    add("--variant", choices=VARIANTS, help="instead of a file: this VANBackbone, untrained; default: none")
    add("--formats", choices=EXPORT_FORMATS, nargs="+", default=list(EXPORT_FORMATS), help="default: all")
    size = {"nargs": 2, "metavar": ("HEIGHT", "WIDTH"), "default": (512, 512)}
    add("--image-size", type=whole_number(32), **size, help="default: 512 512")
    add("--batch-size", type=count, default=1, help="images per call; default: %(default)s")
    add("--threads", type=count, help="threads of each runtime; default: as many as it chooses")
    int8 = f"also in int8 ({', '.join(INT8_FORMATS)}), calibrated on drawn scenes; default: without"
    add("--int8", action="store_true", help=int8)
    add("--rounds", type=count, default=15, help="timed calls of each; default: %(default)s")
    arguments = parser.parse_args(argv)
    check_model_or_variant(parser, arguments)
    return parser, arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import statistics
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

import heads  # noqa: F401  (registers the heads' classes, which the saved model names)
from heads.data.shapes.scenes import draw_scene
from van_backbones import VANBackbone
from van_backbones.deployment import deploy
from van_backbones.exporting import export
from van_backbones.exporting.export import FORMATS, ServedModel, name_outputs
from van_backbones.exporting.runtimes import load_export, measure_export

NUM_CALIBRATION_SCENES = 16


def main(argv=None):
    """Runs the script."""
    parser, arguments = parse_arguments(argv)
    choose_devices(parser, arguments.threads)

    images = make_scenes(arguments.batch_size, arguments.image_size)
    if arguments.variant:
        model = VANBackbone(arguments.variant, drop_path_rate=0.0)
        make_weights_matter(model, images)
    else:
        model = keras.saving.load_model(arguments.model, compile=False)
    try:
        deployed = deploy(model)
    except TypeError as error:
        parser.error(str(error))
    try:
        signature = ServedModel(deployed).make_signature(arguments.image_size, arguments.batch_size)
    except ValueError as error:
        parser.error(str(error))
    if signature.dtype.name != "uint8":
        images = np.random.default_rng(0).normal(size=signature.shape).astype("float32")

    keras_images = images.astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        functions, megabytes = {}, {}
        for name, keras_model in (("Keras", model), ("Keras, deployed", deployed)):
            keras_model.save(folder / "model.keras")
            megabytes[name] = (folder / "model.keras").stat().st_size / 1e6
            functions[name] = (keras_model.predict_on_batch, keras_images)
        for format in arguments.formats:
            for name, run, size in load_formats(model, folder, format, arguments):
                functions[name], megabytes[name] = (run, images), size / 1e6
        answers, milliseconds = take_turns(functions, arguments.rounds)

    print(f"{model.name}, {' x '.join(map(str, images.shape[:3]))}, medians of {arguments.rounds} rounds\n")
    print_table(answers, milliseconds, megabytes)


def choose_devices(parser, num_threads):
    """Tells TensorFlow to stay on the CPU, with this many threads, both before it does anything."""
    try:
        if tf.config.list_physical_devices("GPU"):
            tf.config.set_visible_devices([], "GPU")
        if num_threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(num_threads)
            tf.config.threading.set_inter_op_parallelism_threads(num_threads)
    except RuntimeError as error:
        parser.error(f"TensorFlow is running already: {error}")


def make_scenes(batch_size, image_size):
    """Returns drawn scenes, uint8 (batch, height, width, 3)."""
    return np.stack([draw_scene(seed, image_size)["image"] for seed in range(batch_size)])


def make_weights_matter(backbone, images):
    """Gives an untrained backbone norms and layer scales like a trained one's, or errors would not show.

    New layer scales of 0.01 leave little of a block's branches, and new norms change nothing when folded.
    """
    random = np.random.default_rng(0)
    for variable in backbone.variables:
        if "layer_scale" in variable.path:
            variable.assign(random.uniform(0.1, 0.5, variable.shape))
        elif variable.path.endswith(("gamma", "beta")):
            variable.assign(variable + random.normal(0.0, 0.2, variable.shape))
    norms = [part for part in backbone.reference_layers().values() if hasattr(part, "moving_mean")]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # the statistics become those of these images at once
    backbone(images.astype("float32"), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def load_formats(model, folder, format, arguments):
    """Returns (name, function, bytes) of a format in each precision; prints why if there is none."""
    path = folder / f"model{FORMATS[format][0]}"
    try:
        export(model, path, format, arguments.image_size, arguments.batch_size)
        size = measure_export(path)
        loaded = [(format, load_export(path, arguments.threads), size)]
        if format == "openvino":
            name = f"{format}, bfloat16"
            loaded.append((name, load_export(path, arguments.threads, "bfloat16"), size))
        if arguments.int8 and format in INT8_FORMATS:
            loaded.append(load_int8(model, folder / "int8" / path.name, format, arguments))
    except (ImportError, ValueError) as error:
        print(f"{format} is left out: {error}")
        return []
    return loaded


def load_int8(model, path, format, arguments):
    """Returns name, function and bytes of a format in int8, calibrated on scenes that are not timed."""
    seeds = range(1000, 1000 + NUM_CALIBRATION_SCENES)
    shape = (arguments.batch_size, *arguments.image_size, 3)
    scenes = np.stack([draw_scene(seed, arguments.image_size)["image"] for seed in seeds])
    scenes = np.resize(scenes, (-(-len(scenes) // shape[0]), *shape))
    export(model, path, format, arguments.image_size, arguments.batch_size, calibration=scenes)
    return f"{format}, int8", load_export(path, arguments.threads), measure_export(path)


def take_turns(functions, num_rounds):
    """Returns the answers and the milliseconds of a call, each by name."""
    answers, seconds = {}, {name: [] for name in functions}
    for name, (function, images) in functions.items():
        answers[name] = name_outputs(function(images))
    for _ in range(num_rounds):
        for name, (function, images) in functions.items():
            function(images)  # a warm-up: then the others' threads sleep, and its own are awake
            start = time.perf_counter()
            function(images)
            seconds[name].append(time.perf_counter() - start)
    return answers, {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def print_table(answers, milliseconds, megabytes):
    """Prints a row for each, compared with the first one."""
    names = list(answers)
    print("| | ms | times as fast | MB | error |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in names:
        ratio = milliseconds[names[0]] / milliseconds[name]
        error = measure_error(answers[names[0]], answers[name])
        cells = f"{milliseconds[name]:.1f} | {ratio:.2f} | {megabytes[name]:.1f} | {error:.1e}"
        print(f"| {name} | {cells} |")


def measure_error(expected, received):
    """Returns the largest error of an answer; the module's docstring says in which units."""
    errors = []
    # Detections with nearly equal scores may swap places: boxes and labels would be compared with another's.
    for name in {"scores"} & expected.keys() or expected.keys():
        if np.issubdtype(expected[name].dtype, np.integer):
            errors.append(np.mean(expected[name] != received[name]))
        else:
            values = np.asarray(expected[name], "float64")
            errors.append(np.abs(values - received[name]).max() / (np.abs(values).max() or 1.0))
    return max(errors)


if __name__ == "__main__":
    main()
