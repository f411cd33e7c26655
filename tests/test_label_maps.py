import numpy as np
import pytest

from heads.drawing.label_maps import (
    WRONG_COLOUR,
    draw_comparison,
    draw_label_map,
    draw_segmentation,
    draw_wrong_pixels,
    overlay_label_map,
)
from heads.drawing.pages import draw_legend, label_picture
from heads.drawing.palette import class_palette

NAMES = ("sky", "ground", "water")


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


def test_segmentation_enlarges_small_pictures_by_a_whole_factor():
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), np.uint8)
    truth = np.zeros((40, 64), np.int32)
    picture = draw_segmentation(image, truth, truth + 1, NAMES)
    # Four pictures of 64 x 4 pixels, which is at least 256.
    assert picture.shape[1] == 4 * 256 + 5 * 6
    enlarged = image.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(picture[-6 - 160 : -6, 6 : 6 + 256], enlarged)
    large = np.zeros((40, 300, 3), np.uint8)
    row = draw_segmentation(large, np.zeros((40, 300), int), np.zeros((40, 300), int), NAMES)
    assert row.shape[1] == 4 * 300 + 5 * 6


def test_segmentation_shows_the_wrong_pixels_and_tells_their_share():
    image = np.full((256, 256, 3), 100, np.uint8)
    truth = np.zeros((256, 256), int)
    truth[:128] = 1
    truth[:, :64] = 255  # a quarter does not count
    captions = {
        text: label_picture(np.zeros((1, 256, 3), np.uint8), text)[:-1]
        for text in ("wrong: 50.0%", "wrong: 0.0%", "wrong")
    }

    def caption_of(truth, prediction):
        row = draw_segmentation(image, truth, prediction, NAMES)
        strip = row[6 : 6 + len(captions["wrong"]), -6 - 256 : -6]
        is_red = (row[-6 - 256 : -6, -6 - 256 : -6] == WRONG_COLOUR).all(axis=-1)
        np.testing.assert_array_equal(is_red, (truth != prediction) & (truth != 255))
        return [text for text, expected in captions.items() if (strip == expected).all()]

    assert caption_of(truth, np.zeros((256, 256), int)) == ["wrong: 50.0%"]
    assert caption_of(truth, np.where(truth == 255, 2, truth)) == ["wrong: 0.0%"]
    assert caption_of(np.full((256, 256), 255), truth) == ["wrong"]


def test_right_pixels_are_light_and_grey():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    picture = draw_wrong_pixels(image, np.zeros((4, 5), bool))
    assert picture.min() >= 155
    assert (np.ptp(picture, axis=-1) == 0).all()
    assert picture.std() > 5
    for wrong in (np.zeros((4, 5)), np.zeros((5, 4), bool)):
        with pytest.raises(ValueError, match="wrong must be bool"):
            draw_wrong_pixels(image, wrong)


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
    with pytest.raises(ValueError, match=r"Received: \(2, 1, 1\)"):
        draw_comparison([image, image], [label_map], [label_map], NAMES)
    with pytest.raises(ValueError, match="at least one"):
        draw_comparison([], [], [], NAMES)
    with pytest.raises(ValueError, match=r"0 \.\. 2"):
        draw_comparison([image], [label_map], [label_map + 3], NAMES)
    with pytest.raises(ValueError, match="same height and width"):
        draw_comparison([image], [label_map], [label_map[:4]], NAMES)
