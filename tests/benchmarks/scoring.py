"""Times COCO's scores: `heads.metrics.evaluate_coco` through pycocotools and through faster-coco-eval.

    python -m tests.benchmarks.scoring --images 500 --detections 100

Boxes in 80 classes, seven objects per picture: the detections are each object, moved, and false ones.
"""

import argparse
import importlib.util

import numpy as np

from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import describe_rounds, format_table, limit_threads, take_turns, time_calls

NUM_CLASSES, OBJECTS, SIDE = 80, 7, 640


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--rounds", type=int, help="default: 3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="1 round")
    add_output(parser)
    arguments = parser.parse_args(argv)
    limit_threads(arguments.threads)
    from heads.metrics import evaluate_coco

    truth, results = make_detections(arguments.images, arguments.detections)
    libraries = {"pycocotools": False}
    if importlib.util.find_spec("faster_coco_eval"):
        libraries["faster-coco-eval"] = True
    else:
        print("left out: faster-coco-eval is not installed")
    scores = {}

    def score(name):
        scores[name] = evaluate_coco(truth, results, use_fast=libraries[name])

    turns = {name: lambda name=name: time_calls(lambda: score(name)) for name in libraries}
    num_rounds = arguments.rounds or (1 if arguments.quick else 3)
    medians, num_rounds = take_turns(turns, num_rounds)
    rows = []
    for name, (seconds, _) in medians.items():
        ratio = medians["pycocotools"].seconds / seconds
        rows.append((name, f"{seconds:.2f}", f"{ratio:.1f}", f"{100 * scores[name]['bbox_AP']:.3f}"))
    title = f"{arguments.images} pictures x {arguments.detections} detections"
    print(f"\nCOCO's box scores, {title}; {describe_rounds(medians, num_rounds)}")
    print(format_table(("", "seconds", "times as fast as pycocotools", "AP"), rows))
    numbers = [(title, name, "", "seconds", seconds) for name, seconds, *_ in rows]
    write_results(arguments.output, "scoring", numbers)


def make_detections(num_images, num_detections):
    """Returns COCO's truth and the result list of a middling detector."""
    random = np.random.default_rng(0)
    truth = {
        "images": [{"id": index + 1, "height": SIDE, "width": SIDE} for index in range(num_images)],
        "categories": [{"id": index + 1, "name": f"class {index + 1}"} for index in range(NUM_CLASSES)],
        "annotations": [],
    }
    results = []
    for image in truth["images"]:
        sizes = np.exp(random.uniform(np.log(10), np.log(300), (num_detections, 2)))
        boxes = np.concatenate([random.uniform(0, SIDE - sizes), sizes], axis=1)
        classes = random.integers(1, NUM_CLASSES + 1, num_detections).tolist()
        for box, category in zip(boxes[:OBJECTS].tolist(), classes, strict=False):
            annotation = {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "iscrowd": 0}
            annotation |= {"category_id": category, "bbox": box, "area": box[2] * box[3]}
            truth["annotations"].append(annotation)
        # The first are the objects, moved by about a tenth of their sides, with better scores.
        boxes[:OBJECTS, :2] += random.normal(0, 0.1, (len(boxes[:OBJECTS]), 2)) * sizes[:OBJECTS]
        scores = random.uniform(0, 0.6, num_detections)
        scores[:OBJECTS] += 0.4
        results += [
            {"image_id": image["id"], "category_id": category, "bbox": box, "score": score}
            for box, category, score in zip(boxes.tolist(), classes, scores.tolist(), strict=True)
        ]
    return truth, results


if __name__ == "__main__":
    main()
