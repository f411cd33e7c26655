import keras
import numpy as np
import pytest
from PIL import Image

from van_backbones.feature_maps import (
    attention_maps,
    compare_features,
    draw_feature_comparison,
    draw_feature_maps,
    draw_receptive_fields,
    has_random_weights,
    project_to_rgb,
    project_together,
    similarity_to_point,
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
    for function in (project_to_rgb, strongest_channels):
        with pytest.raises(ValueError, match=r"Received shape: \(4, 4\)"):
            function(np.zeros((4, 4)))
        with pytest.raises(ValueError, match=r"Received shape: \(0, 4, 8\)"):
            function(np.zeros((0, 4, 8)))
    for num_channels in (0, 5):
        with pytest.raises(ValueError, match=rf"1 \.\. 4. Received: {num_channels}"):
            strongest_channels(np.zeros((3, 3, 4)), num_channels)


def test_bfloat16_tensors_are_taken():
    features = keras.ops.cast(np.arange(24).reshape(2, 3, 4), "bfloat16")
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


def build_tiny_backbone(dtype=None):
    from van_backbones.backbone import VANBackbone

    return VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), dtype=dtype)


def test_attention_needs_van_blocks():
    """A model around the backbone may preprocess pictures, which the backbone's own pictures would lack."""
    backbone = build_tiny_backbone()
    inputs = keras.Input((8, 8, 3))
    stranger = keras.Model(inputs, keras.layers.ReLU()(inputs))
    around = keras.Model(inputs, backbone(keras.layers.Rescaling(0.5)(inputs)))
    for model in (stranger, around, keras.Sequential([inputs, backbone]), None):
        with pytest.raises(ValueError, match=r"must be a VANBackbone.*pass `model.backbone`"):
            draw_feature_maps(model, np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="must give a dict of levels"):
        draw_feature_maps(keras.Model(backbone.input, backbone.output["P2"]), np.zeros((8, 8, 3)))


def test_nan_is_refused():
    """The weights of a failed training would otherwise end in an error of the linear algebra."""
    backbone = build_tiny_backbone()
    with pytest.raises(ValueError, match="image must be finite"):
        draw_feature_maps(backbone, np.full((8, 8, 3), np.nan))
    backbone.get_layer("stage3_norm").gamma.assign(np.full(16, np.nan))
    with pytest.raises(
        ValueError, match=r"finite features. Received: NaN or infinite ones at P4 of .*load an"
    ):
        draw_feature_maps(backbone, np.zeros((8, 8, 3)))
    for function in (project_to_rgb, strongest_channels):
        with pytest.raises(ValueError, match=r"features must be finite. Received: 1 of 48 NaN or infinite"):
            function(np.where(np.arange(48) == 7, np.inf, 0.0).reshape(4, 4, 3))


CAPTION, BAR, MARGIN = 21, 31, 6


def find_cell(picture, row, column, size):
    """Returns the cell of a page whose picture is in row 0; `size` is that of a cell."""
    height, width = size
    top = MARGIN + row * (CAPTION + height + MARGIN) + CAPTION
    left = MARGIN + column * (width + MARGIN)
    return picture[top : top + height, left : left + width]


def assert_cells(cell, expected, tolerance=2):
    """Each position is a rectangle in its colour."""
    rows, columns = expected.shape[:2]
    for row in range(rows):
        for column in range(columns):
            y = int((row + 0.5) * cell.shape[0] / rows)
            x = int((column + 0.5) * cell.shape[1] / columns)
            assert np.abs(cell[y, x].astype(int) - expected[row, column]).max() <= tolerance


def test_picture_of_all_maps(backbone, random):
    image = random.integers(0, 256, (45, 70, 3), np.uint8)
    picture = draw_feature_maps(backbone, image, num_channels=2)
    assert picture.dtype == np.uint8
    # 4 columns; 1 + 4 rows of cells, each 3 times as large as the image, with a caption, and the colour bars.
    assert picture.shape[1] == 4 * 210 + 5 * MARGIN
    assert picture.shape[0] == MARGIN + 5 * (CAPTION + 135 + MARGIN) + BAR + MARGIN
    enlarged = image.repeat(3, axis=0).repeat(3, axis=1)
    np.testing.assert_array_equal(find_cell(picture, 0, 0, (135, 210)), enlarged)
    features = keras.ops.convert_to_numpy(backbone(image[None].astype("float32"))["P2"])[0]
    assert_cells(find_cell(picture, 1, 0, (135, 210)), project_to_rgb(features))
    # Channels in deviations: the mean is nearly white, three deviations above it are dark red.
    _indices, maps = strongest_channels(features, 2)
    shares = np.clip(((maps[1] - maps[1].mean()) / maps[1].std() + 3) / 6, 0, 1)
    from matplotlib import colormaps

    assert_cells(find_cell(picture, 1, 2, (135, 210)), colormaps["RdBu_r"](shares, bytes=True)[:, :, :3])
    # No bar below the colours, and one below all others.
    bars = picture[-MARGIN - BAR : -MARGIN - BAR + 10]
    assert (bars[:, MARGIN : MARGIN + 210] == 255).all()
    assert all(bars[:, MARGIN + k * 216 : MARGIN + k * 216 + 210].std() > 20 for k in (1, 2, 3))


def test_one_scale_for_the_attention_of_all_levels(backbone, random):
    image = random.integers(0, 256, (64, 64, 3), np.uint8)
    picture = draw_feature_maps(backbone, image, num_channels=1)
    maps = {level: each[0] / each[0].mean() for level, each in attention_maps(backbone, image[None]).items()}
    top = max(1.0, np.percentile(np.concatenate([each.ravel() for each in maps.values()]), 98))
    from matplotlib import colormaps

    grey = np.asarray(Image.fromarray(image).convert("L")).repeat(3, axis=0).repeat(3, axis=1)
    for row, level in enumerate(sorted(maps), 1):
        cell = find_cell(picture, row, 2, (192, 192))
        side = len(maps[level])
        heat = colormaps["inferno"](np.clip(maps[level] / top, 0, 1), bytes=True)[:, :, :3]
        places = [int((k + 0.5) * 192 / side) for k in range(side)]
        below = grey[np.ix_(places, places)][:, :, None]
        assert_cells(cell, np.rint(0.4 * below + 0.6 * heat).astype(int))


def test_reasons_and_similarity_are_columns(backbone, random):
    image = random.integers(0, 256, (64, 96, 3), np.uint8)
    class_maps = {"dog": {"P5": np.array([[0.0, 2.0, 1.0], [0.0, 0.0, 0.0]], "float32")}}
    picture = draw_feature_maps(backbone, image, 1, class_maps=class_maps, point=(40, 10))
    size = (128, 192)
    assert picture.shape[1] == 5 * 192 + 6 * MARGIN
    assert (find_cell(picture, 1, 3, size)[5, 5] == 235).all()  # P2 has no map
    cell = find_cell(picture, 4, 3, size).astype(int)
    assert cell[10, 96].sum() > cell[10, 160].sum() > cell[10, 10].sum()
    # The cross is on all cells of the page, at the middle of the pixel.
    assert (find_cell(picture, 0, 0, size)[21, 81] == 255).all()
    assert (find_cell(picture, 3, 1, size)[21, 81] == 255).all()
    with pytest.raises(
        ValueError, match=r"point must be \(x, y\) within .* 96 x 64 pixels. Received: \(96, 0\)"
    ):
        draw_feature_maps(backbone, image, point=(96, 0))


def has_red_text(picture):
    return (picture == (200, 0, 0)).all(axis=-1).sum() > 50


def test_random_weights_are_told_in_the_picture(random):
    image = random.integers(0, 256, (64, 64, 3), np.uint8)
    backbone = build_tiny_backbone()
    assert has_random_weights(backbone)
    assert has_red_text(draw_feature_maps(backbone, image))
    assert has_red_text(draw_receptive_fields({"P2": np.ones((64, 64))}, 1, backbone))
    assert not has_red_text(draw_receptive_fields({"P2": np.ones((64, 64))}, 1))
    backbone(image[None].astype("float32"), training=True)  # changes its statistics, so it was trained
    assert not has_random_weights(backbone)
    assert not has_red_text(draw_feature_maps(backbone, image))


def test_loaded_weights_are_not_random(random):
    backbone = build_tiny_backbone()
    assert has_random_weights(backbone)
    backbone.get_layer("stage2_block0").layer_scale_1.assign(np.full(8, 0.3))
    assert not has_random_weights(backbone)  # as with frozen batch norms
    assert has_random_weights(build_tiny_backbone(dtype="bfloat16"))


def test_two_models_in_one_projection(random):
    image = random.integers(0, 256, (64, 96, 3), np.uint8)
    before, after = build_tiny_backbone(), build_tiny_backbone()
    after.set_weights(before.get_weights())
    picture = draw_feature_comparison({"before": before, "after": after}, image)
    size = (128, 192)
    assert picture.shape[1] == 3 * 192 + 4 * MARGIN
    for row in range(1, 5):
        np.testing.assert_array_equal(find_cell(picture, row, 0, size), find_cell(picture, row, 1, size))
    assert has_red_text(picture)
    after.get_layer("stage4_norm").gamma.assign(-np.ones(16))
    after.get_layer("stage4_norm").beta.assign(np.zeros(16))
    changed = draw_feature_comparison({"before": before, "after": after}, image)
    np.testing.assert_array_equal(find_cell(picture, 3, 2, size), find_cell(changed, 3, 2, size))
    assert find_cell(changed, 4, 2, size).mean() > find_cell(picture, 4, 2, size).mean() + 40
    with pytest.raises(ValueError, match=r"backbones must be two. Received: \['one'\]"):
        draw_feature_comparison({"one": before}, image)
    from van_backbones.backbone import VANBackbone

    other = VANBackbone("b0", widths=(8, 8, 16, 24), depths=(1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"same levels and channels. Received: .*16.* and .*24"):
        draw_feature_comparison({"one": before, "other": other}, image)


def test_projection_of_two_maps_is_one(random):
    one, other = random.normal(size=(5, 6, 8)), random.normal(size=(3, 4, 8)) + 2.0
    together = project_together([one, other])
    assert [each.shape for each in together] == [(5, 6, 3), (3, 4, 3)]
    # Like one map.
    stacked = np.concatenate([one.reshape(-1, 8), other.reshape(-1, 8)])[None]
    expected = project_to_rgb(stacked)[0]
    np.testing.assert_array_equal(np.concatenate([each.reshape(-1, 3) for each in together]), expected)
    for maps in ([], [one, random.normal(size=(3, 4, 7))]):
        with pytest.raises(ValueError, match="maps must be feature maps with equal channels"):
            project_together(maps)


def test_similarity_is_the_cosine(random):
    features = random.normal(size=(4, 5, 6)) + 10.0
    found = similarity_to_point(features, (1, 3))
    centred = features - features.mean(axis=(0, 1))
    for row in range(4):
        for column in range(5):
            one, other = centred[row, column], centred[1, 3]
            expected = one @ other / np.sqrt((one @ one) * (other @ other))
            assert found[row, column] == pytest.approx(expected, abs=1e-5)
    assert found[1, 3] == pytest.approx(1.0)
    assert (similarity_to_point(np.ones((2, 2, 3)), (0, 0)) == 0).all()  # nothing differs
    for position in ((4, 0), (0, -1)):
        with pytest.raises(ValueError, match=r"position must be \(row, column\) within 4 x 5. Received"):
            similarity_to_point(features, position)


def test_differences_of_features():
    one = np.array([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]]])
    other = np.array([[[3.0, 0.0], [1.0, 0.0], [-1.0, -1.0], [1.0, 1.0]]])
    np.testing.assert_allclose(compare_features(one, other), [[0.0, 1.0, 2.0, 1.0]], atol=1e-6)
    with pytest.raises(ValueError, match=r"of one shape. Received: \(1, 4, 2\) and \(1, 3, 2\)"):
        compare_features(one, other[:, :3])


def test_receptive_fields_are_drawn():
    fields = {"P2": np.zeros((50, 60), "float32"), "P3": np.full((50, 60), 1e-3, "float32")}
    fields["P2"][25, 30] = 1.0
    picture = draw_receptive_fields(fields, 3)
    width = 60 * 4
    assert picture.shape[1] == 2 * width + 3 * MARGIN
    assert (picture == (253, 231, 36)).all(axis=-1).sum() >= 16  # the strongest pixel, 4 x 4
    with pytest.raises(ValueError, match="at least one level"):
        draw_receptive_fields({}, 0)


def test_picture_is_the_same_for_float_images_and_large_ones_are_drawn_smaller(backbone, random):
    image = random.integers(0, 256, (33, 200, 3), np.uint8)
    picture = draw_feature_maps(backbone, image)
    assert picture.shape[1] == 5 * 200 + 6 * MARGIN
    np.testing.assert_array_equal(draw_feature_maps(backbone, image.astype("float64")), picture)
    assert draw_feature_maps(backbone, image.repeat(4, axis=1)[:8]).shape[1] == 5 * 320 + 6 * MARGIN


def test_mixed_precision_backbones_are_drawn(random):
    from van_backbones.backbone import VANBackbone

    backbone = VANBackbone(variant="b0", dtype="mixed_bfloat16")
    picture = draw_feature_maps(backbone, random.integers(0, 256, (64, 64, 3), np.uint8))
    assert picture.std() > 10
    maps = attention_maps(backbone, random.uniform(0, 255, (1, 64, 64, 3)))
    assert {value.dtype for value in maps.values()} == {np.dtype("float32")}


def test_images_of_other_channels_are_drawn_as_shown(random):
    from van_backbones.backbone import VANBackbone

    backbone = VANBackbone("b0", (None, None, 5), normalization=None)
    image = random.uniform(0, 3000, (40, 64, 5)).astype("float32")
    shown = random.integers(0, 256, (40, 64, 3), np.uint8)
    page = draw_feature_maps(backbone, image, shown=shown)
    assert {tuple(colour) for colour in shown.reshape(-1, 3)} <= {tuple(each) for each in page.reshape(-1, 3)}
    other = draw_feature_maps(backbone, image, shown=255 - shown)
    assert (page != other).any()
    pair = draw_feature_comparison({"one": backbone, "other": backbone}, image, shown)
    assert {tuple(each) for each in shown[:9, :9].reshape(-1, 3)} <= set(map(tuple, pair.reshape(-1, 3)))
    with pytest.raises(ValueError, match=r"or else `shown` be given\. Received shape: \(40, 64, 5\)"):
        draw_feature_maps(backbone, image)
    with pytest.raises(ValueError, match=r"shown must be .* \(40, 60, 3\), of an image \(40, 64, 5\)"):
        draw_feature_maps(backbone, image, shown=shown[:, :60])


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 4), (1, 64, 64, 3)])
def test_wrong_images_are_refused(backbone, shape):
    with pytest.raises(ValueError, match="image must be"):
        draw_feature_maps(backbone, np.zeros(shape, np.uint8))
