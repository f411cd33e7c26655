"""Pictures of saliency maps: float (height, width), 0 .. 1; white is what catches the eye."""

import numpy as np

import heads.drawing.pages as pages
from heads.drawing.label_maps import COMFORTABLE_SIDE, draw_label_map
from heads.drawing.pages import require
from heads.ops.labels import IGNORED_LABEL

MASK_PALETTE = np.array([(0, 0, 0), (255, 255, 255)], np.uint8)


def draw_saliency_comparison(images, masks, saliency_maps) -> np.ndarray:
    """Draws one row "image | truth | saliency map" for each image; the last caption tells the mean error.

    Args:
        images: A list of images (h, w, 3), uint8 or float 0 .. 255, or one array of them.
        masks: The masks (h, w): 0 is the background, 1 the object, 255 is ignored and drawn as a dark hatch.
        saliency_maps: The predicted saliency maps (h, w), 0 .. 1.

    Returns:
        One picture, uint8 (height, width, 3), enlarged where the images are small.

    Raises:
        ValueError: If the three differ in length, are empty, or do not fit each other.
    """
    rows = []
    for image, mask, saliency_map in pages.zip_examples(images, masks, saliency_maps):
        image, mask, saliency_map = pages.check_picture(image), np.asarray(mask), np.asarray(saliency_map)
        shapes = image.shape[:2], mask.shape, saliency_map.shape
        require(len(set(shapes)) == 1, "image, mask and saliency map must have one height and width", shapes)
        factor = -(-COMFORTABLE_SIDE // max(image.shape[:2]))
        known = mask != IGNORED_LABEL
        error = np.abs(saliency_map - mask)[known]
        captions = ("image", "truth", f"saliency: error {error.mean():.3f}" if error.size else "saliency")
        pictures = (image, draw_label_map(mask, MASK_PALETTE), draw_saliency_map(saliency_map))
        pictures = [pages.enlarge_picture(picture, factor) for picture in pictures]
        rows.append(list(map(pages.label_picture, pictures, captions)))
    return pages.tile_pictures(rows)


def draw_saliency_map(saliency_map) -> np.ndarray:
    """Draws a saliency map (h, w), 0 .. 1, in grey.

    Returns:
        uint8 (h, w, 3).

    Raises:
        ValueError: If it has another shape, or a value outside of 0 .. 1.
    """
    saliency_map = np.asarray(saliency_map, "float64")
    require(saliency_map.ndim == 2, "a saliency map must be (height, width)", f"shape {saliency_map.shape}")
    # Written so that NaN is a fault.
    fits = ((saliency_map >= 0) & (saliency_map <= 1)).all()
    require(fits, "a saliency map must be 0 .. 1", f"{saliency_map.min()} .. {saliency_map.max()}")
    grey = (255 * saliency_map).round().astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
