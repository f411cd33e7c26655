"""Exports a model for another runtime, runs it there, and compares the answers with Keras's.

    python examples/export_model.py runs/demo/best.keras --format openvino --output model.xml
    python examples/export_model.py --variant b1 --weights imagenet --format onnx --image-size 224 224
    python examples/export_model.py runs/demo/best.keras --format openvino --int8 --calibration pictures/

For each output it prints how far the export's answer is from the model's own. Its exit code is 1 if they
differ by more than rounding explains: numbers by a thousandth of the largest one, label maps in one pixel of
a hundred. Detections with nearly equal scores may swap places: their sorted scores are compared, and nine in
ten must be found by both, with the same label and nearly the same box and score. Models in half precision may
differ more, and int8 by a fifth; how much worse int8 really is, only scores on labelled pictures tell
(docs/deployment.md).
"""

import pathlib

from options import (
    EXPORT_FORMATS,
    INT8_FORMATS,
    VARIANTS,
    check_model_or_variant,
    load_keras,
    make_parser,
    number,
    whole_number,
)


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("model", type=pathlib.Path, nargs="?", help="a .keras file; default: see --variant")
    add("--variant", choices=VARIANTS, help="instead of a file: this VANClassifier; default: none")
    weights = "weights of --variant: a release or a checkpoint file; default: %(default)s"
    add("--weights", default="imagenet", help=weights)
    add("--format", choices=EXPORT_FORMATS, default="saved_model", help="default: %(default)s")
    add("--output", type=pathlib.Path, help="default: runs/exports/ and the model's name")
    size = "default: what the model takes, usually any size"
    add("--image-size", type=whole_number(32), nargs=2, metavar=("HEIGHT", "WIDTH"), help=size)
    add("--batch-size", type=whole_number(1), help="default: any")
    add("--picture", type=pathlib.Path, help="picture to compare on; default: a drawn scene")
    int8 = f"in int8, for {' or '.join(INT8_FORMATS)}: needs --calibration; default: float32"
    add("--int8", action="store_true", help=int8)
    folder = "about 100 pictures of the kind that the model will see, for --int8; default: none"
    add("--calibration", type=pathlib.Path, metavar="FOLDER", help=folder)
    drop = "with --int8 and openvino: keep layers in float until the answers on the --calibration pictures "
    drop += "(labels, or objects with a score of 0.3) agree with the model's except for this many percent; "
    drop += "default: no layers"
    add("--max-drop", type=number(at_least=0), metavar="POINTS", help=drop)
    arguments = parser.parse_args(argv)
    check_model_or_variant(parser, arguments)
    check_int8(parser, arguments)
    return parser, arguments


def check_int8(parser, arguments):
    """Ends the program if the options of int8 contradict each other."""
    if arguments.int8 != (arguments.calibration is not None):
        parser.error("--int8 and --calibration FOLDER need each other")
    if arguments.int8 and arguments.format not in INT8_FORMATS:
        formats = " or ".join(INT8_FORMATS)
        parser.error(f"--int8 needs --format {formats}. Received: --format {arguments.format}")
    if arguments.max_drop is not None and not (arguments.int8 and arguments.format == "openvino"):
        parser.error("--max-drop needs --int8 and --format openvino")
    if arguments.int8 and not arguments.calibration.is_dir():
        parser.error(f"--calibration must be a folder of pictures. Received: {arguments.calibration}")


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import itertools
import statistics
import sys
import time

import keras
import numpy as np
from PIL import Image, ImageOps

import heads  # noqa: F401  (registers the heads' classes, which the saved model names)
from heads.data.shapes.scenes import draw_scene
from heads.pictures import read_picture
from heads.prediction import find_pictures
from van_backbones import VANClassifier
from van_backbones.deployment import deploy
from van_backbones.exporting import export
from van_backbones.exporting.export import FORMATS, ServedModel, check_path, name_outputs
from van_backbones.exporting.quantization import MOST_PICTURES
from van_backbones.exporting.runtimes import load_export, measure_export

NUM_CALLS = 5
# Differences that rounding explains: relative to the largest value, the share of other labels, and the share
# of detections that are not in both. Sums of a network's length round to about 1e-5 in float32.
TOLERANCES = {"float32": (1e-3, 0.01, 0.1), "half": (5e-2, 0.05, 0.3), "int8": (0.2, 0.2, 0.5)}
SURE_SCORE = 0.3
CLASSIFIER_SIZE = (224, 224)


def main(argv=None):
    """Runs the script; returns 1 if the export's answers differ from the model's, else 0."""
    parser, arguments = parse_arguments(argv)
    output = choose_output(parser, arguments)
    if arguments.variant:
        model = VANClassifier(arguments.variant, weights=arguments.weights)
    else:
        model = keras.saving.load_model(arguments.model, compile=False)
    size, batch_size = arguments.image_size, arguments.batch_size
    try:
        deployed = deploy(model, None if arguments.format == "saved_model" else "float32")
        signature = ServedModel(deployed).make_signature(size, batch_size)
        images = make_images(parser, arguments, signature)
        int8 = choose_int8(parser, arguments, deployed, signature) if arguments.int8 else {}
        kept = export(deployed, output, arguments.format, size, batch_size, **int8)
    except (TypeError, ValueError, ImportError) as error:
        parser.error(str(error))
    megabytes = measure_export(output) / 1e6
    kind = f"{arguments.format}{', int8' * arguments.int8}"
    print(f"{output}: {kind}, {megabytes:.1f} MB, images {images.dtype} {images.shape}")
    for layer in kept or []:
        print(f"  stayed in float: {layer}")

    try:
        run = load_export(output)
    except ImportError as error:
        print(f"Not compared: {error}")
        return 0
    expected = predict(model, images)
    received = run(images)
    is_half = any("float16" in layer.compute_dtype for layer in model._flatten_layers())
    precision = "int8" if arguments.int8 else "half" if is_half else "float32"
    problems = compare_answers(expected, received, *TOLERANCES[precision])
    milliseconds = time_call(run, images), time_call(predict, model, images)
    print("One call: {:.1f} ms; with the Keras model: {:.1f} ms".format(*milliseconds))
    for problem in problems:
        cause = "int8" if arguments.int8 else "rounding"
        print(f"Differs by more than {cause} explains: {problem}", file=sys.stderr)
    return 1 if problems else 0


def choose_output(parser, arguments):
    """Returns the path to write to; ends the program if it cannot be written."""
    suffix = FORMATS[arguments.format][0]
    name = f"van_{arguments.variant}"
    if arguments.model:
        # The demos' files all have the same name; their folders tell them apart.
        name = f"{arguments.model.resolve().parent.name}-{arguments.model.stem}"
    output = arguments.output or pathlib.Path("runs/exports") / (name + suffix)
    if suffix and output.suffix != suffix:
        parser.error(f"--output must end in {suffix} for --format {arguments.format}. Received: {output}")
    if output.is_dir() if suffix else output.is_file():
        kind = "file" if suffix else "folder"
        parser.error(f"--output must be a {kind} for --format {arguments.format}. Received: {output}")
    try:
        check_path(output, arguments.format)
    except ValueError as error:
        parser.error(f"--output cannot be written: {error}")
    return output


def choose_int8(parser, arguments, model, signature):
    """Returns the options of `export` for int8."""
    if signature.dtype.name != "uint8":
        parser.error("--calibration is for models that normalise: this one takes normalised images")
    size = None if None in signature.shape[1:3] else tuple(signature.shape[1:3])
    if hasattr(model, "prepare_pictures"):
        pictures = model.prepare_pictures(arguments.calibration, size)
    else:
        pictures = fit_pictures(arguments.calibration, size or CLASSIFIER_SIZE)
    pictures = list(itertools.islice(pictures, MOST_PICTURES))
    if arguments.max_drop is None:
        return {"calibration": pictures}
    expected = [predict(model, images) for images in pictures]

    def evaluate(run):
        pairs = zip(expected, pictures, strict=True)
        return statistics.fmean(measure_agreement(wanted, run(images)) for wanted, images in pairs)

    return {"calibration": pictures, "max_drop": arguments.max_drop, "evaluate": evaluate}


def fit_pictures(folder, size):
    """Yields the pictures of a folder, cut to the ratio of a size and resized, as batches of one."""
    for path in find_pictures(folder):
        picture = Image.fromarray(read_picture(path))
        yield np.asarray(ImageOps.fit(picture, size[::-1]))[None]


def measure_agreement(expected, received):
    """Returns how many percent of the labels, or of the objects with good scores, agree.

    Raises:
        ValueError: if an answer has neither.
    """
    if {"boxes", "scores", "labels"} <= expected.keys():
        sure = np.where(expected["scores"] >= SURE_SCORE, expected["labels"], -1)
        _, _, missing = pair_detections({**expected, "labels": sure}, received, TOLERANCES["int8"][0])
        return 100 * (1 - missing)
    outputs = [answer.get("outputs") for answer in (expected, received)]
    if outputs[0] is not None and outputs[0].ndim == 2:  # a classifier's logits
        outputs = [logits.argmax(axis=-1) for logits in outputs]
    if outputs[0] is None or not np.issubdtype(outputs[0].dtype, np.integer):
        raise ValueError(
            "--max-drop needs a model that predicts labels or objects. "
            f"Received: one that predicts {', '.join(sorted(expected))}"
        )
    return 100 * float(np.mean(outputs[0] == outputs[1]))


def make_images(parser, arguments, signature):
    """Returns the images to compare on: the picture, drawn scenes, or random values for normalised images."""
    batch_size = arguments.batch_size or 1
    size = tuple(side or usual for side, usual in zip(signature.shape[1:3], (224, 288), strict=True))
    if signature.dtype.name != "uint8":
        if arguments.picture:
            parser.error("--picture is for models that normalise: this one takes normalised images")
        shape = (batch_size, *size, signature.shape[-1])
        return np.random.default_rng(0).normal(size=shape).astype("float32")
    if arguments.picture is None:
        return np.stack([draw_scene(seed, size)["image"] for seed in range(1, batch_size + 1)])
    try:
        picture = Image.fromarray(read_picture(arguments.picture))
    except ValueError as error:
        parser.error(f"cannot read the picture. {error}")
    if None not in signature.shape[1:3]:
        picture = ImageOps.fit(picture, size[::-1])
    return np.stack([np.asarray(picture)] * batch_size)


def predict(model, images):
    """Returns the Keras model's answer: NumPy arrays by name."""
    return name_outputs(model.predict_on_batch(images.astype("float32")))


def compare_answers(expected, received, tolerance, other_labels, other_detections):
    """Prints how far the outputs are from the expected ones, and returns a line for each that is too far."""
    shapes = [{name: values.shape for name, values in arrays.items()} for arrays in (expected, received)]
    if shapes[0] != shapes[1]:
        return [f"the model returns {shapes[0]}, the export {shapes[1]}"]
    problems = []
    if {"boxes", "scores", "labels"} <= expected.keys():
        difference = relative_difference(expected["scores"], received["scores"])
        if not difference <= tolerance:  # also for NaN
            problems.append(f"sorted scores by {difference:.1e} of the largest, allowed is {tolerance:.0e}")
        # From here on each detection is compared with its partner, wherever in the list it is.
        expected, received, missing = pair_detections(expected, received, tolerance)
        print(f"  {len(expected['labels'])} detections in both, {missing:.1%} of the model's are missing")
        if missing > other_detections:
            problems.append(
                f"{missing:.1%} of the detections are missing, allowed is {other_detections:.0%} "
                "(if most scores are equal, as before training, that is not a fault)"
            )
    for name, values in sorted(expected.items()):
        output = f"  {name}: {received[name].dtype} {shapes[1][name]}"
        if not np.issubdtype(values.dtype, np.integer):
            difference = relative_difference(values, received[name])
            print(f"{output}, largest difference {difference:.1e} of the largest value")
            # Boxes and scores of partners are close, because partners are chosen by them.
            if not difference <= tolerance and name not in ("boxes", "scores"):
                problems.append(f"{name} by {difference:.1e} of the largest, allowed is {tolerance:.0e}")
            continue
        others = np.mean(values != received[name]) if values.size else 0.0
        print(f"{output}, {1 - others:.4%} equal")
        if others > other_labels:
            problems.append(f"{name} in {others:.1%} of the entries, allowed is {other_labels:.0%}")
    return problems


def relative_difference(expected, received):
    """Returns the largest difference in units of the largest value; NaN if a value is NaN."""
    expected, received = (np.asarray(values, "float64") for values in (expected, received))
    if not expected.size:
        return 0.0
    return np.abs(expected - received).max() / (np.abs(expected).max() or 1.0)


def pair_detections(expected, received, tolerance):
    """Returns the detections that are in both, row by row: (expected, received, the share that is not)."""
    pairs, num_missing = [], 0
    box_tolerance = tolerance * np.abs(expected["boxes"]).max(initial=1.0)
    score_tolerance = tolerance * expected["scores"].max(initial=0.0)
    for image, labels in enumerate(expected["labels"]):
        for row in np.flatnonzero(labels >= 0):
            far = [np.abs(received[name][image] - expected[name][image, row]) for name in ("boxes", "scores")]
            fits = (received["labels"][image] == labels[row]) & (far[1] <= score_tolerance)
            fits &= (far[0] <= box_tolerance).all(axis=-1)
            if fits.any():
                partner = np.where(fits, far[0].max(axis=-1), np.inf).argmin()
                pairs.append((image, row, partner))
            else:
                num_missing += 1
    images, rows, partners = np.array(pairs, int).reshape(-1, 3).T
    return (
        {name: values[images, rows] for name, values in expected.items()},
        {name: values[images, partners] for name, values in received.items()},
        num_missing / max(1, num_missing + len(pairs)),
    )


def time_call(function, *arguments):
    """Returns the milliseconds of a call, the median of some."""
    seconds = []
    for _ in range(NUM_CALLS):
        start = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


if __name__ == "__main__":
    sys.exit(main())
