"""What all detectors have in common; what only one does is in its own test file."""

import functools

import contracts
import keras
import numpy as np
import pytest

from heads import ATSS, GFL, CascadeMaskRCNN, FasterRCNN, MaskRCNN, RetinaNet, SparseRCNN
from van_backbones import VANBackbone

NUM_CLASSES = 3
SMALL_REGIONS = {"channels": 8, "num_proposals": 20, "num_samples": 16}

HEADS = {
    "retinanet": functools.partial(RetinaNet, num_classes=NUM_CLASSES, channels=8, num_convs=1),
    "gfl": functools.partial(GFL, num_classes=NUM_CLASSES, channels=8, num_convs=1),
    "atss": functools.partial(ATSS, num_classes=NUM_CLASSES, channels=8, num_convs=1),
    "cascade_mask_rcnn": functools.partial(CascadeMaskRCNN, num_classes=NUM_CLASSES, **SMALL_REGIONS),
    "sparse_rcnn": functools.partial(
        SparseRCNN, num_classes=NUM_CLASSES, num_proposals=10, channels=8, num_stages=2
    ),
    "faster_rcnn": functools.partial(FasterRCNN, num_classes=NUM_CLASSES, **SMALL_REGIONS),
    "mask_rcnn": functools.partial(MaskRCNN, num_classes=NUM_CLASSES, **SMALL_REGIONS),
}
# Biases whose shift the following batch norm removes.
WITHOUT_GRADIENT = ("_embedding/proj/bias",)
# Weights that only learn from objects larger than those in a picture of 64 x 64.
FOR_LARGE_OBJECTS = {
    "gfl": tuple(f"/scale_{level}" for level in range(1, 5)),
    "atss": tuple(f"/scale_{level}" for level in range(1, 5)),
    "cascade_mask_rcnn": tuple(f"neck/output_{level}/" for level in range(1, 4)),
    "sparse_rcnn": tuple(f"neck/output_{level}/" for level in range(2, 4)),
}


WITH_MASKS = ("mask_rcnn", "cascade_mask_rcnn")


def mark_slow(*slow):
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in HEADS]


# Mask R-CNN runs everything of Faster R-CNN, GFL and Mask R-CNN run most of the later ones.
@pytest.fixture(scope="module", params=mark_slow("faster_rcnn", "atss", "cascade_mask_rcnn", "sparse_rcnn"))
def head(request):
    return request.param


all_are_fast = pytest.mark.parametrize(
    "head", mark_slow("faster_rcnn", "cascade_mask_rcnn"), indirect=True, scope="module"
)


# Tracing a step of an R-CNN takes half a minute. The fast suite tests with RetinaNet what all heads share.
only_retinanet_is_fast = pytest.mark.parametrize(
    "head", mark_slow(*HEADS.keys() - {"retinanet"}), indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def make_small_van(head):
    return lambda: seeded(HEADS[head], lambda: VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1)))


@pytest.fixture(scope="module")
def make_on_pooled_backbone(head):
    return lambda: seeded(HEADS[head], contracts.PooledBackbone)


def seeded(make_head, make_backbone):
    keras.utils.set_random_seed(0)
    return make_head(make_backbone(), score_threshold=0.001)


@pytest.fixture(scope="module")
def make_batch(head):
    return functools.partial(make_scenes, with_masks=head in WITH_MASKS)


def make_scenes(size=(64, 64), count=3, with_masks=True):
    """Returns noise with bright rectangles: two in the first picture, one in the last, none in between."""
    generator = np.random.default_rng(sum(size))
    images = generator.uniform(0, 128, (count, *size, 3)).astype("float32")
    boxes = np.zeros((count, 3, 4), "float32")
    labels = np.full((count, 3), -1, "int32")
    masks = np.zeros((count, 3, *size), "uint8")
    limits = np.array([size[1], size[0], size[1], size[0]], "float32")
    for image, row, label, box in (
        (0, 0, 1, (0.1, 0.1, 0.45, 0.6)),
        (0, 1, 2, (0.5, 0.3, 0.95, 0.98)),
        (count - 1, 0, 0, (0.2, 0.3, 0.9, 0.8)),
    ):
        corners = np.array(box) * limits
        boxes[image, row] = np.concatenate([np.floor(corners[:2]), np.ceil(corners[2:])])
        labels[image, row] = label
        left, top, right, bottom = boxes[image, row].astype(int)
        images[image, top:bottom, left:right] += 100.0
        masks[image, row, top:bottom, left:right] = 1
    targets = {"boxes": boxes, "labels": labels}
    return images, {**targets, "masks": masks} if with_masks else targets


def empty(targets):
    return {name: np.full_like(values, -1 if name == "labels" else 0) for name, values in targets.items()}


# What every head must do.


@all_are_fast
def test_every_weight_gets_a_gradient(head, make_small_van, make_batch):
    without_gradient = (*WITHOUT_GRADIENT, *FOR_LARGE_OBJECTS.get(head, ()))
    contracts.check_every_weight_gets_a_gradient(make_small_van, make_batch(), without_gradient)


@only_retinanet_is_fast
def test_fit(head, make_on_pooled_backbone, make_batch):
    without_gradient = FOR_LARGE_OBJECTS.get(head, ())
    contracts.check_fit(make_on_pooled_backbone, make_batch(), without_gradient=without_gradient)


@only_retinanet_is_fast
def test_targets_without_objects(make_on_pooled_backbone, make_batch):
    images, targets = make_batch()
    contracts.check_targets_without_truth(make_on_pooled_backbone, images, empty(targets))


@pytest.mark.slow
@only_retinanet_is_fast
def test_image_sizes(make_on_pooled_backbone, make_batch):
    contracts.check_image_sizes(make_on_pooled_backbone, make_batch)


@pytest.mark.slow
def test_unknown_sizes(make_on_pooled_backbone, make_batch):
    contracts.check_unknown_sizes(make_on_pooled_backbone, make_batch)


@only_retinanet_is_fast
def test_saving(make_on_pooled_backbone, make_batch, tmp_path):
    contracts.check_saving(make_on_pooled_backbone, make_batch(), tmp_path / "model.keras")


@only_retinanet_is_fast
def test_deployment(make_small_van, make_batch, tmp_path):
    images, _ = make_batch((49, 64))
    contracts.check_deployment(make_small_van, images, tmp_path / "model.keras")


@all_are_fast
def test_config(make_small_van):
    contracts.check_config(make_small_van)


@pytest.mark.slow
def test_mixed_precision(head, make_small_van, make_batch):
    # The maps that the regions are cut from stay in half precision: only the second stage reads them.
    detections = contracts.check_mixed_precision(make_small_van, make_batch(), inner=("pyramid",))
    assert detections["boxes"].dtype == detections["scores"].dtype == np.float32
    assert detections["labels"].dtype == np.int32
    assert detections["boxes"].shape == (3, 100, 4)
    assert ("masks" in detections) == (head in WITH_MASKS)


@only_retinanet_is_fast
def test_frozen_backbone(make_on_pooled_backbone, make_batch, tmp_path):
    contracts.check_frozen_backbone(make_on_pooled_backbone, make_batch(), tmp_path / "model.keras")


@only_retinanet_is_fast
def test_evaluate(make_on_pooled_backbone, make_batch):
    def make_model():
        model = make_on_pooled_backbone()
        if hasattr(model, "draw_priorities"):  # the same sample each time
            model.draw_priorities = lambda values: keras.ops.cast(
                keras.ops.cumsum(keras.ops.ones_like(values), axis=1), "float32"
            )
        return model

    names = ["loss", *make_model().loss_trackers]
    contracts.check_evaluate(make_model, make_batch(), names)


def test_sample_weight(make_on_pooled_backbone, make_batch):
    contracts.check_sample_weight(make_on_pooled_backbone, make_batch())


def test_backbones_without_pyramid(head):
    contracts.check_backbones_without_pyramid(HEADS[head])


# What all detectors do.


@pytest.mark.slow
def test_it_learns_one_picture(head, make_on_pooled_backbone):
    """Two rectangles of two colours are found where they are, each with its class and its mask."""
    model = make_on_pooled_backbone()
    image = np.full((1, 64, 64, 3), 40.0, "float32")
    image[0, 10:34, 8:40], image[0, 40:60, 30:58] = (250, 60, 60), (60, 60, 250)
    targets = {
        "boxes": np.array([[[8, 10, 40, 34], [30, 40, 58, 60]]], "float32"),
        "labels": np.array([[0, 1]], "int32"),
        "masks": np.zeros((1, 2, 64, 64), "uint8"),
    }
    targets["masks"][0, 0, 10:34, 8:40] = targets["masks"][0, 1, 40:60, 30:58] = 1
    if head not in WITH_MASKS:
        del targets["masks"]
    model.compile(optimizer=keras.optimizers.Adam(3e-3, global_clipnorm=1.0))
    images = np.repeat(image, 300, axis=0)
    model.fit(images, {k: np.repeat(v, 300, axis=0) for k, v in targets.items()}, batch_size=1, verbose=0)
    detections = model.predict(image, verbose=0)
    for box, label in zip(targets["boxes"][0], targets["labels"][0], strict=True):
        row = next(row for row in range(100) if detections["labels"][0, row] == label)
        assert detections["scores"][0, row] > 0.3
        np.testing.assert_allclose(detections["boxes"][0, row], box, atol=6.0)


@pytest.fixture(scope="module")
def small_model(make_small_van):
    return make_small_van()


@only_retinanet_is_fast
def test_detections_are_sorted_and_inside(head, small_model, make_batch):
    images, _ = make_batch((49, 70))
    detections = small_model.predict(images, verbose=0)
    labels, scores, boxes = (detections[name] for name in ("labels", "scores", "boxes"))
    found = labels >= 0
    assert found.any()
    assert labels.max() < NUM_CLASSES
    assert (np.diff(scores, axis=1) <= 0).all()
    # ATSS applies the threshold before it multiplies the scores by the centerness.
    assert (scores[found] > (0.0 if head == "atss" else 0.001)).all()
    assert (boxes[found][:, 2:] > boxes[found][:, :2]).all()
    if head != "sparse_rcnn":  # its boxes may reach out of the picture, like the reference's
        assert (boxes >= 0).all()
        assert (boxes <= [70, 49, 70, 49]).all()
    assert not scores[~found].any()
    assert not boxes[~found].any()
    if "masks" in detections:
        assert detections["masks"].shape == (3, 100, 28, 28)
        assert detections["masks"].min() >= 0.0
        assert detections["masks"].max() <= 1.0
        assert detections["masks"][found].std() > 0.01
        assert not detections["masks"][~found].any()


@pytest.mark.slow
@only_retinanet_is_fast
def test_sizes_clip_and_rescale(head, small_model, make_batch):
    images, _ = make_batch()
    sizes = np.array([[64, 64], [40, 64], [64, 30]], "int32")
    inputs = {"images": images, "image_sizes": sizes}
    small = small_model.predict(inputs, verbose=0)
    for boxes, (height, width) in () if head == "sparse_rcnn" else zip(small["boxes"], sizes, strict=True):
        assert (boxes <= [width, height, width, height]).all()
        assert np.isclose(boxes[:, 2].max(), width, atol=1.0)
    original_sizes = sizes * [2, 3]
    large = small_model.predict({**inputs, "original_sizes": original_sizes}, verbose=0)
    np.testing.assert_array_equal(large["labels"], small["labels"])
    np.testing.assert_allclose(large["boxes"], small["boxes"] * [3, 2, 3, 2], rtol=1e-5)


@pytest.mark.slow
@only_retinanet_is_fast
def test_sizes_of_full_images_change_nothing(small_model, make_batch):
    images, _ = make_batch()
    plain = small_model.predict_on_batch(images)
    sized = small_model.predict_on_batch({"images": images, "image_sizes": np.full((3, 2), 64, "int32")})
    for name, values in plain.items():
        np.testing.assert_array_equal(sized[name], values)


@only_retinanet_is_fast
def test_a_higher_threshold_leaves_the_best(head, make_batch):
    images, _ = make_batch()
    models = []
    for threshold in (0.001, 0.2):
        keras.utils.set_random_seed(0)
        models.append(HEADS[head](contracts.PooledBackbone(), score_threshold=threshold, max_detections=7))
    models[1].set_weights(models[0].get_weights())
    predictions = [model.predict_on_batch(images) for model in models]
    assert predictions[0]["labels"].shape == (3, 7)
    few = predictions[1]["scores"] > 0
    assert (predictions[1]["scores"][few] > 0.2).all()
    np.testing.assert_array_equal(predictions[1]["boxes"][few], predictions[0]["boxes"][few])


@only_retinanet_is_fast
def test_padding_rows_count_nothing(small_model, make_batch):
    images, targets = make_batch()
    first_n(small_model)
    more = {
        name: np.pad(
            values,
            ((0, 0), (0, 4), *[(0, 0)] * (values.ndim - 2)),
            constant_values=-1 if name == "labels" else 0,
        )
        for name, values in targets.items()
    }
    predictions = small_model(images, training=False)
    losses = [small_model.compute_losses(each, predictions) for each in (targets, more)]
    for name, loss in losses[0].items():
        assert float(losses[1][name]) == pytest.approx(float(loss), rel=1e-5), name


def first_n(model):
    """Takes the last rows as samples, because true boxes and padding come first."""
    model.draw_priorities = lambda values: (
        -keras.ops.cast(keras.ops.cumsum(keras.ops.ones_like(values), axis=1), "float32")
    )


def test_crowds_are_no_background(make_on_pooled_backbone, make_batch):
    """A crowd that fills the picture without objects leaves nothing to learn from."""
    images, targets = make_batch()
    model = make_on_pooled_backbone()
    without = {name: values[1:2] for name, values in targets.items()}
    crowd = {name: values.copy() for name, values in without.items()}
    crowd["boxes"][0, 0], crowd["labels"][0, 0] = (0, 0, 64, 64), -2
    predictions = model(images[1:2], training=False)
    if hasattr(model, "sample_regions"):
        kinds = [np.asarray(model.sample_regions(each, predictions)["kinds"]) for each in (without, crowd)]
        assert (kinds[0] == 0).any()
        assert (kinds[1] == -1).all()
    else:
        if "boxes" in predictions:  # proposals that were moved into the picture
            predictions["boxes"] = keras.ops.clip(predictions["boxes"], 0.0, 64.0)
        losses = [float(model.compute_losses(each, predictions)["class_loss"]) for each in (without, crowd)]
        # Anchors that reach far beyond the picture remain background.
        assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize("label", [NUM_CLASSES, -3])
def test_labels_out_of_range_raise(small_model, make_batch, label):
    images, targets = make_batch()
    targets["labels"][0, 0] = label
    with pytest.raises(ValueError, match=rf"labels must be .*Received: {label} for box 0 of image 0"):
        small_model.compute_losses(targets, small_model(images, training=False))


@only_retinanet_is_fast
def test_faulty_targets_poison_the_loss_of_a_graph(small_model, make_batch):
    images, targets = make_batch()
    small_model.compile("sgd")
    for name, value, loss in (("labels", NUM_CLASSES, "class_loss"), ("boxes", (9, 9, 9, 20), "box_loss")):
        faulty = {**targets, name: targets[name].copy()}
        faulty[name][0, 0] = value
        scores = small_model.evaluate(images, faulty, verbose=0, return_dict=True)
        assert np.isnan([scores["loss"], scores[loss]]).all()


def test_keras_options_are_refused_by_name(make_on_pooled_backbone, make_batch):
    options = {"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]}
    contracts.check_refused_options(make_on_pooled_backbone, make_batch(), **options)


@pytest.mark.slow
def test_no_images(make_on_pooled_backbone, make_batch):
    contracts.check_no_images(make_on_pooled_backbone, make_batch())


@all_are_fast
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", 0),
        ("max_detections", 0),
        ("max_detections", 1.5),
        ("iou_threshold", 50),
        ("iou_threshold", -0.1),
        ("score_threshold", 50),
        ("score_threshold", 1.0),
        ("score_threshold", float("nan")),
    ],
)
def test_arguments_out_of_range_raise(head, name, value):
    if head == "sparse_rcnn" and name == "iou_threshold":
        pytest.skip("Sparse R-CNN suppresses nothing")
    with pytest.raises(ValueError, match=rf"{name} must be .*Received: {value}"):
        HEADS[head](contracts.PooledBackbone(), **{name: value})


def test_faulty_targets_and_inputs_raise(small_model, make_batch):
    images, targets = make_batch()
    predictions = small_model(images)
    with pytest.raises(
        ValueError, match=r"targets must be a dict with \['boxes', 'labels'.*Received: \['boxes'\]"
    ):
        small_model.compute_losses({"boxes": targets["boxes"]}, predictions)
    with pytest.raises(ValueError, match=r"Received: ndarray"):
        small_model.compute_losses(targets["boxes"], predictions)
    with pytest.raises(ValueError, match=r"Received shapes: .*'labels': \(3,\)"):
        small_model.compute_losses({**targets, "labels": np.zeros(3, "int32")}, predictions)
    with pytest.raises(ValueError, match=r"Received keys: \['image'\]"):
        small_model.call({"image": images})


@pytest.mark.parametrize("name", ["num_classes"])
def test_too_few_classes_raise(head, name):
    with pytest.raises(ValueError, match=rf"{name} must be at least 1\. Received: 0"):
        HEADS[head](contracts.PooledBackbone(), **{name: 0})


@only_retinanet_is_fast
def test_symbolic_call(small_model):
    predictions = small_model(keras.Input((None, None, 3)))
    num_values = NUM_CLASSES + ("box_deltas" in predictions and predictions["box_deltas"].ndim == 4)
    assert predictions["class_logits"].shape[-1] == num_values
