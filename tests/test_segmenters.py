"""What both segmenters have in common; what only one does is in test_semantic_fpn.py and test_upernet.py."""

import functools

import contracts
import keras
import numpy as np
import pytest

from heads import SemanticFPN, UPerNet, segment_images
from van_backbones import VANBackbone

NUM_CLASSES = 3


HEADS = {
    "semantic_fpn": functools.partial(SemanticFPN, num_classes=NUM_CLASSES, channels=8, pyramid_channels=16),
    "upernet": functools.partial(UPerNet, num_classes=NUM_CLASSES, channels=8, auxiliary_channels=8),
}


@pytest.fixture(scope="module", params=list(HEADS))
def make_head(request):
    return HEADS[request.param]


# The fast suite tests with Semantic FPN what all heads share.
upernet_is_slow = pytest.mark.parametrize(
    "make_head",
    ["semantic_fpn", pytest.param("upernet", marks=pytest.mark.slow)],
    indirect=True,
    scope="module",
)


@pytest.fixture(scope="module")
def make_small_van(make_head):
    return lambda: seeded(make_head, lambda: VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1)))


@pytest.fixture(scope="module")
def make_on_pooled_backbone(make_head):
    return lambda: seeded(make_head, contracts.PooledBackbone)


@pytest.fixture(scope="module", params=["van", "pooled"])
def make_model(request, make_small_van, make_on_pooled_backbone):
    return make_small_van if request.param == "van" else make_on_pooled_backbone


def seeded(make_head, make_backbone):
    keras.utils.set_random_seed(0)
    return make_head(make_backbone())


def make_keras_hub_backbone():
    keras_hub = pytest.importorskip("keras_hub")
    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
    )


def make_batch(size=(64, 64), count=3):
    generator = np.random.default_rng(sum(size))
    images = generator.uniform(0, 255, (count, *size, 3)).astype("float32")
    labels = generator.integers(0, NUM_CLASSES, (count, *size)).astype("int32")
    labels[generator.random(labels.shape) < 0.1] = 255
    return images, labels


# What every head must do.


def test_every_weight_gets_a_gradient(make_model):
    contracts.check_every_weight_gets_a_gradient(make_model, make_batch(), ("_embedding/proj/bias",))


@upernet_is_slow
def test_fit(make_on_pooled_backbone):
    contracts.check_fit(make_on_pooled_backbone, make_batch(), ["mean_iou"])


def test_labels_without_truth(make_on_pooled_backbone):
    images, labels = make_batch()
    contracts.check_targets_without_truth(make_on_pooled_backbone, images, np.full_like(labels, 255))


@pytest.mark.slow
@upernet_is_slow
def test_image_sizes(make_on_pooled_backbone):
    contracts.check_image_sizes(make_on_pooled_backbone, make_batch)


@pytest.mark.slow
def test_unknown_sizes(make_on_pooled_backbone):
    contracts.check_unknown_sizes(make_on_pooled_backbone, make_batch)


@upernet_is_slow
def test_saving(make_on_pooled_backbone, tmp_path):
    contracts.check_saving(make_on_pooled_backbone, make_batch(), tmp_path / "model.keras")


def test_deployment(make_model, tmp_path):
    images, _ = make_batch((49, 64))
    contracts.check_deployment(make_model, images, tmp_path / "model.keras")


def test_config(make_model):
    contracts.check_config(make_model)


@upernet_is_slow
def test_mixed_precision(make_small_van):
    label_maps = contracts.check_mixed_precision(make_small_van, make_batch())
    assert label_maps.dtype == np.int32
    assert label_maps.shape == (3, 64, 64)


@upernet_is_slow
def test_frozen_backbone(make_on_pooled_backbone, tmp_path):
    contracts.check_frozen_backbone(make_on_pooled_backbone, make_batch(), tmp_path / "model.keras")


def test_evaluate(make_on_pooled_backbone):
    names = ["loss", "segmentation_loss", "mean_iou"]
    contracts.check_evaluate(make_on_pooled_backbone, make_batch(), names)


def test_sample_weight(make_on_pooled_backbone):
    contracts.check_sample_weight(make_on_pooled_backbone, make_batch())


def test_backbones_without_pyramid(make_head):
    contracts.check_backbones_without_pyramid(make_head)


@pytest.mark.slow
@upernet_is_slow
def test_on_keras_hub_backbone(make_head):
    contracts.check_fit(lambda: seeded(make_head, make_keras_hub_backbone), make_batch(), ["mean_iou"])


# What both heads do.


@pytest.fixture(scope="module")
def small_model(make_small_van):
    return make_small_van()


def test_predict_gives_the_best_class(small_model):
    images, _ = make_batch((33, 49))
    logits = np.asarray(small_model(images))
    assert logits.shape == (3, 33, 49, NUM_CLASSES)
    label_maps = small_model.predict(images, verbose=0)
    assert label_maps.dtype == np.int32
    assert np.mean(label_maps != logits.argmax(-1)) < 1e-3
    np.testing.assert_array_equal(small_model.decode(logits), logits.argmax(-1))


def test_symbolic_call(small_model):
    logits = small_model(keras.Input((None, None, 3)))
    assert tuple(logits.shape) == (None, None, None, NUM_CLASSES)
    assert logits.dtype == "float32"


@upernet_is_slow
def test_segment_is_segment_images(small_model):
    images, _ = make_batch((33, 40), count=1)
    options = {"crop": (32, 32), "stride": (20, 20), "scales": (1.0, 0.9), "flip": True}
    np.testing.assert_array_equal(
        small_model.segment(images, **options), segment_images(small_model, images, **options)
    )
    np.testing.assert_array_equal(small_model.segment(images), np.asarray(small_model(images)).argmax(-1))


def test_training_drops_channels_of_the_classifier(make_head):
    model = make_head(contracts.PooledBackbone(), dropout_rate=0.9)
    images, _ = make_batch()
    keras.utils.set_random_seed(1)
    first, second = (keras.tree.flatten(model(images, training=True)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.abs(one - other).max() > 1e-4
    np.testing.assert_array_equal(model(images, training=False), model(images))


@pytest.mark.parametrize("num_classes", [-1, 0, 1, 256, 2.5])
def test_numbers_of_classes_that_cannot_be_learned_raise(make_head, num_classes):
    with pytest.raises(ValueError, match=rf"num_classes must be between 2 and 255.*Received: {num_classes}"):
        make_head(contracts.PooledBackbone(), num_classes=num_classes)


@pytest.mark.parametrize(("name", "value"), [("channels", 0), ("channels", 2.5), ("dropout_rate", 1.0)])
def test_arguments_out_of_range_raise(make_head, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*Received: {value}"):
        make_head(contracts.PooledBackbone(), **{name: value})


def test_keras_options_are_refused_by_name(make_on_pooled_backbone):
    contracts.check_refused_options(make_on_pooled_backbone, make_batch())


@pytest.mark.slow
def test_no_images(make_on_pooled_backbone):
    contracts.check_no_images(make_on_pooled_backbone, make_batch())


@upernet_is_slow
def test_metrics_of_compile_see_the_logits(small_model):
    images, labels = make_batch()
    metric = keras.metrics.SparseCategoricalAccuracy
    small_model.compile("sgd", metrics=[metric(name="all")], weighted_metrics=[metric(name="known")])
    scores = small_model.evaluate(images, labels, batch_size=2, verbose=0, return_dict=True)
    right = small_model.predict(images, verbose=0) == labels
    assert scores["all"] == pytest.approx(right.mean(), abs=1e-3)
    assert scores["known"] == pytest.approx(right[labels != 255].mean(), abs=1e-3)
    with pytest.raises(ValueError, match=r"metrics must take class numbers and logits.*sparse_y_pred=False"):
        small_model.compile("sgd", metrics=[keras.metrics.MeanIoU(NUM_CLASSES)])
