"""Fine-tunes a semantic segmenter with a VAN backbone, scores it and draws what it sees.

    python examples/finetune_segmentation.py --data path/to/data --variant b0 --weights imagenet

The data folder holds `images/<split>`, `labels/<split>` and `classes.txt` or a table of the labels' colours,
or has ADE20K's or Pascal VOC's layout, or holds outlines of objects in COCO's, YOLO's or labelme's format.
Images that are TIFF files may have any number of channels: the backbone then takes them as they are. If the
folder has no splits, `--val-share 0.2` holds out a fifth. Without --data, the embedded data set is used. The
models, their scores, curves and pictures go into a new folder for each run: runs/segmentation-1, -2 ...
"""

from options import (
    add_label_options,
    add_length,
    add_run_options,
    add_scale_range,
    add_segmentation_loss,
    add_step_options,
    add_val_share,
    add_variant,
    check_segmentation_loss,
    check_val_share,
    choose_class_weights,
    choose_optimizer_options,
    choose_run_options,
    choose_steps,
    load_keras,
    make_parser,
    whole_number,
)
from view_options import add_bands

# The paper's recipes start from ImageNet weights; a random start takes, and needs, larger steps.
RECIPES = {  # head -> (learning rate, the same from scratch, weight decay, power of the decay)
    "semantic_fpn": (2e-4, 2e-3, 1e-4, 0.9),
    "upernet": (6e-5, 1e-3, 0.01, 1.0),
}
SCALE_RANGE = (0.5, 2.0)
STEPS = 2000
NUM_LOGGED = 3  # held-out pictures in TensorBoard


def parse_arguments(argv=None):
    """Returns the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--data", help="folder of images and labels; default: the embedded data set")
    add("--splits", nargs=2, metavar=("TRAIN", "VAL"), help="default: train val")
    add_val_share(parser)
    add_label_options(parser)
    add("--head", default="semantic_fpn", choices=list(RECIPES), help="default: %(default)s")
    add_variant(parser)
    add("--channels", type=whole_number(1), help="channels of the head; default: the paper's")
    side = whole_number(1)
    crop = "size of the crops that a step sees; default: 256 256"
    add("--crop-size", type=side, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"), help=crop)
    base = "resize the pictures first (2048 512 for ADE20K); default: no resizing"
    add("--base-size", type=side, nargs=2, metavar=("LONG", "SHORT"), help=base)
    add_scale_range(parser, "pictures", SCALE_RANGE)
    add("--batch-size", type=whole_number(1), default=8, help="pictures per batch; default: %(default)s")
    add_length(parser, f"{STEPS} steps")
    every = "most steps between scores and checkpoints, in equal rounds; default: %(default)s"
    add("--evaluate-every", type=whole_number(1), default=200, help=every)
    add_segmentation_loss(parser)
    add_bands(parser)
    rate = "the paper's for the head, or without --weights 2e-3 (upernet: 1e-3)"
    add_step_options(parser, rate, warm_up="1500, at most a tenth of --steps")
    add_run_options(parser, "segmentation")
    arguments = parser.parse_args(argv)
    needed = (arguments.splits, arguments.class_names, arguments.class_colours, arguments.reduce_zero_label)
    if arguments.data is None and any(needed):
        parser.error(
            "--splits, --class-names, --class-colours and --reduce-zero-label need --data: the embedded data "
            "has its own"
        )
    check_val_share(parser, arguments)
    check_segmentation_loss(parser, arguments)
    if arguments.base_size and arguments.base_size[0] < arguments.base_size[1]:
        parser.error(f"--base-size must be LONG SHORT, the larger first. Received: {arguments.base_size}")
    arguments.splits = arguments.splits or ("train", "val")
    arguments.scale_range = arguments.scale_range or SCALE_RANGE
    if arguments.epochs is None:
        arguments.steps = arguments.steps or STEPS
    return arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import functools
import os

import keras
from faults import explain_faults
from results import find_worst, keep_curves, keep_report, keep_scores, save_picture
from shown_pixels import check_bands, describe_channels, show_pixels

from heads import AdamW, SemanticFPN, UPerNet, WarmUpPolynomialDecay
from heads.data import (
    SemanticAugmentation,
    SemanticShapes,
    balance_classes,
    find_training_pictures,
    format_class_counts,
    open_semantic_folder,
    semantic_evaluation_batches,
    semantic_training_batches,
)
from heads.drawing import draw_comparison, draw_confusion
from heads.metrics import evaluate_semantic, format_semantic_scores
from heads.pictures import RGB_CHANNELS
from heads.training import RunError, TrainingRun, go_on_alone, is_first_process, plan_rounds, run_in_folder
from van_backbones import VANBackbone
from van_backbones.checkpoints.releases import RELEASES, SHORTHANDS, find_release
from van_backbones.feature_maps import draw_feature_maps

ADVICE = "Try a lower --learning-rate or a longer --warm-up, and look at the labels of these pictures."


def main(argv=None):
    """Trains, scores and draws."""
    run_in_folder(train_and_draw, parse_arguments(argv), "segmentation")


def train_and_draw(arguments, output):
    """Trains in a folder that no other training uses."""
    check_weights(arguments)
    with explain_faults(arguments.data, "finetune_segmentation.py"):
        train, validation, counts = open_data(arguments)
        balanced = balance_classes(counts)
        class_weights = choose_class_weights(arguments.class_weights, train.class_names, balanced)
    print(f"{train.num_classes} classes: {', '.join(train.class_names)}", flush=True)
    arguments.steps = arguments.steps or choose_steps(arguments, len(train), arguments.epochs)
    if class_weights is not None:
        shown = zip(train.class_names, class_weights, strict=True)
        print("Class weights: " + ", ".join(f"{name} {weight:.3g}" for name, weight in shown), flush=True)
    check_channels(arguments, train, validation)
    with explain_faults(None, "finetune_segmentation.py"):  # of a file of --weights
        model = build_model(arguments, train.num_classes, class_weights, train.num_channels)
    model.class_names = list(train.class_names)
    model.compile(optimizer=build_optimizer(arguments))
    print(f"{model.name}: {model.count_params():,} parameters, {arguments.steps:,} steps", flush=True)
    options = choose_run_options(arguments)
    run = TrainingRun(
        output, arguments.steps, describe_run(arguments, train), monitor="val_mean_iou", **options
    )
    if arguments.resume:
        run.restore(model)
    else:
        print_scores("Before training", model, validation)

    augment = choose_augmentation(arguments, train.num_channels)
    options = {"batch_size": arguments.batch_size, "seed": arguments.seed}
    make_batches = functools.partial(semantic_training_batches, train, augment=augment, **options)
    find_pictures = functools.partial(find_training_pictures, train, **options)
    summary = run.train(
        model,
        make_batches,
        plan_rounds(arguments.steps, arguments.evaluate_every),
        find_pictures,
        ADVICE,
        draw=functools.partial(
            compare, examples=take_examples(validation, range(NUM_LOGGED)), bands=arguments.bands
        ),
        validation_data=semantic_evaluation_batches(validation),
    )
    if summary is None:
        return

    best = keras.saving.load_model(output / "best.keras")
    to = output if is_first_process() else None
    overlaps = print_scores("After training (best.keras)", best, validation, to)
    if not go_on_alone():
        return
    keep_curves(output, run)
    draw_pictures(best, validation, output, overlaps, arguments.bands)
    keep_report(output)
    print(summary)
    print(f"Model, pictures and report.html are in {output.resolve()}")


def check_weights(arguments):
    """Finds a mistyped --weights before the data is read."""
    is_release = arguments.weights in (*RELEASES, *SHORTHANDS)
    if arguments.weights is not None and (is_release or not os.path.exists(arguments.weights)):
        try:
            find_release(arguments.weights, arguments.variant)
        except ValueError as error:
            raise RunError(f"--weights must be a file that exists, or a release: {error}") from None


def check_channels(arguments, train, validation):
    """Tells how pictures of other than 3 channels are shown.

    Raises:
        RunError: Where the channels differ between the splits, or do not fit the options.
    """
    check_channel_counts(arguments, train, validation)
    try:
        check_bands(arguments.bands, train.num_channels)
    except ValueError as error:
        raise RunError(str(error)) from None
    if channels := describe_channels(train.num_channels, arguments.bands):
        print(f"Pictures of {channels}", flush=True)


def check_channel_counts(arguments, train, validation):
    """Raises a RunError where the channels differ between the splits, or do not fit --weights."""
    counts = train.num_channels, validation.num_channels
    if counts[0] != counts[1]:
        received = f"{counts[0]} and {counts[1]}"
        raise RunError(f"the pictures of both splits must have as many channels. Received: {received}")
    if arguments.weights in (*RELEASES, *SHORTHANDS) and counts[0] != RGB_CHANNELS:
        raise RunError(
            f"--weights {arguments.weights} is for RGB pictures, those of {arguments.data} have {counts[0]} "
            "channels. Leave it out, to start at random, or give a file of a backbone with as many"
        )


def open_data(arguments):
    """Returns the training and the validation data, checked, and the pixels of each class."""
    if arguments.data is None:
        folders = [SemanticShapes(count, arguments.crop_size, seed) for count, seed in ((2000, 0), (100, 1))]
        return *folders, folders[0].check()
    if arguments.val_share:
        folders, counts = hold_out(arguments)
    else:
        folders = [open_split(arguments, split) for split in arguments.splits]
        counts = {split: folder.check() for split, folder in zip(arguments.splits, folders, strict=True)}
    print(format_class_counts(counts, folders[0].class_names, "pixels"), flush=True)
    return *folders, next(iter(counts.values()))


def open_split(arguments, split):
    """Returns a split of --data; if `split` is None, the data that --val-share divides."""
    options = arguments.class_names, arguments.reduce_zero_label, arguments.class_colours
    folder = open_semantic_folder(arguments.data, split, *options, num_channels=None)
    print(f"Found {folder.layout}: {len(folder)} pictures", flush=True)
    return folder


def hold_out(arguments):
    """Returns the training and the held-out pictures of --data, checked, and the counts of them all."""
    whole = open_split(arguments, None)
    counts = {"all": whole.check()}
    folders = whole.split(arguments.val_share, arguments.seed)
    held_out = f"{len(folders[1])} of {len(whole)} pictures"
    print(f"{held_out} are held out to score (--val-share, --seed)", flush=True)
    return folders, counts


def describe_run(arguments, train):
    """Returns the settings that are kept beside the models."""
    return {**vars(arguments), "classes": list(train.class_names)}


def build_model(arguments, num_classes, class_weights=None, num_channels=RGB_CHANNELS):
    """Returns the segmenter."""
    backbone = VANBackbone(arguments.variant, weights=arguments.weights, **choose_input(num_channels))
    head = {"semantic_fpn": SemanticFPN, "upernet": UPerNet}[arguments.head]
    options = {} if arguments.channels is None else {"channels": arguments.channels}
    return head(backbone, num_classes, loss=arguments.loss, class_weights=class_weights, **options)


def choose_augmentation(arguments, num_channels=RGB_CHANNELS):
    """Returns what is done to the pictures of a step."""
    is_rgb = num_channels == RGB_CHANNELS  # other pictures have no hue
    return SemanticAugmentation(
        arguments.crop_size, arguments.scale_range, arguments.base_size, photometric=is_rgb
    )


def choose_input(num_channels):
    """Returns what a backbone for pictures of so many channels is told; nothing for RGB."""
    if num_channels == RGB_CHANNELS:
        return {}
    return {"input_shape": (None, None, num_channels), "normalization": None}  # nobody knows their mean


def build_optimizer(arguments):
    """Returns AdamW as in the paper's recipes: no weight decay on norms and biases."""
    learning_rate, from_scratch, weight_decay, power = RECIPES[arguments.head]
    if arguments.weights is None:
        learning_rate = from_scratch
    if arguments.learning_rate is not None:
        learning_rate = arguments.learning_rate
    warm_up = arguments.warm_up
    if warm_up is None:
        warm_up = max(1, min(1500, arguments.steps // 10))
    schedule = WarmUpPolynomialDecay(learning_rate, warm_up, arguments.steps, power)
    options = choose_optimizer_options(arguments)
    optimizer = AdamW(schedule, weight_decay=weight_decay, **options)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def print_scores(title, model, source, output=None):
    """Prints the IoU of each class on `source`; keeps it, and the confusion matrix, in `output`.

    Returns:
        The mean IoU of each single picture.
    """
    print(f"\nScoring {len(source):,} pictures ...", flush=True)
    scores = evaluate_semantic(model, semantic_evaluation_batches(source))
    table = format_semantic_scores(scores, source.class_names)
    print(f"{title}\n{table}", flush=True)
    if output is not None:
        keep_scores(output, scores, table, source.class_names)
        picture = draw_confusion(scores["confusion"], source.class_names, in_percent=True)
        save_picture(picture, output / "confusion.png")
    return scores["per_picture_iou"].tolist()


def draw_pictures(model, source, output, overlaps, bands=None, num_pictures=6):
    """Draws some examples, those with the lowest IoU, and the features of the first."""
    examples = take_examples(source, range(num_pictures))
    save_picture(compare(model, examples, bands), output / "predictions.png")
    if worst := find_worst([1 - overlap for overlap in overlaps], num_pictures):
        save_picture(compare(model, take_examples(source, worst), bands), output / "worst.png")
    image = examples[0][0]
    page = draw_feature_maps(model.backbone, image, shown=show_pixels(image, bands))
    save_picture(page, output / "features.png")


def take_examples(source, positions):
    """Returns (image, label map, class names) of the pictures at some positions, up to the last picture."""
    found = {}
    for position, (images, labels) in enumerate(semantic_evaluation_batches(source).as_numpy_iterator()):
        if position in positions:
            found[position] = images[0], labels[0], source.class_names
        if len(found) == len(positions):
            break
    return [found[position] for position in positions if position in found]


def compare(model, examples, bands=None):
    """Returns a drawing of images, their truth, a segmenter's predictions, and the wrong pixels."""
    images, labels, (class_names, *_) = zip(*examples, strict=True)
    predictions = [model.predict_on_batch(image[None])[0] for image in images]
    shown = [show_pixels(image, bands) for image in images]
    return draw_comparison(shown, labels, predictions, class_names)


if __name__ == "__main__":
    main()
