"""Times our way from raw logits to suppressed detections, and TensorFlow's own.

    python -m tests.benchmarks.suppression [--rounds 15] [--output FILE.csv]

Both get 2 images of 49,104 anchors and 80 classes (RetinaNet at 512 x 512), take the 1000 best pairs of an
anchor and a class, and keep 100 after suppression. They take turns; medians are compared.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from heads.ops.selection import select_pairs, take_rows
from heads.ops.suppression import suppress_boxes
from tests.benchmarks.results import add_output, write_results

BATCH, ANCHORS, CLASSES, CANDIDATES, DETECTIONS = 2, 49_104, 80, 1000, 100
IOU_THRESHOLD = 0.5


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--rounds", type=int, help="default: 15")
    parser.add_argument("--threads", type=int, help="default: TensorFlow's")
    parser.add_argument("--quick", action="store_true", help="5 rounds")
    add_output(parser)
    arguments = parser.parse_args(argv)
    if arguments.threads:
        tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    generator = np.random.default_rng(0)
    logits = generator.normal(-4.0, 1.5, (BATCH, ANCHORS, CLASSES)).astype("float32")
    corners = generator.uniform(0, 448, (BATCH, ANCHORS, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(8, 64, corners.shape)], axis=2)
    inputs = tf.constant(logits), tf.constant(boxes.astype("float32"))
    functions = {"ours": tf.function(suppress_ours), "tf.image": tf.function(suppress_padded)}
    found = {name: function(*inputs) for name, function in functions.items()}
    print(f"\nSuppression, {BATCH} x {ANCHORS:,} anchors x {CLASSES} classes")
    for ours, theirs in zip(found["ours"].numpy(), found["tf.image"].numpy(), strict=True):
        shared = len(set(map(tuple, ours.round(3))) & set(map(tuple, theirs.round(3))))
        print(f"{shared} of {DETECTIONS} detections are the same")
    seconds = {name: [] for name in functions}
    for _ in range(arguments.rounds or (5 if arguments.quick else 15)):
        for name, function in functions.items():
            start = time.perf_counter()
            function(*inputs)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:10} {1000 * value:7.1f} ms")
    print(f"ours / tf.image: {medians['ours'] / medians['tf.image']:.2f}")
    case = f"{BATCH} x {ANCHORS} anchors x {CLASSES} classes"
    numbers = [(case, name, "", "milliseconds", round(1000 * value, 2)) for name, value in medians.items()]
    write_results(arguments.output, "suppression", numbers)


def suppress_ours(logits, boxes):
    """Returns boxes (batch, 100, 4) by the functions that the detectors use."""
    scores, rows, labels = select_pairs(logits, CANDIDATES)
    boxes = take_rows(boxes, rows)
    chosen = suppress_boxes(boxes, tf.sigmoid(scores), labels, IOU_THRESHOLD, DETECTIONS)
    return take_rows(boxes, tf.maximum(chosen, 0))


def suppress_padded(logits, boxes):
    """Returns the same with a plain top-k, boxes moved apart by class, and TensorFlow's kernel."""
    scores, pairs = tf.math.top_k(tf.reshape(logits, (BATCH, -1)), CANDIDATES)
    boxes = tf.gather(boxes, pairs // CLASSES, batch_dims=1)
    offsets = tf.cast(pairs % CLASSES, "float32")[..., None] * (tf.reduce_max(boxes) + 1.0)
    chosen, _ = tf.image.non_max_suppression_padded(
        boxes + offsets, tf.sigmoid(scores), DETECTIONS, IOU_THRESHOLD, pad_to_max_output_size=True
    )
    return tf.gather(boxes, chosen, batch_dims=1)


if __name__ == "__main__":
    main()
