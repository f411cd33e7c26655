"""The settings of train_detection.py: nothing is trained here."""

import functools
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import evaluate_detection
import train_detection
from detection_pictures import choose_threshold
from format_folders import draw_shapes, write_yolo

from heads import FasterRCNN, RetinaNet
from van_backbones import VANBackbone

TinyVAN = functools.partial(VANBackbone, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("options", "num_images", "steps", "evaluate_every", "milestones", "rate", "warm_up", "short_sides"),
    [
        (["--data", "coco", "--weights", "imagenet"], 118287, 88716, 7393, [59144, 81323], 1e-4, 500, (800,)),
        (
            ["--data", "coco", "--weights", "w.h5", "--schedule", "3x", "--batch-size", "8"],
            118287,
            *(36 * 14786, 14786, [27 * 14786, 33 * 14786], 5e-5, 500),
            tuple(range(480, 801, 32)),
        ),
        (["--data", "mine"], 100, 84, 84, [56, 77], 2e-3, 8, (800,)),
        (
            ["--steps", "600", "--learning-rate", "0.5", "--warm-up", "7", "--short-sides", "320", "352"],
            *(100, 600, 200, [400, 550], 0.5, 7, (320, 352)),
        ),
    ],
)
def test_recipe(options, num_images, steps, evaluate_every, milestones, rate, warm_up, short_sides):
    arguments = train_detection.parse_arguments(options)
    assert train_detection.plan_steps(arguments, num_images) == (steps, evaluate_every, milestones)
    optimizer = train_detection.build_optimizer(arguments, steps, milestones)
    schedule = optimizer._learning_rate
    assert (schedule.learning_rate, schedule.warm_up) == (pytest.approx(rate), warm_up)
    assert schedule.milestones == milestones
    assert optimizer.weight_decay == 0.05
    assert optimizer.global_clipnorm == (None if arguments.weights else 1.0)
    assert (optimizer.beta_1, optimizer.beta_2) == (0.9, 0.999)
    augment, resizing = train_detection.choose_sizes(arguments)
    assert augment.short_sides == short_sides
    assert augment.long_side == 1333
    assert (resizing.image_size, resizing.short_side, resizing.long_side) == (None, max(short_sides), 1333)


@pytest.mark.parametrize("head", list(train_detection.HEADS))
def test_options_of_each_head(head, capsys):
    """A head takes the options of its constructor, also those of the head that it is built on."""
    options = {"--channels": "8", "--max-detections": "7"}
    one_stage, stages = head in ("retinanet", "gfl", "atss"), head.endswith("rcnn")
    options |= {"--num-convs": "1"} if one_stage else {}
    options |= {"--num-proposals": "9"} if stages else {}
    options |= {"--num-samples": "12"} if stages and head != "sparse_rcnn" else {}
    options |= {"--box-head": "2fc"} if head == "cascade_mask_rcnn" else {}
    arguments = train_detection.parse_arguments(
        ["--head", head, *(word for pair in options.items() for word in pair)]
    )
    arguments.weights = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_detection, "VANBackbone", TinyVAN)
        model = train_detection.build_model(arguments, 3)
    assert isinstance(model, train_detection.HEADS[head])
    assert model.with_masks == head.startswith(("mask", "cascade"))
    for name, value in options.items():
        assert str(getattr(model, name[2:].replace("-", "_"))) == value
    for name in {"--num-convs", "--num-proposals", "--num-samples", "--box-head"} - options.keys():
        with pytest.raises(SystemExit):
            train_detection.parse_arguments(["--head", head, name, "2fc" if name == "--box-head" else "4"])
        assert f"--head {head} has no {name}" in capsys.readouterr().err


def test_square_pictures_have_large_scale_jitter():
    arguments = train_detection.parse_arguments(["--data", "mine", "--image-size", "96"])
    augment, resizing = train_detection.choose_sizes(arguments)
    assert augment.image_size == (96, 96)
    assert augment.scale_range == (0.1, 2.0)
    assert (resizing.image_size, resizing.short_side) == ((96, 96), None)


def test_weight_decay_leaves_out_norms_and_biases():
    """If all gradients are zero, only the weight decay moves a weight."""
    model = RetinaNet(TinyVAN("b0"), 2, channels=8, num_convs=1)
    arguments = train_detection.parse_arguments(["--learning-rate", "1", "--warm-up", "1"])
    optimizer = train_detection.build_optimizer(arguments, 1000, [600, 900])
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    gradients = [np.zeros(variable.shape, "float32") for variable in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)
    names = {True: set(), False: set()}
    for variable in model.trainable_variables:
        names[bool((variable.numpy() != 1.0).any())].add(variable.path.split("/")[-1])
    assert names[False] == {"gamma", "beta", "bias"}
    assert names[True] == {"kernel", "layer_scale_1", "layer_scale_2"}


def test_head_options_reach_the_model(monkeypatch):
    options = ["--head", "faster_rcnn", "--channels", "16", "--num-samples", "8", "--num-proposals", "9"]
    monkeypatch.setattr(train_detection, "VANBackbone", TinyVAN)
    model = train_detection.build_model(train_detection.parse_arguments(options), 3)
    assert type(model) is FasterRCNN
    assert (model.num_classes, model.channels, model.num_samples, model.num_proposals) == (3, 16, 8, 9)


def test_zero_means_zero():
    options = ["--learning-rate", "0", "--warm-up", "0", "--clip-norm", "0", "--weight-decay", "0"]
    optimizer = train_detection.build_optimizer(train_detection.parse_arguments(options), 100, [60])
    schedule = optimizer._learning_rate
    assert (schedule.learning_rate, schedule.warm_up, optimizer.weight_decay) == (0, 0, 0)
    assert optimizer.global_clipnorm is None


@pytest.mark.parametrize(
    ("options", "num_images", "steps", "every"),
    [(["--steps", "250", "--evaluate-every", "200"], 400, 250, 125), ([], 480, 360, 180)],
)
def test_no_step_more_than_asked(options, num_images, steps, every):
    arguments = train_detection.parse_arguments(["--data", "mine", *options])
    assert train_detection.plan_steps(arguments, num_images)[:2] == (steps, every)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "mask_rcnn", "--num-convs", "2"], "--head mask_rcnn has no --num-convs"),
        (["--image-size", "64", "--short-sides", "64"], "not allowed with argument --image-size"),
        (["--steps", "-1"], "argument --steps: must be a whole number, at least 1. Received: '-1'"),
        (["--evaluate-every", "-5"], "argument --evaluate-every: must be a whole number, at least 1"),
        (["--batch-size", "0"], "argument --batch-size: must be a whole number, at least 1"),
        (["--image-size", "0"], "argument --image-size: must be a whole number, at least 1"),
        (["--max-detections", "0"], "argument --max-detections: must be a whole number, at least 1"),
        (["--frozen-stages", "5"], "argument --frozen-stages: must be a whole number, 0 .. 4"),
        (["--learning-rate", "-1"], "argument --learning-rate: must be a number, at least 0"),
        (["--weight-decay", "inf"], "argument --weight-decay: must be a number, at least 0"),
        (["--scale-range", "2", "1"], "--scale-range must be LOWEST HIGHEST"),
        (["--short-sides", "64", "--scale-range", "1", "2"], "--scale-range needs --image-size"),
        (["--image-size", "64", "--long-side", "96"], "--long-side must not be given"),
        (["--data", "mine", "--short-sides", "64", "--long-side", "32"], "must not be above --long-side, 32"),
        (["--splits", "a", "b"], "need --data"),
    ],
)
def test_training_refuses(options, message, capsys):
    with pytest.raises(SystemExit):
        train_detection.parse_arguments(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "missing.pth"], "(?s)--weights must be a file.*missing.pth"),
        (["--output", "FILE"], "--output must be a folder that can be written to"),
    ],
)
def test_training_refuses_before_it_reads_data(options, message, tmp_path):
    (tmp_path / "file").touch()
    options = [str(tmp_path / "file") if option == "FILE" else option for option in options]
    with pytest.raises(SystemExit, match=message):
        train_detection.main(["--data", "missing", "--output", str(tmp_path / "run"), *options])


def test_pictures_of_an_unsure_model_show_as_many_detections_as_objects():
    truths = [{"labels": np.array([0, 1, -1])}, {"labels": np.array([2, -2, -1])}]
    unsure = [{"scores": np.array([0.3, 0.1, 0.0])}, {"scores": np.array([0.2, 0.15, 0.05])}]
    assert choose_threshold(truths, unsure) == 0.15  # 3 objects: 0.3, 0.2, 0.15
    sure = [{"scores": np.array([0.9, 0.8, 0.7])}, {"scores": np.array([0.6, 0.5, 0.45])}]
    assert choose_threshold(truths, sure) == 0.4
    nothing = [{"labels": np.array([-1])}]
    assert choose_threshold(nothing, [{"scores": np.array([0.3, 0.1])}]) == 0.3
    assert choose_threshold(nothing, [{"scores": np.zeros(0)}]) == 0.4


# Data.


def write_flat_yolo(root):
    """Writes twelve pictures in YOLO's format, without splits, with objects of the embedded data."""
    content, pixels = draw_shapes(12, with_masks=False)[1:]
    write_yolo(root / "splits", content, pixels)
    for kind in ("images", "labels"):
        (root / "splits" / kind / "train").rename(root / kind)
    (root / "splits/classes.txt").rename(root / "classes.txt")


def test_the_format_is_found_and_a_share_held_out(tmp_path, capsys):
    write_flat_yolo(tmp_path)
    options = ["--data", str(tmp_path), "--val-share", "0.25", "--seed", "4"]
    train, val = train_detection.open_data(train_detection.parse_arguments(options))
    assert len(train) + len(val) == 12
    assert 2 <= len(val) <= 5
    assert not {*train.image_ids} & {*val.image_ids}
    printed = capsys.readouterr().out
    assert "Found YOLO's format: 12 pictures by" in printed
    assert f"{len(val)} of 12 pictures are held out to score" in printed

    # The evaluation scores the same pictures.
    model = tmp_path / "model.keras"
    RetinaNet(TinyVAN("b0"), train.num_classes, channels=8, num_convs=1).save(model)
    options = [str(model), *options, "--image-size", "32", "--output", str(tmp_path / "scores")]
    evaluate_detection.main(options)
    assert f"detections on {len(val)} pictures" in capsys.readouterr().out
    results = json.loads((tmp_path / "scores/held-out/results.json").read_text())
    assert {result["image_id"] for result in results} <= {*val.image_ids}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--val-share", "0.2"], "pass --data, and leave out --splits"),
        (["--data", "mine", "--splits", "a", "b", "--val-share", "0.2"], "--data, and leave out --splits"),
        (["--data", "mine", "--val-share", "1"], "--val-share must be below 1. Received: 1.0"),
        (["--data", "mine", "--val-share", "0"], "argument --val-share: must be a number, above 0"),
    ],
)
def test_shares_that_make_no_sense(options, message, capsys):
    with pytest.raises(SystemExit):
        train_detection.parse_arguments(options)
    assert message in capsys.readouterr().err


def test_the_evaluation_refuses_data_that_it_cannot_read(tmp_path, capsys):
    model = tmp_path / "model.keras"
    RetinaNet(TinyVAN("b0"), 2, channels=8, num_convs=1).save(model)
    options = [str(model), "--data", str(tmp_path), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="holds no objects in a known format"):
        evaluate_detection.main(options)
    with pytest.raises(SystemExit):
        evaluate_detection.main([*options, "--splits", "val", "--val-share", "0.2"])
    assert "and leave out --splits" in capsys.readouterr().err
