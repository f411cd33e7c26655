"""Scores a detector on a folder of pictures with COCO annotations.

    python examples/evaluate_detection.py runs/detection/best.keras --data path/to/data
    python examples/evaluate_detection.py mask_rcnn_van_b0.pth --head mask_rcnn --variant b0 \
        --data path/to/coco --split val2017 --images "{split}"

The model is a .keras file, or a checkpoint in mmdetection's or our own format together with --head and
--variant. The pictures get the sizes that `train_detection.py` noted beside the model, or the paper's.
"""

import argparse
import json
import pathlib
import sys

import keras

from heads import FasterRCNN, MaskRCNN, RetinaNet
from heads.data import CocoDataset, detection_evaluation_batches
from heads.metrics import evaluate_coco, format_coco_scores, predict_coco_results, save_results
from van_backbones import VARIANTS, VANBackbone, load_checkpoint

HEADS = {"retinanet": RetinaNet, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}


def main(argv=None):
    """Scores the model and saves its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file, or a checkpoint with --head and --variant")
    add("--data", type=pathlib.Path, required=True, help="folder of pictures and annotations")
    add("--split", default="val")
    add("--annotations", default="annotations/instances_{split}.json", help="where in --data")
    add("--images", default="images/{split}", help="where in --data")
    add("--head", choices=list(HEADS), help="of a checkpoint")
    add("--variant", choices=list(VARIANTS), default="b0", help="of a checkpoint's backbone")
    add(
        "--kinds",
        nargs="+",
        choices=["bbox", "segm"],
        help="what to score; default: all that the model gives",
    )
    add("--batch-size", type=int, default=1)
    add("--image-size", type=int, metavar="SIDE", help="fit the pictures into a square of this side")
    add("--short-side", type=int, help="or resize them to this short side")
    add("--long-side", type=int, default=1333, help="limit of the long side, with --short-side")
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/results.json"), help="COCO's results")
    arguments = parser.parse_args(argv)
    if not arguments.model.is_file():
        parser.error(f"there is no model {arguments.model}")
    if (arguments.model.suffix == ".keras") == (arguments.head is not None):
        parser.error("a .keras file knows its head, any other file needs --head (and --variant)")

    annotations = arguments.data / arguments.annotations.format(split=arguments.split)
    dataset = CocoDataset(annotations, arguments.data / arguments.images.format(split=arguments.split))
    if arguments.head is None:
        model = keras.saving.load_model(arguments.model, compile=False)
    else:
        model = HEADS[arguments.head](VANBackbone(arguments.variant), dataset.num_classes)
        load_checkpoint(model, arguments.model)
    if not hasattr(model, "max_detections") or model.num_classes != dataset.num_classes:
        parser.error(f"the model must be a detector of the {dataset.num_classes} classes of {annotations}")
    warn_of_other_classes(arguments.model, dataset.class_names)

    has_masks = getattr(model, "with_masks", False)
    kinds = arguments.kinds or (["bbox", "segm"] if has_masks else ["bbox"])
    batches = detection_evaluation_batches(dataset, arguments.batch_size, **choose_sizes(arguments))
    results = predict_coco_results(model, batches, dataset.image_ids, dataset.category_ids, progress=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_results(results, arguments.output)
    scores = evaluate_coco(dataset.to_coco(), results, kinds, (1, 10, model.max_detections))
    print(format_coco_scores(scores))
    print(f"{len(results):,} detections on {len(dataset):,} pictures are in {arguments.output}")


def choose_sizes(arguments):
    """Gives the sizes of the pictures, as `detection_evaluation_batches` takes them."""
    if arguments.image_size:
        return {"image_size": (arguments.image_size,) * 2}
    settings = arguments.model.parent / "settings.json"
    if arguments.short_side or not settings.is_file():
        return {"short_side": arguments.short_side or 800, "long_side": arguments.long_side}
    sizes = json.loads(settings.read_text(encoding="utf-8"))["sizes"]
    print(f"Sizes of the pictures, from {settings}: {sizes}")
    return sizes


def warn_of_other_classes(model, class_names):
    """Tells where the names that were noted in training are others, or in another order."""
    path = model.parent / "classes.txt"
    if path.is_file() and path.read_text(encoding="utf-8").splitlines() != list(class_names):
        print(f"The classes of the data are not those of {path}: {', '.join(class_names)}", file=sys.stderr)


if __name__ == "__main__":
    main()
