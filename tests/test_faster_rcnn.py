"""What is Faster R-CNN's own; what it shares with the other detectors is in test_detectors.py."""

import contracts
import keras
import numpy as np
import pytest

from heads import FasterRCNN, MaskRCNN
from heads.ops.inputs import read_targets


@pytest.fixture(scope="module")
def models():
    options = {"channels": 8, "num_proposals": 20, "num_samples": 16}
    return [make(contracts.PooledBackbone(), 3, **options) for make in (FasterRCNN, MaskRCNN)]


def test_stages_are_those_of_mmdetections_configurations(models):
    """faster-rcnn_r50_fpn.py has match_low_quality=False in its second stage, mask-rcnn_r50_fpn.py True."""
    assert [model.stage.match_low_quality for model in models] == [False, True]
    for model in models:
        stage = model.stage
        assert (stage.iou_threshold, stage.num_samples, stage.positive_fraction) == (0.5, 16, 0.25)
        assert stage.deviations == (0.1, 0.1, 0.2, 0.2)


def test_a_proposal_stays_with_the_object_that_it_overlaps_most(models, monkeypatch):
    """It is also the best proposal of a later object, which takes it only in Mask R-CNN."""
    proposals = keras.ops.convert_to_tensor([[[0.0, 0.0, 10.0, 9.0]]])
    monkeypatch.setattr(
        "heads.faster_rcnn.select_proposals", lambda *_: (proposals, keras.ops.ones((1, 1), "float32"))
    )
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 6]]], "float32")
    targets, _ = read_targets({"boxes": boxes, "labels": np.array([[0, 1]], "int32")}, 3)
    for model, expected in zip(models, (0, 1), strict=True):
        samples = model.sample_regions(targets, {})
        kept = np.abs(np.asarray(samples["boxes"])[0] - np.asarray(proposals)[0]).max(axis=1) == 0
        matches, kinds = np.asarray(samples["matches"])[0, kept], np.asarray(samples["kinds"])[0, kept]
        assert kinds.tolist() == [1]
        assert matches.tolist() == [expected]


def test_the_second_stage_runs_outside_of_training_alone(models):
    images = np.zeros((1, 64, 64, 3), "float32")
    for model in models:
        later = {"class_logits", "box_deltas", "proposals", "proposal_scores"}
        assert not later & set(model(images, training=True))
        assert later <= set(model(images, training=False))


def test_decode_runs_no_network(models):
    """Detections from stored predictions do not change with the weights."""
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    for model in models:
        predictions = model(images, training=False)
        before = model.decode(predictions)
        for variable in model.trainable_variables:
            variable.assign(variable * 0.0)
        for name, values in model.decode(predictions).items():
            np.testing.assert_array_equal(values, before[name])
