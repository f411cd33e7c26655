"""Trains a detector or an instance segmenter with a VAN backbone, scores it and draws what it sees.

    python examples/train_detection.py --data path/to/data --variant b0 --weights imagenet

The data folder holds `images/<split>` and `annotations/instances_<split>.json` in COCO's format, for the
splits train and val; for COCO itself add `--splits train2017 val2017 --images "{split}"`. Without --data the
embedded, synthetic data set is used. The defaults are the paper's settings for COCO.
"""

import argparse
import inspect
import json
import pathlib
import resource
import shutil
import statistics
import time

import keras
import numpy as np
from PIL import Image

from heads import FasterRCNN, MaskRCNN, RetinaNet
from heads.data import (
    CocoDataset,
    DetectionAugmentation,
    ShapesDetection,
    detection_evaluation_batches,
    detection_training_batches,
)
from heads.drawing_objects import draw_detection_comparison
from heads.metrics import CocoScores, evaluate_coco, format_coco_scores, predict_coco_results, save_results
from van_backbones import VARIANTS, VANBackbone

HEADS = {"retinanet": RetinaNet, "faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}
HEAD_OPTIONS = ("channels", "num_convs", "num_samples", "num_proposals", "max_detections")
SCHEDULES = {  # epochs, the epochs after which the rate falls to a tenth, short sides in pixels
    "1x": (12, (8, 11), (800,)),
    "3x": (36, (27, 33), tuple(range(480, 801, 32))),
}
LEARNING_RATE = 1e-4  # for 16 images, from ImageNet weights
# A random start takes larger steps, but no peaks; the embedded data's AP50 after 400 steps doubled so.
LEARNING_RATE_FROM_SCRATCH, CLIP_NORM_FROM_SCRATCH = 2e-3, 1.0


def main(argv=None):
    """Trains, scores and draws."""
    arguments = parse_arguments(argv)
    output = pathlib.Path(arguments.output)
    if not arguments.resume:
        shutil.rmtree(output / "state", ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(arguments.seed)
    if arguments.mixed_precision:
        keras.config.set_dtype_policy("mixed_bfloat16")

    train, validation = open_data(arguments)
    print(f"{train.num_classes} classes: {', '.join(train.class_names)}", flush=True)
    augment, sizes = choose_sizes(arguments)
    batches = detection_training_batches(train, arguments.batch_size, augment, seed=arguments.seed)
    steps, evaluate_every, milestones = plan_steps(arguments, len(train))
    model = build_model(arguments, train.num_classes)
    model.compile(optimizer=build_optimizer(arguments, steps, milestones))
    print(f"{model.name}: {model.count_params():,} parameters, {steps:,} steps", flush=True)
    (output / "classes.txt").write_text("\n".join(train.class_names) + "\n", encoding="utf-8")
    (output / "settings.json").write_text(json.dumps({**vars(arguments), "sizes": sizes}, indent=1) + "\n")
    scorer = build_scorer(arguments, validation, sizes)
    if not arguments.resume:
        print_scores("Before training", model, scorer)

    timer = StepTimer()
    try:
        model.fit(
            batches,
            steps_per_epoch=evaluate_every,
            epochs=-(-steps // evaluate_every),
            callbacks=[scorer, *build_callbacks(output), timer],
            shuffle=False,  # `detection_training_batches` did it
        )
    except KeyboardInterrupt:
        model.save(output / "interrupted.keras")
        print(f"\nStopped, see {output / 'interrupted.keras'}; --resume goes on from the last epoch.")
        return

    best = keras.saving.load_model(output / "best.keras")
    save_results(print_scores("After training (best.keras)", best, scorer), output / "results.json")
    draw_pictures(best, scorer, train.class_names, output)
    print(timer.summary())
    print(f"Model, results and pictures are in {output.resolve()}")


def parse_arguments(argv):
    """Gives the settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="folder of pictures and annotations; default: the embedded data set")
    add("--splits", nargs=2, default=("train", "val"), metavar=("TRAIN", "VAL"))
    add("--annotations", default="annotations/instances_{split}.json", help="where in --data")
    add("--images", default="images/{split}", help="where in --data")
    add("--head", default="retinanet", choices=list(HEADS))
    add("--variant", default="b0", choices=list(VARIANTS))
    add("--weights", help="of the backbone: 'imagenet', a release or a file; default: a random start")
    add("--channels", type=int, help="channels of the head; default: the paper's")
    add("--num-convs", type=int, help="retinanet: convolutions before each output")
    add("--num-samples", type=int, help="R-CNNs: regions per image that the second stage learns from")
    add("--num-proposals", type=int, help="R-CNNs: regions per image that the second stage looks at")
    add("--max-detections", type=int, help="objects per picture that are found and scored; default: 100")
    add("--frozen-stages", type=int, default=0, help="how many stages of the backbone stay as they are")
    add("--frozen-batch-norms", action="store_true", help="all batch norms of the backbone stay as they are")
    add("--schedule", default="1x", choices=list(SCHEDULES), help="epochs, drops of the rate, short sides")
    add("--steps", type=int, help="in place of the schedule's epochs; the drops move along")
    add("--evaluate-every", type=int, help="steps between scores and checkpoints; default: an epoch, >= 200")
    add("--batch-size", type=int, default=16)
    either = parser.add_mutually_exclusive_group().add_argument
    either("--short-sides", type=int, nargs="+", help="of the pictures, drawn anew; the largest is scored")
    either("--image-size", type=int, metavar="SIDE", help="square pictures instead; embedded data: 128")
    add("--long-side", type=int, default=1333, help="limit of the long side")
    add("--scale-range", type=float, nargs=2, default=(0.1, 2.0), help="jitter of the square pictures")
    add("--learning-rate", type=float, help="default: 1e-4 * batch size / 16, or 2e-3 without --weights")
    add("--weight-decay", type=float, default=0.05)
    add("--warm-up", type=int, help="steps of linear warm-up; default: 500, at most a tenth of the steps")
    add("--clip-norm", type=float, help="limit of the gradients' norm; default: none, or 1 without --weights")
    add("--mixed-precision", action="store_true", help="compute in bfloat16")
    add("--output", default="runs/detection", help="folder of checkpoints, logs and pictures")
    add("--resume", action="store_true", help="go on from the last finished epoch in --output")
    add("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    for name in HEAD_OPTIONS:
        known = name in inspect.signature(HEADS[arguments.head]).parameters
        if getattr(arguments, name) is not None and not known:
            parser.error(f"--head {arguments.head} has no --{name.replace('_', '-')}")
    if arguments.data is None and not arguments.short_sides:
        arguments.image_size = arguments.image_size or 128
    return arguments


def open_data(arguments):
    """Gives the training and the validation data, checked."""
    with_masks = arguments.head == "mask_rcnn"
    if arguments.data is None:
        size = (arguments.image_size or 128,) * 2
        return [ShapesDetection(number, size, seed, with_masks) for number, seed in ((2000, 0), (100, 1))]
    datasets = []
    for split in arguments.splits:
        data = pathlib.Path(arguments.data)
        annotations = data / arguments.annotations.format(split=split)
        datasets.append(CocoDataset(annotations, data / arguments.images.format(split=split), with_masks))
        datasets[-1].check()
    if datasets[0].class_names != datasets[1].class_names:
        raise SystemExit(f"Both splits must have the same classes: {[data.class_names for data in datasets]}")
    return datasets


def choose_sizes(arguments):
    """Gives the augmentation, and the sizes of the pictures to score."""
    if arguments.image_size:
        size = (arguments.image_size,) * 2
        return DetectionAugmentation(image_size=size, scale_range=arguments.scale_range), {"image_size": size}
    short_sides = arguments.short_sides or SCHEDULES[arguments.schedule][2]
    sizes = {"short_side": max(short_sides), "long_side": arguments.long_side}
    return DetectionAugmentation(short_sides, arguments.long_side), sizes


def plan_steps(arguments, num_images):
    """Gives the number of steps, those between two scores, and those after which the rate falls."""
    epochs, drops, _ = SCHEDULES[arguments.schedule]
    epoch_steps = -(-num_images // arguments.batch_size)
    steps = arguments.steps or epochs * epoch_steps
    evaluate_every = min(steps, arguments.evaluate_every or max(epoch_steps, 200))
    return steps, evaluate_every, [round(steps * drop / epochs) for drop in drops]


def build_model(arguments, num_classes):
    """Gives the detector."""
    backbone = VANBackbone(arguments.variant, weights=arguments.weights)
    backbone.freeze(arguments.frozen_stages, arguments.frozen_batch_norms)
    options = {name: value for name in HEAD_OPTIONS if (value := getattr(arguments, name)) is not None}
    return HEADS[arguments.head](backbone, num_classes, **options)


def build_optimizer(arguments, steps, milestones):
    """Gives AdamW as in the paper's recipes: no weight decay on norms and biases."""
    learning_rate, clip_norm = LEARNING_RATE * arguments.batch_size / 16, None
    if arguments.weights is None:
        learning_rate, clip_norm = LEARNING_RATE_FROM_SCRATCH, CLIP_NORM_FROM_SCRATCH
    warm_up = arguments.warm_up or max(1, min(500, steps // 10))
    optimizer = keras.optimizers.AdamW(
        WarmUpStepDecay(arguments.learning_rate or learning_rate, warm_up, milestones),
        weight_decay=arguments.weight_decay,
        global_clipnorm=arguments.clip_norm or clip_norm,
    )
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


@keras.saving.register_keras_serializable(package="examples")
class WarmUpStepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises from a thousandth over `warm_up` steps, then falls to a tenth at each milestone."""

    def __init__(self, learning_rate, warm_up, milestones):
        self.learning_rate = learning_rate
        self.warm_up = warm_up
        self.milestones = milestones

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rate = self.learning_rate * (0.001 + 0.999 * keras.ops.minimum(step / self.warm_up, 1.0))
        for milestone in self.milestones:
            rate = rate * keras.ops.where(step < milestone, 1.0, 0.1)
        return rate

    def get_config(self):
        return {name: getattr(self, name) for name in ("learning_rate", "warm_up", "milestones")}


def build_scorer(arguments, validation, sizes):
    """Gives the callback that scores the detector on the validation data."""
    batch_size = arguments.batch_size if arguments.image_size else 1
    return CocoScores(
        detection_evaluation_batches(validation, batch_size, **sizes),
        validation.to_coco(),
        validation.image_ids,
        validation.category_ids,
        kinds=("bbox", "segm") if arguments.head == "mask_rcnn" else ("bbox",),
        max_detections=(1, 10, arguments.max_detections or 100),
    )


def build_callbacks(output):
    """Gives checkpoints and logs in `output`."""
    log = output / "log.csv"
    resumes = (output / "state").exists() and log.exists()
    best = np.nanmax(np.genfromtxt(log, delimiter=",", names=True)["val_bbox_AP"]) if resumes else None
    return [
        keras.callbacks.BackupAndRestore(output / "state", delete_checkpoint=False),
        keras.callbacks.ModelCheckpoint(output / "last.keras"),
        keras.callbacks.ModelCheckpoint(
            output / "best.keras",
            monitor="val_bbox_AP",
            mode="max",
            save_best_only=True,
            initial_value_threshold=best,
        ),
        keras.callbacks.CSVLogger(log, append=resumes),
        keras.callbacks.TensorBoard(output / "tensorboard", write_graph=False),
    ]


class StepTimer(keras.callbacks.Callback):
    """Measures the training steps."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self.start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)

    def summary(self):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if not self.seconds:
            return f"No step was left to train; peak memory {peak:.1f} GiB"
        return f"{statistics.median(self.seconds):.2f} s per step (median), peak memory {peak:.1f} GiB"


def print_scores(title, model, scorer):
    """Prints average precision, also per class; gives COCO's results."""
    results = predict_coco_results(model, scorer.dataset, scorer.image_ids, scorer.category_ids)
    scores = evaluate_coco(scorer.truth, results, scorer.kinds, scorer.max_detections)
    print(f"\n{title}\n{format_coco_scores(scores)}", flush=True)
    return results


def draw_pictures(model, scorer, class_names, output, num_pictures=6):
    """Draws image, truth and detections of some examples."""
    images, truths, detections = [], [], []
    for inputs, truth in scorer.dataset.as_numpy_iterator():
        inputs["original_sizes"] = inputs["image_sizes"]  # draws what the model sees
        found = model.predict_on_batch(inputs)
        for index, (height, width) in enumerate(inputs["image_sizes"]):
            images.append(inputs["images"][index, :height, :width])
            truths.append({name: values[index] for name, values in truth.items()})
            if "masks" in truth:
                truths[-1]["masks"] = truths[-1]["masks"][:, :height, :width]
            detections.append({name: values[index] for name, values in found.items()})
        if len(images) >= num_pictures:
            break
    lists = [values[:num_pictures] for values in (images, truths, detections)]
    picture = draw_detection_comparison(*lists, class_names, score_threshold=0.4)
    Image.fromarray(picture).save(output / "predictions.png")


if __name__ == "__main__":
    main()
