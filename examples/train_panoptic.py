"""Trains Mask2Former for panoptic segmentation with a VAN backbone, scores it and draws what it sees.

    python examples/train_panoptic.py --data path/to/data --variant b2 --weights imagenet

The data folder holds `images/<split>`, `panoptic/<split>` and `annotations/panoptic_<split>.json` in COCO's
panoptic format, for the splits train and val; for COCO itself add `--splits train2017 val2017
--images "{split}" --segments "annotations/panoptic_{split}"`. Without --data, the embedded, synthetic data
set is used. The defaults are the paper's settings for COCO, except for the backbone's learning rate, which is
a tenth of the head's in the paper. The models, their scores, curves and pictures go into a new folder for
each run: runs/panoptic-1, runs/panoptic-2 ...
"""

from options import (
    add_length,
    add_run_options,
    add_scale_range,
    add_step_options,
    add_variant,
    choose_optimizer_options,
    choose_run_options,
    choose_steps,
    load_keras,
    make_parser,
    number,
    whole_number,
)

SCALE_RANGE = (0.1, 2.0)


def parse_arguments(argv=None):
    """Returns the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--data", help="folder of pictures and segments; default: the embedded data set")
    add("--splits", nargs=2, metavar=("TRAIN", "VAL"), help="default: train val")
    add("--annotations", help="file in --data; default: annotations/panoptic_{split}.json")
    add("--images", help="folder in --data; default: images/{split}")
    add("--segments", help="folder in --data; default: panoptic/{split}")
    add_variant(parser)
    count = whole_number(1)
    add("--channels", type=count, help="channels of the head; default: 256")
    add("--num-queries", type=count, help="most segments of a picture; default: 100")
    add("--num-points", type=whole_number(4), help="points at which masks are compared; default: 12544")
    add("--num-encoder-layers", type=count, help="layers of the pixel decoder; default: 6")
    add("--num-decoder-layers", type=count, help="layers of the query decoder; default: 9")
    threshold = "leave out segments with lower scores; default: %(default)s"
    add("--score-threshold", type=number(at_least=0), default=0.8, help=threshold)
    add_length(parser, "50 epochs; the drops of the rate scale with the length")
    every = "most steps between scores and checkpoints, in equal rounds; default: an epoch, >= 200"
    add("--evaluate-every", type=count, help=every)
    add("--batch-size", type=count, default=16, help="pictures per batch; default: %(default)s")
    side = "side of the square pictures; default: 1024, embedded data: 128"
    add("--image-size", type=count, metavar="SIDE", help=side)
    add_scale_range(parser, "pictures", SCALE_RANGE)
    rate, clip_norm = (
        "1e-4 * pictures of a step / 16, or 1e-3 without --weights",
        "0.01, or 1 without --weights",
    )
    warm_up = "none, or a tenth of the steps without --weights"
    add_step_options(parser, rate, warm_up, weight_decay=0.05, clip_norm=clip_norm)
    add_run_options(parser, "panoptic")
    arguments = parser.parse_args(argv)
    if arguments.data is None and (arguments.splits or arguments.annotations or arguments.images):
        parser.error("--splits, --annotations and --images need --data: they are places in it")
    if arguments.data is None and arguments.segments:
        parser.error("--segments needs --data: it is a place in it")
    if arguments.score_threshold >= 1:
        parser.error(f"--score-threshold must be below 1. Received: {arguments.score_threshold}")
    arguments.splits = arguments.splits or ("train", "val")
    arguments.scale_range = arguments.scale_range or SCALE_RANGE
    arguments.annotations = arguments.annotations or "annotations/panoptic_{split}.json"
    arguments.images = arguments.images or "images/{split}"
    arguments.segments = arguments.segments or "panoptic/{split}"
    arguments.image_size = arguments.image_size or (128 if arguments.data is None else 1024)
    return arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import functools
import pathlib

import keras
from faults import explain_faults
from finetune_segmentation import check_weights
from PIL import Image
from results import keep_curves, keep_report, keep_scores, save_picture

from heads import AdamW, Mask2Former, Resizing, WarmUpStepDecay
from heads.data import (
    DetectionAugmentation,
    PanopticDataset,
    PanopticShapes,
    find_training_pictures,
    format_class_counts,
    panoptic_evaluation_batches,
    panoptic_training_batches,
)
from heads.drawing import draw_panoptic_comparison
from heads.metrics import PanopticScores, evaluate_panoptic, format_panoptic_scores
from heads.training import TrainingRun, go_on_alone, is_first_process, plan_rounds, run_in_folder
from van_backbones import VANBackbone

EPOCHS, DROPS = 50, (44.4, 48.1)  # the rate falls to a tenth after these epochs
LEARNING_RATE, CLIP_NORM = 1e-4, 0.01  # for 16 images, from ImageNet weights
LEARNING_RATE_FROM_SCRATCH, CLIP_NORM_FROM_SCRATCH = 1e-3, 1.0
HEAD_OPTIONS = ("channels", "num_queries", "num_points", "num_encoder_layers", "num_decoder_layers")
ADVICE = "Try a lower --learning-rate or --clip-norm, or a longer --warm-up, and look at these annotations."


def main(argv=None):
    """Trains, scores and draws."""
    run_in_folder(train_and_draw, parse_arguments(argv), "panoptic")


def train_and_draw(arguments, output):
    """Trains in a folder that no other training uses."""
    check_weights(arguments)
    with explain_faults(arguments.data, "train_panoptic.py"):
        train, validation = open_data(arguments)
    print(f"{train.num_things} things, {train.num_stuff} stuff: {', '.join(train.class_names)}", flush=True)
    size = (arguments.image_size,) * 2
    augment, resizing = (
        DetectionAugmentation(image_size=size, scale_range=arguments.scale_range),
        Resizing(size),
    )
    steps = choose_steps(arguments, len(train), EPOCHS)
    evaluate_every = plan_rounds(steps, arguments.evaluate_every or max(steps // EPOCHS, 200))
    model = build_model(arguments, train)
    model.class_names, model.resizing = list(train.class_names), resizing
    model.compile(optimizer=build_optimizer(arguments, steps))
    print(f"{model.name}: {model.count_params():,} parameters, {steps:,} steps", flush=True)
    held_out = panoptic_evaluation_batches(validation, arguments.batch_size, **resizing.get_config())
    settings = {**vars(arguments), "resizing": resizing.get_config(), "classes": list(train.class_names)}
    kept = choose_run_options(arguments)
    run = TrainingRun(output, steps, settings, monitor="val_PQ", **kept)
    if arguments.resume:
        run.restore(model)

    options = {"batch_size": arguments.batch_size, "seed": arguments.seed}
    make_batches = functools.partial(panoptic_training_batches, train, augment=augment, **options)
    find_pictures = functools.partial(find_training_pictures, train, **options)
    scorer = PanopticScores(held_out, validation)
    summary = run.train(model, make_batches, evaluate_every, find_pictures, ADVICE, scorer)
    if summary is None:
        return

    best = keras.saving.load_model(output / "best.keras")
    print_scores(
        "After training (best.keras)", best, held_out, validation, output if is_first_process() else None
    )
    if not go_on_alone():
        return
    keep_curves(output, run)
    draw_pictures(best, held_out, validation, output)
    keep_report(output)
    print(summary)
    print(f"Model and pictures are in {output.resolve()}")


def open_data(arguments):
    """Returns the training and the validation data, checked."""
    if arguments.data is None:
        size = (arguments.image_size,) * 2
        return [PanopticShapes(count, size, seed) for count, seed in ((2000, 0), (100, 1))]
    datasets, counts, data = [], {}, pathlib.Path(arguments.data)
    for split in arguments.splits:
        places = (arguments.annotations, arguments.images, arguments.segments)
        datasets.append(PanopticDataset(*(data / place.format(split=split) for place in places)))
        counts[split] = datasets[-1].check()
    classes = [(each.class_names, each.num_things) for each in datasets]
    if classes[0] != classes[1]:
        raise SystemExit(f"Both splits must have the same classes, things first: {classes}")
    print(format_class_counts(counts, datasets[0].class_names, "segments"), flush=True)
    return datasets


def build_model(arguments, train):
    """Returns the panoptic segmenter."""
    options = {name: value for name in HEAD_OPTIONS if (value := getattr(arguments, name)) is not None}
    backbone = VANBackbone(arguments.variant, weights=arguments.weights)
    classes = {"num_things": train.num_things, "num_stuff": train.num_stuff}
    return Mask2Former(backbone, **classes, score_threshold=arguments.score_threshold, **options)


def build_optimizer(arguments, steps):
    """Returns AdamW as in the paper's recipe: no weight decay on norms, biases and tables."""
    learning_rate, clip_norm = LEARNING_RATE * arguments.batch_size * arguments.accumulate / 16, CLIP_NORM
    warm_up = 0 if arguments.warm_up is None else arguments.warm_up
    if arguments.weights is None:
        learning_rate, clip_norm = LEARNING_RATE_FROM_SCRATCH, CLIP_NORM_FROM_SCRATCH
        warm_up = max(1, min(500, steps // 10)) if arguments.warm_up is None else arguments.warm_up
    if arguments.learning_rate is not None:
        learning_rate = arguments.learning_rate
    if arguments.clip_norm is not None:
        clip_norm = arguments.clip_norm or None
    optimizer = AdamW(
        WarmUpStepDecay(learning_rate, warm_up, [round(steps * drop / EPOCHS) for drop in DROPS]),
        weight_decay=arguments.weight_decay,
        global_clipnorm=clip_norm,
        **choose_optimizer_options(arguments),
    )
    without_decay = ["gamma", "beta", "bias", "query_", "level_features"]
    optimizer.exclude_from_weight_decay(var_names=without_decay)
    return optimizer


def print_scores(title, model, held_out, validation, output):
    """Prints panoptic quality, also per class; keeps it in `output`, if any."""
    print(f"\nScoring {len(validation):,} pictures ...", flush=True)
    scores = evaluate_panoptic(model, held_out, validation)
    table = format_panoptic_scores(scores, validation.class_names)
    print(f"{title}\n{table}", flush=True)
    if output is not None:
        keep_scores(output, scores, table, validation.class_names)


def draw_pictures(model, held_out, validation, output, num_pictures=6):
    """Draws image, truth and segments of some examples."""
    images, truths, found = [], [], []
    for inputs, _ in held_out.as_numpy_iterator():
        sizes = inputs["image_sizes"]  # draws what the model sees
        found += model.predict_resized(inputs["images"], sizes, sizes)
        images += [
            image[:height, :width]
            for image, (height, width) in zip(inputs["images"], sizes.tolist(), strict=True)
        ]
        if len(images) >= num_pictures:
            break
    images, found = images[:num_pictures], found[:num_pictures]
    truths = [
        resize_truth(validation.load_segments(index), image.shape[:2]) for index, image in enumerate(images)
    ]
    lists = images, truths, found
    save_picture(draw_panoptic_comparison(*lists, model.class_names), output / "predictions.png")


def resize_truth(truth, size):
    """Returns the truth of a picture at another (height, width)."""
    resized = Image.fromarray(truth["segments"]).resize(size[::-1], Image.Resampling.NEAREST)
    return {"segments": keras.ops.convert_to_numpy(resized), "labels": truth["labels"]}


if __name__ == "__main__":
    main()
