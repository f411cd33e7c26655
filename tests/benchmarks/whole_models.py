"""Times whole models, ours against PyTorch's own on the same VAN: from pixels to results, and training steps.

    pip install torch torchvision segmentation-models-pytorch  # in an environment of its own, for instance
    PYTHONPATH=THAT_ENVIRONMENT/lib/python3.11/site-packages python -m tests.benchmarks.whole_models \
        [--models retinanet mask_rcnn upernet] [--size 800 1280] [--jobs predict train] [--output FILE.csv]

RetinaNet and Mask R-CNN against torchvision's, UPerNet against segmentation_models_pytorch's, with equal
channels, anchors, numbers of proposals and samples, from random weights, float32; PyTorch eager in channels
last, and with backbone and pyramid compiled where that works. 300 pairs of a box and a class pass the score
threshold. A training step is AdamW's, of pictures with 20 objects each. All take turns, each in a process of
its own.
"""

import argparse
import functools
import os

import numpy as np

from tests.benchmarks.detectors import draw_objects
from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import (
    Worker,
    WorkerError,
    describe_rounds,
    format_table,
    limit_threads,
    take_turns,
    time_calls,
)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

MODELS = {"retinanet": "RetinaNet", "mask_rcnn": "MaskRCNN", "upernet": "UPerNet"}
JOBS = ("predict", "train")
NUM_CLASSES = {"retinanet": 80, "mask_rcnn": 80, "upernet": 150}
NUM_PASSING = 300
LEARNING_RATE, WEIGHT_DECAY = 1e-5, 0.05
BUDGET = 200.0  # seconds of a table, after which it gets no further round


def make_batch(batch_size, size):
    """Returns images of 0 .. 255, boxes, labels, masks and a label map, all of them noise."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (batch_size, *size, 3)).astype("float32")
    label_map = generator.integers(0, 150, (batch_size, *size))
    return images, *draw_objects(generator, batch_size, size), label_map


class KerasModel:
    """One of ours, deployed for `predict`."""

    def __init__(self, name, variant, job, batch_size, size, num_threads):
        import keras
        import tensorflow as tf

        import heads
        from tests.benchmarks.detector_exports import move_scores
        from van_backbones import VANBackbone, deploy

        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(num_threads)
        keras.utils.set_random_seed(0)
        self.images, boxes, labels, masks, label_map = make_batch(batch_size, size)
        backbone = VANBackbone(variant, drop_path_rate=0.0)
        self.model = getattr(heads, MODELS[name])(backbone, NUM_CLASSES[name])
        if job == "train":
            self.targets = label_map.astype("int32")
            if name != "upernet":
                self.targets = {"boxes": boxes, "labels": labels.astype("int32")}
            if name == "mask_rcnn":
                self.targets["masks"] = masks
            self.model.compile(keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY))
            return
        if name != "upernet":
            move_scores(self.model, self.images, NUM_PASSING)
        self.model = deploy(self.model)

    def predict(self):
        self.model.predict_on_batch(self.images)

    def train(self):
        self.model.train_on_batch(self.images, self.targets)

    def take_turn(self, job):
        return time_calls(getattr(self, job))


class TorchModel:
    """PyTorch's, eager or with backbone and pyramid (of UPerNet all) compiled."""

    def __init__(self, name, row, job, batch_size, size, num_threads, compiled):
        import torch

        from tests.benchmarks import torch_models

        torch.set_num_threads(num_threads)
        torch.manual_seed(0)
        self.torch = torch
        images, boxes, labels, masks, label_map = make_batch(batch_size, size)
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2)
        if name == "upernet":
            self.targets = torch.from_numpy(label_map)
            self.model = torch_models.UPerNet(row, NUM_CLASSES[name])
        else:
            build = {"retinanet": torch_models.build_retinanet, "mask_rcnn": torch_models.build_mask_rcnn}[
                name
            ]
            self.model = build(row, size, NUM_CLASSES[name])
            shift = int(name == "mask_rcnn")  # there, 0 is the background
            self.targets = [
                {"boxes": torch.from_numpy(box), "labels": torch.from_numpy(label + shift)}
                for box, label in zip(boxes, labels, strict=True)
            ]
            for target, mask in zip(self.targets, masks, strict=True):
                target["masks"] = torch.from_numpy(mask)
        self.model = self.model.to(memory_format=torch.channels_last).train(job == "train")
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=True
        )
        if job == "predict" and name != "upernet":
            torch_models.let_pass(self.model, self.images, NUM_PASSING)
        if compiled:
            import torch._inductor.config

            torch._inductor.config.freezing = job == "predict"
            if name == "upernet":
                self.model = torch.compile(self.model, dynamic=False)
            else:
                self.model.backbone = torch.compile(self.model.backbone, dynamic=False)

    def predict(self):
        with self.torch.inference_mode():
            self.model(self.images)

    def train(self):
        losses = self.model(self.images, self.targets)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()

    def take_turn(self, job):
        return time_calls(getattr(self, job))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    add("--jobs", nargs="+", default=list(JOBS), choices=JOBS)
    add("--variant", default="b1")
    add("--size", type=int, nargs=2, default=(800, 1280), help="height width")
    add("--batch-size", type=int, default=2, help="of a training step; one picture is predicted")
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=2)
    add("--without-compiled", action="store_true")
    add_output(parser)
    arguments = parser.parse_args(argv)
    limit_threads(arguments.threads)
    rows = []
    for name in arguments.models:
        for job in arguments.jobs:
            rows += measure(name, job, arguments)
    print(format_table(("", "", "job", "seconds", "ours is x times as fast"), rows))
    numbers = [(case, label, "float32", f"seconds, {job}", value) for case, label, job, value, _ in rows]
    write_results(arguments.output, "whole_models", numbers)


def measure(name, job, arguments):
    """Returns the table's rows of one model and one job."""
    from van_backbones import VARIANTS

    batch_size = arguments.batch_size if job == "train" else 1
    common = (job, batch_size, tuple(arguments.size), arguments.threads)
    row = tuple(VARIANTS[arguments.variant])[:3]
    workers = {}
    try:
        workers["ours"] = Worker(KerasModel, name, arguments.variant, *common)
        workers["PyTorch eager"] = Worker(TorchModel, name, row, *common, False)
        if not arguments.without_compiled:
            workers["PyTorch compiled"] = Worker(TorchModel, name, row, *common, True)
        for label, worker in list(workers.items()):
            try:
                worker(job)
            except WorkerError as error:
                print(f"left out: {name}, {label}, {job}: {error}", flush=True)
                workers.pop(label).close()
        turns = {label: functools.partial(worker, "take_turn", job) for label, worker in workers.items()}
        medians, num_rounds = take_turns(turns, arguments.rounds, BUDGET, least=2)
    finally:
        for worker in workers.values():
            worker.close()
    case = f"{MODELS[name]} {arguments.variant}, {batch_size} x {' x '.join(map(str, arguments.size))}"
    print(f"{case}, {job}: {describe_rounds(medians, num_rounds)}", flush=True)
    ours = medians["ours"].seconds
    return [
        (case, label, job, f"{turn.seconds:.3f}", f"{turn.seconds / ours:.2f}")
        for label, turn in medians.items()
    ]


if __name__ == "__main__":
    main()
