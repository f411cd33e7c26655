"""Command line options of training scripts, and types of options that refuse what makes no sense."""

import argparse
import math


def add_run_options(parser: argparse.ArgumentParser, output: str):
    """Adds what every training script has: the folder, what is kept there, the seed and the precision.

    Args:
        parser: The parser.
        output: The folder that is used where none is given.
    """
    add = parser.add_argument
    add("--mixed-precision", action="store_true", help="compute in bfloat16")
    add("--output", default=output, help="folder of checkpoints, logs and pictures")
    add("--resume", action="store_true", help="go on from the last state in --output, if any")
    every = "save the state after so many steps, besides after each score"
    add("--save-every", type=whole_number(1), metavar="STEPS", help=every)
    add("--keep", type=whole_number(1), default=2, metavar="STATES", help="how many states; default: 2")
    add("--seed", type=whole_number(0, 2**31 - 1), default=0)


def whole_number(at_least: int, at_most: int | None = None):
    """A whole number within limits."""
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


def number(at_least: float | None = None, above: float | None = None):
    """A finite number within a limit."""
    limit = f"at least {at_least}" if above is None else f"above {above}"

    def read(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        fits = math.isfinite(value) and (value >= at_least if above is None else value > above)
        if not fits:
            raise argparse.ArgumentTypeError(f"must be a number, {limit}. Received: {text!r}")
        return value

    return read
