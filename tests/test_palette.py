import numpy as np
import pytest

from heads.drawing.palette import DARKEST, EYES, FIRST_COLOURS, class_palette, contrasting_ink


def lab_of(colour, eyes=((1, 0, 0), (0, 1, 0), (0, 0, 1))):
    """Returns CIE L*a*b* by the textbook, one colour at a time, for a kind of colour vision."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    linear = [min(max(sum(e * c for e, c in zip(row, linear, strict=True)), 0), 1) for row in eyes]
    matrix = [(0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505)]
    f = []
    for row in matrix:
        t = sum(m * c for m, c in zip(row, linear, strict=True)) / sum(row)
        f.append(t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize(("num_classes", "least"), [(1, 0), (12, 17), (40, 12), (150, 5)])
@pytest.mark.parametrize("eyes", EYES.tolist(), ids=["all cones", "protanopia", "deuteranopia"])
def test_palette_colours_are_well_apart(num_classes, least, eyes):
    palette = class_palette(num_classes)
    assert palette.shape == (num_classes, 3)
    assert palette.dtype == np.uint8
    positions = [lab_of(map(int, colour), eyes) for colour in palette]
    for index, position in enumerate(positions):
        for other in positions[:index]:
            assert np.linalg.norm(position - other) > least
        assert np.linalg.norm(position - lab_of((0, 0, 0), eyes)) > least


def test_palette_takes_the_farthest_colour():
    palette = class_palette(8)
    before = ((0, 0, 0), (255, 255, 255), *FIRST_COLOURS)
    taken = [[lab_of(colour, eyes) for colour in before] for eyes in EYES.tolist()]

    def distance(colour):
        seen = [lab_of(colour, eyes) for eyes in EYES.tolist()]
        return min(
            np.linalg.norm(np.array(others) - one, axis=1).min()
            for one, others in zip(seen, taken, strict=True)
        )

    levels = np.linspace(0, 255, 14).round().astype(int).tolist()
    candidates = [(r, g, b) for r in levels for g in levels for b in levels]
    best = max(distance(colour) for colour in candidates if lab_of(colour)[0] >= DARKEST)
    assert distance(palette[7].tolist()) == pytest.approx(best, abs=1e-3)


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


@pytest.mark.parametrize(
    ("colour", "ink"),
    [((255, 255, 255), 0), ((250, 215, 70), 0), ((70, 130, 220), 0), ((45, 55, 120), 255), ((0, 0, 0), 255)],
)
def test_ink_stands_out(colour, ink):
    assert contrasting_ink(colour) == (ink, ink, ink)
