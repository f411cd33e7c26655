"""Finds objects in pictures with a saved model.

    python examples/detect.py runs/detection/best.keras pictures/ --output runs/detections

For each picture NAME.jpg it writes NAME.png with boxes or masks, classes and scores, and for all of them
detections.json: the pictures, the categories and the objects in COCO's format, with scores. The categories
and the sizes of the pictures are those that `train_detection.py` noted beside the model.
"""

import argparse
import json
import pathlib
import sys

import keras
import numpy as np
from PIL import Image
from tqdm import tqdm

import heads  # noqa: F401  (registers the heads' classes, which the saved model names)
import van_backbones  # noqa: F401  (the same for the backbone)
from heads.coco.entries import is_id, is_side, read_json
from heads.data.detection_moves import MEAN_PIXEL, SIZE_DIVISOR, fit_sides, fit_size, make_resize, move_image
from heads.data.pictures import read_picture
from heads.drawing.objects import draw_detections
from heads.metrics import to_coco_results
from heads.training import number, whole_number

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
SHORT_SIDE, LONG_SIDE = 800, 1333  # the paper's


def main(argv=None):
    """Runs the script; gives 1 if a picture was unreadable, else 0."""
    parser, arguments = parse_arguments(argv)
    paths = find_pictures(parser, arguments.pictures, arguments.output)
    model = keras.saving.load_model(arguments.model, compile=False)
    if not hasattr(model, "max_detections"):
        parser.error(f"{arguments.model} must be a detector")
    if arguments.score_threshold < getattr(model, "score_threshold", 0):
        print(f"The model itself leaves out objects with scores below {model.score_threshold}")
    notes = read_notes(parser, arguments.model)
    categories = find_categories(parser, arguments, notes, model.num_classes, paths)
    class_names = [category["name"] for category in categories]
    category_ids = [category["id"] for category in categories]
    sizes = choose_sizes(arguments, notes)

    arguments.output.mkdir(parents=True, exist_ok=True)
    entries, annotations, unreadable = [], [], []
    for path in tqdm(paths, unit="picture"):
        try:
            image = read_picture(path)
        except ValueError as error:
            unreadable.append(error)
            continue
        detections = detect_objects(model, image, sizes, arguments.score_threshold)
        picture = draw_detections(image, detections, class_names, arguments.score_threshold)
        Image.fromarray(picture).save(arguments.output / f"{path.stem}.png")
        height, width = image.shape[:2]
        image_id = len(entries) + 1
        entries.append({"id": image_id, "file_name": str(path), "height": height, "width": width})
        annotations += to_annotations(detections, entries[-1], category_ids, len(annotations) + 1)

    content = {"images": entries, "categories": categories, "annotations": annotations}
    (arguments.output / "detections.json").write_text(json.dumps(content), encoding="utf-8")
    print(f"{len(annotations)} objects in {len(entries)} of {len(paths)} pictures, see {arguments.output}")
    for problem in unreadable:
        print(f"Skipped, unreadable: {problem}", file=sys.stderr)
    return 1 if unreadable else 0


def parse_arguments(argv):
    """Gives the parser, for further errors, and the settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file")
    add("pictures", type=pathlib.Path, nargs="+", help="folders of pictures, or pictures")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/detections"))
    add("--class-names", type=pathlib.Path, help="text file; default: the names beside the model")
    threshold = number(at_least=0)
    add("--score-threshold", type=threshold, default=0.3, help="objects below it are left out, 0 .. 1")
    add_sizes(parser)
    arguments = parser.parse_args(argv)
    check_sizes(parser, arguments)
    if arguments.score_threshold > 1:
        parser.error(f"--score-threshold must be 0 .. 1. Received: {arguments.score_threshold}")
    if not arguments.model.is_file():
        parser.error(f"there is no model {arguments.model}")
    if arguments.output.is_file():
        parser.error(f"--output must be a folder. Received: the file {arguments.output}")
    return parser, arguments


def find_pictures(parser, places, output):
    """Gives the paths of the pictures; ends the program where results would overwrite something."""
    paths = []
    for place in places:
        if place.is_dir():
            found = sorted(
                path
                for path in place.iterdir()
                if path.suffix.lower() in SUFFIXES
                and not path.name.startswith(".")  # macOS writes ._NAME.jpg
            )
            if not found:
                parser.error(f"{place} holds no pictures ({', '.join(sorted(SUFFIXES))})")
            paths += found
        else:
            paths.append(place)
    if output.resolve() in {path.resolve().parent for path in paths}:
        parser.error(f"--output must not be the folder of the pictures, or they are overwritten: {output}")
    names = [path.stem for path in paths]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        parser.error(f"pictures need different names before the suffix. Twice: {', '.join(twice)}")
    return paths


def add_sizes(parser):
    """Adds the options of the pictures' sizes."""
    side = whole_number(1)
    either = parser.add_mutually_exclusive_group().add_argument
    either("--image-size", type=side, metavar="SIDE", help="fit the pictures into a square of this side")
    either("--short-side", type=side, help="or resize them to this short side")
    limit = f"limit of the long side, with --short-side; default: {LONG_SIDE}"
    parser.add_argument("--long-side", type=side, help=limit)


def check_sizes(parser, arguments):
    """Ends the program where the sizes contradict each other."""
    if arguments.long_side is not None and arguments.short_side is None:
        parser.error("--long-side needs --short-side")
    if arguments.long_side is None:
        arguments.long_side = LONG_SIDE
    if arguments.short_side is not None and arguments.short_side > arguments.long_side:
        sides = f"{arguments.short_side}, --long-side {arguments.long_side}"
        parser.error(f"--short-side must not be above --long-side. Received: --short-side {sides}")


def read_notes(parser, model):
    """Gives what the training noted in settings.json beside the model: "categories", "sizes"; {} without."""
    path = model.parent / "settings.json"
    if not path.is_file():
        return {}
    try:
        notes = read_json(path, "settings.json")
    except ValueError as error:
        parser.error(error)
    notes = notes if isinstance(notes, dict) else {}
    sizes, categories = notes.get("sizes"), notes.get("categories")
    sides = sizes.get("image_size", [sizes.get("short_side"), sizes.get("long_side")]) if sizes else []
    if not all(map(is_side, sides)) or len(sides) != (2 if sizes else 0):
        parser.error(f"{path} must note sizes of pictures. Received: {sizes}")
    if not all(is_id(each.get("id")) and isinstance(each.get("name"), str) for each in categories or ()):
        parser.error(f"{path} must note categories with id and name. Received: {categories}")
    return notes


def choose_sizes(arguments, notes):
    """Gives the sizes of the pictures, as `detection_evaluation_batches` takes them."""
    if arguments.image_size is not None:
        return {"image_size": (arguments.image_size,) * 2}
    if arguments.short_side is not None or not notes.get("sizes"):
        short_side = SHORT_SIDE if arguments.short_side is None else arguments.short_side
        return {"short_side": short_side, "long_side": arguments.long_side}
    print(f"Sizes of the pictures, from {arguments.model.parent / 'settings.json'}: {notes['sizes']}")
    return notes["sizes"]


def find_categories(parser, arguments, notes, num_classes, pictures):
    """Gives id and name of each label: those the model learned, or else as near as can be."""
    categories = notes.get("categories")
    if categories:
        names, source = [each["name"] for each in categories], arguments.model.parent / "settings.json"
    else:
        names, source = read_class_names(parser, arguments.model.parent / "classes.txt")
    if arguments.class_names is not None:
        if not arguments.class_names.is_file():
            parser.error(f"there is no file {arguments.class_names}")
        names, source = read_class_names(parser, arguments.class_names)
    if names is None:
        return [{"id": label + 1, "name": f"class {label}"} for label in range(num_classes)]
    if len(names) != num_classes or len(categories or names) != num_classes:
        parser.error(f"the model has {num_classes} classes. Received: {len(names)} names in {source}")
    if categories:
        ids = [category["id"] for category in categories]
    else:
        ids = find_category_ids(pictures, names) or range(1, num_classes + 1)
    return [{"id": key, "name": name} for key, name in zip(ids, names, strict=True)]


def read_class_names(parser, path):
    """Gives the names in a text file, a line each, and its path; None where there is none."""
    if not path.is_file():
        return None, path
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        parser.error(f"{path} must be text in UTF-8. Received: {error}")
    return [line.strip() for line in text.splitlines() if line.strip()], path


def find_category_ids(pictures, class_names):
    """Gives the ids in the annotations of the pictures' data set, where its classes have these names."""
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


def detect_objects(model, image, sizes, score_threshold):
    """Gives the objects of one picture, in its pixels: arrays by name, the best first."""
    original_size = image.shape[:2]
    if "image_size" in sizes:
        canvas_size = sizes["image_size"]
        resized_size = fit_size(original_size, canvas_size)
    else:
        resized_size = fit_sides(original_size, sizes["short_side"], sizes["long_side"])
        canvas_size = [-(-int(side) // SIZE_DIVISOR) * SIZE_DIVISOR for side in resized_size]
    height, width = (int(side) for side in resized_size)
    images = np.full((1, *canvas_size, 3), MEAN_PIXEL, "float32")
    images[0, :height, :width] = move_image(image, make_resize(original_size, resized_size))
    inputs = {
        "images": images,
        "image_sizes": np.array([[height, width]], "int32"),
        "original_sizes": np.array([original_size], "int32"),
    }
    detections = {name: values[0] for name, values in model.predict_on_batch(inputs).items()}
    kept = (detections["labels"] >= 0) & (detections["scores"] >= score_threshold)
    return {name: values[kept] for name, values in detections.items()}


def to_annotations(detections, entry, category_ids, first_id):
    """Gives the objects of one picture as COCO's annotations, with scores."""
    batch = {name: values[None] for name, values in detections.items()}
    results = to_coco_results(batch, [entry["id"]], category_ids, [(entry["height"], entry["width"])])
    for key, result in enumerate(results, first_id):
        result.update(id=key, area=result["bbox"][2] * result["bbox"][3], iscrowd=0)
    return results


if __name__ == "__main__":
    sys.exit(main())
