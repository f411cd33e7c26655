import keras
import numpy as np
import pytest

from heads import MaskRCNN, SemanticFPN, UPerNet
from van_backbones import VANBackbone, VANClassifier
from van_backbones.freezing import freeze_parts


def build_small():
    return VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


def check_frozen(model, path):
    """What is trainable and what is not is the same after loading, and may be changed then."""
    model.save(path)
    loaded = keras.saving.load_model(path)
    expected = [variable.path for variable in model.trainable_variables]
    assert len(expected) < len(model.weights)
    assert [variable.path for variable in loaded.trainable_variables] == expected
    loaded.trainable = False
    assert not loaded.trainable_variables
    loaded.trainable = True
    assert len(loaded.trainable_variables) > len(expected)


def test_frozen_stages_and_batch_norms_stay_so(tmp_path):
    backbone = build_small()
    backbone.freeze(num_stages=2, batch_norms=True)
    backbone.save(tmp_path / "backbone.keras")
    for each in (backbone, keras.saving.load_model(tmp_path / "backbone.keras")):
        paths = [variable.path for variable in each.trainable_variables]
        assert paths
        assert not any("stage1_" in path or "stage2_" in path for path in paths)
        assert not any("gamma" in path and "_block" in path for path in paths)
        assert any("stage3_norm" in path for path in paths)  # a layer norm
        statistics = {v.path: v.numpy() for v in each.variables if "moving_" in v.path}
        each(np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)), training=True)
        for variable in each.variables:
            if variable.path in statistics:
                np.testing.assert_array_equal(variable, statistics[variable.path])
    backbone.freeze()
    assert len(backbone.trainable_variables) == len(build_small().trainable_variables)


def test_freezing_another_number_of_stages_raises():
    with pytest.raises(ValueError, match=r"num_stages must be 0 .. 4\. Received: 5"):
        build_small().freeze(num_stages=5)


def test_layers_frozen_by_hand_stay_so(tmp_path):
    backbone = build_small()
    for name in ("stage1_embedding", "stage2_block0", "stage3_norm"):
        backbone.get_layer(name).trainable = False
    backbone.get_layer("stage4_block0").norm1.trainable = False
    check_frozen(backbone, tmp_path / "model.keras")


@pytest.mark.parametrize("freeze", ["stages and norms", "backbone"])
def test_frozen_parts_of_a_classifier_stay_so(freeze, tmp_path):
    classifier = VANClassifier("b0", num_classes=4)
    if freeze == "backbone":
        classifier.backbone.trainable = False
        assert len(classifier.trainable_variables) == 2
    else:
        classifier.backbone.freeze(2, batch_norms=True)
    check_frozen(classifier, tmp_path / "model.keras")


@pytest.mark.parametrize(
    "make_head",
    [
        lambda backbone: SemanticFPN(backbone, 3, channels=16, pyramid_channels=16),
        lambda backbone: MaskRCNN(backbone, 3, channels=8),
    ],
    ids=["SemanticFPN", "MaskRCNN"],
)
def test_frozen_parts_of_a_head_stay_so(make_head, tmp_path):
    head = make_head(build_small())
    head.neck.trainable = False
    head.backbone.freeze(1)
    head.backbone.get_layer("stage3_norm").trainable = False
    check_frozen(head, tmp_path / "model.keras")
    head.trainable = False
    check_frozen(head, tmp_path / "model.keras")


def test_unknown_parts_raise():
    with pytest.raises(ValueError, match=r"frozen_parts must be parts of the model .*Received: \['stage9'\]"):
        freeze_parts(build_small(), ["stage9"])


@pytest.mark.slow
def test_heads_that_share_a_backbone_share_it_in_a_file(tmp_path):
    backbone = build_small()
    images = keras.Input((64, 64, 3))
    heads = (
        SemanticFPN(backbone, 3, channels=16, pyramid_channels=16),
        UPerNet(backbone, 2, channels=16, auxiliary_channels=16),
    )
    model = keras.Model(images, [head(images) for head in heads])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    first, second = (layer for layer in loaded.layers if hasattr(layer, "backbone"))
    assert first.backbone is second.backbone
    assert loaded.count_params() == model.count_params()
    pictures = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    for ours, theirs in zip(model(pictures), loaded(pictures), strict=True):
        np.testing.assert_array_equal(ours, theirs)
