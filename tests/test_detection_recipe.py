"""The settings of train_detection.py: nothing is trained here."""

import functools
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import train_detection

from heads import FasterRCNN, RetinaNet
from van_backbones import VANBackbone

TinyVAN = functools.partial(VANBackbone, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


def test_learning_rate_by_hand():
    schedule = train_detection.WarmUpStepDecay(0.01, 4, [6, 9])
    for step in range(12):
        expected = 0.01 * (0.001 + 0.999 * min(step / 4, 1))
        expected *= 1 if step < 6 else 0.1 if step < 9 else 0.01
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5), step
    copy = train_detection.WarmUpStepDecay.from_config(schedule.get_config())
    assert float(copy(7)) == float(schedule(7))


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
    augment, sizes = train_detection.choose_sizes(arguments)
    assert augment.short_sides == short_sides
    assert augment.long_side == 1333
    assert sizes == {"short_side": max(short_sides), "long_side": 1333}


def test_square_pictures_have_large_scale_jitter():
    arguments = train_detection.parse_arguments(["--data", "mine", "--image-size", "96"])
    augment, sizes = train_detection.choose_sizes(arguments)
    assert augment.image_size == (96, 96)
    assert augment.scale_range == (0.1, 2.0)
    assert sizes == {"image_size": (96, 96)}


def test_weight_decay_leaves_out_norms_and_biases():
    """With gradients of zero only the weight decay moves a weight."""
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


def test_training_refuses(capsys):
    for options, message in (
        (["--head", "mask_rcnn", "--num-convs", "2"], "--head mask_rcnn has no --num-convs"),
        (["--image-size", "64", "--short-sides", "64"], "not allowed with argument --image-size"),
    ):
        with pytest.raises(SystemExit):
            train_detection.main(options)
        assert message in capsys.readouterr().err
