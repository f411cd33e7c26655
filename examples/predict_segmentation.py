"""Segments pictures with a saved model.

    python examples/predict_segmentation.py model.keras pictures/ --output predictions

For each picture NAME.jpg it writes NAME.png, the class of each pixel (8 bits), and NAME.overlay.png, which
is for people.
"""

import argparse
import collections
import pathlib
import sys

import keras
import numpy as np
from PIL import Image
from tqdm import tqdm

import heads  # noqa: F401  (registers the heads' classes, which the saved model names)
import van_backbones  # noqa: F401  (the same for the backbone)
from heads.data.label_folders import read_class_names
from heads.drawing import class_palette, draw_legend, overlay_label_map, tile_pictures
from heads.pictures import read_picture, show_path
from heads.prediction import PICTURE_SUFFIXES


def main(argv=None):
    """Runs the script; gives 1 if a picture was unreadable, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=pathlib.Path, help="a .keras file")
    parser.add_argument("pictures", type=pathlib.Path, help="a folder of pictures, or one picture")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/predictions"))
    parser.add_argument(
        "--classes",
        type=pathlib.Path,
        help="a text file with a class name per line; default: the names in the model's file",
    )
    parser.add_argument("--crop", type=int, nargs=2, metavar=("H", "W"), help="slide a window of this size")
    parser.add_argument("--stride", type=int, nargs=2, metavar=("H", "W"), help="of the sliding window")
    parser.add_argument("--flip", action="store_true", help="average with the mirrored picture")
    arguments = parser.parse_args(argv)
    if arguments.stride and not arguments.crop:
        parser.error("--stride needs --crop")
    if not arguments.model.is_file():
        parser.error(f"there is no model {arguments.model}")
    paths = find_pictures(parser, arguments.pictures, arguments.output)

    try:
        class_names = read_class_names(arguments.classes) if arguments.classes else None
    except ValueError as error:
        parser.error(f"--classes: {error}")
    model = keras.saving.load_model(arguments.model, compile=False)
    if not hasattr(model, "segment") or model.num_classes > 255:
        parser.error(f"{arguments.model} must be a semantic segmenter of at most 255 classes (8 bits)")
    if class_names and len(class_names) != model.num_classes:
        parser.error(
            f"--classes must hold one name for each of the {model.num_classes} classes of the model. "
            f"Received: {len(class_names)} names in {arguments.classes}"
        )
    class_names = class_names or model.class_names
    window = {name: tuple(size) for name in ("crop", "stride") if (size := getattr(arguments, name))}

    arguments.output.mkdir(parents=True, exist_ok=True)
    unreadable = []
    for path in tqdm(paths, unit="picture"):
        try:
            image = read_picture(path)
        except ValueError as error:
            unreadable.append(error)
            continue
        if window or arguments.flip:
            label_map = model.segment(image[None].astype("float32"), flip=arguments.flip, **window)[0]
        else:
            label_map = model.predict_pictures(image)[0]["label_map"]
        Image.fromarray(label_map.astype("uint8")).save(arguments.output / f"{path.stem}.png")
        overlay = draw_prediction(image, label_map, class_names)
        Image.fromarray(overlay).save(arguments.output / f"{path.stem}.overlay.png")

    print(f"{len(paths) - len(unreadable)} of {len(paths)} pictures are segmented in {arguments.output}")
    for problem in unreadable:
        print(f"Skipped, unreadable: {problem}", file=sys.stderr)
    return 1 if unreadable else 0


def find_pictures(parser, pictures, output):
    """Returns the paths of the pictures; ends the program where results would overwrite something."""
    if pictures.is_dir():
        # Hidden files are none that a person put there: macOS writes ._a.jpg beside a.jpg.
        paths = sorted(
            path
            for path in pictures.iterdir()
            if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
        )
    else:
        paths = [pictures]
    if not paths:
        parser.error(f"{pictures} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    if output.resolve() in {path.resolve().parent for path in paths}:
        parser.error(f"--output must not be the folder of the pictures, or they are overwritten: {output}")
    results = collections.Counter(path.stem + end for path in paths for end in (".png", ".overlay.png"))
    twice = sorted(show_path(name) for name, count in results.items() if count > 1)
    if twice:
        parser.error(f"pictures need different names before the suffix. Written twice: {', '.join(twice)}")
    return paths


def draw_prediction(image, label_map, class_names):
    """Returns the picture under its segments' colours, and a legend of the classes that occur."""
    occurring = np.unique(label_map)
    num_classes = max(int(occurring[-1]) + 1, len(class_names or ()))
    palette = class_palette(num_classes)
    names = [class_names[k] if class_names and k < len(class_names) else f"class {k}" for k in occurring]
    legend = draw_legend(names, max(image.shape[1], 160), palette[occurring])
    return tile_pictures([[overlay_label_map(image, label_map, 0.5, palette)], [legend]], margin=0)


if __name__ == "__main__":
    sys.exit(main())
