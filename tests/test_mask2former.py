import functools

import contracts
import keras
import numpy as np
import pytest
from detection_reference import (
    compute_gradients,
    count_trainable,
    make_inputs,
    make_reference_model,
)
from golden_reference import check, checkpoint, load, to_nchw
from keras import ops

from heads import Mask2Former, Resizing
from heads.layers.pixel_decoder import encode_positions
from heads.mask2former import TASKS
from heads.metrics import predict_coco_results
from heads.ops.segments import frame_masks, select_objects
from heads.prediction import prepare_picture
from van_backbones import VANBackbone
from van_backbones.checkpoints.loading import name_variables, to_state_dict

PARAMETERS = {"b0": 23_525_798, "b1": 33_156_870, "b2": 45_873_542, "b3": 64_060_678}
SMALL = {"channels": 16, "num_encoder_layers": 1, "num_decoder_layers": 2, "num_points": 64}


@pytest.mark.parametrize(
    "variant", ["b0", *(pytest.param(name, marks=pytest.mark.slow) for name in ("b1", "b2", "b3"))]
)
def test_parameters(variant):
    assert count_trainable(Mask2Former(VANBackbone(variant))) == PARAMETERS[variant]


@pytest.mark.slow
def test_parameters_of_more_queries():
    assert count_trainable(Mask2Former(VANBackbone("b6"), num_queries=200)) == 219_026_182


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 12}, r"channels must be a multiple of 8\. Received: 12"),
        (
            {"task": "boxes"},
            r"task must be one of \['panoptic', .*\. Received: 'boxes'",
        ),
        ({"num_things": 0, "num_stuff": 0}, "num_things and num_stuff must not both be 0"),
        ({"num_points": 2}, r"num_points must be at least 4\. Received: 2"),
        ({"score_threshold": 1.0}, "score_threshold must be a number from 0 to below 1"),
        ({"class_names": ["cat"]}, "class_names must be a text for each of the 3 classes"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Mask2Former(contracts.PooledBackbone(), **{"num_things": 2, "num_stuff": 1, **options})


def test_start():
    keras.utils.set_random_seed(0)
    model = make_model(num_queries=40, channels=64)
    for table in (model.query_features, model.query_positions):
        assert table.numpy().std() == pytest.approx(1.0, rel=0.1)
    layer = model.decoder_layers[0]
    assert layer.self_attention.packed_kernel.numpy().std() == pytest.approx(np.sqrt(2 / 256), rel=0.05)
    assert layer.feed_forward[0].kernel.numpy().std() == pytest.approx(np.sqrt(2 / (64 + 2048)), rel=0.05)
    assert np.abs(model.classifier.kernel.numpy()).max() == pytest.approx(1 / 8, rel=0.1)
    fan_in = model.pixel_decoder.mask_conv.kernel.numpy()
    assert np.abs(fan_in).max() == pytest.approx(np.sqrt(3 / 64), rel=0.05)
    first, second = (layer.self_attention.packed_kernel.numpy() for layer in model.decoder_layers)
    assert np.abs(first - second).max() > 0.01


def make_model(**options):
    keras.utils.set_random_seed(0)
    options = {"num_things": 2, "num_stuff": 1, "num_queries": 6, **SMALL, **options}
    return Mask2Former(contracts.PooledBackbone(), **options)


def test_a_query_with_an_empty_mask_looks_everywhere():
    features = np.array([[[[1.0], [-1.0], [2.0]]]], "float32")  # (1, 1, 3, 1)
    embeddings = np.array([[[1.0], [-1.0], [0.0]]], "float32")
    visible = make_model().find_visible(embeddings, features, 0)
    np.testing.assert_array_equal(visible[0], [[True, False, True], [False, True, False], [True] * 3])
    visible = make_model().find_visible(embeddings, np.abs(features), 0)
    np.testing.assert_array_equal(visible[0, 1], [True] * 3)


def test_all_layers_in_training_the_last_one_otherwise():
    model, images = make_model(), np.random.default_rng(0).uniform(0, 255, (2, 33, 50, 3)).astype("float32")
    predictions = model(images, training=True)
    assert predictions["class_logits"].shape == (2, 3, 6, 4)
    assert predictions["mask_logits"].shape == (2, 3, 6, 9, 13)
    assert predictions["inside"].shape == (2, 33, 50)
    predictions = model(images, training=False)
    assert predictions["class_logits"].shape == (2, 1, 6, 4)
    assert predictions["mask_logits"].shape == (2, 1, 6, 9, 13)


def make_truth():
    segments = np.full((2, 32, 32), -1, "int32")
    segments[0, :10], segments[0, 12:, :20], segments[1, 4:9, 4:9] = 0, 1, 0
    return {"labels": np.array([[2, 0], [1, -1]], "int32"), "segments": segments}


def test_maps_of_segments_are_masks():
    model, truth = make_model(), make_truth()
    predictions = model(np.zeros((2, 32, 32, 3), "float32"), training=True)
    masks = truth["segments"][:, None] == np.arange(2)[:, None, None]
    both = []
    for targets in (truth, {"labels": truth["labels"], "masks": masks.astype("uint8")}):
        model.seed_generator = keras.random.SeedGenerator(7)
        both.append({name: float(loss) for name, loss in model.compute_losses(targets, predictions).items()})
    assert both[0] == both[1]
    assert all(np.isfinite(loss) and loss > 0 for loss in both[0].values())


def test_without_segments_only_classes_are_learned():
    model = make_model()
    predictions = model(np.zeros((1, 32, 32, 3), "float32"), training=True)
    for count in (0, 2):
        targets = {"labels": np.full((1, count), -1), "segments": np.full((1, 32, 32), -1)}
        losses = {name: float(loss) for name, loss in model.compute_losses(targets, predictions).items()}
        assert losses["mask_loss"] == losses["dice_loss"] == 0.0
        logits = np.asarray(predictions["class_logits"])[0]
        entropies = np.log(np.exp(logits).sum(-1)) - logits[..., -1]
        # They have a weight of a tenth each; the sum of weights is at least one: 6 queries have 0.6.
        assert losses["class_loss"] == pytest.approx(2.0 * 0.1 * entropies.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.array([[3, 0], [1, -1]])}, r"labels must be class numbers 0 \.\. 2.*Received: 3"),
        ({"segments": np.full((2, 32, 32), 2)}, r"segments must be rows of labels, 0 \.\. 1, or -1"),
        ({"segments": np.zeros((2, 32, 31), "int32")}, r"Received shapes: .*\(2, 32, 31\)"),
        ({"masks": np.zeros((2, 2, 32, 32))}, "either 'masks' or 'segments'"),
    ],
)
def test_faulty_targets_are_refused(change, message):
    model = make_model()
    predictions = model(np.zeros((2, 32, 32, 3), "float32"), training=True)
    with pytest.raises(ValueError, match=message):
        model.compute_losses({**make_truth(), **change}, predictions)


def test_crowds_are_learned_by_nobody():
    model, truth = make_model(), make_truth()
    predictions = model(np.zeros((2, 32, 32, 3), "float32"), training=True)
    truth["labels"] = np.array([[-2, 0], [-2, -1]])
    labels, masks = ops.convert_to_tensor(truth["labels"]), np.zeros((2, 2, 32, 32), "uint8")
    matches = np.asarray(model.match_queries(labels, masks, predictions))
    assert set(matches[0].ravel()) == {-1, 1}
    assert (matches[1] == -1).all()


@pytest.mark.parametrize("task", TASKS)
def test_pictures_are_predicted_at_their_own_size(task):
    model = make_model(task=task, score_threshold=0.0, class_names=["cat", "dog", "sky"])
    model.resizing.short_side = 32
    pictures = [np.random.default_rng(0).integers(0, 255, (37, 53, 3)).astype("uint8")] * 2
    for result in model.predict_pictures(pictures, batch_size=2):
        if task == "semantic":
            assert result["label_map"].shape == (37, 53)
            continue
        count = len(result["labels"])
        assert count
        assert result["names"] == [["cat", "dog", "sky"][label] for label in result["labels"]]
        if task == "instance":
            assert result["masks"].shape == (count, 37, 53)
            assert result["masks"].dtype == bool
            assert result["boxes"].max() <= 53
        else:
            assert result["segments"].shape == (37, 53)
            assert set(np.unique(result["segments"])) - {-1} == set(range(count))


@pytest.mark.parametrize("task", TASKS)
def test_the_task_may_be_chosen_at_prediction(task):
    trained = make_model(score_threshold=0.0)
    other = make_model(task=task, score_threshold=0.0)
    other.set_weights(trained.get_weights())
    picture = np.random.default_rng(0).integers(0, 255, (37, 53, 3)).astype("uint8")
    (found,) = trained.predict_pictures(picture, task=task)
    (expected,) = other.predict_pictures(picture)
    assert found.keys() == expected.keys()
    for name in found.keys() - {"path", "names"}:
        np.testing.assert_array_equal(found[name], expected[name])
    assert trained.task == "panoptic"


def test_unknown_task_at_prediction_is_refused():
    with pytest.raises(ValueError, match=r"task must be one of .* Received: 'objects'"):
        make_model().predict_pictures(np.zeros((32, 32, 3), "uint8"), task="objects")


def test_objects_are_scored_in_the_pixels_of_their_pictures():
    model = make_model(task="instance")
    model.resizing = Resizing((32, 32))
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, size).astype("uint8") for size in ((37, 53, 3), (64, 32, 3))]
    prepared = [prepare_picture(picture, model.resizing) for picture in pictures]
    images, image_sizes, original_sizes = (np.stack(each) for each in zip(*prepared, strict=True))
    inputs = {"images": images, "image_sizes": image_sizes, "original_sizes": original_sizes}
    results = predict_coco_results(model, [inputs], [7, 9], [1, 2])
    expected = model.predict_pictures(pictures, batch_size=2, masks="run_lengths")
    assert [result["image_id"] for result in results].count(7) == len(expected[0]["labels"]) > 0
    for result, mask in zip(results, (mask for each in expected for mask in each["masks"]), strict=True):
        assert result["segmentation"] == mask
        assert tuple(mask["size"]) == (37, 53) if result["image_id"] == 7 else (64, 32)


# What every head must do.


def make_small_van():
    keras.utils.set_random_seed(0)
    backbone = VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))
    return Mask2Former(backbone, num_things=2, num_stuff=1, num_queries=6, score_threshold=0.1, **SMALL)


def make_batch(size=(64, 64), count=3):
    """Returns noise with bright things, half of it without truth, and nothing in the second picture."""
    generator = np.random.default_rng(sum(size))
    images = generator.uniform(0, 128, (count, *size, 3)).astype("float32")
    segments = np.full((count, *size), -1, "int32")
    labels = np.full((count, 3), -1, "int32")
    height, width = size
    for image in (0, count - 1):
        segments[image, : -(-height // 2)] = 0
        segments[image, height // 4 : height // 4 + max(height // 2, 1), : -(-width // 3)] = 1
        images[image, segments[image] == 1] += 100.0
        labels[image, :2] = 2, 1
    segments[0, height // 2 :, width // 2 :] = 2
    images[0, segments[0] == 2] -= 60.0
    labels[0, 2] = 0
    return images, {"labels": labels, "segments": segments}


# The following batch norm removes a bias; positions have no effect before the first step, because the
# kernels that read them start at 0.
WITHOUT_GRADIENT = ("_embedding/proj/bias", "pixel_decoder/level_features")


@pytest.mark.slow
def test_every_weight_gets_a_gradient():
    contracts.check_every_weight_gets_a_gradient(make_small_van, make_batch(), WITHOUT_GRADIENT)


@pytest.mark.slow
def test_fit():
    contracts.check_fit(make_model, make_batch())


@pytest.mark.slow
def test_targets_without_segments():
    images, targets = make_batch()
    nothing = {name: np.full_like(values, -1) for name, values in targets.items()}
    contracts.check_targets_without_truth(make_model, images, nothing)


@pytest.mark.slow
def test_image_sizes():
    contracts.check_image_sizes(make_model, make_batch)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_unknown_sizes(task):
    contracts.check_unknown_sizes(functools.partial(make_model, task=task), make_batch)


@pytest.mark.slow
def test_saving(tmp_path):
    contracts.check_saving(make_model, make_batch(), tmp_path / "model.keras")


@pytest.mark.slow
def test_deployment(tmp_path):
    contracts.check_deployment(make_small_van, make_batch((49, 64))[0], tmp_path / "model.keras")


def test_config():
    contracts.check_config(make_small_van)


@pytest.mark.slow
def test_mixed_precision():
    results = contracts.check_mixed_precision(make_small_van, make_batch(), inner=("inside",))
    assert results["segments"].dtype == results["labels"].dtype == np.int32
    assert results["scores"].dtype == np.float32


@pytest.mark.slow
def test_frozen_backbone(tmp_path):
    contracts.check_frozen_backbone(make_model, make_batch(), tmp_path / "model.keras")


@pytest.mark.slow
def test_evaluate():
    def make_drawn():
        model = make_model()
        points = np.random.default_rng(0).uniform(size=(2000, 2)).astype("float32")  # the same each time
        model.draw_points = lambda shape: keras.ops.broadcast_to(
            keras.ops.convert_to_tensor(points)[: shape[1]], shape
        )
        return model

    contracts.check_evaluate(make_drawn, make_batch(), ["loss", *make_drawn().loss_trackers])


@pytest.mark.slow
def test_keras_options():
    contracts.check_sample_weight(make_model, make_batch())
    options = {"metrics": ["accuracy"], "weighted_metrics": ["accuracy"]}
    contracts.check_refused_options(make_model, make_batch(), **options)


@pytest.mark.slow
def test_no_images():
    contracts.check_no_images(make_model, make_batch())


def test_backbones_without_pyramid():
    contracts.check_backbones_without_pyramid(functools.partial(Mask2Former, num_things=2, num_stuff=1))


@pytest.mark.slow
def test_faulty_targets_poison_the_loss_of_a_graph():
    model, (images, targets) = make_model(), make_batch()
    model.compile("sgd")
    for name, value in (("labels", 3), ("segments", 3)):
        faulty = {**targets, name: targets[name].copy()}
        faulty[name].flat[0] = value
        assert np.isnan(model.evaluate(images, faulty, verbose=0, return_dict=True)["loss"])


@pytest.mark.slow
def test_it_learns_one_picture():
    """Two coloured things on two kinds of stuff are found where they are."""
    image = np.full((1, 64, 64, 3), 40.0, "float32")
    segments = np.zeros((1, 64, 64), "int32")
    for row, (place, colour) in enumerate(
        (
            ((slice(40, 64), slice(0, 64)), (200, 200, 60)),
            ((slice(8, 36), slice(4, 28)), (250, 60, 60)),
            ((slice(8, 36), slice(36, 60)), (60, 60, 250)),
        ),
        1,
    ):
        image[0, place[0], place[1]], segments[0, place[0], place[1]] = colour, row
    targets = {"labels": np.array([[2, 3, 0, 1]], "int32"), "segments": segments}
    model = make_model(num_stuff=2, num_queries=10, channels=32, num_decoder_layers=3)
    model.compile(optimizer=keras.optimizers.Adam(1e-3, global_clipnorm=1.0))
    images = np.repeat(image, 400, axis=0)
    model.fit(images, {k: np.repeat(v, 400, axis=0) for k, v in targets.items()}, batch_size=1, verbose=0)
    found = model.predict(image, verbose=0)
    classes = np.append(found["labels"][0], -1)[found["segments"][0]]
    assert (classes == targets["labels"][0][segments[0]]).mean() > 0.9


# The same numbers as mmdetection's.


@pytest.fixture(scope="module")
def model():
    model = make_reference_model(Mask2Former, "mask2former_b0", num_points=1024)
    model.backbone.trainable = False  # in training, the norms use their statistics, as the reference does
    return model


@functools.cache
def load_case(case):
    return load(f"mask2former_b0/{case}.npz")


@pytest.fixture(scope="module")
def predictions(model):
    """Raw predictions with the reference's masks in the attention: rounding grows at its threshold."""
    compared = []

    def find_visible(embeddings, features, index):
        reference = load_case("forward")[f"attn_mask_after_{index}"]
        size = int(np.prod(features.shape[1:3]))
        visible = ~np.unpackbits(reference, axis=-1)[..., :size].astype(bool)
        visible |= ~visible.any(axis=-1, keepdims=True)
        ours = np.asarray(Mask2Former.find_visible(model, embeddings, features, index))
        compared.append((ours != visible).mean())
        return ops.convert_to_tensor(visible)

    model.find_visible = find_visible
    found = model(make_inputs(load_case("loss_eval")), training=True)
    assert len(compared) == 9
    assert max(compared) < 1e-4
    return found


def test_the_state_dict_comes_back(model):
    arrays, ours = checkpoint("mask2former_b0"), to_state_dict(model)
    assert set(ours) == set(arrays)
    for name in (
        "query_feat.weight",
        "pixel_decoder.encoder.layers.2.self_attn.sampling_offsets.weight",
        "transformer_decoder.layers.3.cross_attn.attn.in_proj_weight",
    ):
        np.testing.assert_array_equal(ours[f"panoptic_head.{name}"], arrays[f"panoptic_head.{name}"])


def test_the_pixel_decoder_equals_mmdetections(model):
    reference = load_case("forward")
    pyramid = model.pyramid(reference["input"].transpose(0, 2, 3, 1), training=False)
    levels, mask_features = model.pixel_decoder([pyramid[f"P{level}"] for level in range(2, 6)])
    for index, level in enumerate(levels):
        check(reference[f"memory_{index}"], to_nchw(level))
    check(reference["mask_features"], to_nchw(mask_features))
    positions = np.asarray(encode_positions(8, 10, 256)).reshape(1, 8, 10, 256)
    check(reference["sine_pos_8x10"], to_nchw(positions))


def test_all_layers_equal_mmdetections(predictions):
    for index in (0, 1, 2, 3, 6, 9):
        check(load_case("forward")[f"cls_{index}"], predictions["class_logits"][:, index])
        check(load_case("forward")[f"mask_{index}"], predictions["mask_logits"][:, index])


def make_reference_targets(reference):
    """Things, then the stuff of the label maps, as mmdetection orders them."""
    labels, masks = np.full((2, 8), -1, "int32"), np.zeros((2, 8, 256, 320), "uint8")
    for image in range(2):
        stuff = np.unique(reference[f"gt{image}_sem_seg"])
        stuff = stuff[(stuff >= 80) & (stuff != 255)]
        found = [*reference[f"gt{image}_labels"], *stuff]
        labels[image, : len(found)] = found
        stuff_masks = reference[f"gt{image}_sem_seg"] == stuff[:, None, None]
        masks[image, : len(found)] = np.concatenate([reference[f"gt{image}_masks"], stuff_masks])
    return {"labels": labels, "masks": masks}


@pytest.fixture
def recorded_draws(model, predictions, monkeypatch):
    """Returns the reference's random points in our order: all layers at once, with padding."""
    reference = load_case("loss_eval")
    targets = make_reference_targets(reference)
    draws = [[reference[f"rand_{4 * layer + i:03d}"] for i in range(4)] for layer in range(10)]
    matching = np.concatenate([layer[image] for image in range(2) for layer in draws])
    queue = [matching]
    monkeypatch.setattr(model, "draw_points", lambda shape: ops.convert_to_tensor(queue.pop(0)))
    matches = model.match_queries(ops.convert_to_tensor(targets["labels"]), targets["masks"], predictions)
    matches = np.asarray(matches)
    candidates, rest = np.zeros((2, 10, 8, 3072, 2), "float32"), np.zeros((2, 10, 8, 256, 2), "float32")
    for layer in range(10):
        # mmdetection goes through the matched queries of both images.
        for row, (image, query) in enumerate(np.argwhere(matches[:, layer] >= 0)):
            place = image, layer, matches[image, layer, query]
            candidates[place], rest[place] = draws[layer][2][row], draws[layer][3][row]
    queue += [matching, candidates.reshape(-1, 3072, 2), rest.reshape(-1, 256, 2)]
    return targets


NAMES = {"class_loss": "loss_cls", "mask_loss": "loss_mask", "dice_loss": "loss_dice"}


def test_losses_equal_mmdetections(model, predictions, recorded_draws):
    losses = model.compute_losses(recorded_draws, predictions)
    reference = load_case("loss_eval")
    for ours, theirs in NAMES.items():
        names = [f"loss.{theirs}", *(f"loss.d{layer}.{theirs}" for layer in range(9))]
        expected = sum(float(np.ravel(reference[name])[0]) for name in names)
        assert float(losses[ours]) == pytest.approx(expected, rel=1e-5), ours


def merge_ids(segments, labels, num_things=80):
    """mmdetection's numbers of classes and instances; instances numbered by their first pixel."""
    ids, numbers = np.full(segments.shape, 133), {}
    for row in dict.fromkeys(segments.ravel().tolist()):
        if row >= 0:
            label = labels[row]
            number = numbers.setdefault(row, len(numbers) + 1) if label < num_things else 0
            ids[segments == row] = label + 1000 * number
    return ids


def compare_ids(reference, segments, labels):
    ids = merge_ids(np.asarray(segments), np.asarray(labels))
    index = getattr(reference, "index", slice(None))
    expected = np.ravel(reference.value if hasattr(reference, "value") else reference)
    ours = ids.ravel()[index]
    # If only some pixels are known, the order of the instances is unknown: compare the partition.
    pairs = set(zip(ours.tolist(), expected.tolist(), strict=True))
    assert len(pairs) == len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs})
    assert all((a % 1000, a >= 1000) == (b % 1000, b >= 1000) for a, b in pairs)


def compare_objects(reference, prefix, found, image):
    """Compares detections; mmdetection does not sort them."""
    labels, scores = reference[f"{prefix}_labels"], reference[f"{prefix}_scores"]
    order = np.argsort(-scores, kind="stable")
    count = len(labels)
    found = {name: np.asarray(values)[image] for name, values in found.items()}
    assert (found["labels"] >= 0).sum() == (scores > 0).sum()
    height, width = found["masks"].shape[1:]
    theirs = np.unpackbits(reference[f"{prefix}_masks"], axis=-1)[..., :width].astype(bool)
    assert theirs.shape == (count, height, width)
    free = set(range(count))
    for row in order[scores[order] > 0]:
        # Near-ties may swap: the same class and mask with the same score.
        candidates = [
            ours
            for ours in free
            if found["labels"][ours] == labels[row] and abs(found["scores"][ours] - scores[row]) < 1e-4
        ]
        overlaps = [
            (found["masks"][ours] & theirs[row]).sum() / max((found["masks"][ours] | theirs[row]).sum(), 1)
            for ours in candidates
        ]
        assert overlaps, row
        assert max(overlaps) >= 0.99, row
        best = candidates[int(np.argmax(overlaps))]
        np.testing.assert_allclose(found["boxes"][best], reference[f"{prefix}_bboxes"][row], atol=1.01)
        free.remove(best)


@pytest.mark.parametrize("threshold", [0.8, 0.4])
def test_segments_equal_mmdetections(model, predictions, monkeypatch, threshold):
    monkeypatch.setattr(model, "score_threshold", threshold)
    found = {name: np.asarray(values) for name, values in model.decode(predictions).items()}
    for image, (height, width) in enumerate(((256, 320), (210, 260))):
        name = f"plain{image}_panoptic" if threshold == 0.8 else f"plain_thr0.4_{image}_panoptic"
        segments = found["segments"][image, :height, :width]
        compare_ids(load_case("predict")[name], segments, found["labels"][image])
        assert (found["segments"][image, height:] == -1).all()
        assert (found["segments"][image, :, width:] == -1).all()


def test_objects_equal_mmdetections(model, predictions, monkeypatch):
    monkeypatch.setattr(model, "task", "instance")
    found = {name: np.asarray(values) for name, values in model.decode(predictions).items()}
    for image, (height, width) in enumerate(((256, 320), (210, 260))):
        cropped = {**found, "masks": found["masks"][:, :, :height, :width]}
        compare_objects(load_case("predict"), f"plain{image}_ins", cropped, image)


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_results_of_the_original_size_equal_mmdetections(model, predictions, monkeypatch, task):
    monkeypatch.setattr(model, "task", task)
    inputs = make_inputs(load_case("loss_eval"), original=True)
    monkeypatch.setattr(model, "predict_raw", lambda inputs: predictions)
    found = model.predict_resized(inputs["images"], inputs["image_sizes"], inputs["original_sizes"])
    for image, result in enumerate(found):
        if task == "panoptic":
            reference = load_case("predict")[f"rescaled{image}_panoptic"]
            compare_ids(reference, result["segments"], result["labels"])
        else:
            result = {name: values[None] for name, values in result.items()}
            compare_objects(load_case("predict"), f"rescaled{image}_ins", result, 0)


def test_classes_and_frames_of_synthetic_objects_equal_mmdetections():
    # Only some pixels of these masks are kept, so that segments and scores cannot be compared.
    reference = load_case("postprocess_synthetic")
    masks = np.unpackbits(reference["ins_masks"], axis=-1).astype(bool)
    np.testing.assert_array_equal(frame_masks(masks), reference["ins_bboxes"])
    logits = np.ones((1, len(reference["cls"]), 8, 8), "float32")
    found = select_objects(reference["cls"][None], logits, np.ones((1, 8, 8), bool), num_things=80)
    labels = np.asarray(found["labels"][0])
    assert sorted(labels[labels >= 0]) == sorted(reference["ins_labels"])


@pytest.mark.slow
def test_every_weight_of_the_paper_gets_a_gradient():
    model = make_reference_model(Mask2Former, "mask2former_b0", num_points=256)
    reference = load_case("loss_eval")
    losses, gradients = compute_gradients(
        model, {"images": reference["input"].transpose(0, 2, 3, 1)}, make_reference_targets(reference)
    )
    assert all(np.isfinite(loss) for loss in losses.values())
    assert set(gradients) == {name for name, each in name_variables(model).items() if each.trainable}
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
