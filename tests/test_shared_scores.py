"""Scores of pictures that several processes share are those of one process, to the last digit.

One process is told to be each of them in turn; what they exchange is kept, and merged by the real functions.
"""

import contextlib
import functools

import numpy as np
import pytest

import heads.metrics.panoptic
import heads.metrics.saliency
import heads.metrics.semantic
from heads import processes
from heads.data import (
    PanopticShapes,
    SaliencyShapes,
    SemanticShapes,
    panoptic_evaluation_batches,
    semantic_evaluation_batches,
)

SIZE = (64, 64)
NUM_PICTURES = 5  # in batches of two: the last is smaller


class HandedOverError(Exception):
    pass


class Segmenter:
    """Tells bright from dark."""

    num_classes = SemanticShapes(1, SIZE).num_classes

    def predict_on_batch(self, images):
        return images.mean(-1).astype("int32") % self.num_classes


class SaliencyModel:
    def predict_on_batch(self, images):
        return images.mean(-1) / 256


class PanopticModel:
    """Knows the truth of each picture, moved by a pixel."""

    def __init__(self, source):
        batches = panoptic_evaluation_batches(source).as_numpy_iterator()
        self.truths = {
            inputs["images"][0].tobytes(): source.load_segments(index)
            for index, (inputs, _) in enumerate(batches)
        }

    def predict_resized(self, images, *sizes):
        truths = [self.truths[image.tobytes()] for image in images]
        return [
            {"segments": np.roll(truth["segments"], 1, axis=0), "labels": truth["labels"]} for truth in truths
        ]


def score_semantic():
    source = SemanticShapes(NUM_PICTURES, SIZE)
    return heads.metrics.semantic.evaluate_semantic(Segmenter(), semantic_evaluation_batches(source, 2))


def score_saliency():
    source = SaliencyShapes(NUM_PICTURES, SIZE)
    return heads.metrics.saliency.evaluate_saliency(SaliencyModel(), semantic_evaluation_batches(source, 2))


PANOPTIC_SHAPES = PanopticShapes(NUM_PICTURES, SIZE)


@functools.cache  # made by one process, which reads all pictures
def make_panoptic_model():
    return PanopticModel(PANOPTIC_SHAPES)


def score_panoptic():
    batches = panoptic_evaluation_batches(PANOPTIC_SHAPES, 2)
    return heads.metrics.panoptic.evaluate_panoptic(make_panoptic_model(), batches, PANOPTIC_SHAPES)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize(
    ("score", "module"),
    [
        (score_semantic, heads.metrics.semantic),
        (score_saliency, heads.metrics.saliency),
        (score_panoptic, heads.metrics.panoptic),
    ],
)
def test_shares_score_as_the_whole(score, module, count, monkeypatch):
    whole = score()
    handed_over = []

    def hand_over(values):
        handed_over.append(values)
        raise HandedOverError

    monkeypatch.setattr(module, "on_this_process", contextlib.nullcontext)
    monkeypatch.setattr(module, "gather_numbers", lambda numbers: np.array([numbers, [2]]), raising=False)
    monkeypatch.setattr(processes, "gather", hand_over)
    monkeypatch.setattr(module, "gather", hand_over, raising=False)
    for index in range(count):
        monkeypatch.setattr(processes, "_place", (index, count))
        with pytest.raises(HandedOverError):
            score()
    monkeypatch.setattr(processes, "gather", lambda values: handed_over)
    monkeypatch.setattr(module, "gather", lambda values: handed_over, raising=False)
    merged = score()
    assert merged.keys() == whole.keys()
    numbers = [value for value in whole.values() if isinstance(value, float)]
    assert any(0 < value < 1 for value in numbers)
    for name, value in whole.items():
        np.testing.assert_array_equal(merged[name], value, err_msg=name)
