"""Finds objects in pictures with a saved model.

    python examples/detect.py runs/detection-1/best.keras pictures/ --output objects
    python examples/detect.py runs/detection-1/best.keras aerial.tif --slices 640

For each picture NAME.jpg it writes NAME.png with boxes or masks, classes and scores; for all of them together
detections.json, with the pictures, the categories and the objects in COCO's format, with scores. The names of
the classes and the sizes of the pictures are in the model's file. A model that was trained on multispectral
pictures reads TIFF files of as many channels.
"""

import pathlib

from options import (
    add_sizes,
    check_model,
    check_output,
    check_sizes,
    load_keras,
    make_parser,
    number,
)
from view_options import add_bands, add_detector_views, check_detector_views


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file")
    add("pictures", type=pathlib.Path, nargs="+", help="folders of pictures, or pictures")
    output = "folder of the results; default: the next of runs/detections-1, runs/detections-2 ..."
    add("--output", type=pathlib.Path, help=output)
    names = "text file with a class name per line; default: the names in the model's file"
    add("--class-names", type=pathlib.Path, help=names)
    threshold = "leave out objects with lower scores, 0 .. 1; default: %(default)s"
    add("--score-threshold", type=number(at_least=0), default=0.3, help=threshold)
    add_sizes(parser)
    add_detector_views(parser)
    add_bands(parser)
    arguments = parser.parse_args(argv)
    check_sizes(parser, arguments)
    check_detector_views(parser, arguments)
    if arguments.score_threshold > 1:
        parser.error(f"--score-threshold must be 0 .. 1. Received: {arguments.score_threshold}")
    check_model(parser, arguments.model)
    check_output(parser, arguments.output)
    return parser, arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import json
import math
import sys

import keras
import numpy as np
from PIL import Image
from results import save_picture
from shown_pixels import show_pixels, tell_channels
from tqdm import tqdm

import van_backbones  # noqa: F401  (registers the backbone's classes, which the saved model names)
from heads import Resizing, detect_in_slices, detect_in_views, to_coco
from heads.coco.entries import read_json
from heads.coco.segmentations import decode_mask
from heads.data.label_folders import read_class_names
from heads.drawing import draw_result
from heads.prediction import PICTURE_SUFFIXES, read_pixels
from heads.training import make_numbered_folder, replace_text

# Of all masks of a picture together when it is drawn.
MOST_MASK_PIXELS = 2_000_000_000


def main(argv=None):
    """Runs the script; returns 1 if a picture was unreadable, else 0."""
    parser, arguments = parse_arguments(argv)
    paths = find_pictures(parser, arguments.pictures, arguments.output)
    model = keras.saving.load_model(arguments.model, compile=False)
    if not hasattr(model, "max_detections"):
        parser.error(f"the model must be a detector. Received: {arguments.model}, a {type(model).__name__}")
    tell_channels(parser, model.image_channels, arguments.bands)
    if arguments.score_threshold < getattr(model, "score_threshold", 0):
        print(f"The model itself leaves out objects with scores below {model.score_threshold}")
    choose_class_names(parser, arguments, model)
    model.resizing = choose_resizing(arguments, model.resizing)
    class_names = model.class_names or [f"class {label}" for label in range(model.num_classes)]
    category_ids = find_category_ids(paths, class_names) or range(1, model.num_classes + 1)
    categories = [{"id": key, "name": name} for key, name in zip(category_ids, class_names, strict=True)]

    output = open_output(arguments.output, "detections")
    entries, annotations, unreadable = [], [], []
    for path in tqdm(paths, unit="picture"):
        try:
            image = read_pixels(path, model.image_channels)
        except ValueError as error:
            unreadable.append(error)
            continue
        options = {"score_threshold": arguments.score_threshold, "masks": "run_lengths"}
        (found,) = detect_objects(model, image, arguments, **options)
        shown = show_pixels(image, arguments.bands)
        picture = draw_result(*shrink(shown, found), class_names, arguments.score_threshold)
        save_picture(picture, output / f"{path.stem}.png")
        height, width = image.shape[:2]
        image_id = len(entries) + 1
        entries.append({"id": image_id, "file_name": str(path), "height": height, "width": width})
        annotations += to_annotations(found, image_id, category_ids, len(annotations) + 1)

    content = {"images": entries, "categories": categories, "annotations": annotations}
    replace_text(output / "detections.json", json.dumps(content))
    print(f"{len(annotations)} objects in {len(entries)} of {len(paths)} pictures, see {output}")
    for problem in unreadable:
        print(f"Skipped, unreadable: {problem}", file=sys.stderr)
    return 1 if unreadable else 0


def detect_objects(model, pictures, arguments, **options):
    """Returns the objects in pictures, looked at as the options of `add_detector_views` say."""
    if arguments.slices:
        return detect_in_slices(model, pictures, arguments.slices, arguments.overlap, **options)
    if arguments.scales or arguments.flip_test:
        scales = arguments.scales or (1.0,)
        return detect_in_views(model, pictures, scales, arguments.flip_test, **options)
    return model.predict_pictures(pictures, **options)


def shrink(image, found, most_pixels=MOST_MASK_PIXELS):
    """Returns a picture and its objects, smaller by a whole factor if masks would fill the memory."""
    masks = found.get("masks", ())
    factor = math.ceil(math.sqrt(len(masks) * image.shape[0] * image.shape[1] / most_pixels))
    if factor < 2:
        return image, found
    masks = np.stack([decode_mask(each)[::factor, ::factor] for each in masks])
    image = np.asarray(Image.fromarray(image).reduce(factor))
    return image, {**found, "boxes": found["boxes"] / factor, "masks": masks}


def open_output(output, name):
    """Makes and returns the folder for the results: the given one, or the next of `runs/<name>-1` ..."""
    if output is None:
        return make_numbered_folder("runs", name)
    output.mkdir(parents=True, exist_ok=True)
    return output


def find_pictures(parser, places, output):
    """Returns the paths of the pictures; ends the program if results would overwrite something."""
    paths = []
    for place in places:
        if place.is_dir():
            found = sorted(
                path
                for path in place.iterdir()
                if path.suffix.lower() in PICTURE_SUFFIXES
                and not path.name.startswith(".")  # macOS writes ._NAME.jpg
            )
            if not found:
                suffixes = ", ".join(PICTURE_SUFFIXES)
                parser.error(f"the folder must hold pictures ({suffixes}). Received: {place}")
            paths += found
        else:
            paths.append(place)
    if output is not None and output.resolve() in {path.resolve().parent for path in paths}:
        parser.error(
            f"--output must not be the folder of the pictures, which it overwrites. Received: {output}"
        )
    names = [path.stem for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        parser.error(f"pictures need different names before the suffix. Received twice: {', '.join(twice)}")
    return paths


def choose_resizing(arguments, default):
    """Returns how the pictures are resized: by the options, or else the default."""
    if arguments.image_size is not None:
        return Resizing(arguments.image_size)
    if arguments.short_side is not None:
        return Resizing(short_side=arguments.short_side, long_side=arguments.long_side)
    print(f"Sizes of the pictures, from the model: {default.get_config()}")
    return default


def choose_class_names(parser, arguments, model):
    """Sets the names of the option; ends the program if the model has another number of classes."""
    if arguments.class_names is None:
        return
    try:
        names = list(read_class_names(arguments.class_names))
    except ValueError as error:
        parser.error(f"--class-names: {error}")
    if len(names) != model.num_classes:
        wanted = f"--class-names must hold a name for each of the model's {model.num_classes} classes"
        parser.error(f"{wanted}. Received: {len(names)} names in {arguments.class_names}")
    model.class_names = names


def find_category_ids(pictures, class_names):
    """Returns the category ids of the pictures' data set, if it is found and its classes have these names."""
    for folder in dict.fromkeys(path.resolve().parent for path in pictures):
        for root in folder.parents[:2]:
            path = root / "annotations" / f"instances_{folder.name}.json"
            try:
                categories = read_json(path, "annotations")["categories"]
                names = {category["id"]: category["name"] for category in categories}
                ids = sorted(names)
            except (OSError, ValueError, TypeError, KeyError):
                continue
            if [names[key] for key in ids] == class_names:
                print(f"Category ids of the classes, from {path}: {', '.join(map(str, ids))}")
                return ids
    return None


def to_annotations(found, image_id, category_ids, first_id):
    """Returns the objects of one picture as COCO's annotations, with scores."""
    annotations = []
    for key, row in enumerate(to_coco(found, image_id, category_ids), first_id):
        width, height = row["bbox"][2:]
        annotations.append({"id": key, **row, "area": width * height, "iscrowd": 0})
    return annotations


if __name__ == "__main__":
    sys.exit(main())
