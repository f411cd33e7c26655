"""Fine-tunes a VAN classifier on a folder of class folders, and draws which classes it confuses.

    python examples/finetune_classification.py --data path/to/data --variant b0 --weights imagenet

The data folder holds one folder of pictures for each class, of which a share is held out for the scores; or
two folders, `train` and `val`, each with the class folders. The defaults are the paper's settings for
fine-grained classification (CUB-200-2011): AdamW, 5e-5, weight decay 5e-4, cosine decay, batch 16, 100
epochs. Training pictures are random crops (8 to 100 % of the area, bicubic), half of them mirrored, and with
--mixup mixed in pairs (arXiv 1710.09412); scores are measured as in `evaluate_classification.py`. TIFF files
of more than 3 channels are taken as they are. The models, their scores, curves and pictures go into a new
folder for each run: runs/classification-1 ...
"""

import pathlib

from options import (
    add_length,
    add_run_options,
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
    number,
    whole_number,
)


def parse_arguments(argv=None):
    """Returns the settings."""
    parser = make_parser(__doc__)
    add, count = parser.add_argument, whole_number(1)
    data = "folder of class folders, or of train and val"
    add("--data", type=pathlib.Path, required=True, help=data)
    add("--splits", nargs=2, metavar=("TRAIN", "VAL"), help="default: train val, if these folders exist")
    add_val_share(parser, default="0.2, if there are no --splits")
    add_variant(parser)
    side = "side of the squares that the model sees; default: %(default)s"
    add("--image-size", type=whole_number(32), default=224, metavar="SIDE", help=side)
    area = "share of a picture's area that a training step sees; default: 0.08 1"
    range_of = {"nargs": 2, "metavar": ("LOWEST", "HIGHEST"), "default": (0.08, 1.0)}
    add("--area-range", type=number(above=0), **range_of, help=area)
    mixup = "mix pairs of pictures, with shares from Beta(ALPHA, ALPHA), 0 for none; default: %(default)s"
    add("--mixup", type=number(at_least=0), default=0.0, metavar="ALPHA", help=mixup)
    add("--batch-size", type=count, default=16, help="pictures per batch; default: %(default)s")
    add_length(parser, "100 epochs")
    every = "most steps between scores and checkpoints, in equal rounds; default: an epoch"
    add("--evaluate-every", type=count, help=every)
    add_step_options(parser, "5e-5, or 1e-3 without --weights", weight_decay=5e-4)
    add_run_options(parser, "classification")
    arguments = parser.parse_args(argv)
    low, high = arguments.area_range
    if not low <= high <= 1:
        parser.error(f"--area-range must be LOWEST HIGHEST, at most 1. Received: {arguments.area_range}")
    processes = arguments.processes or arguments.num_processes or 1
    if arguments.mixup and arguments.batch_size % (2 * processes):
        pairs = f"--mixup needs pairs: a --batch-size that is a multiple of {2 * processes}"
        parser.error(f"{pairs}. Received: {arguments.batch_size}")
    check_val_share(parser, arguments)
    if arguments.splits is None and has_splits(arguments.data, ("train", "val")):
        arguments.splits = ("train", "val")
    if arguments.val_share is not None and arguments.splits:
        parser.error(
            f"--val-share is for data without splits: leave it out. Received: {arguments.data}, which has "
            "folders train and val"
        )
    return arguments


def has_splits(data, splits):
    """Returns whether a folder has class folders in folders for two splits."""
    return all(any(path.is_dir() for path in (data / split).glob("*")) for split in splits)


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import functools

import keras
import numpy as np
import tensorflow as tf
from faults import explain_faults
from finetune_segmentation import check_channel_counts, check_weights, choose_input
from results import keep_curves, keep_report, keep_scores, save_picture

from heads.data import (
    ClassAugmentation,
    ClassFolder,
    class_training_batches,
    find_training_pictures,
    format_class_counts,
)
from heads.drawing import draw_confusion
from heads.metrics import count_confusion
from heads.pictures import RGB_CHANNELS
from heads.processes import find_own_pictures, find_place, gather_batches
from heads.training import TrainingRun, go_on_alone, is_first_process, plan_rounds, run_in_folder
from van_backbones import VANClassifier
from van_backbones.classifier import preprocess_images

EPOCHS = 100
LEARNING_RATE = 5e-5  # from ImageNet weights; a random start takes, and needs, larger steps
LEARNING_RATE_FROM_SCRATCH = 1e-3
ADVICE = "Try a lower --learning-rate or a longer --warm-up, and look at these pictures."


def main(argv=None):
    """Trains, scores and draws."""
    run_in_folder(train_and_draw, parse_arguments(argv), "classification")


def train_and_draw(arguments, output):
    """Trains in a folder that no other training uses."""
    check_weights(arguments)
    with explain_faults(arguments.data, "finetune_classification.py"):
        train, validation = open_data(arguments)
    check_channel_counts(arguments, train, validation)
    if train.num_channels != RGB_CHANNELS:
        print(f"Pictures of {train.num_channels} channels")
    parts = {"train": train, "held out": validation}
    counts = {name: np.bincount(part.labels, minlength=train.num_classes) for name, part in parts.items()}
    print(format_class_counts(counts, train.class_names, "pictures"))
    print(f"{train.num_classes} classes, {len(train):,} pictures to learn from, {len(validation):,} to score")
    epoch_steps, steps = count_epoch_steps(arguments, len(train)), choose_steps(arguments, len(train), EPOCHS)
    with explain_faults(None, "finetune_classification.py"):  # of a file of --weights
        model = build_model(arguments, train.num_classes, train.num_channels)
    model.compile(
        build_optimizer(arguments, steps),
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.CategoricalAccuracy(name="top_1")],
    )
    print(f"{model.name}: {model.count_params():,} parameters, {steps:,} steps", flush=True)
    kept = choose_run_options(arguments)
    run = TrainingRun(output, steps, describe_run(arguments, train), monitor="val_top_1", **kept)
    if arguments.resume:
        run.restore(model)

    augment = ClassAugmentation(arguments.image_size, arguments.area_range)
    options = {"batch_size": arguments.batch_size, "seed": arguments.seed}

    def make_batches(first_step):
        batches = class_training_batches(train, augment=augment, first_step=first_step, **options)
        return mix_pictures(batches, train.num_classes, arguments.mixup, arguments.seed, first_step)

    find_pictures = functools.partial(find_training_pictures, train, **options)
    held_out = ScoredPictures(validation, arguments.batch_size, arguments.image_size)
    summary = run.train(
        model,
        make_batches,
        plan_rounds(steps, arguments.evaluate_every or epoch_steps),
        find_pictures,
        ADVICE,
        validation_data=held_out,
    )
    if summary is None:
        return

    best = keras.saving.load_model(output / "best.keras")
    score_and_draw(best, held_out, train.class_names, output)
    if not go_on_alone():
        return
    keep_curves(output, run)
    keep_report(output)
    print(summary)
    print(f"Model and picture are in {output.resolve()}")


def open_data(arguments):
    """Returns the training and the validation data, checked."""
    if arguments.splits:
        train = ClassFolder(arguments.data / arguments.splits[0], num_channels=None)
        validation = ClassFolder(arguments.data / arguments.splits[1], train.class_names, num_channels=None)
        for folder in (train, validation):
            folder.check()
        return train, validation
    folder = ClassFolder(arguments.data, num_channels=None)
    folder.check()
    return folder.split(arguments.val_share or 0.2, arguments.seed)


def describe_run(arguments, train):
    """Returns the settings that are kept beside the models, with the names of the classes."""
    return {**vars(arguments), "data": str(arguments.data), "classes": list(train.class_names)}


def build_model(arguments, num_classes, num_channels=RGB_CHANNELS):
    """Returns the classifier."""
    options = choose_input(num_channels)
    return VANClassifier(arguments.variant, num_classes, weights=arguments.weights, **options)


def build_optimizer(arguments, steps):
    """Returns AdamW as in the paper's recipe: cosine decay, no weight decay on norms and biases."""
    learning_rate = LEARNING_RATE_FROM_SCRATCH if arguments.weights is None else LEARNING_RATE
    if arguments.learning_rate is not None:
        learning_rate = arguments.learning_rate
    warm_up = max(1, min(500, steps // 10)) if arguments.warm_up is None else arguments.warm_up
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / max(warm_up, 1),
        max(steps - warm_up, 1),
        warmup_target=learning_rate,
        warmup_steps=warm_up,
    )
    options = choose_optimizer_options(arguments)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=arguments.weight_decay, **options)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def mix_pictures(batches, num_classes, alpha, seed, first_step):
    """Returns batches whose labels are shares of each class; pictures are mixed if `alpha` is not 0.

    Each picture is mixed with its neighbour in the batch, whose order is random already, so no process needs
    pictures of another one.
    """
    index, count = find_place()

    def read(step, batch):
        images, labels = batch[0], tf.one_hot(batch[1], num_classes)
        if not alpha:
            return images, labels
        # Drawn by the step's number, so that a resumed training draws what it would have drawn, and for the
        # batch of all processes, of which these pictures are a share.
        size = tf.shape(images)[0]
        draws = tf.random.stateless_gamma((2, count * size), (seed, step), alpha)
        shares = (draws[0] / tf.reduce_sum(draws, axis=0))[index * size : (index + 1) * size]
        neighbours = tf.bitwise.bitwise_xor(tf.range(size), 1)

        # Not `keras.layers.MixUp`, which draws in its own way, and in tf.data needs Keras on TensorFlow.
        def mix(values):
            own = tf.reshape(shares, (-1, *[1] * (values.shape.rank - 1)))
            return own * values + (1.0 - own) * tf.gather(values, neighbours)

        return mix(images), mix(labels)

    return batches.enumerate(first_step).map(read)


class ScoredPictures(keras.utils.PyDataset):
    """Batches of pictures as they are scored, with their labels; of several processes, this one's share."""

    def __init__(self, source, batch_size, image_size):
        super().__init__()
        self.source, self.batch_size, self.image_size = source, batch_size, image_size
        self.positions = find_own_pictures(len(source), batch_size)

    def __len__(self):
        return -(-len(self.positions) // self.batch_size)

    def __getitem__(self, index):
        part = self.positions[index * self.batch_size : (index + 1) * self.batch_size]
        pictures = (self.source.read(self.source.image_paths[position]) for position in part)
        options = {"image_size": self.image_size, "num_channels": self.source.num_channels}
        prepared = [keras.ops.convert_to_numpy(preprocess_images(picture, **options)) for picture in pictures]
        shares = keras.utils.to_categorical(self.source.labels[part], self.source.num_classes)
        return np.concatenate(prepared), shares


def score_and_draw(model, held_out, class_names, output):
    """Prints and keeps top-1 and the most frequent mistakes; draws the confusion matrix."""
    print(f"\nScoring {len(held_out.source):,} pictures ...", flush=True)
    found = [model.predict_on_batch(images).argmax(-1).tolist() for images, _ in held_out]
    predicted = np.concatenate(gather_batches(found))
    confusion = count_confusion(held_out.source.labels, predicted, len(class_names), ignore_label=-1)
    counts = confusion.sum(axis=1)
    per_class = np.diag(confusion) / np.where(counts, counts, np.nan)
    scores = {"top_1": np.diag(confusion).sum() / confusion.sum(), "per_class_top_1": per_class}
    lines = [f"{confusion.sum():,} pictures, top-1 {scores['top_1']:.2%}"]
    mistakes = confusion - np.diag(np.diag(confusion))
    for cell in np.argsort(-mistakes, axis=None, kind="stable")[:5]:
        truth, guess = np.unravel_index(cell, mistakes.shape)
        if mistakes[truth, guess]:
            share = mistakes[truth, guess] / confusion[truth].sum()
            lines.append(f"  {class_names[truth]} taken for {class_names[guess]}: {share:.0%}")
    table = "\n".join(lines)
    print(f"After training (best.keras): {table}", flush=True)
    if is_first_process():
        keep_scores(output, scores, table, class_names)
        save_picture(draw_confusion(confusion, class_names), output / "confusion.png")


if __name__ == "__main__":
    main()
