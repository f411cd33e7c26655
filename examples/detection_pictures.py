"""Pictures of what detectors find and where they are wrong, for the scripts that train and evaluate them."""

import numpy as np
from PIL import Image
from results import find_worst

from heads.drawing import draw_confusion, draw_detection_comparison, draw_precision_recall
from heads.metrics import count_mistakes, format_mistakes, measure_precision

NUM_PICTURES = 6  # of each page


def draw_mistakes(results, truth, image_ids, max_detections, output):
    """Prints and draws which objects are missed, false or confused with other classes.

    Returns:
        The positions of the worst pictures, and the lowest score of the detections that count.
    """
    scored = set(image_ids)
    is_object = [each["image_id"] in scored and not each.get("iscrowd", 0) for each in truth["annotations"]]
    scores = np.array([each["score"] for each in results])
    threshold = choose_threshold([{"labels": np.zeros(sum(is_object), int)}], [{"scores": scores}])
    mistakes = count_mistakes(truth, results, threshold, image_ids=image_ids)
    table = format_mistakes(mistakes, threshold)
    print(f"\n{table}", flush=True)
    with open(output / "scores.txt", "a", encoding="utf-8") as file:
        file.write(f"\n{table}\n")
    picture = draw_confusion(mistakes["confusion"], mistakes["class_names"])
    Image.fromarray(picture).save(output / "confusion.png")
    precision = measure_precision(truth, results, "bbox", max_detections, image_ids=image_ids)
    Image.fromarray(draw_precision_recall(precision)).save(output / "precision_recall.png")
    worst = find_worst(mistakes["per_picture_missed"] + mistakes["per_picture_false"], NUM_PICTURES)
    return worst, threshold


def draw_pictures(model, batches, class_names, output, worst=(), threshold=None):
    """Draws image, truth and detections of the first pictures, and of those at the worst positions."""
    first = range(NUM_PICTURES)
    examples = find_examples(model, batches, {*first, *worst})
    for name, positions in (("predictions.png", first), ("worst.png", worst)):
        found = [examples[place] for place in positions if place in examples]
        if found:
            Image.fromarray(compare(found, class_names, threshold)).save(output / name)


def draw_first(model, batches, class_names, num_pictures=3):
    """Returns a drawing of what a detector finds in the first pictures."""
    return compare(list(find_examples(model, batches, range(num_pictures)).values()), class_names)


def compare(examples, class_names, threshold=None):
    """Returns a drawing of images, their true objects, and the found ones above a score."""
    lists = list(zip(*examples, strict=True))
    threshold = choose_threshold(*lists[1:]) if threshold is None else threshold
    return draw_detection_comparison(*lists, class_names, score_threshold=threshold)


def find_examples(model, batches, positions):
    """Returns position -> (image, truth, detections), as the model sees them; only up to the last picture."""
    examples, start = {}, 0
    for inputs, truth in batches.as_numpy_iterator():
        rows = [row for row in range(len(inputs["images"])) if start + row in positions]
        if rows:
            inputs["original_sizes"] = inputs["image_sizes"]  # draws what the model sees
            found = model.predict_on_batch(inputs)
        for row in rows:
            height, width = inputs["image_sizes"][row]
            objects = {name: values[row] for name, values in truth.items()}
            if "masks" in truth:
                objects["masks"] = objects["masks"][:, :height, :width]
            detections = {name: values[row] for name, values in found.items()}
            examples[start + row] = inputs["images"][row, :height, :width], objects, detections
        start += len(inputs["images"])
        if start > max(positions):
            break
    return examples


def choose_threshold(truths, detections, highest=0.4):
    """Returns the lowest score that is drawn: `highest`, or lower, for as many detections as true objects."""
    num_objects = sum(int((truth["labels"] >= 0).sum()) for truth in truths)
    scores = np.sort(np.concatenate([found["scores"] for found in detections]))[::-1]
    return min(highest, float(scores[min(max(num_objects, 1), len(scores)) - 1])) if len(scores) else highest
