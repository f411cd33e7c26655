"""The colours of the classes."""

import functools

import numpy as np

# Chosen by hand; all further colours are computed.
CODES = "4682dc 6eaf50 1ea0a5 e13c3c 965f37 fad746 eb78c8 195f3c f5912d 7d46be 2d3778 b9b9be"
FIRST_COLOURS = [tuple(bytes.fromhex(code)) for code in CODES.split()]
# The CIE's, for sRGB and the white point D65.
RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
XYZ_TO_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]])


@functools.cache
def class_palette(num_classes: int) -> np.ndarray:
    """Returns well separated colours, uint8 (num_classes, 3), always the same.

    The first twelve are chosen by hand. Each further colour is the one farthest from all before it, and from
    black and white, as the eye sees it (CIE 1976 L*a*b*). So the colour of a class does not depend on
    `num_classes`.

    Raises:
        ValueError: If `num_classes` is not in 1 .. 1000.
    """
    if not 1 <= num_classes <= 1000:
        raise ValueError(f"num_classes must be in 1 .. 1000. Received: {num_classes!r}")
    palette = list(FIRST_COLOURS)
    candidates = np.linspace(0, 255, 14).round()[np.indices((14, 14, 14)).reshape(3, -1).T]
    positions = _to_lab(candidates)
    taken = _to_lab([(0, 0, 0), (255, 255, 255), *palette])
    distances = np.linalg.norm(positions[:, None] - taken, axis=2).min(axis=1)
    while len(palette) < num_classes:
        # Rounded, because the last bit of equal distances differs between machines.
        farthest = distances.round(3).argmax()
        palette.append(candidates[farthest])
        distances = np.minimum(distances, np.linalg.norm(positions - positions[farthest], axis=1))
    palette = np.array(palette[:num_classes], np.uint8)
    palette.flags.writeable = False
    return palette


def contrasting_ink(colour) -> tuple:
    """Returns black or white, whichever is easier to read on a colour (WCAG 2)."""
    return (0, 0, 0) if (np.array(colour) / 255) ** 2.2 @ RGB_TO_XYZ[1] > 0.18 else (255, 255, 255)


def _to_lab(colours):
    """Converts sRGB colours 0 .. 255 to CIE L*a*b*, both (n, 3)."""
    share = np.asarray(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    xyz = linear @ RGB_TO_XYZ.T / RGB_TO_XYZ.sum(axis=1)
    roots = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return roots @ XYZ_TO_LAB.T - (16, 0, 0)
