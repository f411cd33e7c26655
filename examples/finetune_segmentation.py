"""Fine-tunes a semantic segmenter with a VAN backbone, scores it and draws what it sees.

    python examples/finetune_segmentation.py --data path/to/data --variant b0 --weights imagenet

The data folder holds `images/<split>`, `labels/<split>` and `classes.txt`, or ADE20K's layout. Without --data
the embedded, synthetic data set is used.
"""

import argparse
import pathlib
import resource
import shutil
import statistics
import time

import keras
import numpy as np
from PIL import Image

from heads import SemanticFPN, UPerNet
from heads.data import (
    SemanticAugmentation,
    SemanticFolder,
    ShapesDataset,
    evaluation_batches,
    training_batches,
)
from heads.drawing import draw_comparison
from heads.metrics import count_confusion, format_scores, score_confusion
from van_backbones import VARIANTS, VANBackbone
from van_backbones.feature_maps import draw_feature_maps

# The paper's recipes start from ImageNet weights; a random start takes, and needs, larger steps.
RECIPES = {  # head -> (learning rate, weight decay, power of the decay)
    "semantic_fpn": (2e-4, 1e-4, 0.9),
    "upernet": (6e-5, 0.01, 1.0),
}
LEARNING_RATE_FROM_SCRATCH = 1e-3


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
    augment = SemanticAugmentation(arguments.crop_size, base_size=arguments.base_size)
    batches = training_batches(train, arguments.batch_size, augment, seed=arguments.seed)
    model = build_model(arguments, train.num_classes)
    model.compile(optimizer=build_optimizer(arguments))
    print(f"{model.name}: {model.count_params():,} parameters")
    print_scores("Before training", model, validation)

    timer = StepTimer()
    epochs = -(-arguments.steps // arguments.evaluate_every)
    try:
        model.fit(
            batches,
            steps_per_epoch=min(arguments.steps, arguments.evaluate_every),
            epochs=epochs,
            validation_data=evaluation_batches(validation),
            callbacks=[*build_callbacks(output), timer],
            shuffle=False,  # `training_batches` did it
        )
    except KeyboardInterrupt:
        model.save(output / "interrupted.keras")
        print(
            f"\nStopped. The model is in {output / 'interrupted.keras'}; "
            "--resume goes on from the last epoch."
        )
        return

    best = keras.saving.load_model(output / "best.keras")
    print_scores("After training (best.keras)", best, validation)
    draw_pictures(best, validation, output)
    print(timer.summary())
    print(f"Model and pictures are in {output.resolve()}")


def parse_arguments(argv):
    """Gives the settings."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", help="folder of images and labels; default: the embedded data set")
    add("--class-names", help="text file with a class name per line, where the data has no classes.txt")
    add("--reduce-zero-label", action="store_true", help="label 0 is unlabelled (ADE20K)")
    add("--variant", default="b0", choices=list(VARIANTS))
    add("--head", default="semantic_fpn", choices=list(RECIPES))
    add("--channels", type=int, help="channels of the head; default: the paper's")
    add("--weights", help="'imagenet', a release or a file; default: a random start")
    add("--crop-size", type=int, nargs=2, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    add("--base-size", type=int, nargs=2, metavar=("LONG", "SHORT"), help="resize first; ADE20K: 2048 512")
    add("--batch-size", type=int, default=8)
    add("--steps", type=int, default=2000)
    add("--evaluate-every", type=int, default=200, help="steps between scores and checkpoints")
    add("--learning-rate", type=float, help="default: the paper's for the head, or 1e-3 without --weights")
    add("--warm-up", type=int, help="steps of linear warm-up; default: 1500, at most a tenth of --steps")
    add("--mixed-precision", action="store_true", help="compute in bfloat16")
    add("--output", default="runs/segmentation", help="folder of checkpoints, logs and pictures")
    add("--resume", action="store_true", help="go on from the last finished epoch in --output")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def open_data(arguments):
    """Gives the training and the validation data, checked."""
    if arguments.data is None:
        return ShapesDataset(2000, arguments.crop_size, seed=0), ShapesDataset(
            100, arguments.crop_size, seed=1
        )
    folders = [
        SemanticFolder(arguments.data, split, arguments.class_names, arguments.reduce_zero_label)
        for split in ("train", "val")
    ]
    for folder in folders:
        folder.check()
    return folders


def build_model(arguments, num_classes):
    """Gives the segmenter."""
    backbone = VANBackbone(arguments.variant, weights=arguments.weights)
    head = {"semantic_fpn": SemanticFPN, "upernet": UPerNet}[arguments.head]
    options = {"channels": arguments.channels} if arguments.channels else {}
    return head(backbone, num_classes, **options)


def build_optimizer(arguments):
    """Gives AdamW as in the paper's recipes: no weight decay on norms and biases."""
    learning_rate, weight_decay, power = RECIPES[arguments.head]
    if arguments.weights is None:
        learning_rate = LEARNING_RATE_FROM_SCRATCH
    warm_up = arguments.warm_up or max(1, min(1500, arguments.steps // 10))
    schedule = WarmUpPolynomialDecay(
        arguments.learning_rate or learning_rate, warm_up, arguments.steps, power
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


@keras.saving.register_keras_serializable(package="examples")
class WarmUpPolynomialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly over `warm_up` steps, then falls to 0 at `steps`."""

    def __init__(self, learning_rate, warm_up, steps, power):
        self.learning_rate = learning_rate
        self.warm_up = warm_up
        self.steps = steps
        self.power = power
        self.decay = keras.optimizers.schedules.PolynomialDecay(learning_rate, steps, 0.0, power)

    def __call__(self, step):
        rise = (keras.ops.cast(step, "float32") + 1.0) / self.warm_up
        return self.decay(step) * keras.ops.minimum(rise, 1.0)

    def get_config(self):
        names = ("learning_rate", "warm_up", "steps", "power")
        return {name: getattr(self, name) for name in names}


def build_callbacks(output):
    """Gives checkpoints and logs in `output`."""
    log = output / "log.csv"
    resumes = (output / "state").exists() and log.exists()
    best = None
    if resumes:
        best = float(np.genfromtxt(log, delimiter=",", names=True)["val_mean_iou"].max())
    return [
        keras.callbacks.BackupAndRestore(output / "state", delete_checkpoint=False),
        keras.callbacks.ModelCheckpoint(output / "last.keras"),
        keras.callbacks.ModelCheckpoint(
            output / "best.keras",
            monitor="val_mean_iou",
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


def print_scores(title, model, source):
    """Prints IoU per class on `source`."""
    confusion = 0
    for images, labels in evaluation_batches(source).as_numpy_iterator():
        confusion += count_confusion(labels, model.predict_on_batch(images), model.num_classes)
    print(f"\n{title}\n{format_scores(score_confusion(confusion), source.class_names)}", flush=True)


def draw_pictures(model, source, output, num_pictures=6):
    """Draws image, truth and prediction of some examples, and the features of the first."""
    dataset = evaluation_batches(source)
    examples = [(image[0], label[0]) for image, label in dataset.take(num_pictures).as_numpy_iterator()]
    images = [image.astype("uint8") for image, _ in examples]
    predictions = [model.predict_on_batch(image[None])[0] for image, _ in examples]
    picture = draw_comparison(images, [label for _, label in examples], predictions, source.class_names)
    Image.fromarray(picture).save(output / "predictions.png")
    Image.fromarray(draw_feature_maps(model.backbone, images[0])).save(output / "features.png")


if __name__ == "__main__":
    main()
