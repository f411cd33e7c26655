"""Trains one small segmenter with several losses, from one seed, and prints their scores of rare classes.

    python tests/benchmarks/rare_classes.py --data ../shared/data/coating_ebc --steps 400

The losses are those of `finetune_segmentation.py`: --loss, and after a blank --class-weights.
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
    "cross_entropy crack=100",
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
    add = parser.add_argument
    add("--data", required=True)
    add("--losses", nargs="+", default=LOSSES)
    add("--steps", type=int, default=400)
    add("--batch-size", type=int, default=4)
    add("--crop-size", type=int, default=96)
    add("--learning-rate", type=float, default=2e-3)
    add("--ema", type=float)
    add("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for loss in arguments.losses:
        train(arguments, *loss.split())


def train(arguments, loss, *class_weights):
    """Trains with a loss, and prints the scores of each class."""
    import keras
    from options import choose_class_weights

    from heads import SemanticFPN, WarmUpPolynomialDecay
    from heads.data import (
        SemanticAugmentation,
        SemanticFolder,
        balance_classes,
        semantic_evaluation_batches,
        semantic_training_batches,
    )
    from heads.metrics import evaluate_semantic
    from heads.training import WeightAverages
    from van_backbones import VANBackbone

    start = time.process_time()
    keras.utils.set_random_seed(arguments.seed)
    folders = [SemanticFolder(arguments.data, split) for split in ("train", "val")]
    names = folders[0].class_names
    balanced = balance_classes(folders[0].check(progress=False))
    weights = choose_class_weights(list(class_weights) or None, names, balanced)
    backbone = VANBackbone("b0", widths=(16, 32, 64, 128), depths=(2, 2, 2, 2), drop_path_rate=0.0)
    model = SemanticFPN(backbone, len(names), 32, 32, loss=loss, class_weights=weights)
    rate = WarmUpPolynomialDecay(arguments.learning_rate, arguments.steps // 10, arguments.steps, 0.9)
    average = {"use_ema": True, "ema_momentum": arguments.ema} if arguments.ema else {}
    model.compile(keras.optimizers.AdamW(rate, weight_decay=1e-4, **average))
    batches = semantic_training_batches(
        folders[0],
        arguments.batch_size,
        SemanticAugmentation((arguments.crop_size,) * 2),
        seed=arguments.seed,
    )
    model.fit(
        batches, steps_per_epoch=arguments.steps, shuffle=False, verbose=0, callbacks=[WeightAverages()]
    )
    scores = evaluate_semantic(model, semantic_evaluation_batches(folders[1]))
    cells = [
        f"{name} {100 * iou:.1f} ({100 * accuracy:.1f})"
        for name, iou, accuracy in zip(
            names, scores["per_class_iou"], scores["per_class_accuracy"], strict=True
        )
    ]
    cells += [f"mean {100 * scores['mean_iou']:.1f}", f"pixels {100 * scores['pixel_accuracy']:.1f}"]
    seconds = time.process_time() - start
    print(
        " ".join([loss, *class_weights]).ljust(28),
        *cells,
        f"{seconds:.0f} s of one core",
        sep=" | ",
        flush=True,
    )


if __name__ == "__main__":
    main()
