"""Counts the pictures per second of the input pipelines, from JPEG and PNG files to batches.

    python -m tests.benchmarks.data --pictures 64 --batches 20 [--albumentations] [--waiting]

Pictures of 480 x 640 with about ten objects are drawn into a temporary folder. They stay in the system's file
cache: decoding and augmentation are measured, not the disk. With --albumentations, its pipelines in PyTorch's
DataLoader take turns with ours, one worker per thread. With --waiting, training steps of Semantic FPN b0 show
for which share of their time they wait for pictures.
"""

import argparse
import json
import math
import pathlib
import tempfile
import time

import numpy as np
from PIL import Image

from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import describe_rounds, format_table, limit_threads, take_turns, time_calls

SIZE = (480, 640)
CORNERS = 24  # of an object's polygon


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--pictures", type=int, help="default: 64")
    parser.add_argument("--batches", type=int, default=5, help="of a turn")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, help="default: 5")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="16 pictures, 2 rounds")
    parser.add_argument("--albumentations", action="store_true", help="which must be installed")
    parser.add_argument("--waiting", action="store_true", help="trains 7 steps, too")
    add_output(parser)
    arguments = parser.parse_args(argv)
    limit_threads(arguments.threads)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    num_rounds = arguments.rounds or (2 if arguments.quick else 5)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(pathlib.Path(folder), arguments.pictures or (16 if arguments.quick else 64))
        pipelines = build_pipelines(pathlib.Path(folder), arguments.batch_size)
        turns = {
            name: lambda batches=batches: time_batches(batches, arguments.batches)
            for name, batches in pipelines.items()
        }
        if arguments.albumentations:
            from tests.benchmarks.albumentations_data import build_loaders

            loaders = build_loaders(pathlib.Path(folder), arguments.batch_size, arguments.threads)
            turns |= {
                name: lambda loader=loader: time_batches(loader, arguments.batches)
                for name, loader in loaders.items()
            }
        medians, num_rounds = take_turns(turns, num_rounds)
        waiting = measure_waiting(pipelines["semantic, training, crops of 512 x 512"], arguments)
    rows = [(name, f"{arguments.batch_size / turn.seconds:.1f}") for name, turn in medians.items()]
    title = (
        f"pictures of {SIZE[0]} x {SIZE[1]}, batches of {arguments.batch_size}, {arguments.threads} threads"
    )
    print(f"\nInput pipelines, {title}; {describe_rounds(medians, num_rounds)}")
    print(format_table(("", "pictures per second"), rows))
    numbers = [(title, name, "", "pictures per second", value) for name, value in rows]
    if waiting is not None:
        print(f"Waiting for pictures: {waiting:.1f} % of a training step of Semantic FPN b0")
        numbers.append((title, "Semantic FPN b0, waiting in a step", "float32", "percent", round(waiting, 1)))
    write_results(arguments.output, "data", numbers)


def measure_waiting(dataset, arguments):
    """Returns the percentage of training time spent waiting for batches; None if it was not asked for."""
    if not arguments.waiting:
        return None
    import keras

    from heads import SemanticFPN
    from heads.data.shapes.scenes import CLASS_NAMES
    from van_backbones import VANBackbone

    model = SemanticFPN(VANBackbone("b0"), len(CLASS_NAMES))
    model.compile(keras.optimizers.AdamW(1e-4))
    batches = iter(dataset)
    waited = took = 0.0
    for step in range(7):
        start = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        model.train_on_batch(*batch)
        if step >= 2:  # the first ones trace
            waited += ready - start
            took += time.perf_counter() - start
    return 100 * waited / took


def build_pipelines(folder, batch_size):
    """Returns name -> endless dataset of batches, as the examples build them."""
    from heads.data import (
        CocoDataset,
        DetectionAugmentation,
        SemanticAugmentation,
        SemanticFolder,
        detection_evaluation_batches,
        detection_training_batches,
        semantic_evaluation_batches,
        semantic_training_batches,
    )

    semantic = SemanticFolder(folder, "train")
    annotations, images = folder / "instances.json", folder / "images/train"
    boxes, masks = (CocoDataset(annotations, images, with_masks=kept) for kept in (False, True))
    fixed = DetectionAugmentation(image_size=(512, 512), scale_range=(0.1, 2.0))
    return {
        "semantic, training, crops of 512 x 512": semantic_training_batches(
            semantic, batch_size, SemanticAugmentation((512, 512))
        ),
        "semantic, evaluation, stored size": semantic_evaluation_batches(semantic, batch_size).repeat(),
        "coco boxes, training, short side 480 .. 800": detection_training_batches(
            boxes, batch_size, DetectionAugmentation()
        ),
        "coco masks, training, short side 480 .. 800": detection_training_batches(
            masks, batch_size, DetectionAugmentation()
        ),
        "coco masks, training, jitter into 512 x 512": detection_training_batches(masks, batch_size, fixed),
        "coco boxes, evaluation, short side 800": detection_evaluation_batches(
            boxes, batch_size, short_side=800
        ).repeat(),
    }


def time_batches(dataset, num_batches):
    """Returns a `Turn` of batches, from a new iterator after its first batch.

    An iterator that kept working in the background between its turns would take time from the others.
    """
    batches = iter(dataset)
    next(batches)

    def take_batches():
        for _ in range(num_batches):
            next(batches)

    return time_calls(take_batches, count=num_batches)


def write_pictures(folder, num_pictures):
    """Writes pictures, label maps and a COCO file, in the layout that both pipelines read."""
    from heads.data.shapes.scenes import CLASS_NAMES, THING_NAMES, draw_scene

    for name in ("images/train", "labels/train"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n", encoding="utf-8")
    images, annotations = [], []
    for index in range(num_pictures):
        scene = draw_scene((0, index), SIZE)
        Image.fromarray(scene["image"]).save(folder / f"images/train/{index}.jpg", quality=90)
        Image.fromarray(scene["semantic"].astype("uint8")).save(folder / f"labels/train/{index}.png")
        images.append({"id": index + 1, "file_name": f"{index}.jpg", "height": SIZE[0], "width": SIZE[1]})
        for box, label in zip(scene["boxes"].tolist(), scene["labels"].tolist(), strict=True):
            left, top, right, bottom = box
            annotation = {"id": len(annotations) + 1, "image_id": index + 1, "category_id": label + 1}
            annotation |= {"bbox": [left, top, right - left, bottom - top], "iscrowd": 0}
            annotation |= {"area": (right - left) * (bottom - top), "segmentation": [draw_ellipse(box)]}
            annotations.append(annotation)
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(THING_NAMES)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")


def draw_ellipse(box):
    """Returns a polygon within a box, as x, y, x, y, ...; most of COCO's masks are polygons."""
    left, top, right, bottom = box
    angles = np.arange(CORNERS) * (2 * math.pi / CORNERS)
    x = (left + right + (right - left) * np.cos(angles)) / 2
    y = (top + bottom + (bottom - top) * np.sin(angles)) / 2
    return np.stack([x, y], axis=1).ravel().tolist()


if __name__ == "__main__":
    main()
