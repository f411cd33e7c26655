"""Finds the keypoints of the people in pictures with a saved model.

    python examples/predict_pose.py runs/pose-1/best.keras pictures/ --detector runs/detection-1/best.keras
    python examples/predict_pose.py runs/pose-1/best.keras pictures/ --boxes detections.json

The boxes around the people come from a detector, or from a JSON file in COCO's format, such as the one that
detect.py writes or a data set's annotations; without either, each picture is taken for one person. For each
picture NAME.jpg it writes NAME.png with the skeletons; for all of them together keypoints.json, with the
pictures and the people in COCO's format, with scores.
"""

import pathlib

from options import check_model, check_output, load_keras, make_parser, number, whole_number


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file")
    add("pictures", type=pathlib.Path, nargs="+", help="folders of pictures, or pictures")
    either = parser.add_mutually_exclusive_group().add_argument
    whole = "default: each picture is one person"
    either("--detector", type=pathlib.Path, help=f"a .keras file of a detector that finds people; {whole}")
    either("--boxes", type=pathlib.Path, help=f"or a JSON file in COCO's format; {whole}")
    name = "name of the people's class, in the detector or the JSON file; default: %(default)s"
    add("--class-name", default="person", help=name)
    threshold = number(at_least=0)
    boxes = "leave out people whose boxes have lower scores; default: %(default)s"
    add("--box-threshold", type=threshold, default=0.3, help=boxes)
    scores = "do not draw keypoints with lower scores; default: %(default)s"
    add("--score-threshold", type=threshold, default=0.3, help=scores)
    batch = "most people per batch; default: %(default)s"
    add("--batch-size", type=whole_number(1), default=32, help=batch)
    add("--flip-test", action="store_true", help="average with the mirrored crops, in twice the time")
    output = "folder of the results; default: the next of runs/keypoints-1, runs/keypoints-2 ..."
    add("--output", type=pathlib.Path, help=output)
    arguments = parser.parse_args(argv)
    check_model(parser, arguments.model)
    for path in (arguments.detector, arguments.boxes):
        if path is not None and not path.is_file():
            parser.error(f"there is no file {path}")
    check_output(parser, arguments.output)
    return parser, arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import json
import sys

import keras
import numpy as np
from detect import find_pictures, open_output
from results import save_picture
from tqdm import tqdm

import van_backbones  # noqa: F401  (registers the backbone's classes, which the saved model names)
from heads import SimpleBaseline
from heads.coco.annotations import read_box
from heads.coco.entries import read_json
from heads.drawing import draw_skeletons
from heads.metrics import to_keypoint_results
from heads.pictures import read_picture
from heads.training import replace_text

CATEGORY_ID = 1


def main(argv=None):
    """Runs the script; returns 1 if a picture was unreadable, else 0."""
    parser, arguments = parse_arguments(argv)
    paths = find_pictures(parser, arguments.pictures, arguments.output)
    model = keras.saving.load_model(arguments.model, compile=False)
    if not isinstance(model, SimpleBaseline):
        parser.error(f"the model must be a pose model. Received: {arguments.model}, a {type(model).__name__}")
    if arguments.flip_test and model.flip_pairs is None:
        parser.error(f"--flip-test needs a model with flip_pairs. Received: {arguments.model}")
    find_boxes = choose_boxes(parser, arguments)

    output = open_output(arguments.output, "keypoints")
    entries, annotations, unreadable = [], [], []
    for path in tqdm(paths, unit="picture"):
        try:
            image = read_picture(path)
        except ValueError as error:
            unreadable.append(error)
            continue
        boxes, scores = find_boxes(path, image)
        (people,) = model.predict_pictures(
            image, [boxes], batch_size=arguments.batch_size, flip_test=arguments.flip_test
        )
        picture = draw_skeletons(image, people, model.skeleton, arguments.score_threshold)
        save_picture(picture, output / f"{path.stem}.png")
        height, width = image.shape[:2]
        image_id = len(entries) + 1
        entries.append({"id": image_id, "file_name": str(path), "height": height, "width": width})
        annotations += to_annotations(people, image_id, scores, len(annotations) + 1)

    content = {"images": entries, "categories": [describe_people(model)], "annotations": annotations}
    replace_text(output / "keypoints.json", json.dumps(content))
    print(f"{len(annotations)} people in {len(entries)} of {len(paths)} pictures, see {output}")
    for problem in unreadable:
        print(f"Skipped, unreadable: {problem}", file=sys.stderr)
    return 1 if unreadable else 0


def choose_boxes(parser, arguments):
    """Returns a function of a picture's path and pixels that returns boxes (n, 4) and their scores (n,)."""
    if arguments.boxes is not None:
        return read_boxes(parser, arguments)
    if arguments.detector is None:
        return lambda path, image: (np.array([[0, 0, *image.shape[1::-1]]], "float32"), np.ones(1))
    detector = keras.saving.load_model(arguments.detector, compile=False)
    names = getattr(detector, "class_names", None) or ()
    if arguments.class_name not in names:
        received = f"classes {list(names)}"
        parser.error(f"--detector must have a class {arguments.class_name!r}. Received: {received}")

    def detect(path, image):
        (found,) = detector.predict_pictures(image, score_threshold=arguments.box_threshold)
        is_person = found["labels"] == names.index(arguments.class_name)
        return found["boxes"][is_person], found["scores"][is_person]

    return detect


def read_boxes(parser, arguments):
    """Returns the function of `choose_boxes` that looks a picture's file name up in a JSON file."""
    found = {}
    try:
        content = read_json(arguments.boxes, "--boxes")
        wanted = {row["id"] for row in content["categories"] if row["name"] == arguments.class_name}
        pictures = {row["id"]: pathlib.Path(row["file_name"]).name for row in content["images"]}
        found = {name: [] for name in pictures.values()}
        for row in content["annotations"]:
            score = float(row.get("score", 1.0))
            x, y, width, height = read_box(row["bbox"])
            is_usable = width > 0 and height > 0 and score >= arguments.box_threshold
            if row["category_id"] in wanted and is_usable and not row.get("iscrowd"):
                box = (x, y, x + width, y + height)
                found[pictures[row["image_id"]]].append((box, score))
    except (ValueError, KeyError, TypeError) as error:
        parser.error(f"--boxes must be COCO's JSON of images, categories and annotations ({error!r})")
    if not wanted:
        parser.error(f"--boxes must have a category {arguments.class_name!r}. Received: {arguments.boxes}")

    def look_up(path, image):
        if path.name not in found:
            print(f"{path.name} is not in {arguments.boxes}: no people are assumed", file=sys.stderr)
        rows = found.get(path.name, [])
        boxes = np.array([box for box, _ in rows], "float32").reshape(-1, 4)
        return boxes, np.array([score for _, score in rows])

    return look_up


def to_annotations(people, image_id, box_scores, first_id):
    """Returns the people of one picture as COCO's annotations, with scores."""
    count = len(people["boxes"])
    results = to_keypoint_results(people, [image_id] * count, CATEGORY_ID, box_scores)
    annotations = []
    for row, (result, (x1, y1, x2, y2)) in enumerate(zip(results, people["boxes"].tolist(), strict=True)):
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
        annotations.append({"id": first_id + row, **result, **box})
    return annotations


def describe_people(model):
    """Returns COCO's category of the people."""
    names = model.keypoint_names or [f"keypoint {number}" for number in range(model.num_keypoints)]
    skeleton = [[first + 1, second + 1] for first, second in model.skeleton or ()]
    return {"id": CATEGORY_ID, "name": "person", "keypoints": list(names), "skeleton": skeleton}


if __name__ == "__main__":
    sys.exit(main())
