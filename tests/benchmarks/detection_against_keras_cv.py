"""Trains RetinaNet with VAN-b0 and KerasCV's RetinaNet with ResNet18, both from scratch, side by side.

    python tests/benchmarks/detection_against_keras_cv.py --data ../shared/data/bccd --minutes 45

Same data, augmentation, input size, batch size, optimizer, wall time and score. Both run at the same time,
with one thread each, so that anything else on the machine slows both; the learning rate follows the clock,
not the step.
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

MODELS = ("van_retinanet", "keras_cv_retinanet")
LEARNING_RATE = 1e-3
WARM_UP = 0.1  # share of the time
NUM_OBJECTS = 50  # rows of the targets, more than any picture of the small data sets has


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--image-size", type=int, nargs=2, default=(192, 256))
    parser.add_argument("--output", default="runs/detection_against_keras_cv")
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
        kept = (line for line in lines[-40:] if "step" not in line or "summary" in line)
        print(f"--- {model}", *kept, sep="\n")
    if failed:
        sys.exit("a run failed: see the logs")


def train(arguments):
    """Trains one of the two models, prints its scores and draws its detections."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import tensorflow as tf

    from heads.data import (
        CocoDataset,
        DetectionAugmentation,
        detection_evaluation_batches,
        detection_training_batches,
    )
    from heads.metrics import evaluate_coco, format_coco_scores, predict_coco_results, save_results

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(0)
    data, output = pathlib.Path(arguments.data), pathlib.Path(arguments.output)
    train_set, validation = (
        CocoDataset(data / f"annotations/instances_{split}.json", data / "images" / split)
        for split in ("train", "val")
    )
    augment = DetectionAugmentation(image_size=arguments.image_size, scale_range=(0.8, 1.25))
    batches = map(pad_targets, detection_training_batches(train_set, arguments.batch_size, augment))
    detector = {"van_retinanet": Ours, "keras_cv_retinanet": KerasCV}[arguments.model](
        train_set.num_classes, arguments.image_size
    )
    print(f"{arguments.model}: {detector.model.count_params():,} parameters", flush=True)
    optimizer = keras.optimizers.AdamW(0.0, weight_decay=0.05, global_clipnorm=10.0)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    detector.compile(optimizer)
    detector.train_on_batch(*next(batches))  # traces; a learning rate of 0 changes no weight
    seconds = train_by_the_clock(detector, batches, 60 * arguments.minutes)
    detector.model.save_weights(output / f"{arguments.model}.weights.h5")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"summary: {len(seconds)} steps in {sum(seconds) / 60:.1f} minutes, "
        f"{statistics.median(seconds):.2f} s per step (median), peak memory {peak:.1f} GiB"
    )
    evaluation = detection_evaluation_batches(validation, 4, image_size=arguments.image_size)
    results = predict_coco_results(detector, evaluation, validation.image_ids, validation.category_ids)
    save_results(results, output / f"{arguments.model}.json")
    print(format_coco_scores(evaluate_coco(validation.path, results)))


def pad_targets(batch):
    """Returns the batch with targets of one shape: each new shape would be traced again."""
    import numpy as np

    inputs, targets = batch
    boxes, labels = np.asarray(targets["boxes"]), np.asarray(targets["labels"])
    missing = -boxes.shape[1] % NUM_OBJECTS
    boxes = np.pad(boxes, ((0, 0), (0, missing), (0, 0)))
    return inputs, {"boxes": boxes, "labels": np.pad(labels, ((0, 0), (0, missing)), constant_values=-1)}


def train_by_the_clock(detector, batches, duration):
    """Trains for `duration` seconds, with warm-up and a linear decay; returns the seconds of each step."""
    optimizer = detector.model.optimizer
    start, seconds = time.perf_counter(), []
    while (now := time.perf_counter() - start) < duration:
        share = now / duration
        optimizer.learning_rate.assign(LEARNING_RATE * min(share / WARM_UP, 1.0) * (1.0 - share))
        logs = detector.train_on_batch(*next(batches))
        seconds.append(time.perf_counter() - start - now)
        if len(seconds) % 20 == 0:
            print(f"step {len(seconds)} loss {logs['loss']:.4f} minutes {now / 60:.1f}", flush=True)
            detector.model.reset_metrics()
    return seconds


class Ours:
    """Returns RetinaNet with VAN-b0."""

    def __init__(self, num_classes, image_size):
        from heads import RetinaNet
        from van_backbones import VANBackbone

        self.model = RetinaNet(VANBackbone("b0"), num_classes)
        self.predict_on_batch = self.model.predict_on_batch

    def compile(self, optimizer):
        self.model.compile(optimizer=optimizer)

    def train_on_batch(self, inputs, targets):
        return self.model.train_on_batch(inputs, targets, return_dict=True)


class KerasCV:
    """Returns KerasCV's RetinaNet with ResNet18."""

    def __init__(self, num_classes, image_size):
        import keras_cv
        from keras_cv_heads import KerasCVDetector

        backbone = keras_cv.models.ResNetBackbone(
            stackwise_filters=[64, 128, 256, 512],
            stackwise_blocks=[2, 2, 2, 2],
            stackwise_strides=[1, 2, 2, 2],
            block_type="basic_block",
            include_rescaling=True,
            input_shape=(*image_size, 3),
        )
        self.model = keras_cv.models.RetinaNet(
            backbone=backbone, num_classes=num_classes, bounding_box_format="xyxy"
        )
        self.predict_on_batch = KerasCVDetector(self.model).predict_on_batch

    def compile(self, optimizer):
        import tensorflow as tf

        self.model.compile(classification_loss="focal", box_loss="smoothl1", optimizer=optimizer)
        self.model.optimizer.build(self.model.trainable_variables)
        # Its `train_step` does not accept what `train_on_batch` passes to it.
        self.train = tf.function(lambda images, targets: self.model.train_step((images, targets)))

    def train_on_batch(self, inputs, targets):
        logs = self.train(inputs["images"], {"boxes": targets["boxes"], "classes": targets["labels"]})
        return {name: float(value) for name, value in logs.items()}


if __name__ == "__main__":
    main()
