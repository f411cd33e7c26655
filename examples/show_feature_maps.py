"""Draws what a VAN backbone sees in one picture: features, principal components, attention.

    python examples/show_feature_maps.py street.jpg --variant b0 --weights imagenet

Without a picture it takes a synthetic scene, without weights a random backbone.
"""

import argparse
import pathlib

import keras
import numpy as np
from PIL import Image

from heads.data.shapes.scenes import draw_scene
from heads.pictures import read_picture
from van_backbones import VARIANTS, VANBackbone
from van_backbones.feature_maps import draw_feature_maps


def main(argv=None):
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?", type=pathlib.Path, help="default: a synthetic scene")
    parser.add_argument("--variant", choices=list(VARIANTS), default="b0")
    parser.add_argument("--weights", help="'imagenet', a release or a file; default: random weights")
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="resize the longer side to this")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/feature_maps.png"))
    arguments = parser.parse_args(argv)
    if arguments.image_size is not None and arguments.image_size < 32:
        parser.error(f"--image-size must be at least 32. Received: {arguments.image_size}")

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

    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(maps).save(arguments.output)
    print(f"The feature maps are in {arguments.output}")


if __name__ == "__main__":
    main()
