"""Pictures of label maps: integer (height, width); 255 is ignored and drawn as a dark hatch."""

import numpy as np

import heads.drawing.pages as pages
from heads.drawing.pages import require
from heads.drawing.palette import class_palette
from heads.ops.labels import IGNORED_LABEL

# Pictures with a longer side below this are enlarged by a whole factor, so that each pixel stays a square.
COMFORTABLE_SIDE = 256
WRONG_COLOUR = (160, 0, 0)  # dark on light grey, which colour-blind people see, too


def draw_comparison(images, truths, predictions, class_names) -> np.ndarray:
    """Draws a row "image | truth | prediction | wrong" for each image, and a legend of what occurs.

    Args:
        images: A list of images (h, w, 3), uint8 or float 0 .. 255, or one array of them.
        truths: The label maps (h, w), 255 is ignored.
        predictions: The predicted label maps (h, w).
        class_names: The names of all classes.

    Returns:
        One picture, uint8 (height, width, 3).

    Raises:
        ValueError: If the three differ in length, are empty, or do not fit each other.
    """
    examples = pages.zip_examples(images, truths, predictions)
    rows = [[draw_segmentation(*example, class_names)] for example in examples]
    labels = np.concatenate([np.ravel(label_map) for label_map in (*truths, *predictions)])
    page = pages.tile_pictures(rows, margin=0)
    return pages.add_legend(page, labels[labels != IGNORED_LABEL], class_names)


def draw_segmentation(image, truth, prediction, class_names) -> np.ndarray:
    """Draws one row "image | truth | prediction | wrong"; the last caption tells the share of wrong pixels.

    Args:
        image: (h, w, 3), uint8 or float 0 .. 255.
        truth: The label map (h, w), 255 is ignored.
        prediction: The predicted label map (h, w).
        class_names: The names of all classes.

    Returns:
        One picture, uint8 (height, width, 3), enlarged if the image is small.

    Raises:
        ValueError: If the label maps do not fit the image or the class names.
    """
    image = pages.check_picture(image)
    truth, prediction = _check_label_map(truth, image), _check_label_map(prediction, image)
    factor = -(-COMFORTABLE_SIDE // max(image.shape[:2]))
    image, *label_maps = (pages.enlarge_picture(array, factor) for array in (image, truth, prediction))
    palette = class_palette(len(class_names))
    overlays = [overlay_label_map(image, label_map, 0.5, palette) for label_map in label_maps]
    wrong = (truth != prediction) & (truth != IGNORED_LABEL)
    num_known = (truth != IGNORED_LABEL).sum()
    captions = (
        "image",
        "truth",
        "prediction",
        f"wrong: {wrong.sum() / num_known:.1%}" if num_known else "wrong",
    )
    pictures = (image, *overlays, draw_wrong_pixels(image, pages.enlarge_picture(wrong, factor)))
    return pages.tile_pictures([map(pages.label_picture, pictures, captions)])


def draw_wrong_pixels(image, wrong) -> np.ndarray:
    """Draws an image in light grey, and some of its pixels in one strong colour.

    Args:
        image: (h, w, 3), uint8 or float 0 .. 255.
        wrong: Bool (h, w).

    Returns:
        uint8 (h, w, 3).
    """
    image, wrong = pages.check_picture(image), np.asarray(wrong)
    rule = "wrong must be bool (height, width) of the image's size"
    require(wrong.dtype == bool and wrong.shape == image.shape[:2], rule, f"{wrong.dtype} {wrong.shape}")
    grey = 155 + 0.4 * image.mean(axis=2, keepdims=True)
    return np.where(wrong[..., None], np.array(WRONG_COLOUR), grey).round().astype(np.uint8)


def draw_label_map(label_map, palette=None, num_classes: int | None = None) -> np.ndarray:
    """Draws a label map in the classes' colours, ignored pixels as a dark hatch.

    Args:
        label_map: Integer (h, w); 255 is ignored.
        palette: uint8 (classes, 3). Default: `class_palette(num_classes)`.
        num_classes: The number of classes; the largest label plus one by default. The colour of a class does
            not depend on it.

    Returns:
        uint8 (h, w, 3).

    Raises:
        ValueError: If a label is outside of the palette.
    """
    label_map = _check_label_map(label_map)
    ignored = label_map == IGNORED_LABEL
    labels = np.where(ignored, 0, label_map)
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    palette = class_palette(num_classes or highest + 1) if palette is None else np.asarray(palette)
    fits = palette.ndim == 2 and palette.shape[1] == 3 and palette.dtype == np.uint8
    require(fits, "palette must be uint8 (classes, 3)", f"{palette.dtype} {palette.shape}")
    rule = f"label_map must hold 0 .. {len(palette) - 1} or {IGNORED_LABEL} (ignored)"
    require(0 <= lowest <= highest < len(palette), rule, f"{lowest} .. {highest}")
    y, x = np.indices(label_map.shape, sparse=True)
    hatch = np.where((x + y) // 3 % 2, np.uint8(70), np.uint8(20))
    return np.where(ignored[:, :, None], hatch[:, :, None], palette[labels])


def overlay_label_map(image, label_map, opacity: float = 0.5, palette=None) -> np.ndarray:
    """Lays the colours of a label map over its image, with a thin dark border around each segment.

    Args:
        image: (h, w, 3), uint8 or float 0 .. 255.
        label_map: Integer (h, w); 255 is ignored.
        opacity: Of the colours: 0 shows the image, 1 the label map.
        palette: uint8 (classes, 3). Made for the labels that occur by default.

    Returns:
        uint8 (h, w, 3).

    Raises:
        ValueError: If the sizes differ or `opacity` is outside of 0 .. 1.
    """
    image = pages.check_picture(image)
    label_map = _check_label_map(label_map, image)
    require(0 <= opacity <= 1, "opacity must be in 0 .. 1", opacity)
    picture = image * (1 - opacity) + draw_label_map(label_map, palette) * opacity
    border = np.diff(label_map, axis=0, prepend=label_map[:1]) != 0
    border |= np.diff(label_map, axis=1, prepend=label_map[:, :1]) != 0
    picture[border] *= 0.35
    return picture.round().astype(np.uint8)


def _check_label_map(label_map, image=None):
    label_map = np.asarray(label_map)
    shape, size = label_map.shape, image.shape[:2] if image is not None else label_map.shape
    fits = len(shape) == 2 and np.issubdtype(label_map.dtype, np.integer)
    require(fits, "a label map must be (height, width) of integers", f"{label_map.dtype} of shape {shape}")
    require(shape == size, "image and label map must have the same height and width", f"{size} and {shape}")
    return label_map
