import contracts
import numpy as np
import pytest
from small_models import SMALL

from heads import ATSS, GFL, RetinaNet
from heads.one_stage_detector import Layout, OneStageDetector
from heads.ops.anchors import join_levels
from van_backbones import VANBackbone


class SquareDetector(OneStageDetector):
    """Predicts the size of the square around an anchor's centre."""

    class_layers = ("bbox_head.square_cls",)

    def __init__(
        self,
        backbone,
        num_classes=2,
        channels=8,
        num_convs=1,
        score_threshold=0.25,
        iou_threshold=0.5,
        max_detections=4,
        **kwargs,
    ):
        layout = Layout(num_box_values=1, anchor_scales=(2.0, 4.0), with_norms=False)
        super().__init__(backbone, ("loss",), locals(), layout, **kwargs)

    def call(self, inputs, training=None):
        predictions, features = self.run_towers(inputs, training)
        return {**predictions, "sides": join_levels(self.predict_boxes(features), 1)}

    def decode_anchors(self, predictions, rows, anchors):
        sides = np.take_along_axis(np.asarray(predictions["sides"])[..., 0], np.asarray(rows), axis=1)
        centers = (np.asarray(anchors)[..., :2] + np.asarray(anchors)[..., 2:]) / 2
        halves = sides[..., None] / 2
        return np.concatenate([centers - halves, centers + halves], axis=-1)

    def rate_anchors(self, predictions, rows, scores):
        return scores * 0.5

    def reference_layers(self):
        return self.name_layers("square")


@pytest.fixture
def model():
    return SquareDetector(contracts.PooledBackbone())


def test_shapes(model):
    predictions = model(np.zeros((2, 64, 96, 3), "float32"))
    # P3 .. P7 of 64 x 96: (8, 12), (4, 6), (2, 3), (1, 2), (1, 1) cells, two anchors each.
    counts = [2 * cells for cells in (96, 24, 6, 2, 1)]
    assert [level.shape for level in predictions["anchors"]] == [(count, 4) for count in counts]
    assert predictions["class_logits"].shape == (2, sum(counts), 2)
    assert predictions["sides"].shape == (2, sum(counts), 1)
    first = np.asarray(predictions["anchors"][1])[:2]  # stride 16, sides 32 and 64 around (0, 0)
    np.testing.assert_allclose(first, [[-16, -16, 16, 16], [-32, -32, 32, 32]])


def test_each_level_has_its_scale(model):
    features = [np.full((1, 2, 2, 8), 1.0, "float32")] * 5
    plain = [np.asarray(level) for level in model.predict_boxes(features)]
    for level, scale in enumerate(model.scales):
        scale.assign(level + 1.0)
    scaled = model.predict_boxes(features)
    for level in range(5):
        np.testing.assert_allclose(scaled[level], (level + 1) * plain[level], rtol=1e-6)


def test_detections_by_hand(model):
    predictions = dict(model(np.zeros((1, 64, 64, 3), "float32")))
    num_anchors = predictions["class_logits"].shape[1]
    logits = np.full((1, num_anchors, 2), -9.0, "float32")
    row = 2 * (8 * 4 + 5)  # P3: centre at x 40, y 32
    # The threshold applies only to the class's score; half of 0.27 is below it, and stays.
    logits[0, row, 1], logits[0, row + 1, 0] = -1.0, -1.2
    sides = np.full((1, num_anchors, 1), 10.0, "float32")
    found = model.decode({**predictions, "class_logits": logits, "sides": sides})
    np.testing.assert_allclose(found["boxes"][0], [[35, 27, 45, 37], *[[0, 0, 0, 0]] * 3], atol=1e-5)
    assert np.asarray(found["labels"])[0].tolist() == [1, -1, -1, -1]
    np.testing.assert_allclose(np.asarray(found["scores"])[0, 0], 0.5 / (1 + np.exp(1.0)), rtol=1e-6)


def test_names():
    model = SquareDetector(VANBackbone("b0", **SMALL))
    names = model.reference_layers()
    assert names["bbox_head.square_cls"] is model.class_output
    assert names["bbox_head.square_reg"] is model.box_output
    assert names["bbox_head.scales.4.scale"] is model.scales[4]
    assert names["bbox_head.cls_convs.0.conv"] is model.class_tower.convs[0]


def test_what_is_missing():
    class Unfinished(SquareDetector):
        decode_anchors = OneStageDetector.decode_anchors

    model = Unfinished(contracts.PooledBackbone())
    predictions = {**model(np.zeros((1, 64, 64, 3), "float32"))}
    with pytest.raises(NotImplementedError, match="Unfinished must define decode_anchors"):
        model.decode(predictions)


@pytest.mark.parametrize("head", [ATSS, GFL, RetinaNet])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_convs": -1}, "num_convs must be at least 0. Received: -1"),
        ({"channels": 0}, "channels must be at least 1. Received: 0"),
        ({"score_threshold": 1.5}, "score_threshold must be"),
        ({"max_detections": 0}, "max_detections must be at least 1"),
    ],
)
def test_arguments_out_of_range(head, arguments, message):
    with pytest.raises(ValueError, match=message):
        head(contracts.PooledBackbone(), **arguments)


@pytest.mark.parametrize("head", [ATSS, GFL, RetinaNet])
def test_the_layout_is_not_the_users(head):
    with pytest.raises(TypeError, match="layout"):
        head(contracts.PooledBackbone(), layout=Layout())
