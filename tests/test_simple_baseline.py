import functools

import contracts
import keras
import numpy as np
import pytest
from golden_reference import check, checkpoint, load, to_nchw

from heads import Resizing, SimpleBaseline
from heads.ops.heatmaps import draw_heatmaps, mirror_heatmaps
from van_backbones import VANBackbone, VANClassifier
from van_backbones.checkpoints import load_checkpoint, save_state_dict
from van_backbones.checkpoints.loading import load_state_dict, to_state_dict

PARAMETERS = {"b0": 7_000_433, "b1": 17_549_009, "b2": 30_265_681, "b3": 48_452_817}
COCO_PAIRS = [(left, left + 1) for left in range(1, 17, 2)]


def count_trainable(variant):
    model = SimpleBaseline(VANBackbone(variant))
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


@pytest.mark.parametrize("variant", ["b0", "b1"])
def test_parameters(variant):
    assert count_trainable(variant) == PARAMETERS[variant]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b2", "b3"])
def test_parameters_of_large_variants(variant):
    assert count_trainable(variant) == PARAMETERS[variant]


# The same numbers as mmpose's.


@pytest.fixture(scope="module")
def reference_model():
    backbone = VANBackbone("b0", normalization=None, layer_norm_epsilon=1e-5, drop_path_rate=0.0)
    model = SimpleBaseline(backbone, flip_pairs=COCO_PAIRS)
    load_state_dict(model, checkpoint("pose_b0"))
    return model


@functools.cache
def load_case():
    reference = load("pose_b0/forward.npz")
    return reference, reference["input"].transpose(0, 2, 3, 1)


def test_forward_equals_mmpose(reference_model):
    reference, images = load_case()
    heatmaps = reference_model(images)
    assert heatmaps.shape == (2, 64, 48, 17)
    check(reference["heatmaps"], to_nchw(heatmaps))
    decoded = reference_model.decode(heatmaps)
    np.testing.assert_allclose(decoded["keypoints"], reference["decoded_plain_keypoints"], atol=1e-4)
    np.testing.assert_allclose(decoded["scores"], reference["decoded_plain_scores"], atol=2e-5)


def test_flip_test_equals_mmpose(reference_model):
    reference, images = load_case()
    assert reference_model.find_counterparts() == reference["flip_indices"].tolist()
    mirrored = reference_model(images[:, :, ::-1])
    check(reference["heatmaps_of_flipped"], to_nchw(mirrored))
    shifted = mirror_heatmaps(mirrored, reference["flip_indices"])
    check(reference["flipped_back_shifted"], to_nchw(shifted))
    averaged = reference_model.call_mirrored(images)
    check(reference["flip_averaged"], to_nchw(averaged))
    decoded = reference_model.decode(averaged)
    np.testing.assert_allclose(decoded["keypoints"], reference["decoded_flip_keypoints"], atol=1e-4)
    np.testing.assert_allclose(decoded["scores"], reference["decoded_flip_scores"], atol=2e-5)


def test_targets_and_loss_equal_mmpose(reference_model):
    reference, images = load_case()
    keypoints, weights = reference["gt_keypoints"], reference["gt_visible"]
    heatmaps, found = draw_heatmaps(keypoints / 4, weights, (64, 48))
    check(reference["target_heatmaps"], to_nchw(heatmaps))
    np.testing.assert_array_equal(found, reference["target_weights"])
    decoded = reference_model.decode(heatmaps)
    np.testing.assert_allclose(decoded["keypoints"], reference["decoded_targets_keypoints"], atol=1e-4)
    np.testing.assert_allclose(decoded["scores"], reference["decoded_targets_scores"], atol=1e-6)
    targets = {"keypoints": keypoints, "weights": weights}
    losses = reference_model.compute_losses(targets, reference_model(images))
    assert list(losses) == ["keypoint_loss"]
    assert float(losses["keypoint_loss"]) == pytest.approx(float(reference["loss_kpt"]), rel=1e-5)


# Checkpoints.


def test_checkpoints_load_and_export_every_tensor(reference_model, tmp_path):
    weights = checkpoint("pose_b0")
    exported = to_state_dict(reference_model)
    assert exported.keys() == weights.keys()
    for name, array in weights.items():
        if not name.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(exported[name], array, err_msg=name)
    path = tmp_path / "pose.safetensors"
    save_state_dict(reference_model, path)
    model = SimpleBaseline(VANBackbone("b0"))
    load_checkpoint(model, path)
    assert model.backbone.layer_norm_epsilon == 1e-5
    for name, array in to_state_dict(model).items():
        np.testing.assert_array_equal(array, exported[name], err_msg=name)
    backbone = VANBackbone("b0")
    load_checkpoint(backbone, path)
    with pytest.raises(ValueError, match=r"(?s)missing: head\.weight"):
        load_checkpoint(VANClassifier("b0"), path)
    with pytest.warns(UserWarning, match="head.final_layer.weight were not loaded"):
        load_checkpoint(SimpleBaseline(VANBackbone("b0"), num_keypoints=5), path)


def test_a_missing_tensor_is_told():
    weights = checkpoint("pose_b0")
    del weights["head.deconv_layers.3.weight"]
    with pytest.raises(ValueError, match=r"missing: head\.deconv_layers\.3\.weight"):
        load_state_dict(SimpleBaseline(VANBackbone("b0")), weights)


# What every head must do.


def make_model():
    keras.utils.set_random_seed(0)
    return SimpleBaseline(contracts.PooledBackbone(), num_keypoints=3, channels=8, flip_pairs=[(1, 2)])


def make_van():
    keras.utils.set_random_seed(0)
    return SimpleBaseline(VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1)), 3, channels=8)


def make_batch(size=(64, 48), count=3):
    random = np.random.default_rng(sum(size))
    images = random.uniform(0, 255, (count, *size, 3)).astype("float32")
    keypoints = random.uniform(-5, 5 + max(size), (count, 3, 2)).astype("float32")
    weights = np.ones((count, 3), "float32")
    weights[0, 1] = 0.0
    return images, {"keypoints": keypoints, "weights": weights}


def test_every_weight_gets_a_gradient():
    def make():
        model = make_model()
        for variable in model.trainable_variables:
            if "kernel" in variable.path and ("doubling" in variable.path or "output" in variable.path):
                variable.assign(100.0 * variable)
        return model

    contracts.check_every_weight_gets_a_gradient(make, make_batch())


def test_fit():
    contracts.check_fit(make_model, make_batch())


@pytest.mark.slow
def test_targets_without_truth():
    images, targets = make_batch()
    targets = {"keypoints": np.full_like(targets["keypoints"], np.nan), "weights": 0 * targets["weights"]}
    contracts.check_targets_without_truth(make_model, images, targets)


@pytest.mark.slow
def test_image_sizes():
    contracts.check_image_sizes(make_model, make_batch)


@pytest.mark.slow
def test_unknown_sizes():
    contracts.check_unknown_sizes(make_model, make_batch)


def test_saving(tmp_path):
    contracts.check_saving(make_model, make_batch(), tmp_path / "model.keras")


@pytest.mark.slow
def test_deployment(tmp_path):
    contracts.check_deployment(make_van, make_batch()[0], tmp_path / "model.keras")


def test_config():
    contracts.check_config(make_model)


@pytest.mark.parametrize("make", [make_model, pytest.param(make_van, marks=pytest.mark.slow)])
def test_mixed_precision(make):
    results = contracts.check_mixed_precision(make, make_batch())
    assert results["keypoints"].shape == (3, 3, 2)


@pytest.mark.slow
def test_frozen_backbone(tmp_path):
    contracts.check_frozen_backbone(make_model, make_batch(), tmp_path / "model.keras")


@pytest.mark.slow
def test_evaluate():
    contracts.check_evaluate(make_model, make_batch(), ["loss", "keypoint_loss"])


def test_keras_options_are_refused_by_name():
    contracts.check_sample_weight(make_model, make_batch())
    contracts.check_refused_options(make_model, make_batch(), metrics=["mse"])


@pytest.mark.slow
def test_no_images():
    contracts.check_no_images(make_model, make_batch())


def test_backbones_without_pyramid():
    with pytest.raises(ValueError, match=r"Received: .* with levels \['P2', 'P3'\]"):
        SimpleBaseline(contracts.PooledBackbone(levels=("P2", "P3")))


# What only this head does.


def test_heatmaps_are_as_large_as_the_finest_level():
    model = make_model()
    for size, expected in (((64, 48), (16, 12)), ((33, 49), (9, 13)), ((1, 70), (1, 18))):
        assert model(np.zeros((1, *size, 3))).shape == (1, *expected, 3)
    symbolic = model(keras.Input((None, None, 3)))
    assert tuple(symbolic.shape) == (None, None, None, 3)
    assert symbolic.dtype == "float32"


def test_results_are_in_pixels_of_the_picture():
    model = make_model()
    images = make_batch()[0]
    plain = model.predict_on_batch(images)
    maps = np.array([[[0.0, 2.0, 5.0], [-1.0, 0.5, 7.0]]] * 3, "float32")
    inputs = {"images": images, "to_pictures": maps}
    mapped = model.predict_on_batch(inputs)
    x, y = np.moveaxis(plain["keypoints"], -1, 0)
    np.testing.assert_allclose(mapped["keypoints"][..., 0], 2 * y + 5, rtol=1e-5)
    np.testing.assert_allclose(mapped["keypoints"][..., 1], 7 - x + 0.5 * y, rtol=1e-5)
    np.testing.assert_array_equal(mapped["scores"], plain["scores"])
    flipped = model.with_flip_test().predict_on_batch(inputs)
    averaged = model.decode(model.call_mirrored(inputs))
    np.testing.assert_allclose(flipped["keypoints"], averaged["keypoints"], rtol=1e-5)
    np.testing.assert_allclose(flipped["scores"], averaged["scores"], rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="inputs must be images or a dict of"):
        model({"images": images, "boxes": maps})
    with pytest.raises(ValueError, match=r"to_pictures must be \(batch, 2, 3\)"):
        model({"images": images, "to_pictures": maps[0]})


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"keypoints": np.zeros((3, 3, 2))}, r"targets must be a dict with \['keypoints', 'weights'\]"),
        ({"keypoints": np.zeros((3, 4, 2)), "weights": np.ones((3, 4))}, r"keypoints \(batch, 3, 2\)"),
        ({"keypoints": np.zeros((3, 3, 2)), "weights": -np.ones((3, 3))}, "weights must be 0 or more"),
        ({"keypoints": np.full((3, 3, 2), np.nan), "weights": np.ones((3, 3))}, "with a weight finite"),
    ],
)
def test_faulty_targets_raise(targets, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model.compute_losses(targets, model(make_batch()[0]))


def test_faulty_targets_poison_the_loss_in_graphs():
    model = make_model()
    images, targets = make_batch()
    targets["keypoints"][0, 0] = np.inf
    model.compile("sgd")
    assert np.isnan(model.train_on_batch(images, targets, return_dict=True)["loss"])
    assert all(np.isfinite(variable.numpy()).all() for variable in model.trainable_variables)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_keypoints": 0}, "num_keypoints must be at least 1. Received: 0"),
        ({"flip_pairs": [(0, 1), (1, 2)]}, "flip_pairs must be pairs of different numbers 0 .. 16, each in"),
        ({"flip_pairs": [(0, 17)]}, "flip_pairs must be pairs"),
        ({"flip_pairs": 3}, "flip_pairs must be pairs"),
        ({"skeleton": [(2, 2)]}, "skeleton must be pairs of different numbers"),
        ({"keypoint_names": ["nose"]}, "keypoint_names must be a text for each of the 17"),
        ({"class_names": ["person"]}, "class_names must be None: the model has no classes"),
    ],
)
def test_arguments_out_of_range_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        SimpleBaseline(contracts.PooledBackbone(), **arguments)


def test_a_model_without_pairs_refuses_the_flip_test():
    model = SimpleBaseline(contracts.PooledBackbone(), 2, channels=8)
    with pytest.raises(ValueError, match="flip_test needs the model's flip_pairs"):
        model.predict_pictures(np.zeros((40, 40, 3), "uint8"), [np.zeros((0, 4))], flip_test=True)


# Pictures.


def test_predict_pictures_gives_keypoints_in_each_pictures_pixels(tmp_path):
    model = make_model()
    model.resizing = Resizing((64, 48))
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (90, 70, 3)).astype("uint8"), np.full((50, 60, 3), 9, "uint8")]
    boxes = [np.array([[0, 0, 70, 90], [10, 20, 40, 80.0]]), np.zeros((0, 4))]
    first, second = model.predict_pictures(pictures, boxes, batch_size=1, progress=False)
    assert second["keypoints"].shape == (0, 3, 2)
    assert second["scores"].shape == (0, 3)
    assert first["path"] is None
    np.testing.assert_array_equal(first["boxes"], boxes[0])
    (together,) = model.predict_pictures(pictures[0], boxes[:1], batch_size=5, progress=False)
    np.testing.assert_allclose(first["keypoints"], together["keypoints"], rtol=1e-5, atol=1e-3)
    (flipped,) = model.predict_pictures(pictures[0], boxes[:1], flip_test=True, progress=False)
    assert flipped["keypoints"].shape == (2, 3, 2)
    # It is kept, but not as part of the model.
    assert model.with_flip_test() is model.with_flip_test()
    assert len(model.weights) == len(make_model().weights)
    model.save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras").find_counterparts() == [0, 2, 1]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (None, r"boxes must be \(n, 4\) for each of 1 pictures. Received: None"),
        ([np.zeros((0, 4))] * 2, "Received: 2 of them"),
        ([np.zeros((1, 4))], r"boxes must be \(n, 4\), \(x1, y1, x2, y2\) in pixels.*for picture 0"),
        ([np.zeros((2, 3))], r"boxes must be \(n, 4\), \(x1"),
    ],
)
def test_faulty_boxes_raise(boxes, message):
    with pytest.raises(ValueError, match=message):
        make_model().predict_pictures(np.zeros((40, 40, 3), "uint8"), boxes)


def test_crops_have_one_size():
    model = make_model()
    assert model.crop_size == (256, 192)
    model.resizing = Resizing(short_side=64)
    with pytest.raises(ValueError, match="resizing must be Resizing"):
        model.predict_pictures(np.zeros((40, 40, 3), "uint8"), [[[0, 0, 20, 20]]])


def test_the_file_holds_what_a_picture_needs(tmp_path):
    model = SimpleBaseline(
        contracts.PooledBackbone(),
        3,
        channels=8,
        flip_pairs=[(1, 2)],
        keypoint_names=("nose", "left", "right"),
        skeleton=((0, 1), (0, 2)),
        resizing=Resizing((64, 32)),
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.crop_size == (64, 32)
    assert list(loaded.keypoint_names) == ["nose", "left", "right"]
    assert [list(pair) for pair in loaded.skeleton] == [[0, 1], [0, 2]]
    assert loaded.find_counterparts() == [0, 2, 1]


@pytest.mark.slow
def test_a_person_is_learned():
    """A white dot at each keypoint: after a few steps, the model finds it."""
    random = np.random.default_rng(0)
    keypoints = random.integers(8, 40, (8, 3, 2)).astype("float32")
    images = np.zeros((8, 64, 48, 3), "float32")
    for image, points in zip(images, keypoints.astype(int), strict=True):
        for channel, (x, y) in enumerate(points):
            image[y - 3 : y + 4, x - 3 : x + 4, channel] = 255.0
    keras.utils.set_random_seed(0)
    model = SimpleBaseline(VANBackbone("b0", widths=(16, 16, 32, 32), depths=(1, 1, 1, 1)), 3, channels=32)
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    targets = {"keypoints": keypoints, "weights": np.ones((8, 3), "float32")}
    model.fit(images, targets, batch_size=8, epochs=120, verbose=0)
    errors = np.abs(model.predict(images, verbose=0)["keypoints"] - keypoints)
    assert np.median(errors) < 3.0
