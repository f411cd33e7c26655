"""Scores a detector on held-out pictures with annotations, in COCO's or another tool's format.

    python examples/evaluate_detection.py runs/detection-1/best.keras --data path/to/data --splits val test
    python examples/evaluate_detection.py mask_rcnn_van_b0.pth --head mask_rcnn --variant b0 \
        --data path/to/coco --splits val2017
    python examples/evaluate_detection.py runs/detection-1/best.keras --data path/to/yolo --val-share 0.2

The model is a .keras file, or a checkpoint in mmdetection's or our own format together with --head and
--variant. Pictures are resized as the model's file says, for a checkpoint as in the paper. Classes are
matched with those of the data by their names; without names in the file, by the order of the ids. The scores,
COCO's results and some pictures of each split go into a new folder beside the model: evaluation-1 ...
"""

import pathlib

from options import (
    DETECTORS,
    VARIANTS,
    add_evaluation_options,
    add_sizes,
    check_evaluation_options,
    check_sizes,
    load_keras,
    make_parser,
    whole_number,
)
from view_options import add_bands, add_detector_views, check_detector_views, list_views


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file, or a checkpoint with --head and --variant")
    add_evaluation_options(parser, "pictures and annotations")
    add("--annotations", help="COCO's file in --data, as annotations/instances_{split}.json; default: found")
    add("--images", help="its pictures in --data; default: found, or images/{split} with --annotations")
    add("--head", choices=DETECTORS, help="head of a checkpoint; default: the .keras file's")
    add("--variant", choices=VARIANTS, help="size of a checkpoint's backbone; default: b0")
    kinds = "what to score; default: all that the model predicts"
    add("--kinds", nargs="+", choices=["bbox", "segm"], help=kinds)
    batch = "pictures per batch; default: %(default)s"
    add("--batch-size", type=whole_number(1), default=1, help=batch)
    add_sizes(parser)
    add_detector_views(parser)
    add_bands(parser)
    arguments = parser.parse_args(argv)
    check_sizes(parser, arguments)
    check_detector_views(parser, arguments)
    check_evaluation_options(parser, arguments)
    if (arguments.model.suffix == ".keras") == (arguments.head is not None):
        parser.error("a .keras file knows its head, any other file needs --head (and --variant)")
    if arguments.model.suffix == ".keras" and arguments.variant is not None:
        parser.error("a .keras file knows its backbone. Received: --variant " + arguments.variant)
    return parser, arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import itertools
import sys

import keras
from detect import choose_resizing, detect_objects
from detection_pictures import draw_mistakes, draw_pictures
from faults import explain_faults
from finetune_segmentation import choose_input
from results import keep_report, keep_scores, open_evaluation
from shown_pixels import tell_channels
from train_detection import HEADS, hold_out, open_split

from heads import Resizing, to_coco
from heads.data import detection_evaluation_batches
from heads.metrics import evaluate_coco, format_coco_scores, predict_coco_results, save_results
from heads.views import MOST_DETECTIONS
from van_backbones import VANBackbone, load_checkpoint


def main(argv=None):
    """Scores the model on each split, and keeps the scores beside it."""
    parser, arguments = parse_arguments(argv)
    model = None if arguments.head else keras.saving.load_model(arguments.model, compile=False)
    has_masks = getattr(HEADS[arguments.head] if arguments.head else model, "with_masks", False)
    kinds = arguments.kinds or (["bbox", "segm"] if has_masks else ["bbox"])
    if "segm" in kinds and not has_masks:
        parser.error(f"--kinds segm needs a model with masks. Received: {arguments.model}")
    with explain_faults(arguments.data, "train_detection.py"):
        datasets = open_data(arguments, with_masks="segm" in kinds)
    if model is None:
        model = load_model(arguments, next(iter(datasets.values())))
    for dataset in datasets.values():
        if not hasattr(model, "max_detections") or model.num_classes != dataset.num_classes:
            wanted = f"the {dataset.num_classes} classes of {dataset.path}"
            parser.error(f"the model must be a detector of {wanted}. Received: {arguments.model}")
        if model.image_channels != dataset.num_channels:
            wanted = f"the {dataset.num_channels} channels of {dataset.path}"
            received = f"{arguments.model}, {model.image_channels} channels"
            parser.error(f"the model must take pictures of {wanted}. Received: {received}")
    tell_channels(parser, model.image_channels, arguments.bands)
    with explain_faults(arguments.data, "train_detection.py"):
        for dataset in datasets.values():
            check_truth(dataset, kinds)
    model.resizing = choose_resizing(arguments, model.resizing)
    output = open_evaluation(arguments)
    for split, dataset in datasets.items():
        print(f"\n{split}: {len(dataset):,} pictures", flush=True)
        score_split(model, dataset, kinds, output / split, arguments)
    print(f"Scores, results and pictures are in {output}")


def open_data(arguments, with_masks):
    """Returns split -> pictures to score."""
    if arguments.val_share:
        return {"held-out": hold_out(arguments, with_masks)[0][1]}
    return {split: open_split(arguments, split, with_masks) for split in arguments.splits}


def load_model(arguments, dataset):
    """Returns the model of a checkpoint, for the pictures and classes of a data set."""
    backbone = VANBackbone(arguments.variant or "b0", **choose_input(dataset.num_channels))
    model = HEADS[arguments.head](backbone, dataset.num_classes)
    load_checkpoint(model, arguments.model)
    model.resizing = Resizing(short_side=800, long_side=1333)  # the paper's
    return model


def check_truth(dataset, kinds):
    """Raises ValueError for a truth with faults: now, not after hours."""
    if not dataset.check().any():
        raise ValueError(f"{dataset.path} has no annotations of objects, so there is nothing to score")
    evaluate_coco(dataset.to_coco(), [], kinds)


def score_split(model, dataset, kinds, output, arguments):
    """Prints and keeps the scores of a split, COCO's results and some pictures."""
    batches = detection_evaluation_batches(dataset, arguments.batch_size, **model.resizing.get_config())
    image_ids, category_ids = dataset.image_ids, match_categories(model, dataset)
    views, found = list_views(arguments), None
    if views:
        options = {"batch_size": arguments.batch_size, "masks": "run_lengths"}
        found = detect_objects(model, dataset.image_paths, arguments, **options)
        rows = map(to_coco, found, image_ids, itertools.repeat(category_ids))
        results = list(itertools.chain.from_iterable(rows))
    else:
        results = predict_coco_results(model, batches, image_ids, category_ids, progress=True)
    # Slices may give more objects of a picture than the model alone.
    most = max(MOST_DETECTIONS, model.max_detections) if arguments.slices else model.max_detections
    truth, limits = dataset.to_coco(), (1, 10, most)
    scores = evaluate_coco(truth, results, kinds, limits)
    table = format_coco_scores(scores)
    print(table, flush=True)
    keep_scores(output, scores, table, model=arguments.model, data=dataset.path, **views)
    save_results(results, output / "results.json")
    worst = draw_mistakes(results, truth, image_ids, limits, output)
    labels = [dataset.category_ids.index(category_id) for category_id in category_ids]
    draw_pictures(model, batches, dataset.class_names, output, *worst, found, labels, arguments.bands)
    keep_report(output)
    print(f"{len(results):,} detections on {len(dataset):,} pictures are in {output}")


def match_categories(model, dataset):
    """Returns the data's category id of each label of the model, by the names in its file."""
    names = model.class_names
    if names is None:
        return dataset.category_ids
    ids = dict(zip(dataset.class_names, dataset.category_ids, strict=True))
    if sorted(ids) == sorted(names):
        return [ids[name] for name in names]
    print(
        f"The classes of the data are not those of the model ({', '.join(names)}), and are matched by their "
        f"order: {', '.join(dataset.class_names)}",
        file=sys.stderr,
    )
    return dataset.category_ids


if __name__ == "__main__":
    main()
