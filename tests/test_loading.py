"""Loading weights: from `.weights.h5` files and from arrays under PyTorch's names."""

import keras
import numpy as np
import pytest
from golden_reference import checkpoint

from van_backbones import VANBackbone
from van_backbones.checkpoints import loading as checkpoints

SMALL = {"widths": (8, 8, 16, 16), "depths": (2, 1, 1, 1)}


def build_small(**kwargs):
    return VANBackbone("b0", **{"normalization": None, **SMALL, **kwargs})


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def backbone():
    return build_small()


@pytest.fixture
def arrays(backbone, random):
    """Returns a state dict in PyTorch's layout, written independently of the loader."""
    arrays = {}
    for name, variable in checkpoints.name_variables(backbone).items():
        shape = tuple(variable.shape)
        if len(shape) == 4:
            depthwise = ("conv0", "conv_spatial", "dwconv.dwconv")
            height, width, first, second = shape
            if name.removesuffix(".weight").endswith(depthwise):
                shape = (first, 1, height, width)
            else:
                shape = (second, first, height, width)
        arrays[name.removeprefix("backbone.")] = random.uniform(0.5, 1.5, shape).astype("float32")
    return arrays


@pytest.fixture
def images(random):
    return random.normal(size=(1, 33, 40, 3)).astype("float32")


def assert_equal_weights(model, weights):
    for old, new in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def assert_equal_outputs(model, other, images):
    for level, outputs in model(images).items():
        np.testing.assert_array_equal(other(images)[level], outputs)


def test_every_array_finds_its_variable(backbone, arrays):
    checkpoints.load_state_dict(backbone, arrays)
    block = backbone.get_layer("stage1_block1")
    embedding = backbone.get_layer("stage3_embedding")
    expected = {
        "patch_embed3.norm.running_var": embedding.norm.moving_variance,
        "patch_embed3.norm.running_mean": embedding.norm.moving_mean,
        "patch_embed3.norm.weight": embedding.norm.gamma,
        "patch_embed3.norm.bias": embedding.norm.beta,
        "block1.1.layer_scale_1": block.layer_scale_1,
        "block1.1.layer_scale_2": block.layer_scale_2,
        "block1.1.norm2.weight": block.norm2.gamma,
        "block1.1.attn.proj_2.bias": block.attention.proj_2.bias,
        "norm4.weight": backbone.get_layer("stage4_norm").gamma,
    }
    for name, variable in expected.items():
        np.testing.assert_array_equal(variable, arrays[name])
    kernel = np.asarray(block.attention.conv_spatial.kernel)
    array = arrays["block1.1.attn.spatial_gating_unit.conv_spatial.weight"]
    np.testing.assert_array_equal(kernel[:, :, :, 0], array[:, 0].transpose(1, 2, 0))
    np.testing.assert_array_equal(
        block.feed_forward.fc1.kernel[0, 0], arrays["block1.1.mlp.fc1.weight"][:, :, 0, 0].T
    )


def test_counters_of_batches_are_passed_over(backbone, arrays):
    checkpoints.load_state_dict(backbone, arrays | {"block1.0.norm1.num_batches_tracked": np.array(7)})


def test_names_cover_every_variable_once(backbone):
    variables = checkpoints.name_variables(backbone)
    counted = {id(variable) for variable in variables.values()}
    assert len(counted) == len(variables)
    wanted = {id(v) for v in backbone.variables if "seed_generator" not in v.path}
    assert counted == wanted


@pytest.mark.parametrize("variant", ["b0", "b1"])
def test_names_and_shapes_are_the_official_ones(variant):
    official = {
        name: array.shape
        for name, array in checkpoint(f"backbone_{variant}").items()
        if not name.startswith("head.") and not name.endswith("num_batches_tracked")
    }
    variables = checkpoints.name_variables(VANBackbone(variant))
    assert set(variables) == {f"backbone.{name}" for name in official}
    for name, shape in official.items():
        variable = variables[f"backbone.{name}"]
        assert len(shape) == len(variable.shape)


def test_missing_unexpected_and_wrong_shaped_arrays_are_named(backbone, arrays):
    before = backbone.get_weights()
    del arrays["norm2.bias"]
    arrays["norm5.weight"] = np.zeros((10, 16), "float32")
    arrays["patch_embed1.proj.weight"] = np.zeros((8, 4, 7, 7), "float32")
    with pytest.raises(ValueError, match="in 3 places") as caught:
        checkpoints.load_state_dict(backbone, arrays)
    message = str(caught.value)
    assert "missing: backbone.norm2.bias" in message
    assert "unexpected: backbone.norm5.weight" in message
    assert (
        "wrong shape: backbone.patch_embed1.proj.weight (8, 4, 7, 7) for a variable of (7, 7, 3, 8)"
        in message
    )
    assert repr(backbone.name) in message
    assert_equal_weights(backbone, before)


@pytest.mark.parametrize("problem", ["missing", "unexpected", "wrong shape"])
def test_one_bad_array_changes_nothing(backbone, arrays, problem):
    before = backbone.get_weights()
    if problem == "missing":
        del arrays["norm4.bias"]
    elif problem == "unexpected":
        arrays["norm5.bias"] = arrays["norm4.bias"]
    else:
        arrays["norm4.bias"] = arrays["norm4.bias"][:-1]
    with pytest.raises(ValueError, match=rf"{problem}: backbone\.norm[45]\.bias"):
        checkpoints.load_state_dict(backbone, arrays)
    assert_equal_weights(backbone, before)


def test_a_long_list_of_problems_is_cut(backbone):
    with pytest.raises(ValueError, match=f"in {len(checkpoints.name_variables(backbone))} places") as caught:
        checkpoints.load_state_dict(backbone, {})
    assert str(caught.value).count("\n") == 20


def test_weights_go_to_a_file_and_back(arrays, images, tmp_path):
    backbone = build_small()
    checkpoints.load_state_dict(backbone, arrays)
    path = tmp_path / "van.weights.h5"
    backbone.save_weights(path)
    again = build_small()
    checkpoints.load_checkpoint(again, path)
    assert_equal_outputs(backbone, again, images)
    assert_equal_outputs(backbone, build_small(weights=path), images)
    assert_equal_outputs(backbone, build_small(weights=str(path)), images)


def test_weights_of_one_normalization_fit_another(arrays, images, tmp_path):
    backbone = build_small()
    checkpoints.load_state_dict(backbone, arrays)
    path = tmp_path / "van.weights.h5"
    backbone.save_weights(path)
    again = build_small(normalization="inception", weights=path)
    np.testing.assert_allclose(again(images * 127.5 + 127.5)["P5"], backbone(images)["P5"], atol=1e-4)


def test_unknown_names_and_missing_files_are_refused(backbone):
    with pytest.raises(ValueError, match=r"file not found. Received: 'van_tiny_754.pth.tar'"):
        checkpoints.load_checkpoint(backbone, "van_tiny_754.pth.tar")
    with pytest.raises(ValueError, match="b0_imagenet"):
        build_small(weights="imagenet21k")


def test_a_missing_file_is_named(backbone, tmp_path):
    path = tmp_path / "nowhere.weights.h5"
    with pytest.raises(ValueError, match=r"weights file not found.*nowhere.weights.h5"):
        checkpoints.load_checkpoint(backbone, path)


@pytest.mark.parametrize(
    "other",
    [
        {"widths": (8, 8, 16, 24)},
        {"depths": (1, 1, 1, 1)},
        {"depths": (2, 1, 1, 2)},
        {"depths": (2, 2, 1, 1)},
        {"depths": (3, 2, 2, 2)},
        {"depths": (2, 1, 1, 3)},
    ],
    ids=str,
)
def test_files_of_another_variant_are_refused(backbone, other, tmp_path):
    path = tmp_path / "other.weights.h5"
    build_small(**other).save_weights(path)
    backbone = build_small()
    before = backbone.get_weights()
    with pytest.raises(ValueError, match=rf"does not fit '{backbone.name}'.*Received: .*other.weights.h5"):
        checkpoints.load_checkpoint(backbone, path)
    assert_equal_weights(backbone, before)


def test_a_file_of_the_next_variant_is_refused(tmp_path):
    path = tmp_path / "b0.weights.h5"
    VANBackbone("b0").save_weights(path)
    with pytest.raises(ValueError, match="build the model with the variant, widths and depths of the file"):
        VANBackbone("b1", weights=path)


def test_a_trained_models_file_fits_with_its_optimizer_state(images, tmp_path):
    backbone = build_small()
    backbone.compile("adam", "mse")
    backbone.optimizer.build(backbone.trainable_variables)
    path = tmp_path / "trained.weights.h5"
    backbone.save_weights(path)
    assert_equal_outputs(backbone, build_small(weights=path), images)


@pytest.mark.parametrize(("rate", "other_rate"), [(0.0, 0.3), (0.3, 0.0)])
def test_a_file_fits_whatever_the_drop_path_rate(rate, other_rate, images, tmp_path):
    path = tmp_path / "van.weights.h5"
    backbone = build_small(drop_path_rate=rate)
    backbone.save_weights(path)
    assert_equal_outputs(backbone, build_small(drop_path_rate=other_rate, weights=path), images)


def test_names_are_found_on_anything_with_reference_layers():
    class Small(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)
            self.norm = keras.layers.LayerNormalization()
            self.dense.build((None, 2))
            self.norm.build((None, 3))

        def reference_layers(self):
            return {"fc": self.dense, "ln": self.norm, "scale": self.norm.gamma}

    variables = checkpoints.name_variables(Small())
    assert list(variables) == ["fc.weight", "fc.bias", "ln.weight", "ln.bias", "scale"]


@pytest.mark.parametrize("name", ["imagenet", "b0_imagenet"])
def test_a_release_name_comes_before_the_disk(tmp_path, monkeypatch, backbone, name):
    """If a folder or file has the same name, only `./` means it."""
    asked = []

    def download(release):
        asked.append(release.name)
        raise OSError("no network here")

    monkeypatch.setattr(checkpoints, "download", download)
    monkeypatch.setattr(checkpoints, "_check_variant", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "b0_imagenet").write_text("text")
    with pytest.raises(OSError, match="no network here"):
        checkpoints.load_checkpoint(backbone, name)
    assert asked == ["b0_imagenet"]
    with pytest.raises(ValueError, match=r"is text|a folder must hold"):
        checkpoints.load_checkpoint(backbone, f"./{name}")
    assert asked == ["b0_imagenet"]


def test_floats_do_not_become_integers():
    """A quantized model cannot load floats: load first, then quantize."""
    head = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    head.reference_layers = lambda: {"dense": head.layers[0]}
    arrays = checkpoints.to_state_dict(head)
    checkpoints.load_state_dict(head, arrays)
    head.layers[0].quantize("int8")
    with pytest.raises(ValueError, match=r"wrong type: dense.weight holds float32, not int8"):
        checkpoints.load_state_dict(head, arrays)
