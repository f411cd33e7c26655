"""Trains a detector from scratch on one accelerator with Keras on JAX, without TensorFlow, for a few minutes.

    KERAS_BACKEND=jax python -m tests.benchmarks.detectors_on_jax train --head gfl --data bccd --minutes 6 \
        --output runs/jax
    python -m tests.benchmarks.detectors_on_jax score --data bccd --output runs/jax

The data folder is in COCO's format, with the splits train and val. Several trainings may run at once and take
turns on the device: each gets the same wall time, so that the scores are comparable. `score` prints AP over
time.
"""

import argparse
import json
import math
import pathlib
import time

import keras
import numpy as np
from PIL import Image

import heads
from heads.ops.masks import paste_masks
from van_backbones import VANBackbone

HEADS = {
    "retinanet": heads.RetinaNet,
    "gfl": heads.GFL,
    "atss": heads.ATSS,
    "mask_rcnn": heads.MaskRCNN,
    "cascade_mask_rcnn": heads.CascadeMaskRCNN,
    "sparse_rcnn": heads.SparseRCNN,
}
# From a random start: the same rate for all, except for the attention of Sparse R-CNN. Neither was tuned.
LEARNING_RATES = {"sparse_rcnn": 2e-4}
STEPS_PER_EPOCH = 25


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=["train", "score"])
    parser.add_argument("--head", choices=list(HEADS))
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--snapshots", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=(384, 512))
    parser.add_argument("--learning-rate", type=float)
    arguments = parser.parse_args(argv)
    train(arguments) if arguments.task == "train" else score(arguments)


def read_split(data, split, size, with_masks):
    """Returns images, boxes, labels and masks, resized into `size` and padded, and the pictures' sizes."""
    content = json.loads((data / "annotations" / f"instances_{split}.json").read_text())
    labels_of = {each["id"]: row for row, each in enumerate(content["categories"])}
    rows = {each["id"]: row for row, each in enumerate(content["images"])}
    objects = [[] for _ in rows]
    for each in content["annotations"]:
        objects[rows[each["image_id"]]].append(each)
    count, most = len(rows), max(map(len, objects))
    arrays = {
        "images": np.zeros((count, *size, 3), "uint8"),
        "image_sizes": np.zeros((count, 2), "int32"),
        "original_sizes": np.zeros((count, 2), "int32"),
        "boxes": np.zeros((count, most, 4), "float32"),
        "labels": np.full((count, most), -1, "int32"),
    }
    if with_masks:
        arrays["masks"] = np.zeros((count, most, *size), "uint8")
    for row, each in enumerate(content["images"]):
        image = Image.open(data / "images" / split / each["file_name"]).convert("RGB")
        scale = min(size[0] / image.height, size[1] / image.width)
        height, width = round(image.height * scale), round(image.width * scale)
        arrays["images"][row, :height, :width] = image.resize((width, height), Image.BILINEAR)
        arrays["image_sizes"][row] = height, width
        arrays["original_sizes"][row] = image.height, image.width
        ratios = np.array([width / image.width, height / image.height] * 2)
        for place, annotation in enumerate(objects[row]):
            left, top, *sides = annotation["bbox"]
            arrays["boxes"][row, place] = np.array([left, top, left + sides[0], top + sides[1]]) * ratios
            arrays["labels"][row, place] = labels_of[annotation["category_id"]]
            if with_masks:
                mask = draw_mask(annotation["segmentation"], image.size).resize((width, height))
                arrays["masks"][row, place, :height, :width] = np.asarray(mask) > 127
    return arrays, [each["name"] for each in content["categories"]]


def draw_mask(segmentation, image_size):
    """Returns a mask as a picture of 0 and 255, from polygons or run lengths."""
    from pycocotools import mask as coco_masks

    width, height = image_size
    if isinstance(segmentation, list):
        segmentation = coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        segmentation = coco_masks.frPyObjects(segmentation, height, width)
    return Image.fromarray(255 * coco_masks.decode(segmentation))


def draw_batches(arrays, batch_size, size):
    """Yields batches of drawn pictures, flipped in both directions at random."""
    random = np.random.default_rng(0)
    height, width = size
    while True:
        rows = random.choice(len(arrays["images"]), batch_size, replace=False)
        yield flip(arrays, rows, random, height, width)


def flip(arrays, rows, random, height, width):
    """Returns (images, targets) of pictures; a flip moves the padding to the top or the left."""
    images, boxes = arrays["images"][rows].astype("float32"), arrays["boxes"][rows].copy()
    masks = arrays["masks"][rows].copy() if "masks" in arrays else None
    exists = arrays["labels"][rows] >= 0
    for axis, (side, places) in enumerate(((height, (1, 3)), (width, (0, 2)))):
        for index in np.flatnonzero(random.random(len(rows)) < 0.5):
            images[index] = np.flip(images[index], axis)
            boxes[index][:, places] = side - boxes[index][:, places[::-1]]
            if masks is not None:
                masks[index] = np.flip(masks[index], axis + 1)
    targets = {
        "boxes": np.where(exists[..., None], boxes, 0.0).astype("float32"),
        "labels": arrays["labels"][rows],
    }
    return images, targets if masks is None else {**targets, "masks": masks}


class Clock(keras.callbacks.Callback):
    """Ends the training after a given time, in which the rate rises and falls; saves detections."""

    def __init__(self, arguments, rate, validation):
        super().__init__()
        self.arguments, self.rate, self.validation = arguments, rate, validation
        self.spent, self.steps, self.saved = 0.0, 0, 0

    def on_epoch_begin(self, epoch, logs=None):
        share = self.spent / (60 * self.arguments.minutes)
        warm_up = min(1.0, (epoch + 1) / 8)
        rate = self.rate * warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))
        self.model.optimizer.learning_rate = rate
        self.began = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        if epoch:  # the first one compiles
            self.spent += time.monotonic() - self.began
            self.steps += STEPS_PER_EPOCH
        share = self.spent / (60 * self.arguments.minutes)
        if share * self.arguments.snapshots >= self.saved + 1:
            self.saved += 1
            self.save(logs)
        self.model.stop_training = share >= 1.0

    def save(self, logs):
        names = ("images", "image_sizes", "original_sizes")
        detections = []
        for start in range(0, len(self.validation["images"]), self.arguments.batch_size):
            rows = np.arange(start, start + self.arguments.batch_size) % len(self.validation["images"])
            inputs = {name: self.validation[name][rows] for name in names}
            inputs["images"] = inputs["images"].astype("float32")
            detections.append(self.model.predict_on_batch(inputs))
        joined = {
            name: np.concatenate([np.asarray(part[name]) for part in detections])[
                : len(self.validation["images"])
            ]
            for name in detections[0]
        }
        if "masks" in joined:
            joined["masks"] = np.round(255 * joined["masks"]).astype("uint8")
        head = self.arguments.head
        self.arguments.output.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(self.arguments.output / f"{head}_{self.saved}.npz", **joined)
        figures = {"head": head, "minutes": self.spent / 60, "steps": self.steps, "loss": logs["loss"]}
        figures["seconds_per_step"] = self.spent / self.steps
        if keras.backend.backend() == "jax":
            import jax

            statistics = jax.devices()[0].memory_stats() or {}
            figures["gibibytes"] = statistics.get("peak_bytes_in_use", 0) / 2**30
        print(json.dumps(figures), flush=True)
        (self.arguments.output / f"{head}_{self.saved}.json").write_text(json.dumps(figures))


def train(arguments):
    """Trains one detector."""
    keras.utils.set_random_seed(0)
    head, size = HEADS[arguments.head], tuple(arguments.size)
    training, names = read_split(arguments.data, "train", size, head.with_masks)
    validation, _ = read_split(arguments.data, "val", size, False)
    model = head(VANBackbone("b0"), len(names), class_names=names)
    rate = arguments.learning_rate or LEARNING_RATES.get(arguments.head, 1e-3)
    model.compile(keras.optimizers.AdamW(rate, weight_decay=0.05, global_clipnorm=1.0))
    clock = Clock(arguments, rate, validation)
    model.fit(
        draw_batches(training, arguments.batch_size, size),
        steps_per_epoch=STEPS_PER_EPOCH,
        epochs=10**6,
        callbacks=[clock],
        verbose=0,
    )


def score(arguments):
    """Prints the scores of what `train` saved."""
    from heads.data import CocoDataset
    from heads.metrics import evaluate_coco, format_coco_scores

    dataset = CocoDataset(
        arguments.data / "annotations/instances_val.json",
        arguments.data / "images/val",
        with_masks=any(
            HEADS[name].with_masks for name in HEADS if list(arguments.output.glob(f"{name}_*.npz"))
        ),
    )
    for path in sorted(arguments.output.glob("*.npz")):
        figures = json.loads(path.with_suffix(".json").read_text())
        with np.load(path) as file:
            detections = dict(file)
        kinds = ("bbox", "segm") if "masks" in detections else ("bbox",)
        results = list(list_results(dataset, detections))
        scores = evaluate_coco(dataset.to_coco(), results, kinds)
        print(
            json.dumps(
                {
                    name: round(value, 4) if isinstance(value, float) else value
                    for name, value in figures.items()
                }
            )
        )
        print(format_coco_scores(scores), flush=True)


def list_results(dataset, detections):
    """Yields detections in COCO's format."""
    from pycocotools import mask as coco_masks

    sizes = {each["id"]: (each["height"], each["width"]) for each in dataset.to_coco()["images"]}
    for row, image_id in enumerate(dataset.image_ids):
        size = sizes[image_id]
        found = detections["labels"][row] >= 0
        boxes = detections["boxes"][row][found]
        masks = None
        if "masks" in detections:
            masks = paste_masks(detections["masks"][row][found] / 255, boxes, size)
        for place, (box, score, label) in enumerate(
            zip(boxes, detections["scores"][row][found], detections["labels"][row][found], strict=True)
        ):
            left, top, right, bottom = map(float, box)
            result = {
                "image_id": image_id,
                "category_id": dataset.category_ids[label],
                "bbox": [left, top, right - left, bottom - top],
                "score": float(score),
            }
            if masks is not None:
                result["segmentation"] = coco_masks.encode(np.asfortranarray(masks[place], "uint8"))
            yield result


if __name__ == "__main__":
    main()
