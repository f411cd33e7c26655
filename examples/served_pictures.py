"""What serve.py shows of a picture: here it is read, predicted, drawn and listed."""

import pathlib
import time
import typing

import numpy as np
from PIL import Image

from heads.coco.segmentations import decode_mask, encode_mask
from heads.drawing import draw_result
from heads.ops.labels import IGNORED_LABEL, PADDING_LABEL
from heads.ops.segments import number_segments
from heads.pictures import read_picture, read_upright_size, show_path

LARGEST_SIDE = 1600  # of what is drawn and kept; larger pictures and maps are reduced


class UnusablePictureError(ValueError):
    """A picture cannot be shown; the message says why, for the visitor."""


class Seen(typing.NamedTuple):
    """What is kept of a visitor's picture, so that another threshold needs no network.

    Attributes:
        text: a description of the picture.
        image: uint8 (height, width, 3), each side at most `LARGEST_SIDE`.
        result: a result of `predict_pictures`, in the pixels of the image, its masks as run lengths.
    """

    text: str
    image: np.ndarray
    result: dict


def open_picture(path, most_pixels: int) -> np.ndarray:
    """Returns the pixels of an uploaded file, which is deleted.

    Raises:
        UnusablePictureError: If it cannot be read or is too large. The message has its name without a folder.
    """
    path = pathlib.Path(path)
    try:
        height, width = read_upright_size(path)  # from the header: small files may unpack to huge pictures
        if height * width > most_pixels:
            limit = f"at most {most_pixels / 1e6:g} million pixels (--max-megapixels)"
            raise ValueError(f"{path.name}: a picture must have {limit}. Received: {width} x {height}")
        return read_picture(path)
    except ValueError as error:
        raise UnusablePictureError(str(error).replace(show_path(path), path.name)) from error
    finally:
        path.unlink(missing_ok=True)


def look_at(model, find_boxes, image, name) -> Seen:
    """Returns what a model sees in a picture: the only place where the network runs.

    Args:
        model: The model.
        find_boxes: For a pose model, what `choose_boxes` returned; else None.
        image: uint8 (height, width, 3).
        name: The picture's name.
    """
    start = time.perf_counter()
    if find_boxes is None:
        (result,) = model.predict_pictures(image, masks="run_lengths", progress=False)
    else:
        boxes, _ = find_boxes(pathlib.Path(name), image)
        (result,) = model.predict_pictures(image, [boxes], progress=False)
    seconds = time.perf_counter() - start
    height, width = image.shape[:2]
    return Seen(f"{name}: {width} x {height} pixels, {seconds:.2f} s", *reduce_size(image, result))


def reduce_size(image, result, largest_side=LARGEST_SIDE):
    """Returns a picture and its result, smaller by a whole factor if a side is too long."""
    factor = -(-max(image.shape[:2]) // largest_side)
    if factor == 1:
        return image, result
    reduced = {name: values for name, values in result.items()}
    for name in {"label_map", "segments", "saliency_map"} & result.keys():
        reduced[name] = result[name][::factor, ::factor]
    for name in {"boxes", "keypoints"} & result.keys():
        reduced[name] = result[name] / factor
    if "masks" in result:
        reduced["masks"] = [encode_mask(decode_mask(each)[::factor, ::factor]) for each in result["masks"]]
    return np.asarray(Image.fromarray(image).reduce(factor)), reduced


def name_classes(model):
    """Returns the names of a model's classes; an empty list if it has none."""
    return model.class_names or [f"class {label}" for label in range(getattr(model, "num_classes", 0))]


def keep_segments(result, threshold):
    """Returns a result without the segments below a score; results of other kinds as they are."""
    if "segments" not in result:
        return result
    labels = np.where(result["scores"] >= threshold, result["labels"], PADDING_LABEL)
    return number_segments({**result, "labels": labels})


def draw(model, seen, threshold):
    """Returns the drawing of what was seen, without anything of a lower score."""
    result, names = keep_segments(seen.result, threshold), name_classes(model) or None
    return draw_result(seen.image, result, names, threshold, getattr(model, "skeleton", None))


def tabulate(result, threshold, class_names):
    """Returns what was found as (headers, rows).

    Args:
        result: A result of `predict_pictures`.
        threshold: Objects, segments and keypoints of lower scores are left out.
        class_names: The names of all classes.
    """
    if "label_map" in result:
        labels, counts = np.unique(result["label_map"], return_counts=True)
        found = sorted(zip(counts, labels, strict=True), reverse=True)
        shares = [(label, count / result["label_map"].size) for count, label in found]
        rows = [[class_names[label], percent(share)] for label, share in shares if label != IGNORED_LABEL]
        return ["class", "% of pixels"], rows
    if "saliency_map" in result:
        share = np.mean(result["saliency_map"] >= 0.5)
        return ["saliency", "% of pixels"], [["0.5 and above", percent(share)], ["below", percent(1 - share)]]
    if "keypoints" in result:
        shown = [scores >= threshold for scores in result["scores"]]
        rows = [[f"{number}", f"{kept.sum()} of {kept.size}"] for number, kept in enumerate(shown, 1)]
        return ["person", "keypoints"], rows
    result = keep_segments(result, threshold)
    found = zip(result["labels"], result["scores"], strict=True)
    rows = [[class_names[label], f"{score:.2f}"] for label, score in found if score >= threshold]
    if "segments" not in result:
        return ["class", "score"], rows
    shares = [percent(np.mean(result["segments"] == number)) for number in range(len(rows))]
    return ["class", "score", "% of pixels"], [[*row, share] for row, share in zip(rows, shares, strict=True)]


def percent(share):
    """Returns a share in percent, as text."""
    return "< 0.1" if 0 < share < 0.0005 else f"{100 * share:.1f}"
