import numpy as np
import pytest

from heads.arguments import read_pairs
from heads.data import (
    DetectionAugmentation,
    DetectionShapes,
    SemanticAugmentation,
    SemanticShapes,
    detection_evaluation_batches,
    detection_training_batches,
    random_crop,
    semantic_evaluation_batches,
    semantic_training_batches,
)
from heads.data.shapes.scenes import draw_scene

SCENES = SemanticShapes(2, 32)
THINGS = DetectionShapes(2, 32)


def test_one_number_stands_for_a_square():
    assert DetectionAugmentation(image_size=64).image_size == (64, 64)
    assert DetectionAugmentation(image_size=np.int64(64)).image_size == (64, 64)
    assert DetectionAugmentation(short_sides=64).short_sides == (64,)
    assert SemanticAugmentation(48).crop_size == (48, 48)
    assert SemanticAugmentation(np.array([48, 32])).crop_size == (48, 32)
    assert SCENES.image_size == (32, 32)
    assert draw_scene(0, 32)["image"].shape == (32, 32, 3)
    assert THINGS.image_sizes.tolist() == [[32, 32]] * 2
    image, label = random_crop(np.zeros((9, 9, 3)), np.zeros((9, 9), np.int32), (0, 1), 4)
    assert (image.shape, label.shape) == ((4, 4, 3), (4, 4))
    batches = (
        semantic_evaluation_batches(SCENES, 2, image_size=40),
        detection_evaluation_batches(THINGS, image_size=40),
    )
    assert batches[0].element_spec[0].shape[1:] == (40, 40, 3)
    assert batches[1].element_spec[0]["images"].shape[1:] == (40, 40, 3)


@pytest.mark.parametrize(
    "size", [0, -8, 8.0, True, "64", (8, 0), (8, 8.5), (8, True), (8,), (8, 8, 3), ("8", "8")]
)
def test_other_sizes_are_refused(size):
    calls = {
        "image_size": [
            lambda: DetectionAugmentation(image_size=size),
            lambda: semantic_evaluation_batches(SCENES, image_size=size),
            lambda: detection_evaluation_batches(THINGS, image_size=size),
            lambda: SemanticShapes(2, size),
            lambda: DetectionShapes(2, size),
            lambda: draw_scene(0, size),
        ],
        "crop_size": [lambda: SemanticAugmentation(size)],
    }
    for name, each in calls.items():
        for call in each:
            with pytest.raises(ValueError, match=rf"{name} must be \(height, width\), or a .*Received"):
                call()


@pytest.mark.parametrize(
    ("build", "name", "values"),
    [
        (DetectionAugmentation, "short_sides", [0, -1, 8.0, True, "800", (), (8, 8.5), [[8, 8]], (8, None)]),
        (DetectionAugmentation, "long_side", [0, 1333.5, "1333", None, (1333,)]),
        (DetectionAugmentation, "flip", [0.1, "no", None]),
        (DetectionAugmentation, "photometric", [1.0, "yes"]),
        (SemanticAugmentation, "base_size", [512, (2048, 0), (2048.0, 512), (2048,), "2048"]),
        (
            SemanticAugmentation,
            "scale_range",
            [1.0, (1,), ("a", "b"), (np.nan, 1), (1, np.inf), (-1, 1), None],
        ),
        (SemanticAugmentation, "max_class_share", ["1", None, np.nan, True]),
        (SemanticAugmentation, "flip", [0.1, "no"]),
        (SemanticAugmentation, "photometric", ["no"]),
        (SemanticShapes, "num_images", [0, 2.5, "2", True]),
        (SemanticShapes, "seed", [-1, 0.5, None]),
        (DetectionShapes, "num_images", [0, 2.5]),
        (semantic_training_batches, "batch_size", [0, -1, 2.0, "2", True, None]),
        (semantic_evaluation_batches, "batch_size", [0, 2.0, None]),
        (detection_training_batches, "batch_size", [0, 2.0, "2", True, None]),
        (detection_training_batches, "group_by_ratio", ["no", 0.5]),
        (detection_evaluation_batches, "batch_size", [0, 2.0, None]),
        (detection_evaluation_batches, "short_side", [0, -3, 8.0, "8", (8,)]),
        (detection_evaluation_batches, "long_side", [0, 8.5, None]),
    ],
)
def test_other_values_are_refused(build, name, values):
    required = {
        SemanticAugmentation: {"crop_size": 8},
        semantic_training_batches: {"source": SCENES, "augment": SemanticAugmentation(8)},
        semantic_evaluation_batches: {"source": SCENES},
        detection_training_batches: {"source": THINGS, "augment": DetectionAugmentation(8), "batch_size": 1},
        detection_evaluation_batches: {"source": THINGS},
    }
    for value in values:
        with pytest.raises(ValueError, match=f"{name} must be.*Received"):
            build(**{**required.get(build, {}), name: value})


@pytest.mark.parametrize("value", [1.0, (1,), ("a", "b"), (2, 0.5), (0, 1), (np.nan, 1), (0.5, np.inf), True])
def test_other_scales_are_refused(value):
    with pytest.raises(ValueError, match=r"scale_range must be \(lowest, highest\).*Received"):
        DetectionAugmentation(image_size=8, scale_range=value)


def test_pairs_become_lists():
    assert read_pairs("skeleton", ((0, 1), np.array([1, 2])), 3) == [[0, 1], [1, 2]]
    assert read_pairs("skeleton", [], 3) == []
    assert read_pairs("skeleton", None, 3) is None


@pytest.mark.parametrize("value", [3, "ab", [(0, 3)], [(-1, 0)], [(1, 1)], [(0, 1, 2)], [0, 1], [(0, 1.0)]])
def test_other_pairs_are_refused(value):
    with pytest.raises(ValueError, match=r"skeleton must be pairs of different numbers 0 \.\. 2"):
        read_pairs("skeleton", value, 3)


def test_pairs_may_have_to_differ():
    with pytest.raises(ValueError, match=r"each in one pair at most. Received: \[\(0, 1\), \(1, 2\)\]"):
        read_pairs("flip_pairs", [(0, 1), (1, 2)], 3, only_once=True)
