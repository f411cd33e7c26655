"""Prints how many parameters and multiply-accumulates the parts of a model have, at a given image size.

    python examples/summarize.py runs/segmentation-1/best.keras --image-size 512 512
    python examples/summarize.py --head upernet --variant b2 --image-size 512 2048
    python examples/summarize.py upernet_b2_ade20k

A multiply-accumulate is one product of a weight with an activation, in a convolution or a dense layer; they
are counted for the prediction of one picture. Published "FLOPs" of vision models are mostly these.
"""

import pathlib

from options import VARIANTS, load_keras, make_parser, whole_number

# Head -> its class in heads, and the usual number of its classes.
HEADS = {
    "classifier": (None, 1000),
    "semantic_fpn": ("SemanticFPN", 150),
    "upernet": ("UPerNet", 150),
    "retinanet": ("RetinaNet", 80),
    "gfl": ("GFL", 80),
    "atss": ("ATSS", 80),
    "faster_rcnn": ("FasterRCNN", 80),
    "mask_rcnn": ("MaskRCNN", 80),
    "cascade_mask_rcnn": ("CascadeMaskRCNN", 80),
    "sparse_rcnn": ("SparseRCNN", 80),
    "mask2former": ("Mask2Former", None),
    "simple_baseline": ("SimpleBaseline", None),
    "edn": ("EDN", None),
}


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("model", nargs="?", help="a .keras file, or the name of a release; default: see --head")
    add("--head", choices=HEADS, help="instead of a file: this head; default: the backbone alone")
    add("--variant", choices=VARIANTS, help="size of the backbone; default: b0")
    classes = "classes of --head; default: as many as in ImageNet, ADE20K or COCO"
    add("--num-classes", type=whole_number(1), metavar="CLASSES", help=classes)
    size = "size of the picture; default: 224 224 for classifiers, 512 512 for others"
    add("--image-size", type=whole_number(1), nargs=2, metavar=("HEIGHT", "WIDTH"), help=size)
    arguments = parser.parse_args(argv)
    if arguments.model and (arguments.head or arguments.variant or arguments.num_classes):
        parser.error("pass either a model, or --head, --variant and --num-classes")
    if arguments.num_classes and HEADS.get(arguments.head, (None, None))[1] is None:
        parser.error(f"--num-classes is for --head with classes. Received: --head {arguments.head}")
    if arguments.model and arguments.model.endswith(".keras") and not pathlib.Path(arguments.model).is_file():
        parser.error(f"there is no model {arguments.model}")
    arguments.variant = arguments.variant or "b0"
    return parser, arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import keras

import heads
from van_backbones import VANBackbone, VANClassifier
from van_backbones.checkpoints.releases import find_release
from van_backbones.summary import summarize


def main(argv=None):
    """Runs the script."""
    parser, arguments = parse_arguments(argv)
    model = build_model(parser, arguments)
    is_classifier = isinstance(model, VANClassifier)
    size = tuple(arguments.image_size or ((224, 224) if is_classifier else (512, 512)))
    parts = summarize(model, size)
    print(f"{type(model).__name__} at {size[0]} x {size[1]}")
    print("\n".join(format_parts(parts)))


def build_model(parser, arguments):
    """Returns the model of a file, or one with random weights, which cost the same."""
    if arguments.model is None:
        return build_head(arguments.head, arguments.variant, arguments.num_classes)
    if pathlib.Path(arguments.model).is_file():
        try:
            model = keras.saving.load_model(arguments.model, compile=False)
        except ValueError as error:
            parser.error(f"cannot read the model {arguments.model}. {error}")
        if hasattr(getattr(model, "backbone", model), "layers"):
            return model
        parser.error(f"the model must be a backbone, a classifier or a head. Received: {model!r}")
    try:
        release = find_release(arguments.model)
    except ValueError as error:
        parser.error(f"there is no file {arguments.model}, and no release of this name. {error}")
    names = {class_name: head for head, (class_name, _) in HEADS.items()}
    return build_head(names[release.head], release.variant)


def build_head(head, variant, num_classes=None):
    """Returns a head with random weights on a VAN backbone; without a head, the backbone."""
    if head is None:
        return VANBackbone(variant)
    class_name, usual = HEADS[head]
    classes = [num_classes or usual] if usual else []
    if class_name is None:
        return VANClassifier(variant, *classes)
    return getattr(heads, class_name)(VANBackbone(variant), *classes)


def format_parts(parts):
    """Returns the lines of a table, with the sums in the last one."""
    totals = [sum(part[column] for part in parts) for column in (1, 2)]
    rows = [("part", "parameters", "", "multiply-accumulates", "")]
    for name, *counts in [*parts, ("total", *totals)]:
        cells = [
            (f"{count:,}", f"{count / max(total, 1):.1%}")
            for count, total in zip(counts, totals, strict=True)
        ]
        rows.append((name, *cells[0], *cells[1]))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return [line.rstrip() for line in lines]


if __name__ == "__main__":
    main()
