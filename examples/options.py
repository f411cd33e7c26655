"""Command line options that the scripts share, and types of options that refuse what makes no sense.

This module imports neither Keras nor heads: the scripts parse their options before they load those, so that
`--help` and mistakes are answered at once, not after the seconds that TensorFlow takes. All messages of
TensorFlow except errors are silenced here, because that must happen before it is loaded.
"""

import argparse
import importlib.util
import math
import os
import pathlib
import re
import runpy

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5", "b6")
DETECTORS = ("retinanet", "gfl", "atss", "faster_rcnn", "mask_rcnn", "cascade_mask_rcnn", "sparse_rcnn")
SEGMENTATION_LOSSES = ("cross_entropy", "focal", "dice", "cross_entropy+dice")
LOSS_FROM_SCRATCH = "cross_entropy+dice"
EXPORT_FORMATS = ("saved_model", "onnx", "openvino", "litert")
INT8_FORMATS = ("litert", "onnx", "openvino")
WARM_UP = "500, at most a tenth of the steps"
STEP = "a step is one update of the weights, from --accumulate batches"
LONG_SIDE = 1333  # limit of the long sides of COCO's pictures, in the paper's settings
# How the script was called, if not by its file name: `van-backbones train segmentation`.
program = None


def make_parser(description: str) -> argparse.ArgumentParser:
    """Returns a parser with a script's docstring as its help, in which calls have the form of this call."""
    if program is not None:
        description = re.sub(r"python examples/\w+\.py", program, description)
    return argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def load_keras():
    """Imports Keras without TensorFlow's messages about the machine."""
    run_before_keras()["load_keras"]()


def run_before_keras() -> dict:
    """Returns the names in `van_backbones.before_keras`, by its path: an import would load Keras first."""
    (folder,) = importlib.util.find_spec("van_backbones").submodule_search_locations
    return runpy.run_path(os.path.join(folder, "before_keras.py"))


def add_run_options(parser: argparse.ArgumentParser, kind: str):
    """Adds the options of every training script: the folder, what is kept there, the seed and the precision.

    Args:
        parser: The parser.
        kind: How the name of the run's folder begins if no folder is given.
    """
    add = parser.add_argument
    add("--mixed-precision", action="store_true", help="compute in bfloat16")
    add("--output", help=f"folder of the run; default: the next of runs/{kind}-1, runs/{kind}-2 ...")
    resume = "go on from the last state in --output, if any; without --output, of the newest run of this kind"
    add("--resume", action="store_true", help=resume)
    every = "also save the state after every STEPS steps; default: only after each score"
    add("--save-every", type=whole_number(1), metavar="STEPS", help=every)
    patience = "end after this many scores in a row without a new best; default: train to the last step"
    add("--patience", type=whole_number(1), metavar="SCORES", help=patience)
    keep = "number of states that are kept; default: %(default)s"
    add("--keep", type=whole_number(1), default=2, metavar="STATES", help=keep)
    seed = whole_number(0, 2**31 - 1)
    add("--seed", type=seed, default=0, help="seed of everything random; default: %(default)s")
    add_process_options(parser)


def choose_run_options(arguments) -> dict:
    """Returns the options of `TrainingRun` that the arguments have."""
    return {name: getattr(arguments, name) for name in ("save_every", "keep", "patience", "accumulate")}


def add_process_options(parser):
    """Adds the options of several processes that train together: see docs/distributed.md."""
    add = parser.add_argument
    processes = "train in N processes on this machine, on JAX, each with one of its GPUs; default: one"
    add("--processes", type=whole_number(2), metavar="N", help=processes)
    coordinator = "train as a process of a cluster: address of the first process; default: no cluster"
    add("--coordinator", metavar="HOST:PORT", help=coordinator)
    index = "number of this process in the cluster, from 0; default: no cluster"
    add("--process-id", type=whole_number(0), metavar="I", help=index)
    count = "number of processes in the cluster; default: no cluster"
    add("--num-processes", type=whole_number(2), metavar="N", help=count)
    device = "GPU of its machine that this process of the cluster takes; default: all that it sees"
    add("--device", type=whole_number(0), metavar="I", help=device)


def add_variant(parser, weights=None):
    """Adds the options of the backbone's size and weights: by default the given ones, or a random start."""
    add = parser.add_argument
    add("--variant", default="b0", choices=VARIANTS, help="size of the backbone; default: %(default)s")
    start = "a random start" if weights is None else weights
    add("--weights", default=weights, help=f"'imagenet', a release or a file; default: {start}")


def add_sizes(parser):
    """Adds the options of the pictures' sizes, for a trained detector."""
    side, usual = whole_number(1), "default: as the model's file says"
    either = parser.add_mutually_exclusive_group().add_argument
    fit = f"fit the pictures into a square of this side; {usual}"
    either("--image-size", type=side, metavar="SIDE", help=fit)
    either("--short-side", type=side, metavar="SIDE", help=f"or resize them to this short side; {usual}")
    limit = f"limit of the long side, with --short-side; default: {LONG_SIDE}"
    parser.add_argument("--long-side", type=side, metavar="SIDE", help=limit)


def check_sizes(parser, arguments):
    """Ends the program if the sizes contradict each other."""
    if arguments.long_side is not None and arguments.short_side is None:
        parser.error("--long-side needs --short-side")
    if arguments.long_side is None:
        arguments.long_side = LONG_SIDE
    if arguments.short_side is not None and arguments.short_side > arguments.long_side:
        sides = f"{arguments.short_side}, --long-side {arguments.long_side}"
        parser.error(f"--short-side must not be above --long-side. Received: --short-side {sides}")


def add_evaluation_options(parser, content):
    """Adds the options of an evaluation's held-out data and results."""
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, help=f"folder of {content}")
    add("--splits", nargs="+", metavar="SPLIT", help="splits to score; default: val")
    share = "score what a training with this option held out; default: --splits"
    add("--val-share", type=number(above=0), metavar="SHARE", help=share)
    seed = "seed of that training, for --val-share; default: %(default)s"
    add("--seed", type=whole_number(0, 2**31 - 1), default=0, help=seed)
    output = "folder of the results; default: the next of evaluation-1, evaluation-2 ... beside the model"
    add("--output", type=pathlib.Path, help=output)


def check_evaluation_options(parser, arguments):
    """Ends the program if the model is missing, or the other options make no sense."""
    check_model(parser, arguments.model)
    check_output(parser, arguments.output)
    check_val_share(parser, arguments)
    arguments.splits = list(dict.fromkeys(arguments.splits or ["val"]))


def add_val_share(parser, default="the data has splits"):
    """Adds the share of data without splits that is held out; `check_val_share` checks it."""
    share = f"hold out this share of each class, chosen by --seed; default: {default}"
    parser.add_argument("--val-share", type=number(above=0), metavar="SHARE", help=share)


def add_label_options(parser):
    """Adds the options of what label pictures mean."""
    add = parser.add_argument
    add("--class-names", help="text file with a class name per line; default: classes.txt in the data")
    colours = "table of names and colours, for coloured label pictures; default: the one in the data, if any"
    add("--class-colours", help=colours)
    add("--reduce-zero-label", action="store_true", help="label 0 means unlabelled, as in ADE20K")


def add_segmentation_loss(parser):
    """Adds the options of a segmenter's loss, with `--weights` as the paper's.

    `check_segmentation_loss` completes them, `choose_class_weights` reads the weights.
    """
    add = parser.add_argument
    loss = f"default: {SEGMENTATION_LOSSES[0]}, or {LOSS_FROM_SCRATCH} without --weights"
    add("--loss", choices=SEGMENTATION_LOSSES, help=f"loss of the label maps; {loss}")
    weights = "'balanced' (rare classes weigh more), 'equal', a number for each class, or NAME=WEIGHT ... "
    weights += "(others have 1); default: equal, or balanced without --weights"
    add("--class-weights", nargs="+", metavar="WEIGHT", help=weights)


def check_segmentation_loss(parser, arguments):
    """Sets the defaults; ends the program if --class-weights makes no sense, whatever the classes are."""
    from_scratch = arguments.weights is None
    if arguments.loss is None:
        arguments.loss = LOSS_FROM_SCRATCH if from_scratch else SEGMENTATION_LOSSES[0]
    if arguments.class_weights is None:
        arguments.class_weights = ["balanced"] if from_scratch else ["equal"]
    words = arguments.class_weights
    if words in (["balanced"], ["equal"]):
        return
    read = number(at_least=0)
    try:
        values = [read(word.rpartition("=")[2]) for word in words]
    except argparse.ArgumentTypeError as error:
        parser.error(f"argument --class-weights: 'balanced' and 'equal' stand alone, a weight {error}")
    if len({"=" in word for word in words}) > 1:
        parser.error(f"--class-weights must all be numbers, or all NAME=WEIGHT. Received: {' '.join(words)}")
    if "=" not in words[0] and not any(values):
        parser.error(f"--class-weights must not all be 0. Received: {' '.join(words)}")


def choose_class_weights(words, class_names, balanced) -> list[float] | None:
    """Returns the weight of each class; None if all are equal.

    Args:
        words: What was given, checked by `check_segmentation_loss`.
        class_names: Names of the classes.
        balanced: The balanced weights.

    Raises:
        ValueError: If the words do not fit the classes.
    """
    if words == ["equal"]:
        return None
    if words == ["balanced"]:
        return balanced
    if "=" not in words[0]:
        if len(words) != len(class_names):
            raise ValueError(
                f"--class-weights must be a number for each of the {len(class_names)} classes, in the order "
                f"{', '.join(class_names)}; or pass single ones as NAME=WEIGHT. Received: {' '.join(words)}"
            )
        return [float(word) for word in words]
    pairs = [word.rpartition("=")[::2] for word in words]
    unknown = [name for name, _ in pairs if name not in class_names]
    if unknown or len(dict(pairs)) < len(pairs):
        raise ValueError(
            f"--class-weights must name classes of the data, each once: {', '.join(class_names)}. "
            f"Received: {', '.join(unknown) or ' '.join(words)}"
        )
    weights = {name: float(weight) for name, weight in pairs}
    return [weights.get(name, 1.0) for name in class_names]


def check_val_share(parser, arguments):
    """Ends the program if --val-share makes no sense."""
    if arguments.val_share is None:
        return
    if arguments.data is None or arguments.splits:
        parser.error("--val-share splits the pictures of --data: pass --data, and leave out --splits")
    if arguments.val_share >= 1:
        parser.error(f"--val-share must be below 1. Received: {arguments.val_share}")


def add_length(parser, default: str):
    """Adds the training's length, in steps or in passes over the training data; see `choose_steps`.

    Args:
        parser: The parser.
        default: The length if neither is given, in words.
    """
    either = parser.add_mutually_exclusive_group().add_argument
    either("--steps", type=whole_number(1), help=f"steps of the training: {STEP}; default: {default}")
    passes = f"or the number of passes over the training data; default: {default}"
    either("--epochs", type=whole_number(1), metavar="PASSES", help=passes)


def count_epoch_steps(arguments, num_examples: int) -> int:
    """Returns the steps of one pass over the training data."""
    return -(-num_examples // (arguments.batch_size * arguments.accumulate))


def choose_steps(arguments, num_examples: int, epochs: int) -> int:
    """Returns the number of steps: --steps, or those of --epochs, which is `epochs` by default."""
    return arguments.steps or (arguments.epochs or epochs) * count_epoch_steps(arguments, num_examples)


def add_step_options(parser, rate, warm_up=WARM_UP, weight_decay=None, clip_norm=None):
    """Adds the options of the optimizer.

    Args:
        parser: The parser.
        rate: The default of --learning-rate, in words.
        warm_up: The default of --warm-up, in words.
        weight_decay: The default of --weight-decay; None for no such option.
        clip_norm: The default of --clip-norm, in words; None for no such option.
    """
    add = parser.add_argument
    add("--learning-rate", type=number(at_least=0), help=f"default: {rate}")
    if weight_decay is not None:
        decay = "decoupled weight decay, not of norms and biases; default: %(default)s"
        add("--weight-decay", type=number(at_least=0), default=weight_decay, help=decay)
    steps = f"steps of linear warm-up, 0 for none; default: {warm_up}"
    add("--warm-up", type=whole_number(0), help=steps)
    if clip_norm is not None:
        limit = f"limit of the gradients' norm, 0 for none; default: {clip_norm}"
        add("--clip-norm", type=number(at_least=0), help=limit)
    accumulate = "batches of --batch-size whose gradients make one step, for a large batch in little memory"
    add(
        "--accumulate",
        type=whole_number(1),
        default=1,
        metavar="N",
        help=f"{accumulate}; default: %(default)s",
    )
    average = "score and keep a moving average of the weights with this decay per step, such as 0.999"
    add("--ema", type=number(above=0, below=1), metavar="DECAY", help=f"{average}; default: no average")


def choose_optimizer_options(arguments) -> dict:
    """Returns the options of Keras's optimizers that the arguments have."""
    options = {}
    if arguments.accumulate > 1:
        options["gradient_accumulation_steps"] = arguments.accumulate
    if arguments.ema is not None:
        # Keras updates the average at each batch, not only where the weights have changed.
        options |= {"use_ema": True, "ema_momentum": arguments.ema ** (1 / arguments.accumulate)}
    return options


def check_output(parser, output):
    """Ends the program if an output folder is a file."""
    if output is not None and os.path.isfile(output):
        parser.error(f"--output must be a folder. Received: the file {output}")


def check_model(parser, path):
    """Ends the program if a model's file is missing."""
    if not os.path.isfile(path):
        parser.error(f"there is no model {path}")


def whole_number(at_least: int, at_most: int | None = None):
    """Returns the type of an option that is a whole number within limits."""
    limits = f"at least {at_least}" if at_most is None else f"{at_least} .. {at_most}"

    def read(text):
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < at_least or (at_most is not None and value > at_most):
            raise argparse.ArgumentTypeError(f"must be a whole number, {limits}. Received: {text!r}")
        return value

    return read


def number(at_least: float | None = None, above: float | None = None, below: float | None = None):
    """Returns the type of an option that is a finite number within limits."""
    limit = f"at least {at_least}" if above is None else f"above {above}"
    limit += "" if below is None else f" and below {below}"

    def read(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        fits = math.isfinite(value) and (value >= at_least if above is None else value > above)
        fits = fits and (below is None or value < below)
        if not fits:
            raise argparse.ArgumentTypeError(f"must be a number, {limit}. Received: {text!r}")
        return value

    return read


def add_scale_range(parser, pictures: str, default: tuple[float, float]):
    """Adds --scale-range, the random scales in training; None unless it is given, for scripts to fill in."""
    text = f"random scales of the {pictures} in training; default: {default[0]:g} {default[1]:g}"
    names = ("LOWEST", "HIGHEST")
    parser.add_argument(
        "--scale-range", type=number(above=0), nargs=2, metavar=names, action=_Range, help=text
    )


class _Range(argparse.Action):
    """Two numbers, the first not above the second."""

    def __call__(self, parser, namespace, values, option_string=None):
        if values[0] > values[1]:
            parser.error(f"{option_string} must be LOWEST HIGHEST. Received: {values[0]:g} {values[1]:g}")
        setattr(namespace, self.dest, tuple(values))


def check_model_or_variant(parser, arguments):
    """Ends the program unless there is either a model's file or a variant."""
    if (arguments.model is None) == (arguments.variant is None):
        parser.error("pass either a model's file or --variant")
    if arguments.model is not None:
        check_model(parser, arguments.model)
