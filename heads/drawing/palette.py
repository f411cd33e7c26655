"""The colours of the classes."""

import functools

import numpy as np

# Okabe and Ito's colours, which people with red-green blindness can tell apart; further ones are computed.
CODES = "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7"
FIRST_COLOURS = [tuple(bytes.fromhex(code)) for code in CODES.split()]
DARKEST = 25  # L* of computed colours: darker ones would hide what they are laid over
# The CIE's, for sRGB and the white point D65.
RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
XYZ_TO_LAB = np.array([[0, 116, 0], [500, -500, 0], [0, 200, -200]])
# How people see linear RGB: with all cones, without long-wave ones, without middle-wave ones (Machado,
# Oliveira and Fernandes 2009, severity 1).
EYES = np.array(
    [
        [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
        [(0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)],
        [(0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)],
    ]
)


@functools.cache
def class_palette(num_classes: int) -> np.ndarray:
    """Returns well separated colours, uint8 (num_classes, 3), always the same.

    The first seven are Okabe and Ito's. Each further colour is the one farthest from all before it, and from
    black and white, as the eye sees it (CIE 1976 L*a*b*): the smallest distance counts among those that
    people with normal vision and with red-green blindness see. So the colour of a class does not depend on
    `num_classes`.

    Raises:
        ValueError: If `num_classes` is not in 1 .. 1000.
    """
    if not 1 <= num_classes <= 1000:
        raise ValueError(f"num_classes must be in 1 .. 1000. Received: {num_classes!r}")
    palette = list(FIRST_COLOURS)
    candidates = np.linspace(0, 255, 14).round()[np.indices((14, 14, 14)).reshape(3, -1).T]
    candidates = candidates[_to_lab(candidates)[0, :, 0] >= DARKEST]
    positions = _to_lab(candidates)
    taken = _to_lab([(0, 0, 0), (255, 255, 255), *palette])
    distances = np.linalg.norm(positions[:, :, None] - taken[:, None], axis=-1).min(axis=(0, 2))
    while len(palette) < num_classes:
        # Rounded, because the last bit of equal distances differs between machines.
        farthest = distances.round(3).argmax()
        palette.append(candidates[farthest])
        added = np.linalg.norm(positions - positions[:, farthest, None], axis=-1).min(axis=0)
        distances = np.minimum(distances, added)
    palette = np.array(palette[:num_classes], np.uint8)
    palette.flags.writeable = False
    return palette


def contrasting_ink(colour) -> tuple:
    """Returns black or white, whichever is easier to read on a colour (WCAG 2)."""
    return (0, 0, 0) if (np.array(colour) / 255) ** 2.2 @ RGB_TO_XYZ[1] > 0.18 else (255, 255, 255)


def _to_lab(colours):
    """Converts sRGB colours 0 .. 255, (n, 3), to CIE L*a*b* as each kind of eyes sees them, (kinds, n, 3)."""
    share = np.asarray(colours) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    seen = (linear @ EYES.transpose(0, 2, 1)).clip(0, 1)
    xyz = seen @ RGB_TO_XYZ.T / RGB_TO_XYZ.sum(axis=1)
    roots = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    return roots @ XYZ_TO_LAB.T - (16, 0, 0)
