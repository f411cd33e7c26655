"""Trains a head on VAN-b0 and KerasCV's for the same task with a ResNet18, both from scratch, side by side.

    python -m tests.benchmarks.against_keras_cv segmentation --data ../shared/data/facades --minutes 40
    python -m tests.benchmarks.against_keras_cv detection --data ../shared/data/bccd --minutes 40 --head gfl

SemanticFPN or another segmenter against DeepLabV3Plus, RetinaNet or another detector against RetinaNet.
Ours is trained as `finetune_segmentation.py` and `train_detection.py` do without --weights; KerasCV's with
AdamW and its own losses, for a segmenter a cross-entropy in which all classes weigh the same. Data,
augmentation, input size, batch size, wall time and score are the same. Both run at the same time, with one
thread each, so that anything else on the machine slows both; the learning rate follows the clock, not the
step.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

from tests.benchmarks.results import add_output, write_results

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

MODELS = ("ours", "keras_cv")
WARM_UP = 0.1  # share of the time
NUM_OBJECTS = 50  # rows of the targets, more than any picture of the small data sets has


def main(argv=None):
    """Trains both for each seed, and compares their scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("task", choices=("segmentation", "detection"))
    add("--data", required=True)
    add("--head", help="ours; default: semantic_fpn, retinanet")
    add("--minutes", type=float, default=40.0)
    add("--batch-size", type=int, default=4)
    add("--image-size", type=int, nargs=2, help="of a step; default: 256 256, of detectors 192 256")
    add("--scale-range", nargs=2, help="random scales of a segmenter's pictures; default: the script's")
    add("--keras-cv-rate", type=float, default=1e-3, help="KerasCV's learning rate; default: %(default)s")
    add("--seeds", type=int, nargs="+", default=[0])
    add(
        "--folder",
        type=pathlib.Path,
        default=pathlib.Path("runs/against_keras_cv"),
        help="of logs and weights",
    )
    add("--model", choices=MODELS, help=argparse.SUPPRESS)
    add_output(parser)
    arguments = parser.parse_args(argv)
    is_detection = arguments.task == "detection"
    arguments.head = arguments.head or ("retinanet" if is_detection else "semantic_fpn")
    arguments.image_size = tuple(arguments.image_size or ((192, 256) if is_detection else (256, 256)))
    if arguments.model:
        train(arguments)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in arguments.seeds:
        ours, keras_cv = (found["score"] for found in train_both(arguments, seed, argv or sys.argv[1:]))
        print(f"seed {seed}: {compare(ours, keras_cv)}", flush=True)
        rows.append((ours, keras_cv))
    ours, keras_cv = (statistics.mean(scores) for scores in zip(*rows, strict=True))
    print(f"mean of {len(rows)}: {compare(ours, keras_cv)}")
    case = f"{arguments.head} {pathlib.Path(arguments.data).name} {arguments.minutes:g} min"
    quantity = "AP" if is_detection else "mean IoU"
    scores = (("ours", ours), ("KerasCV", keras_cv))
    write_results(
        arguments.output,
        "against_keras_cv",
        [(case, name, f"float32, {len(rows)} seeds", quantity, value) for name, value in scores],
    )


def compare(ours, keras_cv):
    """Returns both scores and their ratio as a text."""
    ratio = f"{ours / keras_cv:.3f} times" if keras_cv else "no ratio"
    return f"ours {ours:.2f}, KerasCV {keras_cv:.2f}, {ratio}"


def train_both(arguments, seed, argv):
    """Runs both trainings of a seed in processes of their own; returns what they found."""
    paths = [arguments.folder / f"{arguments.task}-{model}-{seed}" for model in MODELS]
    jobs = []
    for model, path in zip(MODELS, paths, strict=True):
        command = [sys.executable, "-u", "-m", "tests.benchmarks.against_keras_cv", *argv]
        with open(f"{path}.log", "w") as log:
            job = [*command, "--seeds", str(seed), "--model", model]
            jobs.append(subprocess.Popen(job, stdout=log, stderr=subprocess.STDOUT))
    if any([job.wait() for job in jobs]):
        sys.exit(f"a run failed: see {paths[0]}.log and {paths[1]}.log")
    results = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
    for model, found in zip(MODELS, results, strict=True):
        print(f"--- {model}: {found['summary']}\n{found['table']}", flush=True)
    return results


def train(arguments):
    """Trains one of the two models, and writes its scores."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    seed = arguments.seeds[0]
    keras.utils.set_random_seed(seed)
    task = {"segmentation": Segmentation, "detection": Detection}[arguments.task](arguments, seed)
    make = {"ours": task.make_ours, "keras_cv": task.make_keras_cv}[arguments.model]
    model, train_step, rate = make()
    print(f"{model.name}: {model.count_params():,} parameters", flush=True)
    clock = Clock(rate, task.decay)
    model.optimizer.learning_rate = clock.make_schedule()
    train_step(*next(task.batches))  # traces; a learning rate of 0 changes no weight
    seconds = clock.run(lambda: train_step(*next(task.batches)), model, 60 * arguments.minutes)
    path = arguments.folder / f"{arguments.task}-{arguments.model}-{seed}"
    model.save_weights(f"{path}.weights.h5")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    summary = (
        f"{len(seconds)} steps in {sum(seconds) / 60:.1f} minutes, {statistics.median(seconds):.2f} s per "
        f"step (median), peak memory {peak:.1f} GiB"
    )
    score, table = task.score(model)
    found = {"score": float(score), "table": table, "summary": summary}
    path.with_suffix(".json").write_text(json.dumps(found))


class Clock:
    """A learning rate that follows the time: a warm-up, then `decay(share)` of the highest rate."""

    def __init__(self, rate, decay):
        import tensorflow as tf

        self.highest, self.decay = rate, decay
        self.rate = tf.Variable(0.0, trainable=False)

    def make_schedule(self):
        """Returns the rate as an optimizer takes it, whatever it was built with."""
        import keras

        rate = self.rate

        class Schedule(keras.optimizers.schedules.LearningRateSchedule):
            def __call__(self, step):
                return rate.value()

        return Schedule()

    def run(self, train_step, model, duration):
        """Trains for `duration` seconds; returns the seconds of each step."""
        start, seconds = time.perf_counter(), []
        while (now := time.perf_counter() - start) < duration:
            share = now / duration
            self.rate.assign(self.highest * min(share / WARM_UP, 1.0) * self.decay(share))
            logs = train_step()
            seconds.append(time.perf_counter() - start - now)
            if len(seconds) % 100 == 0:
                print(
                    f"step {len(seconds)} loss {float(logs['loss']):.4f} minutes {now / 60:.1f}", flush=True
                )
                model.reset_metrics()
        return seconds


class Segmentation:
    """Training and scores of segmenters."""

    def __init__(self, arguments, seed):
        import finetune_segmentation

        from heads.data import open_semantic_folder, semantic_training_batches

        self.script, self.arguments = finetune_segmentation, arguments
        options = ["--data", arguments.data, "--head", arguments.head, "--seed", str(seed)]
        options += ["--crop-size", *map(str, arguments.image_size)]
        if arguments.scale_range:
            options += ["--scale-range", *arguments.scale_range]
        self.settings = finetune_segmentation.parse_arguments(options)
        self.training, self.validation = (
            open_semantic_folder(arguments.data, name) for name in ("train", "val")
        )
        augment = finetune_segmentation.choose_augmentation(self.settings)
        self.batches = iter(
            semantic_training_batches(self.training, arguments.batch_size, augment, seed=seed)
        )

    def decay(self, share):
        *_, power = self.script.RECIPES[self.arguments.head]
        return (1.0 - share) ** power

    def make_ours(self):
        from heads.data import balance_classes

        names, balanced = self.training.class_names, balance_classes(self.training.check())
        weights = self.script.choose_class_weights(self.settings.class_weights, names, balanced)
        model = self.script.build_model(self.settings, self.training.num_classes, weights)
        model.compile(optimizer=self.script.build_optimizer(self.settings))
        return model, with_names(model.train_on_batch), self.script.RECIPES[self.arguments.head][1]

    def make_keras_cv(self):
        import keras
        import keras_cv

        backbone = make_resnet(self.arguments.image_size)
        model = keras_cv.models.DeepLabV3Plus(num_classes=self.training.num_classes, backbone=backbone)
        loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)  # it ends in a softmax
        model.compile(optimizer=make_optimizer(1e-4), loss=loss)
        return model, with_names(model.train_on_batch), self.arguments.keras_cv_rate

    def score(self, model):
        from heads.data import semantic_evaluation_batches
        from heads.metrics import evaluate_semantic, format_semantic_scores

        if not hasattr(model, "decode"):
            model = self.resize_keras_cv(model)
        scores = evaluate_semantic(model, semantic_evaluation_batches(self.validation))
        return 100 * scores["mean_iou"], format_semantic_scores(scores, self.validation.class_names)

    def resize_keras_cv(self, model):
        """Returns the trained model for whole pictures of one size, as `evaluate_semantic` takes it."""
        import keras_cv
        from keras_cv_heads import KerasCVSegmenter

        image, _ = next(iter(self.validation.load()))
        backbone = make_resnet(image.shape[:2])
        whole = keras_cv.models.DeepLabV3Plus(num_classes=self.training.num_classes, backbone=backbone)
        whole.set_weights(model.get_weights())
        return KerasCVSegmenter(whole, self.training.num_classes)


class Detection:
    """Training and scores of detectors."""

    def __init__(self, arguments, seed):
        import train_detection

        from heads.data import CocoDataset, DetectionAugmentation, detection_training_batches

        self.script, self.arguments = train_detection, arguments
        self.settings = train_detection.parse_arguments(
            ["--data", arguments.data, "--head", arguments.head, "--seed", str(seed)]
        )
        data = pathlib.Path(arguments.data)
        self.training, self.validation = (
            CocoDataset(data / f"annotations/instances_{split}.json", data / "images" / split)
            for split in ("train", "val")
        )
        augment = DetectionAugmentation(image_size=arguments.image_size, scale_range=(0.8, 1.25))
        batches = detection_training_batches(self.training, arguments.batch_size, augment, seed=seed)
        self.batches = map(pad_targets, batches)

    @staticmethod
    def decay(share):
        return 1.0 if share < 2 / 3 else 0.1 if share < 11 / 12 else 0.01

    def make_ours(self):
        model = self.script.build_model(self.settings, self.training.num_classes)
        model.compile(optimizer=self.script.build_optimizer(self.settings, 1000, [667, 917]))
        return model, with_names(model.train_on_batch), self.script.LEARNING_RATE_FROM_SCRATCH

    def make_keras_cv(self):
        import keras_cv
        import tensorflow as tf

        model = keras_cv.models.RetinaNet(
            backbone=make_resnet(self.arguments.image_size),
            num_classes=self.training.num_classes,
            bounding_box_format="xyxy",
        )
        optimizer = make_optimizer(self.settings.weight_decay, self.script.CLIP_NORM_FROM_SCRATCH)
        model.compile(classification_loss="focal", box_loss="smoothl1", optimizer=optimizer)
        optimizer.build(model.trainable_variables)
        # Its `train_step` does not accept what `train_on_batch` passes to it.
        train = tf.function(lambda images, targets: model.train_step((images, targets)))

        def train_step(inputs, targets):
            return train(inputs["images"], {"boxes": targets["boxes"], "classes": targets["labels"]})

        return model, train_step, self.arguments.keras_cv_rate

    def score(self, model):
        from keras_cv_heads import KerasCVDetector

        from heads.data import detection_evaluation_batches
        from heads.metrics import evaluate_coco, format_coco_scores, predict_coco_results

        detector = model if hasattr(model, "decode") else KerasCVDetector(model)
        batches = detection_evaluation_batches(self.validation, 4, image_size=self.arguments.image_size)
        ids = self.validation.image_ids, self.validation.category_ids
        scores = evaluate_coco(self.validation.path, predict_coco_results(detector, batches, *ids))
        return 100 * scores["bbox_AP"], format_coco_scores(scores)


def pad_targets(batch):
    """Returns the batch with targets of one shape: each new shape would be traced again."""
    import numpy as np

    inputs, targets = batch
    boxes, labels = np.asarray(targets["boxes"]), np.asarray(targets["labels"])
    missing = -boxes.shape[1] % NUM_OBJECTS
    boxes = np.pad(boxes, ((0, 0), (0, missing), (0, 0)))
    return inputs, {"boxes": boxes, "labels": np.pad(labels, ((0, 0), (0, missing)), constant_values=-1)}


def make_resnet(image_size):
    """Returns KerasCV's ResNet18."""
    import keras_cv

    return keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=[2, 2, 2, 2],
        stackwise_strides=[1, 2, 2, 2],
        block_type="basic_block",
        include_rescaling=True,
        input_shape=(*image_size, 3),
    )


def make_optimizer(weight_decay, clip_norm=None):
    """Returns KerasCV's optimizer; `Clock` sets its rate."""
    import keras

    schedule = keras.optimizers.schedules.CosineDecay(0.0, 1)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=weight_decay, global_clipnorm=clip_norm)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def with_names(train_on_batch):
    """Returns the function with its losses as a dict."""
    return lambda inputs, targets: train_on_batch(inputs, targets, return_dict=True)


if __name__ == "__main__":
    main()
