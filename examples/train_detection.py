"""Trains a detector or an instance segmenter with a VAN backbone, scores it and draws what it sees.

    python examples/train_detection.py --data path/to/data --variant b0 --weights imagenet

The data folder is in COCO's, YOLO's, Pascal VOC's or labelme's format, with the splits train and val; if it
has no splits, `--val-share 0.2` holds out a fifth of each class. Without --data, the embedded, synthetic data
set is used. Pictures that are TIFF files may have any number of channels: the backbone then takes them as
they are. The defaults are the paper's settings for COCO. The models, their scores, curves and pictures go
into a new folder for each run: runs/detection-1, runs/detection-2 ...
"""

from options import (
    DETECTORS,
    LONG_SIDE,
    add_length,
    add_run_options,
    add_scale_range,
    add_step_options,
    add_val_share,
    add_variant,
    check_val_share,
    choose_optimizer_options,
    choose_run_options,
    choose_steps,
    count_epoch_steps,
    load_keras,
    make_parser,
    whole_number,
)
from view_options import add_bands

SCALE_RANGE = (0.1, 2.0)
R_CNNS = ("faster_rcnn", "mask_rcnn", "cascade_mask_rcnn")
HEAD_OPTIONS = {  # of the heads' constructors -> the heads that have them
    "channels": DETECTORS,
    "max_detections": DETECTORS,
    "num_convs": ("retinanet", "gfl", "atss"),
    "num_samples": R_CNNS,
    "num_proposals": (*R_CNNS, "sparse_rcnn"),
    "box_head": ("cascade_mask_rcnn",),
}
SCHEDULES = {  # epochs, the epochs after which the rate falls to a tenth, short sides in pixels
    "1x": (12, (8, 11), (800,)),
    "3x": (36, (27, 33), tuple(range(480, 801, 32))),
}


def parse_arguments(argv=None):
    """Returns the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--data", help="folder of pictures and annotations; default: the embedded data set")
    add("--splits", nargs=2, metavar=("TRAIN", "VAL"), help="default: train val")
    add_val_share(parser)
    add("--annotations", help="COCO's file in --data, as annotations/instances_{split}.json; default: found")
    add("--images", help="its pictures in --data; default: found, or images/{split} with --annotations")
    add("--head", default="retinanet", choices=DETECTORS, help="default: %(default)s")
    add_variant(parser)
    count = whole_number(1)
    add("--channels", type=count, help="channels of the head; default: the paper's")
    convs = "retinanet, gfl, atss: convolutions before each output; default: the paper's"
    add("--num-convs", type=whole_number(0), help=convs)
    samples = "R-CNNs: regions per image that a stage learns from; default: the paper's"
    add("--num-samples", type=count, help=samples)
    proposals = "R-CNNs: regions per image that a stage looks at; default: the paper's"
    add("--num-proposals", type=count, help=proposals)
    box_head = "cascade_mask_rcnn: layers and losses of its box heads; default: 4conv1fc"
    add("--box-head", choices=("4conv1fc", "2fc"), help=box_head)
    add("--max-detections", type=count, help="objects per picture that are found and scored; default: 100")
    stages = whole_number(0, 4)
    frozen = "number of the backbone's first stages that are not trained; default: %(default)s"
    add("--frozen-stages", type=stages, default=0, help=frozen)
    add("--frozen-batch-norms", action="store_true", help="keep all batch norms of the backbone as they are")
    schedule = "epochs, drops of the rate, short sides; default: %(default)s"
    add("--schedule", default="1x", choices=list(SCHEDULES), help=schedule)
    add_length(parser, "the schedule's epochs; its drops of the rate scale with the length")
    every = "most steps between scores and checkpoints, in equal rounds; default: an epoch, >= 200"
    add("--evaluate-every", type=count, help=every)
    add("--batch-size", type=count, default=16, help="pictures per batch; default: %(default)s")
    either = parser.add_mutually_exclusive_group().add_argument
    short = "short sides of the pictures, drawn at random; scored at the largest; default: the schedule's"
    either("--short-sides", type=count, nargs="+", help=short)
    square = "square pictures instead; default: none, embedded data: 128"
    either("--image-size", type=count, metavar="SIDE", help=square)
    add("--long-side", type=count, help="limit of the long side; default: 1333")
    add_scale_range(parser, "square pictures", SCALE_RANGE)
    rate, clip_norm = (
        "1e-4 * pictures of a step / 16, or 2e-3 without --weights",
        "none, or 1 without --weights",
    )
    add_step_options(parser, rate, weight_decay=0.05, clip_norm=clip_norm)
    add_bands(parser)
    add_run_options(parser, "detection")
    arguments = parser.parse_args(argv)
    check_val_share(parser, arguments)
    try:
        check_arguments(arguments)
    except ValueError as error:
        parser.error(str(error))
    return fill_defaults(arguments)


def check_arguments(arguments):
    """Raises ValueError for options that contradict another one."""
    for name, heads in HEAD_OPTIONS.items():
        if getattr(arguments, name) is not None and arguments.head not in heads:
            raise ValueError(f"--head {arguments.head} has no --{name.replace('_', '-')}")
    if arguments.data is None and (arguments.splits or arguments.annotations or arguments.images):
        raise ValueError("--splits, --annotations and --images need --data: they are places in it")
    is_square = arguments.image_size or (arguments.data is None and not arguments.short_sides)
    if is_square and arguments.long_side:
        raise ValueError("--long-side must not be given where the pictures are square (--image-size)")
    if not is_square and arguments.scale_range:
        raise ValueError("--scale-range needs --image-size: only square pictures are jittered")
    long_side = arguments.long_side or LONG_SIDE
    short_sides = arguments.short_sides or SCHEDULES[arguments.schedule][2]
    if max(short_sides) > long_side and not is_square:
        raise ValueError(f"--short-sides must not be above --long-side, {long_side}. Received: {short_sides}")


def fill_defaults(arguments):
    """Returns the arguments with the defaults that depend on others."""
    arguments.splits = arguments.splits or ("train", "val")
    arguments.long_side = arguments.long_side or LONG_SIDE
    arguments.scale_range = arguments.scale_range or SCALE_RANGE
    if arguments.data is None and not arguments.short_sides:
        arguments.image_size = arguments.image_size or 128
    return arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import functools
import pathlib

import keras
from detection_pictures import draw_first, draw_mistakes, draw_pictures
from faults import explain_faults
from finetune_segmentation import check_channels, check_weights, choose_input
from results import keep_curves, keep_report, keep_scores

from heads import (
    ATSS,
    GFL,
    AdamW,
    CascadeMaskRCNN,
    FasterRCNN,
    MaskRCNN,
    Resizing,
    RetinaNet,
    SparseRCNN,
    WarmUpStepDecay,
)
from heads.data import (
    CocoDataset,
    DetectionAugmentation,
    DetectionShapes,
    detection_evaluation_batches,
    detection_training_batches,
    find_training_pictures,
    format_class_counts,
    open_detection_folder,
)
from heads.metrics import (
    CocoScores,
    evaluate_coco,
    format_coco_scores,
    predict_coco_results,
    save_results,
)
from heads.pictures import RGB_CHANNELS
from heads.training import TrainingRun, go_on_alone, is_first_process, plan_rounds, run_in_folder
from van_backbones import VANBackbone

HEADS = {
    "retinanet": RetinaNet,
    "gfl": GFL,
    "atss": ATSS,
    "faster_rcnn": FasterRCNN,
    "mask_rcnn": MaskRCNN,
    "cascade_mask_rcnn": CascadeMaskRCNN,
    "sparse_rcnn": SparseRCNN,
}
LEARNING_RATE = 1e-4  # for 16 images, from ImageNet weights
# A random start takes larger steps, but no peaks: that doubled AP50 on the embedded data after 400 steps.
LEARNING_RATE_FROM_SCRATCH, CLIP_NORM_FROM_SCRATCH = 2e-3, 1.0
ADVICE = "Try a lower --learning-rate or --clip-norm, or a longer --warm-up, and look at these annotations."


def main(argv=None):
    """Trains, scores and draws."""
    run_in_folder(train_and_draw, parse_arguments(argv), "detection")


def train_and_draw(arguments, output):
    """Trains in a folder that no other training uses."""
    check_weights(arguments)
    with explain_faults(arguments.data, "train_detection.py"):
        train, validation = open_data(arguments)
    print(f"{train.num_classes} classes: {', '.join(train.class_names)}", flush=True)
    check_channels(arguments, train, validation)
    augment, resizing = choose_sizes(arguments)
    steps, evaluate_every, milestones = plan_steps(arguments, len(train))
    with explain_faults(None, "train_detection.py"):  # of a file of --weights
        model = build_model(arguments, train.num_classes, train.num_channels)
    model.class_names, model.resizing = list(train.class_names), resizing
    model.compile(optimizer=build_optimizer(arguments, steps, milestones))
    print(f"{model.name}: {model.count_params():,} parameters, {steps:,} steps", flush=True)
    scorer = build_scorer(arguments, validation, resizing)
    kept = choose_run_options(arguments)
    run = TrainingRun(output, steps, describe_run(arguments, train, resizing), monitor="val_bbox_AP", **kept)
    if arguments.resume:
        run.restore(model)
    else:
        print_scores("Before training", model, scorer)

    options = {"batch_size": arguments.batch_size, "seed": arguments.seed}
    make_batches = functools.partial(detection_training_batches, train, augment=augment, **options)
    by_ratio = augment.image_size is None
    find_pictures = functools.partial(find_training_pictures, train, group_by_ratio=by_ratio, **options)
    names, bands = train.class_names, arguments.bands
    draw = functools.partial(draw_first, batches=scorer.dataset, class_names=names, bands=bands)
    summary = run.train(model, make_batches, evaluate_every, find_pictures, ADVICE, scorer, draw)
    if summary is None:
        return

    best = keras.saving.load_model(output / "best.keras")
    to = output if is_first_process() else None
    results = print_scores("After training (best.keras)", best, scorer, to)
    if not go_on_alone():
        return
    keep_curves(output, run)
    worst = draw_mistakes(results, scorer.truth, scorer.image_ids, scorer.max_detections, output)
    draw_pictures(best, scorer.dataset, names, output, *worst, bands=bands)
    keep_report(output)
    print(summary)
    print(f"Model, results, pictures and report.html are in {output.resolve()}")


def open_data(arguments):
    """Returns the training and the validation data, checked."""
    with_masks = HEADS[arguments.head].with_masks
    if arguments.data is None:
        size = (arguments.image_size or 128,) * 2
        return [DetectionShapes(number, size, seed, with_masks) for number, seed in ((2000, 0), (100, 1))]
    if arguments.val_share:
        datasets, counts = hold_out(arguments, with_masks)
    else:
        datasets = [open_split(arguments, split, with_masks) for split in arguments.splits]
        counts = {split: each.check() for split, each in zip(arguments.splits, datasets, strict=True)}
    if datasets[0].class_names != datasets[1].class_names:
        raise SystemExit(f"Both splits must have the same classes: {[data.class_names for data in datasets]}")
    print(format_class_counts(counts, datasets[0].class_names, "objects"), flush=True)
    for dataset in datasets:
        if not any((labels >= 0).any() for labels in dataset.labels):
            raise SystemExit(
                f"{dataset.path} has no annotations of objects: nothing to learn or to score. Label some of "
                "its pictures, or name other --splits"
            )
    return datasets


def open_split(arguments, split, with_masks):
    """Returns a split of --data; if `split` is None, the data that --val-share divides."""
    data = pathlib.Path(arguments.data)
    if arguments.annotations or arguments.images:
        annotations = arguments.annotations or "annotations/instances_{split}.json"
        images = arguments.images or "images/{split}"
        places = (data / each.format(split=split or "train") for each in (annotations, images))
        return CocoDataset(*places, with_masks, num_channels=None)
    dataset = open_detection_folder(data, split, with_masks, num_channels=None)
    print(f"Found {dataset.format}'s format: {len(dataset)} pictures by {dataset.path}", flush=True)
    return dataset


def hold_out(arguments, with_masks):
    """Returns the training and the held-out pictures of --data, checked, and the counts of them all."""
    whole = open_split(arguments, None, with_masks)
    counts = {"all": whole.check()}
    datasets = whole.split(arguments.val_share, arguments.seed)
    held_out = f"{len(datasets[1])} of {len(whole)} pictures"
    print(f"{held_out} are held out to score (--val-share, --seed)", flush=True)
    return datasets, counts


def describe_run(arguments, train, resizing):
    """Returns the settings that are kept beside the models."""
    return {**vars(arguments), "resizing": resizing.get_config(), "classes": list(train.class_names)}


def choose_sizes(arguments):
    """Returns the augmentation, and the sizes of the pictures to score."""
    if arguments.image_size:
        size = (arguments.image_size,) * 2
        return DetectionAugmentation(image_size=size, scale_range=arguments.scale_range), Resizing(size)
    short_sides = arguments.short_sides or SCHEDULES[arguments.schedule][2]
    resizing = Resizing(short_side=max(short_sides), long_side=arguments.long_side)
    return DetectionAugmentation(short_sides, arguments.long_side), resizing


def plan_steps(arguments, num_images):
    """Returns the number of steps, the steps between scores, and the steps after which the rate falls."""
    epochs, drops, _ = SCHEDULES[arguments.schedule]
    epoch_steps = count_epoch_steps(arguments, num_images)
    steps = choose_steps(arguments, num_images, epochs)
    evaluate_every = plan_rounds(steps, arguments.evaluate_every or max(epoch_steps, 200))
    return steps, evaluate_every, [round(steps * drop / epochs) for drop in drops]


def build_model(arguments, num_classes, num_channels=RGB_CHANNELS):
    """Returns the detector."""
    backbone = VANBackbone(arguments.variant, weights=arguments.weights, **choose_input(num_channels))
    backbone.freeze(arguments.frozen_stages, arguments.frozen_batch_norms)
    options = {name: value for name in HEAD_OPTIONS if (value := getattr(arguments, name)) is not None}
    return HEADS[arguments.head](backbone, num_classes, **options)


def build_optimizer(arguments, steps, milestones):
    """Returns AdamW as in the paper's recipes: no weight decay on norms and biases."""
    learning_rate, clip_norm = LEARNING_RATE * arguments.batch_size * arguments.accumulate / 16, None
    if arguments.weights is None:
        learning_rate, clip_norm = LEARNING_RATE_FROM_SCRATCH, CLIP_NORM_FROM_SCRATCH
    if arguments.learning_rate is not None:
        learning_rate = arguments.learning_rate
    if arguments.clip_norm is not None:
        clip_norm = arguments.clip_norm or None
    warm_up = max(1, min(500, steps // 10)) if arguments.warm_up is None else arguments.warm_up
    optimizer = AdamW(
        WarmUpStepDecay(learning_rate, warm_up, milestones),
        weight_decay=arguments.weight_decay,
        global_clipnorm=clip_norm,
        **choose_optimizer_options(arguments),
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def build_scorer(arguments, validation, resizing):
    """Returns the callback that scores the detector on the validation data."""
    batch_size = arguments.batch_size if arguments.image_size else 1
    return CocoScores(
        detection_evaluation_batches(validation, batch_size, **resizing.get_config()),
        validation.to_coco(),
        validation.image_ids,
        validation.category_ids,
        kinds=("bbox", "segm") if HEADS[arguments.head].with_masks else ("bbox",),
        max_detections=(1, 10, arguments.max_detections or 100),
    )


def print_scores(title, model, scorer, output=None):
    """Prints average precision, also per class, keeps it in `output`, and returns COCO's results."""
    print(f"\nScoring {len(scorer.image_ids):,} pictures ...", flush=True)
    results = predict_coco_results(model, scorer.dataset, scorer.image_ids, scorer.category_ids)
    scores = evaluate_coco(scorer.truth, results, scorer.kinds, scorer.max_detections)
    table = format_coco_scores(scores)
    print(f"{title}\n{table}", flush=True)
    if output is not None:
        keep_scores(output, scores, table)
        save_results(results, output / "results.json")
    return results


if __name__ == "__main__":
    main()
