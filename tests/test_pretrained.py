"""Published segmenters as whole models."""

import types

import keras
import numpy as np
import pytest
from checkpoint_models import assert_equal_weights, randomize

from heads import Resizing, SemanticFPN, UPerNet
from van_backbones import VARIANTS, VANBackbone, load_checkpoint, load_release
from van_backbones.checkpoints import RELEASES, DownloadError, save_state_dict
from van_backbones.class_names import read_ade20k_names

NAME = "semantic_fpn_b0_ade20k"


@pytest.fixture(scope="module")
def published():
    """Returns a model with random weights that stands for those that OpenMMLab publishes."""
    model = SemanticFPN(VANBackbone("b0", layer_norm_epsilon=1e-5), num_classes=150)
    randomize(model)
    return model


@pytest.fixture
def asked(published, monkeypatch, tmp_path):
    """Replaces every download by that model; returns the requested names."""
    path, names = tmp_path / "weights.safetensors", []
    save_state_dict(published, path)

    def download(release):
        names.append(release.name)
        return str(path)

    monkeypatch.setattr("van_backbones.checkpoints.loading.download", download)
    return names


def test_the_whole_model(asked, published, tmp_path):
    model = SemanticFPN.from_release(NAME)
    assert asked == [NAME]
    assert_equal_weights(model, published)
    assert model.class_names == list(read_ade20k_names())
    assert model.backbone.variant == "b0"
    assert model.backbone.layer_norm_epsilon == 1e-5
    # Pictures are resized as in mmsegmentation's pipeline for scores.
    assert model.resizing.fit((1000, 2000)) == (512, 1024)
    assert model.resizing.fit((100, 1000)) == (205, 2048)
    # One file with everything.
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.class_names[-1] == "flag"
    assert loaded.resizing.get_config() == model.resizing.get_config()


def test_options_of_ones_own(asked, published):
    backbone = VANBackbone("b0", drop_path_rate=0.0)
    with pytest.warns(UserWarning, match=r"another number of classes.*decode_head\.conv_seg"):
        model = SemanticFPN.from_release(NAME, backbone=backbone, num_classes=3, resizing=Resizing(64))
    assert model.backbone is backbone
    assert model.class_names is None
    assert model.resizing.image_size == (64, 64)
    np.testing.assert_array_equal(model.neck.weights[0], published.neck.weights[0])
    with pytest.warns(UserWarning, match="another number of classes"):
        model = SemanticFPN.from_release(NAME, num_classes=3, class_names="abc", dtype="mixed_bfloat16")
    assert model.class_names == ["a", "b", "c"]
    assert model.backbone.dtype_policy.name == model.dtype_policy.name == "mixed_bfloat16"


def test_a_subclass(asked, published):
    class Mine(SemanticFPN):
        pass

    model = load_release(NAME, Mine)
    assert isinstance(model, Mine)
    assert_equal_weights(model, published)


@pytest.mark.parametrize(
    ("name", "head", "options", "match"),
    [
        ("upernet_b2", UPerNet, {}, r"release must be one of .*'upernet_b2_ade20k'.*Received: 'upernet_b2'"),
        ("b4_imagenet22k", UPerNet, {}, r"load this one with VANBackbone\('b4', weights='b4_imagenet22k'\)"),
        ("imagenet", UPerNet, {}, "needs a variant"),
        (NAME, UPerNet, {}, rf"call SemanticFPN\.from_release\('{NAME}'\)\. Received: UPerNet"),
        ("upernet_b2_ade20k", SemanticFPN, {}, r"call UPerNet\.from_release"),
        ("upernet_b2_ade20k", UPerNet, {"variant": "b0"}, "holds weights of b2, not of b0"),
    ],
)
def test_what_does_not_fit(asked, name, head, options, match):
    arguments = {"backbone": VANBackbone(**options)} if options else {}
    with pytest.raises(ValueError, match=match):
        head.from_release(name, **arguments)
    assert asked == []


def test_every_release_of_a_head_names_one():
    heads = {release.head for release in RELEASES.values()} - {None}
    assert heads == {UPerNet.__name__, SemanticFPN.__name__}


def test_without_the_backbones_package(monkeypatch):
    monkeypatch.setattr(keras.saving, "get_registered_object", lambda name: None)
    with pytest.raises(ValueError, match=r"`import van_backbones` first.*Received: 'semantic_fpn_b0"):
        SemanticFPN.from_release(NAME)


def test_a_backbone_takes_its_part_of_a_segmenter(asked, published):
    backbone = VANBackbone("b0", weights=NAME)
    assert asked == [NAME]
    assert_equal_weights(backbone, published.backbone)


def test_the_large_backbones_have_a_shorthand(monkeypatch):
    def download(release):
        raise DownloadError(release.file)

    monkeypatch.setattr("van_backbones.checkpoints.loading.download", download)
    row = VARIANTS["b4"]
    backbone = types.SimpleNamespace(variant="b4", widths=row.widths, depths=row.depths)
    with pytest.raises(DownloadError, match=r"van-b4-in22k_3rdparty_20230522-5e31cafb\.pth"):
        load_checkpoint(backbone, "imagenet22k")
