import numpy as np
import pytest

from heads.drawing.label_maps import (
    FIRST_COLOURS,
    class_palette,
    draw_comparison,
    draw_label_map,
    draw_legend,
    draw_segmentation,
    label_picture,
    overlay_label_map,
    tile_pictures,
)

NAMES = ("sky", "ground", "water")


def lab_of(colour):
    """CIE L*a*b* by the textbook, one colour at a time."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    matrix = [(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)]
    f = []
    for row in matrix:
        t = sum(m * c for m, c in zip(row, linear, strict=True)) / sum(row)
        f.append(t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("num_classes", "least"), [(1, 0), (12, 25), (40, 20), (150, 9)])
def test_palette_colours_are_well_apart(num_classes, least):
    palette = class_palette(num_classes)
    assert palette.shape == (num_classes, 3)
    assert palette.dtype == np.uint8
    positions = [lab_of(map(int, colour)) for colour in palette]
    for index, position in enumerate(positions):
        for other in positions[:index]:
            assert np.linalg.norm(position - other) > least
        assert np.linalg.norm(position - lab_of((0, 0, 0))) > least


def test_palette_takes_the_farthest_colour():
    palette = class_palette(13)
    taken = [lab_of(colour) for colour in ((0, 0, 0), (255, 255, 255), *FIRST_COLOURS)]

    def distance(colour):
        return min(np.linalg.norm(lab_of(colour) - other) for other in taken)

    levels = np.linspace(0, 255, 14).round().astype(int).tolist()
    best = max(distance((r, g, b)) for r in levels for g in levels for b in levels)
    assert distance(palette[12].tolist()) == pytest.approx(best, abs=1e-3)


def test_colour_of_a_class_does_not_depend_on_the_number_of_classes():
    np.testing.assert_array_equal(class_palette(5), class_palette(150)[:5])
    np.testing.assert_array_equal(class_palette(20), class_palette(150)[:20])


def test_palette_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        class_palette(3)[0] = 0


@pytest.mark.parametrize("num_classes", [0, -1, 1001])
def test_palette_of_a_wrong_size_is_refused(num_classes):
    with pytest.raises(ValueError, match=f"Received: {num_classes}"):
        class_palette(num_classes)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_label_map_gets_the_palettes_colours(dtype):
    label_map = np.array([[0, 1, 2], [2, 255, 0]], dtype)
    palette = np.array([(1, 2, 3), (40, 50, 60), (7, 8, 9)], np.uint8)
    picture = draw_label_map(label_map, palette)
    assert picture.dtype == np.uint8
    for y in range(2):
        for x in range(3):
            if label_map[y, x] != 255:
                assert picture[y, x].tolist() == palette[label_map[y, x]].tolist()
    assert picture[1, 1].max() <= 70
    assert len(set(picture[1, 1].tolist())) == 1
    np.testing.assert_array_equal(draw_label_map(label_map)[0], class_palette(3))
    np.testing.assert_array_equal(draw_label_map(label_map, num_classes=9), draw_label_map(label_map))


def test_ignored_pixels_are_hatched_and_dark():
    picture = draw_label_map(np.full((12, 12), 255))
    assert set(np.unique(picture)) == {20, 70}
    assert len({row.tobytes() for row in picture}) > 1


@pytest.mark.parametrize("wrong", [3, 254, -1])
def test_labels_outside_of_the_palette_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must hold 0 \.\. 2 or 255"):
        draw_label_map(np.array([[0, wrong]]), num_classes=3)


def test_wrong_label_maps_and_palettes_are_refused():
    with pytest.raises(ValueError, match="float64"):
        draw_label_map(np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"\(1, 3, 3\)"):
        draw_label_map(np.zeros((1, 3, 3), int))
    with pytest.raises(ValueError, match="palette must be uint8"):
        draw_label_map(np.zeros((3, 3), int), np.zeros((2, 3)))


def test_overlay_mixes_and_draws_borders():
    image = np.full((3, 6, 3), 200, np.uint8)
    label_map = np.zeros((3, 6), int)
    label_map[1:, 3:] = 1
    palette = np.array([(0, 0, 0), (100, 0, 40)], np.uint8)
    picture = overlay_label_map(image, label_map, 0.25, palette)
    for y in range(3):
        for x in range(6):
            mixed = 0.75 * image[y, x] + 0.25 * palette[label_map[y, x]]
            left = x > 0 and label_map[y, x] != label_map[y, x - 1]
            above = y > 0 and label_map[y, x] != label_map[y - 1, x]
            expected = np.rint(mixed * 0.35 if left or above else mixed)
            assert picture[y, x].tolist() == expected.tolist()
    assert (image == 200).all()


def test_overlay_takes_float_images_and_checks_sizes():
    label_map = np.zeros((4, 5), int)
    image = np.full((4, 5, 3), 99.6, np.float32)
    assert (overlay_label_map(image, label_map, 0.0) == 100).all()
    np.testing.assert_array_equal(overlay_label_map(image, label_map, 1.0), draw_label_map(label_map))
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(5, 4\)"):
        overlay_label_map(image, label_map.T)
    with pytest.raises(ValueError, match="opacity"):
        overlay_label_map(image, label_map, 1.5)
    with pytest.raises(ValueError, match="int64"):
        overlay_label_map(image.astype("int64"), label_map)


def test_legend_shows_each_colour_and_breaks_lines():
    wide, narrow = draw_legend(NAMES, 400), draw_legend(NAMES, 100)
    assert wide.shape[1:] == (400, 3)
    assert narrow.shape[1:] == (100, 3)
    assert narrow.shape[0] > wide.shape[0]
    for picture in (wide, narrow):
        assert picture.dtype == np.uint8
        for colour in class_palette(3):
            assert (picture == colour).all(axis=-1).sum() > 100  # the square
    custom = draw_legend(NAMES[:1], 200, np.array([(1, 200, 3)], np.uint8))
    assert (custom == (1, 200, 3)).all(axis=-1).any()


def test_legend_edge_cases():
    assert draw_legend([], 100).min() == 255
    assert draw_legend(["a name that is much too long for one line"] * 2, 90).shape[1] == 90
    with pytest.raises(ValueError, match="width must be at least"):
        draw_legend(NAMES, 20)
    with pytest.raises(ValueError, match="each of 3 names"):
        draw_legend(NAMES, 200, class_palette(2))


def test_caption_is_above_the_picture():
    picture = np.full((10, 60, 3), 7, np.uint8)
    labelled = label_picture(picture, "sky")
    np.testing.assert_array_equal(labelled[-10:], picture)
    strip = labelled[:-10]
    assert 12 <= len(strip) <= 30
    assert strip.min() < 50  # ink
    assert (strip[:, -5:] == 255).all()
    assert (label_picture(picture, "")[:-10] == 255).all()


def test_long_caption_is_cut_at_the_pictures_width():
    for width in (1, 9, 40):
        picture = np.zeros((4, width, 3), np.uint8)
        assert label_picture(picture, "a very long caption").shape[1] == width


def test_tiles_lie_where_they_should():
    rows = [[np.full((2, 3, 3), 10, np.uint8), np.full((4, 1, 3), 20, np.uint8)], [np.full((1, 2, 3), 30.0)]]
    page = tile_pictures(rows, margin=1)
    expected = np.full((8, 7), 255)
    expected[1:3, 1:4] = 10
    expected[1:5, 5] = 20
    expected[6, 1:3] = 30
    np.testing.assert_array_equal(page, np.repeat(expected[:, :, None], 3, axis=2))
    assert page.dtype == np.uint8


@pytest.mark.parametrize("rows", [[], [[]], [[np.zeros((2, 2, 3), np.uint8)], []]])
def test_nothing_to_tile_is_refused(rows):
    with pytest.raises(ValueError, match="at least one"):
        tile_pictures(rows)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (1, 4, 4, 3)])
def test_pictures_of_a_wrong_shape_are_refused(shape):
    with pytest.raises(ValueError, match="Received shape"):
        tile_pictures([[np.zeros(shape, np.uint8)]])


def test_segmentation_enlarges_small_pictures_by_a_whole_factor():
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    truth = np.zeros((40, 64), np.int32)
    picture = draw_segmentation(image, truth, truth + 1, NAMES)
    # Three pictures of 64 x 4 pixels, which is at least 256.
    assert picture.shape[1] == 3 * 256 + 4 * 6
    enlarged = image.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(picture[-6 - 160 : -6, 6 : 6 + 256], enlarged)
    large = np.zeros((40, 300, 3), np.uint8)
    row = draw_segmentation(large, np.zeros((40, 300), int), np.zeros((40, 300), int), NAMES)
    assert row.shape[1] == 3 * 300 + 4 * 6


def test_segmentation_tells_the_share_of_right_pixels():
    image = np.zeros((256, 256, 3), np.uint8)
    truth = np.zeros((256, 256), int)
    truth[:128] = 1
    truth[:, :64] = 255  # a quarter does not count
    captions = {
        text: label_picture(np.zeros((1, 256, 3), np.uint8), text)[:-1]
        for text in ("prediction: 50.0% right", "prediction: 100.0% right", "prediction")
    }

    def caption_of(truth, prediction):
        row = draw_segmentation(image, truth, prediction, NAMES)
        strip = row[6 : 6 + len(captions["prediction"]), -6 - 256 : -6]
        return [text for text, expected in captions.items() if (strip == expected).all()]

    assert caption_of(truth, np.zeros((256, 256), int)) == ["prediction: 50.0% right"]
    assert caption_of(truth, np.where(truth == 255, 2, truth)) == ["prediction: 100.0% right"]
    assert caption_of(np.full((256, 256), 255), truth) == ["prediction"]


def test_comparison_has_all_rows_and_a_legend_of_what_occurs():
    images = [np.zeros((256, 300, 3), np.uint8), np.zeros((256, 256, 3), np.float32)]
    truths = [np.zeros((256, 300), int), np.full((256, 256), 255)]
    predictions = [np.zeros((256, 300), int), np.full((256, 256), 2)]
    picture = draw_comparison(images, truths, predictions, NAMES)
    rows = [draw_segmentation(*each, NAMES) for each in zip(images, truths, predictions, strict=True)]
    np.testing.assert_array_equal(picture[: len(rows[0]), : rows[0].shape[1]], rows[0])
    legend = picture[len(rows[0]) + len(rows[1]) :]
    np.testing.assert_array_equal(
        legend, draw_legend(("sky", "water"), picture.shape[1], class_palette(3)[[0, 2]])
    )


def test_comparison_refuses_what_does_not_fit():
    image, label_map = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), int)
    with pytest.raises(ValueError, match="Received: 2, 1 and 1"):
        draw_comparison([image, image], [label_map], [label_map], NAMES)
    with pytest.raises(ValueError, match="at least one"):
        draw_comparison([], [], [], NAMES)
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        draw_comparison([image], [label_map], [label_map + 3], NAMES)
    with pytest.raises(ValueError, match="same height and width"):
        draw_comparison([image], [label_map], [label_map[:4]], NAMES)
