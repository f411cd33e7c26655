"""Trains a pose model with a VAN backbone, scores it and draws what it sees.

    python examples/train_pose.py --data path/to/coco --splits train2017 val2017 --images "{split}" \
        --variant b2 --weights imagenet

The data folder holds `images/<split>` and `annotations/person_keypoints_<split>.json` in COCO's format, for
the splits train and val. Without --data, the people of the embedded, synthetic data set are used. The
defaults are the paper's settings for COCO. The models, their scores, curves and pictures go into a new folder
for each run: runs/pose-1, runs/pose-2 ...
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
    count_epoch_steps,
    load_keras,
    make_parser,
    number,
    whole_number,
)

CROP_SIZE, EMBEDDED_CROP_SIZE = (256, 192), (64, 64)
SCALE_RANGE = (0.5, 1.5)


def parse_arguments(argv=None):
    """Returns the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--data", help="folder of pictures and annotations; default: the embedded data set")
    add("--splits", nargs=2, metavar=("TRAIN", "VAL"), help="default: train val")
    add("--annotations", help="file in --data; default: annotations/person_keypoints_{split}.json")
    add("--images", help="folder in --data; default: images/{split}")
    sigmas = "tolerance of the scores for each keypoint; default: COCO's, if the keypoints are COCO's"
    add("--sigmas", type=number(above=0), nargs="+", help=sigmas)
    add_variant(parser)
    count = whole_number(1)
    add("--channels", type=count, default=256, help="channels of the head; default: %(default)s")
    stages = whole_number(0, 4)
    frozen = "number of the backbone's first stages that are not trained; default: %(default)s"
    add("--frozen-stages", type=stages, default=0, help=frozen)
    add("--frozen-batch-norms", action="store_true", help="keep all batch norms of the backbone as they are")
    add_length(parser, "210 epochs; the drops of the rate scale with the length")
    every = "most steps between scores and checkpoints, in equal rounds; default: ten epochs, >= 200"
    add("--evaluate-every", type=count, help=every)
    add("--batch-size", type=count, default=64, help="people per batch; default: %(default)s")
    size = "size of the crops; default: 256 192, embedded data: 64 64"
    add("--image-size", type=count, nargs=2, metavar=("HEIGHT", "WIDTH"), help=size)
    add_scale_range(parser, "crops", SCALE_RANGE)
    rotation = "largest rotation of the crops, in degrees; default: %(default)s"
    add("--rotation", type=number(at_least=0), default=80.0, help=rotation)
    add("--flip-test", action="store_true", help="average the scored predictions with the mirrored crops")
    rate, clip_norm = (
        "5e-4 * people of a step / 64, or 2e-3 without --weights",
        "none, or 1 without --weights",
    )
    add_step_options(parser, rate, clip_norm=clip_norm)
    add_run_options(parser, "pose")
    arguments = parser.parse_args(argv)
    try:
        check_arguments(arguments)
    except ValueError as error:
        parser.error(str(error))
    return fill_defaults(arguments)


def check_arguments(arguments):
    """Raises ValueError for options that contradict another one, or are out of range."""
    in_data = (arguments.splits, arguments.annotations, arguments.images, arguments.sigmas)
    if arguments.data is None and any(in_data):
        raise ValueError("--splits, --annotations, --images and --sigmas need --data: they describe it")
    if arguments.rotation > 180:
        raise ValueError(f"--rotation must be at most 180 degrees. Received: {arguments.rotation}")
    if any(side % 32 for side in arguments.image_size or ()):
        raise ValueError(f"--image-size must be multiples of 32. Received: {arguments.image_size}")


def fill_defaults(arguments):
    """Returns the arguments with the defaults that depend on others."""
    arguments.splits = arguments.splits or ("train", "val")
    arguments.annotations = arguments.annotations or "annotations/person_keypoints_{split}.json"
    arguments.images = arguments.images or "images/{split}"
    arguments.scale_range = arguments.scale_range or SCALE_RANGE
    crop_size = EMBEDDED_CROP_SIZE if arguments.data is None else CROP_SIZE
    arguments.image_size = tuple(arguments.image_size or crop_size)
    return arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import functools
import pathlib

import keras
import numpy as np
from faults import explain_faults
from finetune_segmentation import check_weights
from results import keep_curves, keep_report, keep_scores, save_picture

from heads import Resizing, SimpleBaseline, WarmUpStepDecay
from heads.data import (
    CocoKeypoints,
    KeypointShapes,
    PoseAugmentation,
    find_training_pictures,
    pose_evaluation_batches,
    pose_training_batches,
)
from heads.drawing import draw_pose_comparison
from heads.metrics import KeypointScores, format_keypoint_scores, save_results
from heads.training import TrainingRun, go_on_alone, is_first_process, plan_rounds, run_in_folder
from van_backbones import VANBackbone

EPOCHS, DROPS = 210, (170, 200)  # the epochs after which the rate falls to a tenth
LEARNING_RATE = 5e-4  # for 64 people, from ImageNet weights
# A random start takes larger steps, but no peaks.
LEARNING_RATE_FROM_SCRATCH, CLIP_NORM_FROM_SCRATCH = 2e-3, 1.0
ADVICE = "Try a lower --learning-rate or --clip-norm, or a longer --warm-up, and look at these annotations."


def main(argv=None):
    """Trains, scores and draws."""
    run_in_folder(train_and_draw, parse_arguments(argv), "pose")


def train_and_draw(arguments, output):
    """Trains in a folder that no other training uses."""
    check_weights(arguments)
    with explain_faults(arguments.data, "train_pose.py"):
        train, validation = open_data(arguments)
    print(f"{train.num_keypoints} keypoints: {', '.join(train.keypoint_names)}", flush=True)
    print(f"{len(train):,} people to learn from, {len(validation):,} to score", flush=True)
    augment = PoseAugmentation(
        arguments.image_size, scale_range=arguments.scale_range, rotation=arguments.rotation
    )
    steps, evaluate_every, milestones = plan_steps(arguments, len(train))
    model = build_model(arguments, train)
    model.compile(optimizer=build_optimizer(arguments, steps, milestones))
    print(f"{model.name}: {model.count_params():,} parameters, {steps:,} steps", flush=True)
    scorer = build_scorer(arguments, validation)
    kept = choose_run_options(arguments)
    run = TrainingRun(output, steps, describe_run(arguments, train), monitor="val_keypoints_AP", **kept)
    if arguments.resume:
        run.restore(model)
    else:
        print_scores("Before training", model, scorer)

    options = {"batch_size": arguments.batch_size, "seed": arguments.seed}
    make_batches = functools.partial(pose_training_batches, train, augment=augment, **options)
    find_pictures = functools.partial(find_training_pictures, train, **options)
    summary = run.train(model, make_batches, evaluate_every, find_pictures, ADVICE, scorer)
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
    print(f"Model, results and pictures are in {output.resolve()}")


def open_data(arguments):
    """Returns the training and the validation data, checked."""
    if arguments.data is None:
        return [KeypointShapes(count, seed=seed) for count, seed in ((500, 0), (60, 1))]
    datasets = []
    for split in arguments.splits:
        data = pathlib.Path(arguments.data)
        annotations = data / arguments.annotations.format(split=split)
        images = data / arguments.images.format(split=split)
        datasets.append(CocoKeypoints(annotations, images, sigmas=arguments.sigmas))
        datasets[-1].check()
    if datasets[0].keypoint_names != datasets[1].keypoint_names:
        names = [dataset.keypoint_names for dataset in datasets]
        raise SystemExit(f"Both splits must have the same keypoints: {names}")
    for dataset in datasets:
        if not len(dataset):
            raise SystemExit(
                f"{dataset.path} has no people with labelled keypoints: nothing to learn or to score. Label "
                "some of its pictures, or name other --splits"
            )
    if datasets[1].sigmas is None:
        raise SystemExit(
            f"--sigmas must be given for keypoints that are not COCO's: {datasets[0].num_keypoints} numbers "
            "such as 0.05, the tolerances of the scores in units of a person's size"
        )
    return datasets


def describe_run(arguments, train):
    """Returns the settings that are kept beside the models."""
    return {**vars(arguments), "keypoints": list(train.keypoint_names)}


def plan_steps(arguments, num_people):
    """Returns the number of steps, the steps between scores, and the steps after which the rate falls."""
    epoch_steps = count_epoch_steps(arguments, num_people)
    steps = choose_steps(arguments, num_people, EPOCHS)
    evaluate_every = plan_rounds(steps, arguments.evaluate_every or max(10 * epoch_steps, 200))
    return steps, evaluate_every, [round(steps * drop / EPOCHS) for drop in DROPS]


def build_model(arguments, train):
    """Returns the model, with all that it needs to know about the keypoints."""
    backbone = VANBackbone(arguments.variant, weights=arguments.weights)
    backbone.freeze(arguments.frozen_stages, arguments.frozen_batch_norms)
    return SimpleBaseline(
        backbone,
        train.num_keypoints,
        arguments.channels,
        flip_pairs=train.flip_pairs,
        keypoint_names=train.keypoint_names,
        skeleton=train.skeleton,
        resizing=Resizing(arguments.image_size),
    )


def build_optimizer(arguments, steps, milestones):
    """Returns Adam as in the paper's recipe."""
    learning_rate, clip_norm = LEARNING_RATE * arguments.batch_size * arguments.accumulate / 64, None
    if arguments.weights is None:
        learning_rate, clip_norm = LEARNING_RATE_FROM_SCRATCH, CLIP_NORM_FROM_SCRATCH
    if arguments.learning_rate is not None:
        learning_rate = arguments.learning_rate
    if arguments.clip_norm is not None:
        clip_norm = arguments.clip_norm or None
    warm_up = max(1, min(500, steps // 10)) if arguments.warm_up is None else arguments.warm_up
    schedule = WarmUpStepDecay(learning_rate, warm_up, milestones)
    options = choose_optimizer_options(arguments)
    return keras.optimizers.Adam(schedule, global_clipnorm=clip_norm, **options)


def build_scorer(arguments, validation):
    """Returns the callback that scores the model on the validation data."""
    return KeypointScores(
        pose_evaluation_batches(validation, arguments.batch_size, arguments.image_size),
        validation.to_coco(),
        validation.image_ids,
        validation.sigmas,
        flip_test=arguments.flip_test,
    )


def print_scores(title, model, scorer, output=None):
    """Prints average precision and recall, keeps them in `output`, and returns COCO's results."""
    print("\nScoring the held-out people ...", flush=True)
    results = scorer.predict(model)
    scores = scorer.evaluate(results)
    table = format_keypoint_scores(scores)
    print(f"{title}\n{table}", flush=True)
    if output is not None:
        keep_scores(output, scores, table)
        save_results(results, output / "results.json")
    return results


def draw_pictures(model, validation, output, num_pictures=6):
    """Draws image, truth and prediction of the first pictures."""
    image_ids, images = np.array(validation.image_ids), {}
    for example in validation.load().as_numpy_iterator():
        images.setdefault(validation.image_ids[example["index"]], example["image"])
        if len(images) > num_pictures:
            break
    keys = list(images)[:num_pictures]
    people = [np.flatnonzero(image_ids == key) for key in keys]
    pictures = [images[key] for key in keys]
    boxes = [validation.boxes[rows] for rows in people]
    predictions = model.predict_pictures(pictures, boxes, progress=False)
    truths = [validation.keypoints[rows] for rows in people]
    truths = [{"keypoints": truth[..., :2], "scores": truth[..., 2]} for truth in truths]
    names = model.keypoint_names, model.skeleton
    picture = draw_pose_comparison(pictures, truths, predictions, names[1], names[0])
    save_picture(picture, output / "predictions.png")


if __name__ == "__main__":
    main()
