"""From picture files to results in their own pixels."""

import os
import pathlib
from typing import NamedTuple

import numpy as np
from keras import ops

from heads.arguments import read_count, read_flag
from heads.bands import read_bands
from heads.coco.segmentations import encode_mask
from heads.ops.labels import PADDING_LABEL
from heads.ops.masks import paste_masks
from heads.ops.resizing import resize_bilinear
from heads.ops.segments import number_segments
from heads.person_crops import cut_out
from heads.picture_sizes import Resizing
from heads.pictures import RGB_CHANNELS, choose_padding, read_picture, show_path

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MASK_FORMS = ("pasted", "run_lengths")
# Pictures wait for others of their size: at most so many batches of them.
MOST_WAITING_BATCHES = 4


class PreparedPicture(NamedTuple):
    """A picture as a model sees it.

    Attributes:
        image: float32 (height, width, channels), padded at the bottom and right with the mean pixel of RGB,
            or 0.
        image_size: (height, width) of the resized picture in it.
        original_size: (height, width) of the picture.
    """

    image: np.ndarray
    image_size: tuple[int, int]
    original_size: tuple[int, int]


def predict_pictures(
    model, pictures, batch_size=1, score_threshold=0.0, masks="pasted", progress=True, **options
):
    """Returns a model's results of pictures, in the pixels of each: see `DenseModel.predict_pictures`."""
    read_count("batch_size", batch_size)
    check_masks(masks)
    pictures = find_pictures(pictures)
    results = [None] * len(pictures)
    prepared = (
        (
            place,
            prepare_picture(picture, model.resizing, model.size_divisor, num_channels=count_channels(model)),
        )
        for place, picture in enumerate(show_progress(pictures, progress))
    )
    for place, picture, result in predict_prepared(model, prepared, batch_size, **options):
        if "labels" in result:
            result = finish_objects(model, result, picture.original_size, score_threshold, masks)
        results[place] = {"path": keep_path(pictures[place]), **result}
    return results


def prepare_pictures(model, pictures, image_size=None):
    """Yields pictures as a model's exports take them: see `DenseModel.prepare_pictures`."""
    if (num_channels := count_channels(model)) != RGB_CHANNELS:
        raise ValueError(
            "only RGB pictures can be prepared for exports, which take uint8 images; write others as arrays "
            f"yourself. Received: a model of {num_channels} channels"
        )
    resizing = model.resizing if image_size is None else Resizing(image_size=image_size)
    for picture in find_pictures(pictures):
        image = prepare_picture(picture, resizing, model.size_divisor).image
        yield np.round(image).astype("uint8")[None]


def predict_prepared(model, pictures, batch_size: int, **options):
    """Yields a model's results of prepared pictures, in any order: (key, picture, result).

    Pictures of one size go through the model together.

    Args:
        model: a head.
        pictures: an iterator of (key, `PreparedPicture`), from which pictures are taken as late as possible.
        batch_size: most pictures that go through the model at once.
        **options: further arguments of `predict_resized`.
    """
    waiting = {}

    def run(batch):
        arrays = [np.stack(values) for values in zip(*(picture for _, picture in batch), strict=True)]
        results = model.predict_resized(*arrays, **options)
        return [(*entry, result) for entry, result in zip(batch, results, strict=True)]

    for key, picture in pictures:
        batch = waiting.setdefault(picture.image.shape, [])
        batch.append((key, picture))
        if len(batch) == batch_size:
            yield from run(waiting.pop(picture.image.shape))
        elif sum(map(len, waiting.values())) > MOST_WAITING_BATCHES * batch_size:
            yield from run(waiting.pop(next(iter(waiting))))
    for batch in waiting.values():
        yield from run(batch)


def predict_people(model, pictures, boxes, batch_size=32, flip_test=False, progress=True):
    """Returns the keypoints of the people in pictures: see `SimpleBaseline.predict_pictures`."""
    read_count("batch_size", batch_size)
    predictor = model.with_flip_test() if read_flag("flip_test", flip_test) else model
    pictures = find_pictures(pictures)
    boxes = _read_boxes(boxes, len(pictures))
    results, waiting = [None] * len(pictures), []

    def run(crops):
        places, images, maps = zip(*crops, strict=True)
        inputs = {"images": np.stack(images), "to_pictures": np.stack(maps)}
        found = predictor.predict_on_batch(inputs)
        for row, (picture, person) in enumerate(places):
            for name, values in found.items():
                results[picture][name][person] = values[row]

    for place, picture in enumerate(show_progress(pictures, progress)):
        pixels = read_pixels(picture)
        shapes = {"keypoints": (model.num_keypoints, 2), "scores": (model.num_keypoints,)}
        results[place] = {
            "path": keep_path(picture),
            "boxes": boxes[place],
            **{name: np.zeros((len(boxes[place]), *end), "float32") for name, end in shapes.items()},
        }
        for person, box in enumerate(boxes[place]):
            waiting.append(((place, person), *cut_out(pixels, box, model.crop_size)))
            if len(waiting) == batch_size:
                run(waiting)
                waiting = []
    if waiting:
        run(waiting)
    return results


def _read_boxes(boxes, num_pictures):
    """Returns an array (n, 4) for each picture."""
    if getattr(boxes, "ndim", None) == 2 and num_pictures == 1:
        boxes = [boxes]
    boxes = list(boxes) if hasattr(boxes, "__iter__") else boxes
    if not isinstance(boxes, list) or len(boxes) != num_pictures:
        received = f"{len(boxes)} of them" if isinstance(boxes, list) else repr(boxes)
        raise ValueError(f"boxes must be (n, 4) for each of {num_pictures} pictures. Received: {received}")
    checked = []
    for place, each in enumerate(boxes):
        array = np.asarray(each, "float32")
        array = array.reshape(0, 4) if array.size == 0 else array
        is_right = array.ndim == 2 and array.shape[1] == 4 and np.isfinite(array).all()
        if not is_right or not (array[:, 2:] > array[:, :2]).all():
            raise ValueError(
                "boxes must be (n, 4), (x1, y1, x2, y2) in pixels, x1 < x2 and y1 < y2. "
                f"Received: {each!r} for picture {place}"
            )
        checked.append(array)
    return checked


def find_pictures(pictures) -> list:
    """Returns a list of paths and arrays.

    Args:
        pictures: a path of a picture or of a folder of them (sub-folders and hidden files are ignored), an
            array (height, width, 3) or (n, height, width, 3), or a sequence of paths and arrays.

    Raises:
        ValueError: if there is no such file, or no picture in a folder.
    """
    if isinstance(pictures, str | os.PathLike):
        path = pathlib.Path(pictures)
        if not path.exists():
            raise ValueError(f"there is no such picture or folder. Received: {show_path(path)}")
        if not path.is_dir():
            return [path]
        found = [part for part in sorted(path.iterdir()) if part.suffix.lower() in PICTURE_SUFFIXES]
        found = [part for part in found if not part.name.startswith(".")]  # macOS writes ._NAME.jpg
        if not found:
            suffixes = ", ".join(PICTURE_SUFFIXES)
            raise ValueError(f"the folder must hold pictures ({suffixes}). Received: {show_path(path)}")
        return found
    if getattr(pictures, "ndim", None) == 3:
        return [pictures]
    return [pathlib.Path(each) if isinstance(each, str | os.PathLike) else each for each in pictures]


def prepare_picture(
    picture, resizing, size_divisor: int = 1, scale: float = 1.0, num_channels: int = RGB_CHANNELS
) -> PreparedPicture:
    """Reads a picture, resizes and pads it, as in training and scoring.

    Args:
        picture: see `read_pixels`.
        resizing: a `Resizing`.
        size_divisor: the sides are padded to multiples of it, if `resizing` has no `image_size`.
        scale: factor of the size that `resizing` gives the picture.
        num_channels: see `read_pixels`.

    Raises:
        ValueError: if a file cannot be read, or an array is no picture.
    """
    pixels = read_pixels(picture, num_channels)
    original_size = pixels.shape[:2]
    height, width = resizing.fit(original_size, scale)
    image = pixels.astype("float32")
    if (height, width) != original_size:
        image = ops.convert_to_numpy(resize_bilinear(image[None], (height, width)))[0]
    padded_size = resizing.pad((height, width), size_divisor, scale)
    padded = np.full((*padded_size, num_channels), choose_padding(num_channels), "float32")
    padded[:height, :width] = image
    return PreparedPicture(padded, (height, width), original_size)


def count_channels(model) -> int:
    """Returns how many channels a model's pictures have; 3 where it does not tell."""
    return getattr(model, "image_channels", RGB_CHANNELS)


def read_pixels(picture, num_channels: int = RGB_CHANNELS) -> np.ndarray:
    """Returns the pixels (height, width, channels) of a path, or those of an array, checked.

    Args:
        picture: a path, or an array. RGB pixels are uint8 or float 0 .. 255; others are as `read_bands` gives
            them, and arrays of theirs also integers of 16 bits.
        num_channels: what the model takes; 3 is RGB.

    Raises:
        ValueError: if a file cannot be read, or an array is no picture.
    """
    is_rgb = num_channels == RGB_CHANNELS
    if not isinstance(picture, pathlib.Path):
        pixels = np.asarray(picture)
    elif is_rgb:
        pixels = read_picture(picture)
    else:
        pixels = read_bands(picture, num_channels)
    kinds = ("uint8",) if is_rgb else ("uint8", "uint16", "int16")
    is_known = pixels.dtype in kinds or np.issubdtype(pixels.dtype, np.floating)
    if pixels.ndim != 3 or pixels.shape[-1] != num_channels or not pixels.size or not is_known:
        wanted = "RGB pixels (height, width, 3), uint8 or float 0 .. 255"
        if not is_rgb:
            wanted = f"pixels (height, width, {num_channels}), {', '.join(kinds)} or float"
        raise ValueError(
            f"a picture must be a path, or {wanted}. Received: {pixels.dtype} of shape {pixels.shape}"
        )
    return pixels


def finish_objects(model, result, picture_size, score_threshold, masks):
    """Returns the objects without padding, with their classes' names and masks of the picture's size."""
    kept = (result["labels"] != PADDING_LABEL) & (result["scores"] >= score_threshold)
    if "segments" in result:
        result = number_segments({**result, "labels": np.where(kept, result["labels"], PADDING_LABEL)})
    else:
        result = {name: values[kept] for name, values in result.items()}
    names = model.class_names or [f"class {label}" for label in range(model.num_classes)]
    result["names"] = [names[label] for label in result["labels"]]
    if "masks" in result:
        found = result["masks"]
        if found.dtype != bool:  # within the boxes
            found = (
                paste_masks(mask[None], box[None], picture_size)[0]
                for mask, box in zip(found, result["boxes"], strict=True)
            )
        if masks == "run_lengths":
            result["masks"] = [encode_mask(mask) for mask in found]  # never all of them at once
        else:
            result["masks"] = np.array(list(found), bool).reshape(-1, *picture_size)
    return result


def check_masks(masks):
    """Raises a ValueError for an unknown form of masks."""
    if masks not in MASK_FORMS:
        raise ValueError(f"masks must be one of {list(MASK_FORMS)}. Received: {masks!r}")


def keep_path(picture) -> pathlib.Path | None:
    """Returns the path of a picture of `find_pictures`; None for an array."""
    return picture if isinstance(picture, pathlib.Path) else None


def show_progress(pictures, progress):
    """Returns the pictures, with a progress bar for two or more if wanted."""
    if not progress or len(pictures) < 2:
        return pictures
    from tqdm import tqdm

    return tqdm(pictures, unit="picture")
