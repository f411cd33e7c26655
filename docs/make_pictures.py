"""Draws the pictures of the pages in docs/tasks.

    python docs/make_pictures.py detection pose

For each task it trains a small model on the embedded data set from random weights, for a few minutes on two
CPU cores, and draws its predictions on scenes that it has not seen into docs/images. The picture of semantic
segmentation comes from `make demo`.
"""

import argparse
import pathlib

import keras
from PIL import Image

from heads import EDN, GFL, Mask2Former, MaskRCNN, Resizing, SimpleBaseline, WarmUpPolynomialDecay
from heads.data import (
    DetectionAugmentation,
    DetectionShapes,
    KeypointShapes,
    PanopticShapes,
    PoseAugmentation,
    SaliencyAugmentation,
    SaliencyShapes,
    detection_training_batches,
    panoptic_training_batches,
    pose_training_batches,
    semantic_training_batches,
)
from heads.drawing import (
    draw_detection_comparison,
    draw_panoptic_comparison,
    draw_pose_comparison,
    draw_saliency_comparison,
)
from van_backbones import VANBackbone

FOLDER = pathlib.Path(__file__).resolve().parent / "images"
NUM_SCENES = 400  # to train on
NUM_DRAWN = 2
THRESHOLD = 0.4  # of the scores of objects


def make_backbone():
    """Returns a VAN that is small enough for two cores."""
    return VANBackbone("b0", widths=(16, 32, 64, 128), depths=(1, 1, 2, 1))


def train(model, batches, steps, learning_rate=2e-3):
    """Trains a model."""
    schedule = WarmUpPolynomialDecay(learning_rate, steps // 10, steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=1.0)
    model.compile(optimizer=optimizer)
    model.fit(batches, steps_per_epoch=steps // 4, epochs=4, shuffle=False, verbose=2)


def draw_detection(steps):
    """Draws boxes."""
    return draw_objects(GFL, steps or 1200, num_convs=1)


def draw_instances(steps):
    """Draws masks."""
    return draw_objects(MaskRCNN, steps or 400, num_samples=64, num_proposals=200)


def draw_objects(head, steps, **options):
    """Trains a detector and draws what it finds."""
    size = (128, 128)
    data, unseen = (DetectionShapes(NUM_SCENES, size, seed, with_masks=head.with_masks) for seed in (0, 1))
    model = head(make_backbone(), data.num_classes, channels=64, resizing=Resizing(size), **options)
    augment = DetectionAugmentation(image_size=size, scale_range=(0.8, 1.25))
    train(model, detection_training_batches(data, batch_size=4, augment=augment), steps)
    truths = [unseen.scenes[index] for index in range(NUM_DRAWN)]
    truths = [{name: scene[name] for name in ("image", "boxes", "labels", "masks")} for scene in truths]
    images = [truth.pop("image") for truth in truths]
    if not head.with_masks:
        truths = [{name: truth[name] for name in ("boxes", "labels")} for truth in truths]
    found = model.predict_pictures(images, progress=False)
    return draw_detection_comparison(images, truths, found, data.class_names, THRESHOLD)


def draw_panoptic(steps):
    """Trains Mask2Former and draws its segments."""
    steps, size = steps or 300, (96, 96)
    data, unseen = (PanopticShapes(NUM_SCENES, size, seed) for seed in (0, 1))
    sizes = {"channels": 64, "num_queries": 20, "num_encoder_layers": 1, "num_decoder_layers": 3}
    model = Mask2Former(
        make_backbone(),
        data.num_things,
        data.num_stuff,
        num_points=512,
        score_threshold=0.5,
        resizing=Resizing(size),
        **sizes,
    )
    augment = DetectionAugmentation(image_size=size, scale_range=(0.8, 1.25))
    train(model, panoptic_training_batches(data, batch_size=4, augment=augment), steps, 1e-3)
    images = [unseen.scenes[index]["image"] for index in range(NUM_DRAWN)]
    truths = [unseen.load_segments(index) for index in range(NUM_DRAWN)]
    found = model.predict_pictures(images, progress=False)
    return draw_panoptic_comparison(images, truths, found, data.class_names)


def draw_pose(steps):
    """Trains SimpleBaseline and draws skeletons."""
    steps, size = steps or 600, (64, 64)
    data, unseen = (KeypointShapes(count, (128, 128), seed) for count, seed in ((NUM_SCENES, 0), (10, 1)))
    model = SimpleBaseline(
        make_backbone(),
        data.num_keypoints,
        channels=64,
        flip_pairs=data.flip_pairs,
        resizing=Resizing(size),
    )
    augment = PoseAugmentation(size, scale_range=(0.75, 1.25), rotation=30)
    train(model, pose_training_batches(data, batch_size=16, augment=augment), steps)
    people = list(unseen.load().take(10).as_numpy_iterator())
    rows = {}  # image id -> rows of its people
    for row in range(len(people)):
        rows.setdefault(unseen.image_ids[row], []).append(row)
    chosen = list(rows.values())[:NUM_DRAWN]
    images = [people[first]["image"] for first, *_ in chosen]
    truths = [
        {"keypoints": unseen.keypoints[each][..., :2], "scores": unseen.keypoints[each][..., 2]}
        for each in chosen
    ]
    boxes = [unseen.boxes[each] for each in chosen]
    found = model.predict_pictures(images, boxes, flip_test=True, progress=False)
    return draw_pose_comparison(images, truths, found, data.skeleton, data.keypoint_names)


def draw_saliency(steps):
    """Trains EDN and draws saliency maps."""
    steps, side = steps or 200, 96
    data, unseen = (SaliencyShapes(NUM_SCENES, (side, side), seed) for seed in (0, 1))
    model = EDN(make_backbone(), resizing=Resizing((side, side)))
    augment = SaliencyAugmentation(4, image_sizes=(side,))
    train(model, semantic_training_batches(data, 4, augment), steps, 1e-3)
    images, masks = zip(*unseen.load().take(NUM_DRAWN).as_numpy_iterator(), strict=True)
    maps = [found["saliency_map"] for found in model.predict_pictures(images, progress=False)]
    return draw_saliency_comparison(images, masks, maps)


TASKS = {
    "detection": draw_detection,
    "instance_segmentation": draw_instances,
    "panoptic_segmentation": draw_panoptic,
    "pose": draw_pose,
    "saliency": draw_saliency,
}


def save_picture(picture, path):
    """Saves a picture with 256 colours, in a quarter of the bytes; no colour changes much."""
    colours = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    colours.save(path, optimize=True)


def main(argv=None):
    """Runs the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--steps", type=int, help="steps of each training; default: enough for a picture")
    parser.add_argument("--output", type=pathlib.Path, default=FOLDER, help="folder; default: docs/images")
    arguments = parser.parse_args(argv)
    for task in arguments.tasks:
        keras.utils.set_random_seed(0)
        path = arguments.output / f"{task}.png"
        save_picture(Image.fromarray(TASKS[task](arguments.steps)), path)
        print(path)


if __name__ == "__main__":
    main()
