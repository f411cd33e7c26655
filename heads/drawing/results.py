"""One function for pictures of all results: the keys of a result tell how to draw it."""

import os

import numpy as np

import heads.drawing.pages as pages
from heads.bands import read_bands
from heads.drawing.bands import draw_bands
from heads.drawing.label_maps import overlay_label_map
from heads.drawing.objects import draw_detections
from heads.drawing.palette import class_palette
from heads.drawing.saliency_maps import draw_saliency_map
from heads.drawing.segments import draw_segments
from heads.drawing.skeletons import draw_skeletons
from heads.ops.labels import IGNORED_LABEL
from heads.pictures import read_picture
from heads.results import read_masks


def draw_result(
    image, result: dict, class_names=None, score_threshold: float = 0.3, skeleton=None, bands=None
):
    """Draws what a model saw in a picture, in the drawing that fits: `draw_result(result["path"], result)`.

    Draws objects with their boxes or masks; segments; the colours of a label map over the picture, with a
    legend of the classes that occur; keypoints of people; or a saliency map in grey.

    Args:
        image: (h, w, 3), uint8 or float 0 .. 255; or the path of the picture.
        result: One of `predict_pictures`.
        class_names: The names of all classes. Default: those in the result; the classes of label maps are
            called "class 3".
        score_threshold: Objects and keypoints below it are left out.
        skeleton: Pairs of keypoints that lines connect, of people.
        bands: Of a multispectral image, which then is (h, w, bands) or the path of a TIFF file: the places of
            the three that are drawn, see `draw_bands`.

    Returns:
        uint8 (height, width, 3); small pictures are enlarged, except for label maps and saliency maps.

    Raises:
        ValueError: If the result is of no known kind, or does not fit the image or the class names.
    """
    is_path = isinstance(image, str | os.PathLike)
    if bands is not None:
        image = draw_bands(read_bands(image) if is_path else image, bands)
    else:
        image = read_picture(image) if is_path else pages.check_picture(image)
    if "keypoints" in result:
        return draw_skeletons(image, result, skeleton, score_threshold)
    if "saliency_map" in result:
        return draw_saliency_map(result["saliency_map"])
    if "label_map" in result:
        return _draw_classes(image, np.asarray(result["label_map"]), class_names)
    rule = 'result must be of `predict_pictures`, with "boxes", "segments", "label_map", "keypoints" or '
    pages.require("labels" in result, rule + '"saliency_map"', sorted(result))
    names = _name_classes(result) if class_names is None else class_names
    if "segments" in result:
        return draw_segments(image, result, names)
    objects = {name: result[name] for name in ("boxes", "labels", "scores") if name in result}
    if "masks" in result and len(result["masks"]):
        objects["masks"] = read_masks(result["masks"])
    return draw_detections(image, objects, names, score_threshold)


def _name_classes(result):
    """Returns names of all classes up to the largest label in a result, which may name some of them."""
    labels = np.asarray(result["labels"])
    names = [f"class {label}" for label in range(labels.max(initial=0) + 1)]
    for label, name in zip(labels, result.get("names", ()), strict=False):
        names[label] = name
    return names


def _draw_classes(image, label_map, class_names):
    """Returns the picture under its segments' colours, and a legend of the classes that occur."""
    occurring = np.unique(label_map[label_map != IGNORED_LABEL])
    names = list(class_names or ())
    names += [f"class {label}" for label in range(len(names), occurring.max(initial=0) + 1)]
    picture = overlay_label_map(image, label_map, 0.5, class_palette(len(names)))
    return pages.add_legend(picture, occurring, names)
