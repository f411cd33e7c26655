"""Segments pictures with a saved model.

    python examples/predict_segmentation.py runs/segmentation-1/best.keras pictures/ --output predictions

For each picture NAME.jpg it writes NAME.png, the class of each pixel (8 bits), and NAME.overlay.png to look
at, which is reduced for large pictures. `--tiles 512` segments pictures of any size in little memory. A model
that was trained on multispectral pictures reads TIFF files of as many channels.
"""

import pathlib

from options import (
    check_model,
    check_output,
    load_keras,
    make_parser,
)
from view_options import add_bands, add_views, check_views


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file")
    add("pictures", type=pathlib.Path, help="a folder of pictures, or one picture")
    output = "folder of the results; default: the next of runs/predictions-1, runs/predictions-2 ..."
    add("--output", type=pathlib.Path, help=output)
    names = "text file with a class name per line; default: the names in the model's file"
    add("--class-names", "--classes", type=pathlib.Path, help=names)
    add_views(parser)
    add_bands(parser)
    arguments = parser.parse_args(argv)
    check_views(parser, arguments)
    check_model(parser, arguments.model)
    check_output(parser, arguments.output)
    return parser, arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import collections
import sys

import keras
import numpy as np
from detect import open_output
from PIL import Image
from results import save_picture
from shown_pixels import show_pixels, tell_channels
from tqdm import tqdm

import van_backbones  # noqa: F401  (registers the backbone's classes, which the saved model names)
from heads import segment_in_tiles
from heads.data.label_folders import read_class_names
from heads.drawing import draw_result
from heads.pictures import show_path
from heads.prediction import PICTURE_SUFFIXES, read_pixels

LARGEST_OVERLAY = 4096  # pixels of the longer side


def main(argv=None):
    """Runs the script; returns 1 if a picture was unreadable, else 0."""
    parser, arguments = parse_arguments(argv)
    paths = find_pictures(parser, arguments.pictures, arguments.output)
    model = keras.saving.load_model(arguments.model, compile=False)
    if not hasattr(model, "segment") or model.num_classes > 255:
        wanted = "the model must be a semantic segmenter of at most 255 classes (8 bits)"
        parser.error(f"{wanted}. Received: {arguments.model}, a {type(model).__name__}")
    tell_channels(parser, model.image_channels, arguments.bands)
    class_names = choose_class_names(parser, arguments, model)

    output = open_output(arguments.output, "predictions")
    unreadable = []
    for path in tqdm(paths, unit="picture"):
        try:
            image = read_pixels(path, model.image_channels)
        except ValueError as error:
            unreadable.append(error)
            continue
        label_map = segment_picture(model, image, arguments)
        save_picture(label_map.astype("uint8"), output / f"{path.stem}.png")
        factor = -(-max(image.shape[:2]) // LARGEST_OVERLAY)
        shown = np.asarray(Image.fromarray(show_pixels(image, arguments.bands)).reduce(factor))
        overlay = draw_result(shown, {"label_map": label_map[::factor, ::factor]}, class_names)
        save_picture(overlay, output / f"{path.stem}.overlay.png")

    print(f"{len(paths) - len(unreadable)} of {len(paths)} pictures are segmented in {output}")
    for problem in unreadable:
        print(f"Skipped, unreadable: {problem}", file=sys.stderr)
    return 1 if unreadable else 0


def segment_picture(model, picture, arguments, progress=True):
    """Returns the label map of a picture, looked at as the options of `add_views` say.

    Args:
        model: The segmenter.
        picture: See `DenseModel.predict_pictures`.
        arguments: The options.
        progress: Whether to show a bar over tiles.
    """
    flip = {"flip": True} if arguments.flip_test else {}
    if arguments.tiles:
        return segment_in_tiles(model, picture, arguments.tiles, progress=progress, **flip)
    sizes = {"crop": arguments.crop_size, "stride": arguments.stride, "scales": arguments.scales}
    views = {name: tuple(values) for name, values in sizes.items() if values}
    (result,) = model.predict_pictures(picture, **views, **flip)
    return result["label_map"]


def choose_class_names(parser, arguments, model):
    """Returns the names of the option or of the model's file; ends the program if they do not fit."""
    if not arguments.class_names:
        return model.class_names
    try:
        class_names = read_class_names(arguments.class_names)
    except ValueError as error:
        parser.error(f"--class-names: {error}")
    if len(class_names) != model.num_classes:
        parser.error(
            f"--class-names must hold one name for each of the {model.num_classes} classes of the model. "
            f"Received: {len(class_names)} names in {arguments.class_names}"
        )
    return class_names


def find_pictures(parser, pictures, output):
    """Returns the paths of the pictures; ends the program if results would overwrite something."""
    if pictures.is_dir():
        # Hidden files are not the user's: macOS writes ._a.jpg beside a.jpg.
        paths = sorted(
            path
            for path in pictures.iterdir()
            if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
        )
    else:
        paths = [pictures]
    if not paths:
        parser.error(f"the folder must hold pictures ({', '.join(PICTURE_SUFFIXES)}). Received: {pictures}")
    if output is not None and output.resolve() in {path.resolve().parent for path in paths}:
        parser.error(
            f"--output must not be the folder of the pictures, which it overwrites. Received: {output}"
        )
    results = collections.Counter(path.stem + end for path in paths for end in (".png", ".overlay.png"))
    twice = sorted(show_path(name) for name, count in results.items() if count > 1)
    if twice:
        parser.error(f"pictures need different names before the suffix. Written twice: {', '.join(twice)}")
    return paths


if __name__ == "__main__":
    sys.exit(main())
