"""Three bands of a multispectral picture as a picture in colours."""

from collections.abc import Sequence

import numpy as np

from heads.drawing.pages import require

DARKEST, BRIGHTEST = 2, 98  # percentiles


def draw_bands(image, bands: Sequence[int] | None = None) -> np.ndarray:
    """Draws three bands as red, green and blue.

    Each is stretched on its own: its 2nd percentile is black and its 98th is white, so that single pixels do
    not darken the rest.

    Args:
        image: (h, w, bands), any numbers.
        bands: The places of the red, the green and the blue band, from 0; the same one thrice is grey.
            Default: the first three; of two the last one twice, of one this alone.

    Returns:
        uint8 (h, w, 3).

    Raises:
        ValueError: If the image has no such bands.
    """
    image = np.asarray(image)
    require(image.ndim == 3 and image.size, "image must be (height, width, bands)", f"shape {image.shape}")
    if bands is None:
        bands = [min(place, image.shape[2] - 1) for place in range(3)]
    rule = f"bands must be three places in 0 .. {image.shape[2] - 1}"
    places = list(bands) if isinstance(bands, Sequence) else bands
    is_right = isinstance(places, list) and len(places) == 3
    require(is_right and all(place in range(image.shape[2]) for place in places), rule, repr(bands))
    chosen = image[:, :, places].astype("float32")
    low, high = np.percentile(chosen, (DARKEST, BRIGHTEST), axis=(0, 1))
    stretched = (chosen - low) / np.where(high > low, high - low, 1) * 255  # a band of one value is black
    return stretched.round().clip(0, 255).astype("uint8")
