"""Trains EDN with a VAN backbone to find what catches the eye, scores it and draws what it sees.

    python examples/train_saliency.py --data path/to/data --variant b1 --weights imagenet

The data folder holds `images/<split>` and `masks/<split>`, for the splits train and val; masks are PNG files
of 0 and 255 or 0 and 1. Without --data, the embedded, synthetic data set is used: things against all else.
The sizes, the batch size, Adam and the weight decay are those of EDN's paper for DUTS. The models, their
scores, curves and pictures go into a new folder for each run: runs/saliency-1, runs/saliency-2 ...
"""

from options import (
    add_length,
    add_run_options,
    add_step_options,
    add_variant,
    choose_optimizer_options,
    choose_run_options,
    choose_steps,
    load_keras,
    make_parser,
    whole_number,
)

IMAGE_SIZES, BATCH_SIZE, PASSES = (320, 352, 384), 24, 30
# The embedded data is small.
EMBEDDED_SIZES, EMBEDDED_BATCH_SIZE, EMBEDDED_PASSES = (128,), 8, 2


def parse_arguments(argv=None):
    """Returns the settings."""
    parser = make_parser(__doc__)
    add, count = parser.add_argument, whole_number(1)
    add("--data", help="folder of pictures and masks; default: the embedded data set")
    add("--splits", nargs=2, metavar=("TRAIN", "VAL"), help="default: train val")
    ignored = "value of the masks' pixels without truth; default: none"
    add("--ignored-value", type=whole_number(0, 255), help=ignored)
    add_variant(parser)
    sides = "sides of the square pictures, one for each batch; scored at the largest; default: 320 352 384"
    add("--image-sizes", type=count, nargs="+", metavar="SIDE", help=f"{sides}, embedded data: 128")
    add("--batch-size", type=count, help="pictures per batch; default: 24, embedded data: 8")
    add_length(parser, "30 epochs, embedded data: 2")
    every = "most steps between scores and checkpoints, in equal rounds; default: %(default)s"
    add("--evaluate-every", type=count, default=200, help=every)
    add_step_options(parser, "5e-5, or 1e-3 without --weights", weight_decay=1e-4)
    add_run_options(parser, "saliency")
    arguments = parser.parse_args(argv)
    if arguments.data is None and arguments.ignored_value is not None:
        parser.error("--ignored-value needs --data: the embedded data ignores nothing")
    if arguments.data is None and arguments.splits:
        parser.error("--splits needs --data: they are places in it")
    arguments.splits = arguments.splits or ("train", "val")
    is_embedded = arguments.data is None
    arguments.image_sizes = arguments.image_sizes or (EMBEDDED_SIZES if is_embedded else IMAGE_SIZES)
    arguments.batch_size = arguments.batch_size or (EMBEDDED_BATCH_SIZE if is_embedded else BATCH_SIZE)
    arguments.passes = EMBEDDED_PASSES if is_embedded else PASSES
    return arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import functools

import keras
from faults import explain_faults
from finetune_segmentation import check_weights
from results import keep_curves, keep_report, keep_scores, save_picture

from heads import EDN, AdamW, Resizing, WarmUpPolynomialDecay
from heads.data import (
    SaliencyAugmentation,
    SaliencyFolder,
    SaliencyShapes,
    find_training_pictures,
    format_class_counts,
    semantic_evaluation_batches,
    semantic_training_batches,
)
from heads.drawing import draw_saliency_comparison
from heads.metrics import SaliencyScores, evaluate_saliency, format_saliency_scores
from heads.training import TrainingRun, go_on_alone, is_first_process, plan_rounds, run_in_folder
from van_backbones import VANBackbone

LEARNING_RATE = 5e-5  # from ImageNet weights; a random start takes, and needs, larger steps
LEARNING_RATE_FROM_SCRATCH = 1e-3
BETAS = (0.9, 0.99)
ADVICE = (
    "Try a lower --learning-rate or a longer --warm-up, and look at the masks of these pictures. The norms "
    "of the coarsest level, which has a position for each 128 x 128 pixels, magnify noise if a batch has "
    "few positions; choose larger --image-sizes or a larger --batch-size."
)


def main(argv=None):
    """Trains, scores and draws."""
    run_in_folder(train_and_draw, parse_arguments(argv), "saliency")


def train_and_draw(arguments, output):
    """Trains in a folder that no other training uses."""
    check_weights(arguments)
    with explain_faults(arguments.data, "train_saliency.py"):
        train, validation = open_data(arguments)
    steps = choose_steps(arguments, len(train), arguments.passes)
    model = build_model(arguments)
    model.compile(optimizer=build_optimizer(arguments, steps))
    print(f"{model.name}: {model.count_params():,} parameters, {steps:,} steps", flush=True)
    image_size = model.resizing.image_size
    scorer = SaliencyScores(semantic_evaluation_batches(validation, arguments.batch_size, image_size))
    kept = choose_run_options(arguments)
    run = TrainingRun(output, steps, vars(arguments), monitor="val_max_f", **kept)
    if arguments.resume:
        run.restore(model)
    else:
        print_scores("Before training", model, scorer)

    augment = SaliencyAugmentation(arguments.batch_size, arguments.image_sizes)
    options = {"batch_size": arguments.batch_size, "seed": arguments.seed}
    make_batches = functools.partial(semantic_training_batches, train, augment=augment, **options)
    find_pictures = functools.partial(find_training_pictures, train, **options)
    summary = run.train(
        model, make_batches, plan_rounds(steps, arguments.evaluate_every), find_pictures, ADVICE, scorer
    )
    if summary is None:
        return

    best = keras.saving.load_model(output / "best.keras")
    print_scores("After training (best.keras)", best, scorer, output if is_first_process() else None)
    if not go_on_alone():
        return
    keep_curves(output, run)
    draw_pictures(best, validation, output)
    keep_report(output)
    print(summary)
    print(f"Model and pictures are in {output.resolve()}")


def open_data(arguments):
    """Returns the training and the validation data, checked."""
    if arguments.data is None:
        size = (max(arguments.image_sizes),) * 2
        return SaliencyShapes(2000, size, seed=0), SaliencyShapes(100, size, seed=1)
    folders = [SaliencyFolder(arguments.data, split, arguments.ignored_value) for split in arguments.splits]
    counts = {split: folder.check() for split, folder in zip(arguments.splits, folders, strict=True)}
    print(format_class_counts(counts, folders[0].class_names, "pixels"), flush=True)
    return folders


def build_model(arguments):
    """Returns EDN, which resizes pictures to the size at which it is scored."""
    backbone = VANBackbone(arguments.variant, weights=arguments.weights)
    return EDN(backbone, resizing=Resizing(max(arguments.image_sizes)))


def build_optimizer(arguments, steps):
    """Returns Adam as in the paper's recipe; its learning rate falls to 0."""
    learning_rate = LEARNING_RATE_FROM_SCRATCH if arguments.weights is None else LEARNING_RATE
    if arguments.learning_rate is not None:
        learning_rate = arguments.learning_rate
    warm_up = max(1, min(500, steps // 10)) if arguments.warm_up is None else arguments.warm_up
    schedule = WarmUpPolynomialDecay(learning_rate, warm_up, steps, power=0.9)
    options = choose_optimizer_options(arguments)
    optimizer = AdamW(schedule, arguments.weight_decay, *BETAS, **options)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def print_scores(title, model, scorer, output=None):
    """Prints the scores of the validation data; keeps them in `output`."""
    print("\nScoring the held-out pictures ...", flush=True)
    scores = evaluate_saliency(model, scorer.dataset)
    table = format_saliency_scores(scores)
    print(f"{title}: {table}", flush=True)
    if output is not None:
        keep_scores(output, scores, table)


def draw_pictures(model, source, output, num_pictures=6):
    """Draws image, truth and saliency map of some examples, in the pixels of the pictures."""
    examples = list(source.load().take(num_pictures).as_numpy_iterator())
    images, masks = zip(*examples, strict=True)
    results = model.predict_pictures(images, progress=False)
    maps = [result["saliency_map"] for result in results]
    save_picture(draw_saliency_comparison(images, masks, maps), output / "predictions.png")


if __name__ == "__main__":
    main()
