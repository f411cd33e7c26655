import argparse
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

from options import (
    add_length,
    add_run_options,
    add_segmentation_loss,
    add_step_options,
    check_segmentation_loss,
    choose_class_weights,
    choose_optimizer_options,
    choose_run_options,
    choose_steps,
    count_epoch_steps,
    number,
    whole_number,
)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (whole_number(0), "0", 0),
        (whole_number(1, 6), "6", 6),
        (number(at_least=0), "0", 0.0),
        (number(above=0), "1e-9", 1e-9),
        (number(at_least=-1), "-0.5", -0.5),
        (number(above=0, below=1), "0.999", 0.999),
    ],
)
def test_values_within_the_limits(read, text, value):
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text", "limit"),
    [
        (whole_number(1), "0", "at least 1"),
        (whole_number(1), "2.0", "at least 1"),
        (whole_number(1), "", "at least 1"),
        (whole_number(1, 6), "7", r"1 \.\. 6"),
        (number(at_least=0), "-1e-9", "at least 0"),
        (number(at_least=0), "nan", "at least 0"),
        (number(at_least=0), "inf", "at least 0"),
        (number(above=0), "0", "above 0"),
        (number(above=0), "fast", "above 0"),
        (number(above=0, below=1), "1", "above 0 and below 1"),
    ],
)
def test_other_values_are_refused(read, text, limit):
    with pytest.raises(argparse.ArgumentTypeError, match=rf"must be a .*, {limit}\. Received: '{text}'"):
        read(text)


def test_parsers_name_the_option(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=whole_number(1))
    with pytest.raises(SystemExit):
        parser.parse_args(["--steps", "none"])
    assert "argument --steps: must be a whole number, at least 1. Received: 'none'" in capsys.readouterr().err


def test_every_training_script_has_these():
    parser = argparse.ArgumentParser()
    add_run_options(parser, "here")
    assert "runs/here-1" in parser.format_help()
    defaults = {"mixed_precision": False, "output": None, "resume": False, "seed": 0}
    alone = dict.fromkeys(("processes", "coordinator", "process_id", "num_processes", "device"))
    kept = {"save_every": None, "keep": 2, "patience": None}
    assert vars(parser.parse_args([])) == {**defaults, **kept, **alone}
    options = ["--seed", "7", "--resume", "--mixed-precision", "--output", "there"]
    options += ["--patience", "9"]
    found = vars(parser.parse_args([*options, "--save-every", "100", "--keep", "5"]))
    expected = {"mixed_precision": True, "output": "there", "resume": True, "seed": 7}
    assert found == {**expected, "save_every": 100, "keep": 5, "patience": 9, **alone}
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", "-1"])


def parse(*options):
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=4)
    add_length(parser, "10 epochs")
    add_step_options(parser, "1e-3")
    add_run_options(parser, "here")
    return parser.parse_args(options)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ((), 30),
        (("--epochs", "2"), 6),
        (("--steps", "7"), 7),
        (("--epochs", "2", "--accumulate", "2"), 4),
        (("--steps", "7", "--accumulate", "2"), 7),
        (("--epochs", "3", "--batch-size", "99"), 3),
    ],
)
def test_length_in_steps(options, steps):
    assert choose_steps(parse(*options), 10, epochs=10) == steps


def test_a_pass_has_all_pictures():
    assert count_epoch_steps(parse("--accumulate", "2"), 16) == 2
    assert count_epoch_steps(parse("--accumulate", "2"), 17) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "3", "--epochs", "2"), "argument --epochs: not allowed with argument --steps"),
        (("--epochs", "0.5"), "must be a whole number, at least 1. Received: '0.5'"),
        (("--ema", "1"), "must be a number, above 0 and below 1. Received: '1'"),
        (("--accumulate", "0"), "must be a whole number, at least 1. Received: '0'"),
        (("--patience", "0"), "must be a whole number, at least 1. Received: '0'"),
    ],
)
def test_options_of_the_training_that_make_no_sense(options, message, capsys):
    with pytest.raises(SystemExit):
        parse(*options)
    assert message in capsys.readouterr().err


def test_options_of_optimizers_and_runs():
    assert choose_optimizer_options(parse()) == {}
    found = choose_optimizer_options(parse("--ema", "0.81", "--accumulate", "2"))
    assert found == {"gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": pytest.approx(0.9)}
    found = choose_run_options(parse("--patience", "3", "--accumulate", "2", "--keep", "4"))
    assert found == {"save_every": None, "keep": 4, "patience": 3, "accumulate": 2}


def parse_loss(*options):
    parser = argparse.ArgumentParser()
    parser.add_argument("--weights")
    add_segmentation_loss(parser)
    arguments = parser.parse_args(options)
    check_segmentation_loss(parser, arguments)
    return arguments


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        (["equal"], None),
        (["balanced"], [9.0, 8.0]),
        (["1", "2.5"], [1.0, 2.5]),
        (["dark=blue=3"], [1.0, 3.0]),
        (["dark=blue=0", "sky=2"], [2.0, 0.0]),
    ],
)
def test_class_weights(words, weights):
    arguments = parse_loss("--class-weights", *words)
    assert choose_class_weights(arguments.class_weights, ("sky", "dark=blue"), [9.0, 8.0]) == weights


@pytest.mark.parametrize(
    ("options", "loss", "words"),
    [
        ([], "cross_entropy+dice", "balanced"),
        (["--weights", "imagenet"], "cross_entropy", "equal"),
        (["--weights", "imagenet", "--loss", "dice", "--class-weights", "balanced"], "dice", "balanced"),
        (["--loss", "cross_entropy", "--class-weights", "equal"], "cross_entropy", "equal"),
    ],
)
def test_a_random_start_has_another_loss(options, loss, words):
    arguments = parse_loss(*options)
    assert (arguments.loss, arguments.class_weights) == (loss, [words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1", "2", "3"], "number for each of the 2 classes, in the order sky, wall.*Received: 1 2 3"),
        (["roof=2"], "must name classes of the data, each once: sky, wall. Received: roof"),
        (["sky=1", "sky=2"], "each once: sky, wall. Received: sky=1 sky=2"),
    ],
)
def test_class_weights_of_other_classes(words, message):
    with pytest.raises(ValueError, match=message):
        choose_class_weights(words, ("sky", "wall"), None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fair"], "stand alone, a weight must be a number, at least 0. Received: 'fair'"),
        (["balanced", "2"], "--class-weights: 'balanced' and 'equal' stand alone, a weight"),
        (["sky=-1"], "Received: '-1'"),
        (["0", "0"], "must not all be 0. Received: 0 0"),
        (["sky=1", "2"], "must all be numbers, or all NAME=WEIGHT. Received: sky=1 2"),
    ],
)
def test_class_weights_that_make_no_sense(words, message, capsys):
    with pytest.raises(SystemExit):
        parse_loss("--class-weights", *words)
    assert message in capsys.readouterr().err
