import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from heads.drawing.objects import choose_colours, draw_dashes, draw_detections
from heads.drawing.pages import draw_legend, enlarge_picture
from heads.drawing.palette import class_palette

NAMES = ("cat", "dog", "bird")
NAMELESS = ("", "", "")  # no text, so no tags
GREY = np.full((300, 400, 3), 128, np.uint8)


def make_objects(boxes, labels=None, **others):
    labels = np.zeros(len(boxes), np.int32) if labels is None else np.array(labels, np.int32)
    return {"boxes": np.array(boxes, np.float32).reshape(-1, 4), "labels": labels, **others}


def draw(objects, image=GREY, names=NAMES, factor=1, legend=False, **options):
    return draw_detections(image, objects, names, factor=factor, legend=legend, **options)


def draw_nameless(objects, **options):
    return draw(objects, **{"names": NAMELESS, **options})


@pytest.fixture
def tags(monkeypatch):
    """Returns the list of all tags that are drawn: (left, top, width, height)."""
    drawn, rectangle = [], ImageDraw.ImageDraw.rectangle

    def record(pen, xy, fill=None, **options):
        if fill:
            left, top, right, bottom = xy
            drawn.append((left, top, right + 1 - left, bottom + 1 - top))
        rectangle(pen, xy, fill, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", record)
    return drawn


# Boxes


def test_a_box_has_two_lines_of_its_colour_and_an_outline():
    colour = class_palette(3)[1]
    picture = draw_nameless(make_objects([(100, 50, 200, 120)], [1]))
    depth = np.full(GREY.shape[:2], -9)
    for y in range(300):
        for x in range(400):
            depth[y, x] = min(x - 100, 199 - x, y - 50, 119 - y)
    assert (picture[(depth == 0) | (depth == 1)] == colour).all()
    assert (picture[(depth == -1) | (depth == 2)] == 64).all()  # half black, below a light green
    assert (picture[(depth < -1) | (depth > 2)] == 128).all()


def test_lines_are_thinner_on_small_boxes_and_thicker_on_large_pictures():
    colour = class_palette(3)[0]

    def count(box, image=GREY):
        row = draw_nameless(make_objects([box]), image=image)[int(box[1] + box[3]) // 2]
        return (row == colour).all(axis=-1).sum()

    assert count((100, 100, 120, 120)) == 2
    assert count((100, 100, 180, 180)) == 4
    assert count((100, 20, 280, 180), np.full((200, 3600, 3), 128, np.uint8)) == 12


def test_dark_colours_get_a_light_outline():
    # Label 7 is blue.
    picture = draw_nameless(make_objects([(100, 50, 200, 120)], [7]), names=[""] * 12)
    assert (picture[49, 150] == 192).all()


def test_boxes_are_scaled_with_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    picture = draw_nameless(make_objects([(5, 6, 25, 16)]), image=image, factor=5)
    assert picture.shape == (100, 150, 3)
    colour = class_palette(3)[0]
    assert (picture[30:80, 25] == colour).all()
    assert (picture[30, 25:125] == colour).all()
    assert (picture[79, 25:125] == colour).all()
    inside = enlarge_picture(image, 5)[33:77, 28:122]
    np.testing.assert_array_equal(picture[33:77, 28:122], inside)


@pytest.mark.parametrize(
    "box",
    [(-50, -60, 20, 30), (390, 290, 500, 500), (450, 350, 460, 360), (50, 50, 50, 50), (0, 0, 400, 300)],
)
def test_boxes_across_the_border_do_no_harm(box):
    for others in ({}, {"masks": np.ones((1, 28, 28), np.float32)}, {"masks": np.zeros((1, 300, 400), bool)}):
        assert draw(make_objects([box], **others), show_boxes=True).shape == GREY.shape


# Which objects are drawn


def test_low_scores_padding_and_crowds_are_left_out():
    boxes = [(10, 10, 100, 100), (150, 20, 250, 120), (200, 150, 300, 280), (20, 150, 120, 250)]
    all_of_them = make_objects(boxes, [0, 1, -1, -2], scores=np.array([0.9, 0.29, 0.9, 0.9]))
    one = make_objects(boxes[:1], [0], scores=np.array([0.9]))
    np.testing.assert_array_equal(draw(all_of_them, legend=True), draw(one, legend=True))
    two = draw(all_of_them, score_threshold=0.2)
    assert (two != draw(one)).any()
    truth = {name: value for name, value in all_of_them.items() if name != "scores"}
    np.testing.assert_array_equal(draw(truth), draw(make_objects(boxes[:2], [0, 1])))


def test_no_object_leaves_the_image_as_it_is():
    image = np.random.default_rng(1).integers(0, 256, (60, 200, 3), np.uint8)
    for objects in (
        make_objects([]),
        make_objects([(0, 0, 9, 9)], [-1]),
        make_objects([], masks=np.zeros((0, 28, 28))),
    ):
        np.testing.assert_array_equal(draw(objects, image=image, factor=3), enlarge_picture(image, 3))
        assert draw(objects, image=image, factor=3, legend=True)[180:].min() == 255


def test_input_is_not_changed_and_floats_are_images_too():
    image = np.full((100, 150, 3), 99.6, np.float32)
    objects = make_objects([(10, 10, 60, 60)], scores=np.array([0.5]), masks=np.ones((1, 28, 28), np.float32))
    copies = {name: value.copy() for name, value in objects.items()}
    picture = draw(objects, image=image)
    assert (image == np.float32(99.6)).all()
    for name, value in copies.items():
        np.testing.assert_array_equal(objects[name], value)
    np.testing.assert_array_equal(picture, draw(objects, image=np.full((100, 150, 3), 100, np.uint8)))


# Masks


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_masks_are_filled_and_outlined(dtype):
    mask = np.zeros((60, 80), dtype)
    mask[10:40, 20:50] = 1
    mask[20:30, 50:60] = 1
    image = np.full((60, 80, 3), 128, np.uint8)
    picture = draw_nameless(make_objects([(20, 10, 60, 40)], [1], masks=mask[None]), image=image)
    colour = class_palette(3)[1]
    filled = np.rint(128 + (colour - 128.0) * 0.4)
    for y in range(60):
        for x in range(80):
            around = mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            expected = np.full(3, 128)
            if mask[y, x]:
                expected = filled if around.all() else colour
            elif around.any():
                expected = np.full(3, 64)
            assert picture[y, x].tolist() == expected.tolist()


def test_enlarged_masks_are_smooth():
    mask = np.tri(60, 80, dtype=bool)
    image = np.full((60, 80, 3), 128, np.uint8)
    objects = make_objects([(0, 0, 60, 60)], [1], masks=mask[None])
    picture = draw_nameless(objects, image=image, factor=8)
    outline = (picture == 64).all(axis=-1)
    columns = [np.flatnonzero(row)[-1] for row in outline[40:440]]
    assert np.abs(np.diff(columns)).max() <= 2  # no stairs of 8 pixels
    filled = np.rint(128 + (class_palette(3)[1] - 128.0) * 0.4)
    assert (picture[400, 8:360] == filled).all()
    assert (picture[:380, 400:] == 128).all()


def test_scores_in_the_box_become_masks():
    scores = np.zeros((1, 28, 28), np.float32)
    scores[0, :, :14] = 0.9  # the left half
    picture = draw_nameless(make_objects([(100, 50, 200, 120)], masks=scores))
    changed = (picture != 128).any(axis=-1)
    rows, columns = np.nonzero(changed)
    # With an outline of one pixel.
    assert abs(rows.min() - 50) <= 2
    assert abs(rows.max() - 119) <= 2
    assert abs(columns.min() - 100) <= 2
    assert abs(columns.max() - 150) <= 3
    filled = np.rint(128 + (class_palette(3)[0] - 128.0) * 0.4)
    assert (picture[60:110, 110:140] == filled).all()


def test_boxes_are_drawn_with_masks_on_demand():
    mask = np.zeros((1, 300, 400), bool)
    mask[0, 120:140, 120:140] = True
    objects = make_objects([(100, 100, 200, 200)], masks=mask)
    colour = class_palette(3)[0]
    assert (draw_nameless(objects)[100, 150] == 128).all()
    assert (draw_nameless(objects, show_boxes=True)[100, 150] == colour).all()
    assert (draw_nameless(make_objects([(100, 100, 200, 200)]), show_boxes=False) == 128).all()


# Colours


def test_neighbours_of_a_class_differ_in_brightness():
    row = [(20 + 50 * n, 100, 70 + 50 * n, 150) for n in range(6)]
    picture = draw_nameless(make_objects(row)).astype(int)
    colours = [tuple(picture[100, left + 25]) for left, *_ in row]
    assert all(first != second for first, second in itertools.pairwise(colours))
    assert tuple(class_palette(3)[0]) in colours
    for colour in colours:  # still orange
        assert colour[0] > colour[1] > colour[2]
    apart = draw_nameless(make_objects([row[0], row[3]]))
    assert (apart[100, 45] == apart[100, 195]).all()
    two_classes = draw_nameless(make_objects(row[:2], [0, 1]))
    assert (two_classes[100, 45] == class_palette(3)[0]).all()
    assert (two_classes[100, 95] == class_palette(3)[1]).all()


# Text


def assert_apart_and_inside(tags, shape):
    taken = np.zeros(shape[:2], int)
    for left, top, width, height in tags:
        assert left >= 0
        assert top >= 0
        assert left + width <= shape[1]
        assert top + height <= shape[0]
        taken[top : top + height, left : left + width] += 1
    assert taken.max() == 1


@pytest.mark.parametrize("with_masks", [False, True])
def test_tags_do_not_cover_each_other_or_small_objects(tags, with_masks):
    random = np.random.default_rng(2)
    corners = random.uniform(0, (360, 260), (25, 2))
    boxes = np.concatenate([corners, corners + random.uniform(15, 60, (25, 2))], axis=1)
    boxes = np.minimum(boxes, (400, 300, 400, 300))
    masks = {"masks": np.ones((25, 28, 28), np.float32)} if with_masks else {}
    draw(make_objects(boxes, random.integers(0, 3, 25), scores=random.uniform(0.5, 1, 25), **masks))
    assert len(tags) > 8
    assert_apart_and_inside(tags, GREY.shape)
    for left, top, width, height in tags:
        width_covered = np.minimum(boxes[:, 2], left + width) - np.maximum(boxes[:, 0], left)
        height_covered = np.minimum(boxes[:, 3], top + height) - np.maximum(boxes[:, 1], top)
        covered = np.maximum(width_covered - 2, 0) * np.maximum(height_covered - 2, 0)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        assert (covered / areas).sum() < 0.25


def test_a_lone_tag_stands_above_its_box_and_within_the_picture(tags):
    draw(make_objects([(100, 100, 180, 180)]))
    (left, top, _, height) = tags.pop()
    assert (left, top + height) == (100, 100)
    draw(make_objects([(100, 0, 180, 80)]))
    (left, top, width, height) = tags.pop()
    assert top >= 0
    assert left + width <= 101 or left >= 179 or top == 80  # outside of the box but for its line
    assert max(100 - left - width, left - 180, top - 80) <= 0  # touches it


def test_a_single_class_is_named_by_the_legend_alone(tags):
    draw(make_objects([(100, 100, 180, 180)]), names=["cat"])
    assert not tags
    draw(make_objects([(100, 100, 180, 180)], scores=np.ones(1)), names=["cat"])
    draw(make_objects([(100, 100, 180, 180)], scores=np.ones(1)), names=["cat", "dog"])
    assert tags[0][2] < tags[1][2]


def make_grid(size, gap, count):
    return [
        (x * gap + 2, y * gap + 2, x * gap + 2 + size, y * gap + 2 + size)
        for y in range(count)
        for x in range(count)
    ]


def test_many_small_objects_get_no_text(tags):
    grid = make_grid(12, 26, 10)
    draw(make_objects(grid, scores=np.ones(100)))
    assert not tags
    large = [*grid, (280, 20, 380, 120)]
    draw(make_objects(large, [0] * 100 + [1], scores=np.ones(101)))
    assert len(tags) == 1  # of the large one, which is of another class
    tags.clear()
    draw(make_objects(grid[:9], scores=np.ones(9)))
    assert tags


def test_text_has_the_objects_colour_behind_it():
    picture = draw(make_objects([(100, 100, 180, 180)], [2]))
    strip = picture[86:98, 100:124]
    colours, counts = np.unique(strip.reshape(-1, 3), axis=0, return_counts=True)
    assert colours[counts.argmax()].tolist() == class_palette(3)[2].tolist()
    assert strip.min() < 20  # ink


def test_the_legend_counts_what_is_drawn():
    boxes = make_grid(40, 60, 2)
    picture = draw(make_objects(boxes, [0, 2, 2, 2]), legend=True)
    np.testing.assert_array_equal(picture[:300], draw(make_objects(boxes, [0, 2, 2, 2])))
    expected = draw_legend(("cat (1)", "bird (3)"), 400, class_palette(3)[[0, 2]])
    np.testing.assert_array_equal(picture[300:], expected)


# Sizes


def test_small_pictures_and_small_objects_are_enlarged():
    def factor(side, object_side):
        image = np.zeros((side, side // 2, 3), np.uint8)
        objects = make_objects([(0, 0, object_side, object_side)] * 4)
        return draw_detections(image, objects, NAMES, legend=False).shape[0] / side

    assert factor(100, 50) == 7  # enlarged to 640 pixels or more
    assert factor(640, 50) == 1
    assert factor(3000, 50) == 1
    assert factor(640, 12) == 2  # objects enlarged to about 24 pixels
    assert factor(640, 2) == 2  # the picture enlarged to 1600 pixels at most
    assert factor(2000, 2) == 1


def test_a_narrow_picture_leaves_room_for_the_legend():
    picture = draw(make_objects([(0, 0, 5, 5)]), image=np.zeros((80, 20, 3), np.uint8), legend=True)
    assert picture.shape[0] > 80
    assert picture.shape[1] >= 160


# Errors


def test_objects_that_do_not_fit_are_refused():
    box = [(10, 10, 50, 50)]
    with pytest.raises(ValueError, match=r'must have "boxes" and "labels".*labels'):
        draw({"labels": np.zeros(1, int)})
    with pytest.raises(ValueError, match=r"boxes \(n, 4\).*'labels': \(2,\)"):
        draw(make_objects(box, [0, 1]))
    with pytest.raises(ValueError, match=r"'scores': \(3,\)"):
        draw(make_objects(box, scores=np.ones(3)))
    with pytest.raises(ValueError, match=r"bool \(n, 300, 400\).*'masks': \(1, 28, 28\)"):
        draw(make_objects(box, masks=np.ones((1, 28, 28), bool)))
    with pytest.raises(ValueError, match=r"'masks': \(1, 28\)"):
        draw(make_objects(box, masks=np.ones((1, 28))))
    with pytest.raises(ValueError, match="those of one image"):
        draw({"boxes": np.zeros((2, 3, 4)), "labels": np.zeros((2, 3), int)})
    with pytest.raises(ValueError, match=r"integers below 3.*up to 3"):
        draw(make_objects(box, [3]))
    with pytest.raises(ValueError, match="float64"):
        draw({"boxes": np.zeros((1, 4)), "labels": np.zeros(1)})
    for factor in (0, 1.5):
        with pytest.raises(ValueError, match=f"factor must be .*at least 1. Received: {factor}"):
            draw(make_objects(box), factor=factor)
    with pytest.raises(ValueError, match=r"RGB\. Received: shape"):
        draw(make_objects(box), image=GREY[:, :, 0])


# Scores, and a single class


def test_boxes_are_fainter_where_the_score_is_low():
    colour = class_palette(3)[0].astype(int)

    def distance(score):
        objects = make_objects([(100, 50, 200, 120)], scores=np.array([score]))
        pixel = draw_nameless(objects, score_threshold=0.0)[80, 100].astype(int)
        return np.abs(pixel - colour).sum()

    distances = [distance(score) for score in (1.0, 0.7, 0.3, 0.0)]
    assert distances[0] == 0
    assert distances == sorted(distances)
    assert distances[-1] < np.abs(colour - 128).sum()  # still visible


def test_each_object_of_a_single_class_has_its_own_colour():
    boxes = [(x, 100, x + 40, 140) for x in range(0, 350, 50)]
    colours = choose_colours(make_objects(boxes), ["nucleus"])
    assert len(set(colours)) == len(boxes) == 7
    many = [(x, y, x + 9, y + 9) for x in range(0, 200, 12) for y in range(0, 60, 12)]
    colours = choose_colours(make_objects(many), ["nucleus"])
    for (box, colour), (other, another) in itertools.combinations(zip(many, colours, strict=True), 2):
        if abs(box[0] - other[0]) + abs(box[1] - other[1]) == 12:  # side by side
            assert colour != another
    assert set(choose_colours(make_objects(boxes, [1] * 7), NAMES)).isdisjoint(map(tuple, class_palette(1)))


def test_dashes_lie_on_the_box():
    picture = Image.new("RGB", (60, 40))
    draw_dashes(picture, (5, 6, 54, 33), (255, 0, 0), 2, 4, 8)
    drawn = np.asarray(picture)[..., 0] > 0
    assert drawn[6, 5:9].all()
    assert not drawn[6, 9:13].any()
    assert drawn[6, 13:17].all()
    assert not drawn[8:32, 7:53].any()
    assert not drawn[:6].any()
    assert not drawn[34:].any()
    assert 0.3 < drawn[6:34, 5:7].mean() < 0.7
    draw_dashes(picture, (3, 3, 3, 3), (0, 255, 0), 5, 4, 8)
    assert np.asarray(picture)[3, 3, 1] == 255
    assert (np.asarray(picture)[..., 1] == 255).sum() == 1
