import argparse
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

from options import add_run_options, number, whole_number


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (whole_number(0), "0", 0),
        (whole_number(1, 6), "6", 6),
        (number(at_least=0), "0", 0.0),
        (number(above=0), "1e-9", 1e-9),
        (number(at_least=-1), "-0.5", -0.5),
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
    assert vars(parser.parse_args([])) == {**defaults, "save_every": None, "keep": 2, **alone}
    options = ["--seed", "7", "--resume", "--mixed-precision", "--output", "there"]
    found = vars(parser.parse_args([*options, "--save-every", "100", "--keep", "5"]))
    expected = {"mixed_precision": True, "output": "there", "resume": True, "seed": 7}
    assert found == {**expected, "save_every": 100, "keep": 5, **alone}
    with pytest.raises(SystemExit):
        parser.parse_args(["--seed", "-1"])
