"""Draws what a model sees in one picture: features, principal components, attention, reasons for a class.

    python examples/show_feature_maps.py runs/segmentation-1/best.keras street.jpg --class car --point 320 200
    python examples/show_feature_maps.py runs/segmentation-2/best.keras street.jpg \
        --compare runs/segmentation-1/best.keras
    python examples/show_feature_maps.py street.jpg --variant b0 --weights imagenet --classifier
    python examples/show_feature_maps.py --weights imagenet --receptive-field path/to/pictures

The model is a .keras file of a head, a classifier or a backbone; without one it is a backbone of --variant,
random without --weights. Without a picture, a synthetic scene is used. For heads and classifiers, the page
also shows where each level speaks for the most prominent class, or for that of --class (Grad-CAM). --compare
draws the features of two models in one projection, and --receptive-field what the middle of each level looks
at, over a folder's pictures.
"""

import pathlib

from options import VARIANTS, check_model, load_keras, make_parser, whole_number
from view_options import add_bands

NUM_PICTURES = 100  # as in the paper's figure 8


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("model", nargs="?", help="a .keras file; default: see --variant")
    add("image", nargs="?", help="picture; default: a synthetic scene")
    add("--variant", choices=VARIANTS, help="instead of a file: a backbone of this size; default: b0")
    add("--weights", help="weights of --variant: 'imagenet', a release or a file; default: a random start")
    add("--classifier", action="store_true", help="take the classifier of --variant, not only its backbone")
    side = "resize the longer side to this; default: as the model's file says"
    add("--image-size", type=whole_number(32), metavar="SIDE", help=side)
    name = "name or number of the class to explain; default: the most prominent one"
    add("--class", dest="label", metavar="CLASS", help=name)
    point = "pixel to compare all positions with, and whose class a segmenter explains; default: none"
    add("--point", type=whole_number(0), nargs=2, metavar=("X", "Y"), help=point)
    add("--compare", type=pathlib.Path, metavar="FILE", help="also draw this model's features; default: none")
    field = "draw the effective receptive fields over a folder's pictures instead; default: none"
    add("--receptive-field", type=pathlib.Path, metavar="FOLDER", help=field)
    add_bands(parser)
    output = "picture; default: feature_maps.png in the next of runs/feature_maps-1, runs/feature_maps-2 ..."
    add("--output", type=pathlib.Path, help=output)
    arguments = parser.parse_args(argv)
    if arguments.model and arguments.image is None and not arguments.model.endswith(".keras"):
        arguments.model, arguments.image = None, arguments.model
    check_arguments(parser, arguments)
    return parser, arguments


def check_arguments(parser, arguments):
    """Ends the program if files are missing or options contradict each other."""
    for path in (arguments.model, arguments.compare):
        if path is not None:
            check_model(parser, path)
    if arguments.model and (arguments.variant or arguments.weights or arguments.classifier):
        parser.error("pass either a model's file, or --variant, --weights and --classifier")
    arguments.variant = arguments.variant or "b0"
    if arguments.compare and (arguments.label or arguments.point):
        parser.error("--class and --point are for the maps of one model, not for --compare")
    if arguments.receptive_field is None:
        return
    if arguments.image or arguments.compare or arguments.label or arguments.point:
        parser.error("--receptive-field cannot be combined with a picture, --compare, --class or --point")
    if not arguments.receptive_field.is_dir():
        parser.error(f"--receptive-field must be a folder of pictures. Received: {arguments.receptive_field}")


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import keras
import numpy as np
from PIL import Image
from results import save_picture
from shown_pixels import check_bands, show_pixels
from tqdm import tqdm

import heads  # noqa: F401  (registers the heads' classes, which the saved model names)
from heads.class_scores import find_class, score_class
from heads.data.shapes.scenes import draw_scene
from heads.ops.resizing import resize_bilinear
from heads.pictures import RGB_CHANNELS
from heads.prediction import find_pictures, read_pixels
from heads.training import make_numbered_folder
from van_backbones import VANBackbone, VANClassifier
from van_backbones.class_names import read_imagenet_names
from van_backbones.feature_maps import (
    draw_feature_comparison,
    draw_feature_maps,
    draw_receptive_fields,
    grad_cam,
    receptive_field,
)


def main(argv=None):
    """Runs the script."""
    parser, arguments = parse_arguments(argv)
    model = build_model(arguments) if arguments.model is None else load_model(parser, arguments.model)
    backbone = getattr(model, "backbone", model)
    try:
        check_bands(arguments.bands, count_channels(model))
        if arguments.receptive_field:
            page = draw_fields(arguments, backbone)
        else:
            image, point = read_image(parser, arguments, model)
            if arguments.compare:
                other = load_model(parser, arguments.compare)
                if count_channels(other) != count_channels(model):
                    received = f"{count_channels(model)} and {count_channels(other)}"
                    parser.error(f"both models must take pictures of as many channels. Received: {received}")
                names = name_models(arguments.compare, pathlib.Path(arguments.model or arguments.variant))
                backbones = {names[0]: getattr(other, "backbone", other), names[1]: backbone}
                page = draw_feature_comparison(backbones, image, shown=show_pixels(image, arguments.bands))
            else:
                class_maps = explain_class(parser, arguments, model, image, point)
                shown = show_pixels(image, arguments.bands)
                page = draw_feature_maps(backbone, image, class_maps=class_maps, point=point, shown=shown)
    except ValueError as error:
        parser.error(str(error))

    output = arguments.output or make_numbered_folder("runs", "feature_maps") / "feature_maps.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    save_picture(page, output)
    print(f"The feature maps are in {output}")


def build_model(arguments):
    """Returns the backbone or the classifier of a variant."""
    if arguments.weights is None:
        print("No --weights given: the backbone is random, so the maps show its structure, nothing learnt.")
        keras.utils.set_random_seed(0)  # the same maps in each run
    model_class = VANClassifier if arguments.classifier else VANBackbone
    return model_class(variant=arguments.variant, weights=arguments.weights)


def load_model(parser, path):
    """Returns the model of a file; ends the program if it has no VAN inside."""
    try:
        model = keras.saving.load_model(path, compile=False)
    except ValueError as error:
        parser.error(f"cannot read the model {path}. {error}")
    if not hasattr(getattr(model, "backbone", model), "pyramid_outputs"):
        parser.error(f"the model must be a head, a classifier or a VANBackbone. Received: {path}, {model!r}")
    return model


def count_channels(model):
    """Returns how many channels a model's pictures have."""
    return getattr(model, "backbone", model).inputs[0].shape[-1]


def read_image(parser, arguments, model):
    """Returns the picture at the size that the model sees, and the point in it."""
    num_channels = count_channels(model)
    if arguments.image is None:
        if num_channels != RGB_CHANNELS:
            parser.error(f"a model of {num_channels} channels needs a picture: the synthetic scene is RGB")
        print("No picture given: drawing a synthetic scene.")
        pixels = draw_scene(seed=1, image_size=(224, 288))["image"]
    else:
        try:
            pixels = read_pixels(pathlib.Path(arguments.image), num_channels)
        except ValueError as error:
            parser.error(f"cannot read the picture. {error}")
    height, width = size = pixels.shape[:2]
    if arguments.image_size is not None:
        scale = arguments.image_size / max(size)
        size = tuple(max(1, round(side * scale)) for side in size)
    elif hasattr(model, "resizing"):
        size = model.resizing.fit(size)
    point = arguments.point
    if point is not None:
        if point[0] >= width or point[1] >= height:
            parser.error(
                f"--point must be within the picture of {width} x {height} pixels. Received: {point}"
            )
        point = tuple(
            int((x + 0.5) * new / old) for x, new, old in zip(point, size[::-1], (width, height), strict=True)
        )
    return resize_pixels(pixels, size), point


def resize_pixels(pixels, size):
    """Returns a picture of another (height, width)."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    if pixels.shape[-1] == RGB_CHANNELS:
        return np.asarray(Image.fromarray(pixels).resize(size[::-1]))
    return keras.ops.convert_to_numpy(resize_bilinear(pixels[None], tuple(size)))[0]


def explain_class(parser, arguments, model, image, point):
    """Returns the name of a class -> where the levels speak for it; None for models without classes."""
    if not hasattr(model, "backbone") or hasattr(model, "num_keypoints"):
        if arguments.label is not None:
            parser.error(f"--class needs a model that predicts classes. Received: a {type(model).__name__}")
        return None
    is_classifier = isinstance(model, VANClassifier)
    names = list_names(model)
    if arguments.label is not None:
        label = find_label(parser, arguments.label, names)
    else:
        predictions = model(image[None].astype("float32"), training=False)
        if is_classifier:
            label = int(keras.ops.convert_to_numpy(predictions)[0].argmax())
        else:
            label = find_class(model, predictions, point)

    def score(predictions):
        return predictions[0, label] if is_classifier else score_class(model, predictions, label, point)

    print(f"The maps show what speaks for {names[label]}")
    return {names[label]: grad_cam(model, image, score)}


def list_names(model):
    """Returns the names of a model's classes, or numbers."""
    names = getattr(model, "class_names", None)
    count = getattr(model, "num_classes", 1)  # a saliency model has one
    if names is None and isinstance(model, VANClassifier) and count == 1000:
        names = [name for _, name in read_imagenet_names()]
    return list(names or [f"class {label}" for label in range(count)])


def find_label(parser, text, names):
    """Returns the number of a class; ends the program if there is no such class."""
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    known = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
    parser.error(f"--class must be one of {known}, or a number below {len(names)}. Received: {text!r}")


def name_models(*paths):
    """Returns a name for the model of each path, which also tells the best.keras of two runs apart."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.resolve().parent.name}/{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for name, place in zip(names, ("first", "second"), strict=True)]
    return names


def draw_fields(arguments, backbone):
    """Returns the page of the effective receptive fields, over square crops from the middle of pictures."""
    side = arguments.image_size or 512
    paths = find_pictures(arguments.receptive_field)[:NUM_PICTURES]
    levels = sorted(backbone.pyramid_outputs)
    progress = tqdm(total=len(levels) * len(paths), unit="picture")

    def read_squares():
        for path in paths:
            pixels = read_pixels(path, count_channels(backbone))
            shortest = min(pixels.shape[:2])
            top, left = ((each - shortest) // 2 for each in pixels.shape[:2])
            yield resize_pixels(pixels[top : top + shortest, left : left + shortest], (side, side))
            progress.update()

    fields = {level: receptive_field(backbone, read_squares(), level) for level in levels}
    progress.close()
    return draw_receptive_fields(fields, len(paths), backbone)


if __name__ == "__main__":
    main()
