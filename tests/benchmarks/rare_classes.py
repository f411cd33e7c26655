"""Trains a segmenter with several losses, from one seed, and prints their scores of each class.

    python -m tests.benchmarks.rare_classes --data ../shared/data/coating_ebc --steps 800 --batch-size 4 \\
        --crop-size 128 128 --scale-range 1 2 --losses cross_entropy "cross_entropy balanced"

A loss is that of `finetune_segmentation.py`: --loss, and after a blank --class-weights. All other options are
that script's, too, and so is what is trained.
"""

import argparse
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

LOSSES = (
    "cross_entropy",
    "cross_entropy balanced",
    "cross_entropy+dice",
    "cross_entropy+dice balanced",
    "dice",
    "focal",
)


def main(argv=None):
    """Trains and scores with each loss."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--losses", nargs="+", default=LOSSES, metavar="LOSS", help=", ".join(LOSSES))
    arguments, options = parser.parse_known_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for words in arguments.losses:
        loss, *class_weights = words.split()
        train(words, [*options, "--loss", loss, "--class-weights", *(class_weights or ["equal"])])


def train(title, options):
    """Trains as the script does, and prints the scores of each class."""
    import finetune_segmentation as script
    import keras

    from heads.data import balance_classes, semantic_evaluation_batches, semantic_training_batches
    from heads.metrics import evaluate_semantic
    from heads.training import WeightAverages

    start = time.process_time()
    arguments = script.parse_arguments(options)
    keras.utils.set_random_seed(arguments.seed)
    training, validation, counts = script.open_data(arguments)
    names = training.class_names
    weights = script.choose_class_weights(arguments.class_weights, names, balance_classes(counts))
    model = script.build_model(arguments, len(names), weights, training.num_channels)
    model.compile(optimizer=script.build_optimizer(arguments))
    augment = script.choose_augmentation(arguments, training.num_channels)
    batches = semantic_training_batches(training, arguments.batch_size, augment, seed=arguments.seed)
    averages = [WeightAverages()]
    model.fit(batches, steps_per_epoch=arguments.steps, shuffle=False, verbose=0, callbacks=averages)
    scores = evaluate_semantic(model, semantic_evaluation_batches(validation))
    values = zip(names, scores["per_class_iou"], scores["per_class_accuracy"], strict=True)
    cells = [f"{name} {100 * iou:.1f} ({100 * accuracy:.1f})" for name, iou, accuracy in values]
    cells += [f"mean {100 * scores['mean_iou']:.1f}", f"pixels {100 * scores['pixel_accuracy']:.1f}"]
    seconds = time.process_time() - start
    print(title.ljust(28), *cells, f"{seconds:.0f} s of one core", sep=" | ", flush=True)


if __name__ == "__main__":
    main()
