"""Scores a detector on a folder of pictures with annotations, in COCO's or another tool's format.

    python examples/evaluate_detection.py runs/detection/best.keras --data path/to/data
    python examples/evaluate_detection.py mask_rcnn_van_b0.pth --head mask_rcnn --variant b0 \
        --data path/to/coco --split val2017
    python examples/evaluate_detection.py runs/detection/best.keras --data path/to/yolo --val-share 0.2

The model is a .keras file, or a checkpoint in mmdetection's or our own format together with --head and
--variant. The pictures get the sizes that are in the model's file, or, of a checkpoint, the paper's; its
classes are those of the same names in the data, or, without names in the file, those in the order of the ids.
"""

import argparse
import pathlib
import sys

import keras
from detect import add_sizes, check_sizes, choose_resizing
from train_detection import HEADS, check_val_share, hold_out, open_split

from heads import Resizing
from heads.data import detection_evaluation_batches
from heads.metrics import evaluate_coco, format_coco_scores, predict_coco_results, save_results
from heads.training import RunError, number, whole_number
from van_backbones import VARIANTS, VANBackbone, load_checkpoint


def main(argv=None):
    """Scores the model and saves its results."""
    parser, arguments = parse_arguments(argv)
    model = None if arguments.head else keras.saving.load_model(arguments.model, compile=False)
    has_masks = getattr(HEADS[arguments.head] if arguments.head else model, "with_masks", False)
    kinds = arguments.kinds or (["bbox", "segm"] if has_masks else ["bbox"])
    if "segm" in kinds and not has_masks:
        parser.error(f"--kinds segm needs a model with masks. Received: {arguments.model}")
    try:
        dataset = open_data(arguments, with_masks="segm" in kinds)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if model is None:
        model = HEADS[arguments.head](VANBackbone(arguments.variant or "b0"), dataset.num_classes)
        load_checkpoint(model, arguments.model)
        model.resizing = Resizing(short_side=800, long_side=1333)  # the paper's
    if not hasattr(model, "max_detections") or model.num_classes != dataset.num_classes:
        parser.error(f"the model must be a detector of the {dataset.num_classes} classes of {dataset.path}")
    category_ids = match_categories(model, dataset)

    limits = (1, 10, model.max_detections)
    try:
        if not dataset.check().any():
            raise ValueError(f"{dataset.path} has no annotations of objects, so there is nothing to score")
        truth = dataset.to_coco()
        evaluate_coco(truth, [], kinds, limits)  # finds faults of the truth now, and not after hours
    except ValueError as error:
        raise SystemExit(str(error)) from error
    sizes = choose_resizing(arguments, model.resizing).get_config()
    batches = detection_evaluation_batches(dataset, arguments.batch_size, **sizes)
    results = predict_coco_results(model, batches, dataset.image_ids, category_ids, progress=True)
    save_results(results, arguments.output)
    scores = evaluate_coco(truth, results, kinds, limits)
    print(format_coco_scores(scores))
    print(f"{len(results):,} detections on {len(dataset):,} pictures are in {arguments.output}")


def parse_arguments(argv):
    """Returns the parser, for further errors, and the settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file, or a checkpoint with --head and --variant")
    add("--data", type=pathlib.Path, required=True, help="folder of pictures and annotations")
    add("--split", help="default: val")
    add("--val-share", type=number(above=0), help="of a training with this option: score what it held out")
    add("--seed", type=whole_number(0), default=0, help="of that training, for --val-share")
    add("--annotations", help="COCO's file in --data, as annotations/instances_{split}.json; default: found")
    add("--images", help="its pictures in --data; default: found, or images/{split} with --annotations")
    add("--head", choices=list(HEADS), help="of a checkpoint")
    add("--variant", choices=list(VARIANTS), help="of a checkpoint's backbone; default: b0")
    add(
        "--kinds",
        nargs="+",
        choices=["bbox", "segm"],
        help="what to score; default: all that the model gives",
    )
    add("--batch-size", type=whole_number(1), default=1)
    add_sizes(parser)
    add("--output", type=pathlib.Path, default=pathlib.Path("runs/results.json"), help="COCO's results")
    arguments = parser.parse_args(argv)
    check_sizes(parser, arguments)
    arguments.splits = arguments.split
    try:
        check_val_share(arguments)
    except RunError as error:
        parser.error(str(error).replace("--splits", "--split"))
    if not arguments.model.is_file():
        parser.error(f"there is no model {arguments.model}")
    if (arguments.model.suffix == ".keras") == (arguments.head is not None):
        parser.error("a .keras file knows its head, any other file needs --head (and --variant)")
    if arguments.model.suffix == ".keras" and arguments.variant is not None:
        parser.error("a .keras file knows its backbone. Received: --variant " + arguments.variant)
    if arguments.output.is_dir():
        parser.error(f"--output must be a file. Received: the folder {arguments.output}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    return parser, arguments


def open_data(arguments, with_masks):
    """Returns the pictures to score."""
    if arguments.val_share:
        return hold_out(arguments, with_masks)[1]
    return open_split(arguments, arguments.split or "val", with_masks)


def match_categories(model, dataset):
    """Returns the data's category id of each label of the model, by the names in its file."""
    names = model.class_names
    if names is None:
        return dataset.category_ids
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    if sorted(ids) == sorted(names):
        return [ids[name] for name in names]
    print(
        f"The classes of the data are not those of the model ({', '.join(names)}), and are taken in their "
        f"order: {', '.join(dataset.class_names)}",
        file=sys.stderr,
    )
    return dataset.category_ids


if __name__ == "__main__":
    main()
