"""Finds objects in pictures with a saved model.

    python examples/detect.py runs/detection/best.keras pictures/ --output runs/detections

For each picture NAME.jpg it writes NAME.png with boxes or masks, classes and scores, and for all of them
detections.json: the pictures, the categories and the objects in COCO's format, with scores. The class names
and the sizes of the pictures are those that `train_detection.py` noted beside the model.
"""

import argparse
import json
import pathlib
import sys

import keras
import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

import heads  # noqa: F401  (registers the heads' classes, which the saved model names)
import van_backbones  # noqa: F401  (the same for the backbone)
from heads.data.detection import MEAN_PIXEL, SIZE_DIVISOR, fit_sides, fit_size
from heads.data.geometry import move_image, resize_geometry
from heads.drawing_objects import draw_detections
from heads.metrics import to_coco_results

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def main(argv=None):
    """Runs the script; gives 1 if a picture was unreadable, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file")
    add("pictures", type=pathlib.Path, nargs="+", help="folders of pictures, or pictures")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/detections"))
    add("--class-names", type=pathlib.Path, help="text file; default: classes.txt beside the model")
    add("--score-threshold", type=float, default=0.3, help="objects below it are left out")
    add("--image-size", type=int, metavar="SIDE", help="fit the pictures into a square of this side")
    add("--short-side", type=int, help="or resize them to this short side")
    add("--long-side", type=int, default=1333, help="limit of the long side, with --short-side")
    arguments = parser.parse_args(argv)
    if not arguments.model.is_file():
        parser.error(f"there is no model {arguments.model}")
    paths = find_pictures(parser, arguments.pictures, arguments.output)
    model = keras.saving.load_model(arguments.model, compile=False)
    if not hasattr(model, "max_detections"):
        parser.error(f"{arguments.model} must be a detector")
    class_names = read_class_names(parser, arguments, model.num_classes)
    sizes = choose_sizes(arguments)

    arguments.output.mkdir(parents=True, exist_ok=True)
    entries, annotations, unreadable = [], [], []
    for path in tqdm(paths, unit="picture"):
        try:
            image = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            unreadable.append(f"{path}: {error}")
            continue
        detections = detect_objects(model, image, sizes, arguments.score_threshold)
        picture = draw_detections(image, detections, class_names, arguments.score_threshold)
        Image.fromarray(picture).save(arguments.output / f"{path.stem}.png")
        height, width = image.shape[:2]
        image_id = len(entries) + 1
        entries.append({"id": image_id, "file_name": str(path), "height": height, "width": width})
        annotations += to_annotations(detections, entries[-1], len(annotations) + 1)

    categories = [{"id": number, "name": name} for number, name in enumerate(class_names, 1)]
    content = {"images": entries, "categories": categories, "annotations": annotations}
    (arguments.output / "detections.json").write_text(json.dumps(content), encoding="utf-8")
    print(f"{len(annotations)} objects in {len(entries)} of {len(paths)} pictures, see {arguments.output}")
    for problem in unreadable:
        print(f"Skipped, unreadable: {problem}", file=sys.stderr)
    return 1 if unreadable else 0


def find_pictures(parser, places, output):
    """Gives the paths of the pictures; ends the program where results would overwrite something."""
    paths = []
    for place in places:
        if place.is_dir():
            found = sorted(path for path in place.iterdir() if path.suffix.lower() in SUFFIXES)
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


def read_class_names(parser, arguments, num_classes):
    """Gives the names of the classes, from the file that was given or lies beside the model."""
    path = arguments.class_names or arguments.model.parent / "classes.txt"
    if arguments.class_names is None and not path.is_file():
        return [f"class {label}" for label in range(num_classes)]
    names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(names) != num_classes:
        parser.error(f"the model has {num_classes} classes. Received: {len(names)} names in {path}")
    return names


def choose_sizes(arguments):
    """Gives the sizes of the pictures, as `detection_evaluation_batches` takes them."""
    if arguments.image_size:
        return {"image_size": (arguments.image_size,) * 2}
    settings = arguments.model.parent / "settings.json"
    if arguments.short_side or not settings.is_file():
        return {"short_side": arguments.short_side or 800, "long_side": arguments.long_side}
    return json.loads(settings.read_text(encoding="utf-8"))["sizes"]


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
    images[0, :height, :width] = move_image(image, resize_geometry(original_size, resized_size))
    inputs = {
        "images": images,
        "image_sizes": np.array([[height, width]], "int32"),
        "original_sizes": np.array([original_size], "int32"),
    }
    detections = {name: values[0] for name, values in model.predict_on_batch(inputs).items()}
    kept = (detections["labels"] >= 0) & (detections["scores"] >= score_threshold)
    return {name: values[kept] for name, values in detections.items()}


def to_annotations(detections, entry, first_id):
    """Gives the objects of one picture as COCO's annotations, with scores."""
    category_ids = range(1, int(detections["labels"].max(initial=0)) + 2)
    batch = {name: values[None] for name, values in detections.items()}
    results = to_coco_results(batch, [entry["id"]], category_ids, [(entry["height"], entry["width"])])
    for number, result in enumerate(results, first_id):
        result.update(id=number, area=result["bbox"][2] * result["bbox"][3], iscrowd=0)
    return results


if __name__ == "__main__":
    sys.exit(main())
