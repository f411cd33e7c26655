"""Trains SemanticFPN with VAN-b0 and KerasCV's DeepLabV3Plus with ResNet18, both from scratch, side by side.

    python tests/benchmarks/segmentation_against_keras_cv.py --data ../shared/data/facades --minutes 80

Same data, crops, batch size, optimizer, wall time and score. Both run at the same time, with one thread each,
so that anything else on the machine slows both; the learning rate follows the clock, not the step.
"""

import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))

MODELS = ("van_semantic_fpn", "keras_cv_deeplab")
LEARNING_RATE = 1e-3
WARM_UP = 0.1  # share of the time


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=80.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--crop-size", type=int, default=256)
    parser.add_argument("--output", default="runs/against_keras_cv")
    parser.add_argument("--model", choices=MODELS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.model:
        train(arguments)
        return
    pathlib.Path(arguments.output).mkdir(parents=True, exist_ok=True)
    jobs = []
    for model in MODELS:
        with open(pathlib.Path(arguments.output) / f"{model}.log", "w") as log:
            command = [sys.executable, "-u", __file__, *(argv or sys.argv[1:]), "--model", model]
            jobs.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    failed = any([job.wait() for job in jobs])
    for model in MODELS:
        lines = (pathlib.Path(arguments.output) / f"{model}.log").read_text().splitlines()
        print(
            f"--- {model}",
            *(line for line in lines[-40:] if "step" not in line or "summary" in line),
            sep="\n",
        )
    if failed:
        sys.exit("a run failed: see the logs")


def train(arguments):
    """Trains one of the two models and prints its scores."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import tensorflow as tf
    from finetune_segmentation import print_scores

    from heads.data import SemanticAugmentation, SemanticFolder, semantic_training_batches

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    size = (arguments.crop_size, arguments.crop_size)
    train_folder, validation = (SemanticFolder(arguments.data, split) for split in ("train", "val"))
    batches = iter(semantic_training_batches(train_folder, arguments.batch_size, SemanticAugmentation(size)))
    build, score = {
        "van_semantic_fpn": (build_ours, None),
        "keras_cv_deeplab": (build_deeplab, rebuild_deeplab),
    }[arguments.model]
    model = build(train_folder.num_classes, size)
    print(f"{arguments.model}: {model.count_params():,} parameters", flush=True)
    optimizer = keras.optimizers.AdamW(0.0, weight_decay=1e-4)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    compile_model(model, optimizer)
    model.train_on_batch(*next(batches))  # traces; a learning rate of 0 changes no weight
    seconds = train_by_the_clock(model, batches, 60 * arguments.minutes)
    model.save_weights(pathlib.Path(arguments.output) / f"{arguments.model}.weights.h5")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"summary: {len(seconds)} steps in {sum(seconds) / 60:.1f} minutes, "
        f"{statistics.median(seconds):.2f} s per step (median), peak memory {peak:.1f} GiB"
    )
    print_scores(arguments.model, score(model, validation) if score else model, validation)


def train_by_the_clock(model, batches, duration):
    """Trains for `duration` seconds, with warm-up and polynomial decay; returns the seconds of each step."""
    start, seconds = time.perf_counter(), []
    while (now := time.perf_counter() - start) < duration:
        share = now / duration
        model.optimizer.learning_rate.assign(LEARNING_RATE * min(share / WARM_UP, 1.0) * (1.0 - share) ** 0.9)
        logs = model.train_on_batch(*next(batches), return_dict=True)
        seconds.append(time.perf_counter() - start - now)
        if len(seconds) % 100 == 0:
            print(f"step {len(seconds)} loss {logs['loss']:.4f} minutes {now / 60:.1f}", flush=True)
            model.reset_metrics()
    return seconds


def compile_model(model, optimizer):
    """Compiles either of the models."""
    import keras

    if hasattr(model, "compute_losses"):
        model.compile(optimizer=optimizer)
    else:  # DeepLabV3Plus ends in a softmax
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
        model.compile(optimizer=optimizer, loss=loss)
        optimizer.build(model.trainable_variables)


def build_ours(num_classes, size):
    """Returns SemanticFPN with VAN-b0."""
    from heads import SemanticFPN
    from van_backbones import VANBackbone

    return SemanticFPN(VANBackbone("b0"), num_classes)


def build_deeplab(num_classes, size):
    """Returns DeepLabV3Plus with a ResNet18."""
    import keras_cv

    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=[2, 2, 2, 2],
        stackwise_strides=[1, 2, 2, 2],
        block_type="basic_block",
        include_rescaling=True,
        input_shape=(*size, 3),
    )
    return keras_cv.models.DeepLabV3Plus(num_classes=num_classes, backbone=backbone)


def rebuild_deeplab(model, validation):
    """Returns the trained model at the validation images' size, with the interface of `print_scores`."""
    image, _ = next(iter(validation.load()))
    full = build_deeplab(validation.num_classes, image.shape[:2])
    full.set_weights(model.get_weights())

    class LabelMaps:
        num_classes = validation.num_classes

        def predict_on_batch(self, images):
            return full.predict_on_batch(images).argmax(axis=-1).astype("int32")

    return LabelMaps()


if __name__ == "__main__":
    main()
