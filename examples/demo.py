"""Trains a small model on the embedded, synthetic data set, and draws what it does.

    python examples/demo.py
    python examples/demo.py detection --head gfl
    python examples/demo.py segmentation --data path/to/data

It prints the call of the task's training script and runs it; the results go into runs/demo or
runs/demo-<task>, for detection runs/demo-<head>. With --data it trains on your own pictures, at a larger
size. All other options are those of the training script: --steps 100 makes it shorter.
"""

import shlex
import sys

import command_line
import options
from options import DETECTORS, make_parser

# Task -> script, its options, those for the embedded data, and those for the user's own pictures.
DEMOS = {
    "segmentation": (
        "finetune_segmentation",
        "--output runs/demo",
        "--crop-size 128 128 --batch-size 8 --steps 400 --evaluate-every 100",
        "--crop-size 256 256 --batch-size 4 --steps 400 --evaluate-every 200",
    ),
    "detection": (
        "train_detection",
        "--output runs/demo-{head} --head {head} --channels 64",
        "--image-size 128 --scale-range 1 1 --batch-size 4 --steps 1000 --evaluate-every 250",
        "--image-size 256 --scale-range 0.8 1.25 --batch-size 4 --steps 1000 --evaluate-every 500",
    ),
    "panoptic": (
        "train_panoptic",
        "--output runs/demo-panoptic --channels 64 --num-queries 20 --num-encoder-layers 1 "
        "--num-decoder-layers 3 --score-threshold 0.5",
        "--image-size 128 --num-points 512 --scale-range 1 1 --batch-size 8 --steps 400 --evaluate-every 200",
        "--image-size 256 --num-points 1024 --scale-range 0.8 1.25 --batch-size 4 --steps 1000 "
        "--evaluate-every 500",
    ),
    "pose": (
        "train_pose",
        "--output runs/demo-pose --channels 64 --rotation 30 --scale-range 0.75 1.25",
        "--batch-size 16 --steps 600 --evaluate-every 200",
        "--batch-size 8 --steps 400 --evaluate-every 200",
    ),
    "saliency": (
        "train_saliency",
        "--output runs/demo-saliency",
        "--image-sizes 128 --batch-size 8 --steps 500 --evaluate-every 100",
        "--image-sizes 224 256 --batch-size 4 --steps 400 --evaluate-every 200",
    ),
}
# What makes detectors small enough for a demo.
SMALL_HEADS = {
    **dict.fromkeys(("retinanet", "gfl", "atss"), "--num-convs 1"),
    **dict.fromkeys(
        ("faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"), "--num-proposals 200 --num-samples 64"
    ),
    "sparse_rcnn": "--num-proposals 30 --learning-rate 5e-4",
}


def parse_arguments(argv=None):
    """Returns the settings, and the options that are for the training script."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("task", nargs="?", default="segmentation", choices=DEMOS, help="default: %(default)s")
    add("--head", choices=DETECTORS, help="head for detection; default: retinanet")
    add("--data", help="folder of your own pictures; default: the embedded data set")
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0].startswith("-"):
        words.insert(
            0, parser.get_default("task")
        )  # or the value of the training's option would be taken for it
    arguments, others = parser.parse_known_args(words)
    if arguments.head and arguments.task != "detection":
        parser.error(f"--head is for detection. Received: {arguments.task} --head {arguments.head}")
    return arguments, others


def choose_training(argv=None):
    """Returns the task, the training script and its options."""
    arguments, others = parse_arguments(argv)
    script, always, embedded, own = DEMOS[arguments.task]
    head = arguments.head or "retinanet"
    words = always.format(head=head).split()
    words += SMALL_HEADS[head].split() if arguments.task == "detection" else []
    words += ["--data", arguments.data, *own.split()] if arguments.data else embedded.split()
    return arguments.task, script, words + others


def main(argv=None):
    """Runs the script."""
    task, script, words = choose_training(argv)
    program = f"van-backbones train {task}" if options.program else None
    print(f"{program or f'python examples/{script}.py'} {shlex.join(words)}", flush=True)
    command_line.run_script(script, words, program)


if __name__ == "__main__":
    main()
