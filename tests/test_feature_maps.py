import keras
import numpy as np
import pytest

from van_backbones.feature_maps import (
    attention_maps,
    draw_feature_maps,
    mean_activation,
    project_to_rgb,
    strongest_channels,
)


@pytest.fixture(scope="module")
def backbone():
    from van_backbones.backbone import VANBackbone

    keras.utils.set_random_seed(0)
    return VANBackbone(variant="b0")


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_mean_activation_is_the_mean_size(random):
    features = random.normal(size=(3, 4, 5)).astype("float32")
    expected = [[sum(abs(float(v)) for v in features[y, x]) / 5 for x in range(4)] for y in range(3)]
    activation = mean_activation(features)
    assert activation.dtype == np.float32
    np.testing.assert_allclose(activation, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(9, 7, 12), (6, 10, 3), (2, 2, 40)])
def test_projection_is_the_principal_components(random, shape):
    features = (random.normal(size=shape) * random.uniform(0.1, 5, shape[-1])).astype("float32")
    positions = features.reshape(-1, shape[-1]).astype("float64")
    _, _, vectors = np.linalg.svd(positions - positions.mean(axis=0), full_matrices=False)
    picture = project_to_rgb(features)
    assert picture.dtype == np.uint8
    assert picture.shape == (*shape[:2], 3)
    for component in range(3):
        vector = vectors[component]
        if vector[np.argmax(np.abs(vector))] < 0:
            vector = -vector
        values = (positions - positions.mean(axis=0)) @ vector
        low, high = np.percentile(values, (2, 98))
        expected = [round(255 * min(max((value - low) / (high - low), 0), 1)) for value in values]
        difference = picture[:, :, component].ravel().astype(int) - expected
        assert np.abs(difference).max() <= 1


def test_projection_of_constant_maps_is_grey():
    assert (project_to_rgb(np.full((4, 5, 8), 3.7, "float32")) == 128).all()
    assert (project_to_rgb(np.zeros((4, 5, 8))) == 128).all()


def test_projection_of_few_channels_leaves_the_rest_grey(random):
    picture = project_to_rgb(random.normal(size=(5, 5, 1)))
    assert np.ptp(picture[:, :, 0]) == 255
    assert (picture[:, :, 1:] == 128).all()
    direction = np.array([1.0, -2.0, 0.5, 3.0])
    picture = project_to_rgb((random.normal(size=(5, 5, 1)) * direction).astype("float32"))
    assert np.ptp(picture[:, :, 0]) == 255
    assert (picture[:, :, 1:] == 128).all()


def test_projection_resists_an_outlier(random):
    features = random.uniform(0, 1, size=(20, 20, 1))
    features[0, 0] = 1e4
    assert np.ptp(np.percentile(project_to_rgb(features)[:, :, 0], (10, 90))) > 150


def test_strongest_channels_have_the_largest_variance(random):
    features = random.normal(size=(6, 5, 4)) * (1.0, 3.0, 0.1, 2.0) + (100.0, 0.0, -50.0, 7.0)
    indices, maps = strongest_channels(features, 3)
    assert indices.tolist() == [1, 3, 0]
    assert maps.shape == (3, 6, 5)
    for index, channel_map in zip(indices, maps, strict=True):
        np.testing.assert_allclose(channel_map, features[:, :, index], rtol=1e-6)
    assert strongest_channels(np.zeros((3, 3, 6)), 4)[0].tolist() == [0, 1, 2, 3]  # ties: in order


def test_wrong_features_are_refused(random):
    for function in (mean_activation, project_to_rgb, strongest_channels):
        with pytest.raises(ValueError, match=r"Received shape: \(4, 4\)"):
            function(np.zeros((4, 4)))
        with pytest.raises(ValueError, match=r"Received shape: \(0, 4, 8\)"):
            function(np.zeros((0, 4, 8)))
    for num_channels in (0, 5):
        with pytest.raises(ValueError, match=rf"1 \.\. 4. Received: {num_channels}"):
            strongest_channels(np.zeros((3, 3, 4)), num_channels)


def test_bfloat16_tensors_are_taken():
    features = keras.ops.cast(np.arange(24).reshape(2, 3, 4), "bfloat16")
    np.testing.assert_allclose(mean_activation(features), np.arange(24).reshape(2, 3, 4).mean(axis=-1))
    assert strongest_channels(features, 1)[1].dtype == np.float32
    assert project_to_rgb(features).shape == (2, 3, 3)


def test_attention_is_that_of_the_last_blocks(backbone, random):
    images = random.uniform(0, 255, (2, 45, 70, 3)).astype("float32")
    maps = attention_maps(backbone, images)
    assert {level: value.shape for level, value in maps.items()} == {
        "P2": (2, 12, 18),
        "P3": (2, 6, 9),
        "P4": (2, 3, 5),
        "P5": (2, 2, 3),
    }
    # By hand: run the layers one after the other, and stop before each stage's last block.
    features = images
    last_blocks = [f"stage{stage}_block{depth - 1}" for stage, depth in enumerate(backbone.depths, 1)]
    unnormed = features
    for layer in backbone.layers[1:]:
        if layer.name in last_blocks:
            level = f"P{last_blocks.index(layer.name) + 2}"
            attention = keras.ops.convert_to_numpy(layer.attention_map(unnormed))
            expected = np.zeros(maps[level].shape)
            for channel in range(attention.shape[-1]):
                expected += np.abs(attention[..., channel]) / attention.shape[-1]
            np.testing.assert_allclose(maps[level], expected, rtol=1e-3, atol=1e-6)
            assert maps[level].std() > 0
        unnormed = layer(unnormed)


def test_deployed_backbones_have_the_same_attention(random):
    from van_backbones.deployment import deploy

    backbone, images = build_tiny_backbone(), random.uniform(0, 255, (2, 45, 70, 3)).astype("float32")
    deployed = deploy(backbone)
    maps = attention_maps(deployed, images)
    for level, expected in attention_maps(backbone, images).items():
        np.testing.assert_allclose(maps[level], expected, rtol=1e-3, atol=1e-6)
    assert draw_feature_maps(deployed, images[0]).shape == draw_feature_maps(backbone, images[0]).shape


def build_tiny_backbone():
    from van_backbones.backbone import VANBackbone

    return VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


def test_attention_needs_van_blocks():
    """Around a backbone there may be a preprocessing that its pictures would lack."""
    backbone = build_tiny_backbone()
    inputs = keras.Input((8, 8, 3))
    stranger = keras.Model(inputs, keras.layers.ReLU()(inputs))
    around = keras.Model(inputs, backbone(keras.layers.Rescaling(0.5)(inputs)))
    for model in (stranger, around, keras.Sequential([inputs, backbone]), None):
        with pytest.raises(ValueError, match=r"must be a VANBackbone.*give `model.backbone`"):
            draw_feature_maps(model, np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="must give a dict of levels"):
        draw_feature_maps(keras.Model(backbone.input, backbone.output["P2"]), np.zeros((8, 8, 3)))


def test_nan_is_refused():
    """The weights of a training that failed would end in an error of the linear algebra."""
    backbone = build_tiny_backbone()
    with pytest.raises(ValueError, match="image must be finite"):
        draw_feature_maps(backbone, np.full((8, 8, 3), np.nan))
    backbone.get_layer("stage3_norm").gamma.assign(np.full(16, np.nan))
    with pytest.raises(
        ValueError, match=r"finite features. Received: NaN or infinite ones at P4 of .*load an"
    ):
        draw_feature_maps(backbone, np.zeros((8, 8, 3)))
    for function in (mean_activation, project_to_rgb, strongest_channels):
        with pytest.raises(ValueError, match=r"features must be finite. Received: 1 of 48 NaN or infinite"):
            function(np.where(np.arange(48) == 7, np.inf, 0.0).reshape(4, 4, 3))


def test_picture_of_all_maps(backbone, random):
    image = random.integers(0, 256, (45, 70, 3), np.uint8)
    picture = draw_feature_maps(backbone, image, num_channels=2)
    assert picture.dtype == np.uint8
    # 5 columns and 1 + 4 rows of cells, each 3 times as large as the image, with a caption.
    assert picture.shape[1] == 5 * 210 + 6 * 6
    caption = (picture.shape[0] - 6) / 5 - 6 - 135
    assert 12 < caption < 30
    caption = int(caption)
    enlarged = image.repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(picture[6 + caption : 6 + caption + 135, 6 : 6 + 210], enlarged)

    # The second column of the second row is the projection of P2; its cells stay visible.
    features = keras.ops.convert_to_numpy(backbone(image[None].astype("float32"))["P2"])[0]
    projected = project_to_rgb(features)
    top, left = 6 + (caption + 135 + 6) + caption, 6 + 210 + 6
    cell = picture[top : top + 135, left : left + 210]
    for row in range(projected.shape[0]):
        for column in range(projected.shape[1]):
            y, x = int((row + 0.5) * 135 / 12), int((column + 0.5) * 210 / 18)
            assert np.abs(cell[y, x].astype(int) - projected[row, column]).max() <= 2


def test_picture_is_the_same_for_float_images_and_large_ones_keep_their_size(backbone, random):
    image = random.integers(0, 256, (33, 200, 3), np.uint8)
    picture = draw_feature_maps(backbone, image)
    assert picture.shape[1] == 6 * 200 + 7 * 6
    np.testing.assert_array_equal(draw_feature_maps(backbone, image.astype("float64")), picture)


def test_mixed_precision_backbones_are_drawn(random):
    from van_backbones.backbone import VANBackbone

    backbone = VANBackbone(variant="b0", dtype="mixed_bfloat16")
    picture = draw_feature_maps(backbone, random.integers(0, 256, (64, 64, 3), np.uint8))
    assert picture.std() > 10
    maps = attention_maps(backbone, random.uniform(0, 255, (1, 64, 64, 3)))
    assert {value.dtype for value in maps.values()} == {np.dtype("float32")}


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 4), (1, 64, 64, 3)])
def test_wrong_images_are_refused(backbone, shape):
    with pytest.raises(ValueError, match="image must be"):
        draw_feature_maps(backbone, np.zeros(shape, np.uint8))
