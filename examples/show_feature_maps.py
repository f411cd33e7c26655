"""Draws what a VAN backbone sees in one picture: features, principal components, attention.

    python examples/show_feature_maps.py street.jpg --variant b0 --weights imagenet

Without a picture it takes a synthetic scene, without weights a random backbone.
"""

import pathlib

from options import add_variant, load_keras, make_parser, whole_number


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("image", nargs="?", type=pathlib.Path, help="default: a synthetic scene")
    add_variant(parser)
    side = "resize the longer side to this; default: as it is"
    add("--image-size", type=whole_number(32), metavar="SIDE", help=side)
    output = "picture; default: feature_maps.png in the next of runs/feature_maps-1, runs/feature_maps-2 ..."
    add("--output", type=pathlib.Path, help=output)
    return parser, parser.parse_args(argv)


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import keras
import numpy as np
from PIL import Image

from heads.data.shapes.scenes import draw_scene
from heads.pictures import read_picture
from heads.training import make_numbered_folder
from van_backbones import VANBackbone
from van_backbones.feature_maps import draw_feature_maps


def main(argv=None):
    """Runs the script."""
    parser, arguments = parse_arguments(argv)
    if arguments.image is None:
        print("No picture given: drawing a synthetic scene.")
        picture = Image.fromarray(draw_scene(seed=1, image_size=(224, 288))["image"])
    else:
        try:
            picture = Image.fromarray(read_picture(arguments.image))
        except ValueError as error:
            parser.error(f"cannot read the picture. {error}")
    if arguments.image_size is not None:
        scale = arguments.image_size / max(picture.size)
        picture = picture.resize([max(1, round(side * scale)) for side in picture.size])

    if arguments.weights is None:
        print("No --weights given: the backbone is random, so the maps show its structure, nothing learnt.")
        keras.utils.set_random_seed(0)  # the same maps in each run
    backbone = VANBackbone(variant=arguments.variant, weights=arguments.weights)
    maps = draw_feature_maps(backbone, np.asarray(picture))

    output = arguments.output or make_numbered_folder("runs", "feature_maps") / "feature_maps.png"
    output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(maps).save(output)
    print(f"The feature maps are in {output}")


if __name__ == "__main__":
    main()
