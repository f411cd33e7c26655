"""Pictures of what detectors find and where they are wrong, for the scripts that train and evaluate them."""

import numpy as np
from PIL import Image
from results import find_worst, save_picture
from shown_pixels import show_pixels

from heads.coco.segmentations import decode_mask
from heads.drawing import draw_confusion, draw_detection_comparison, draw_precision_recall
from heads.metrics import count_mistakes, format_mistakes, measure_precision
from heads.ops.labels import PADDING_LABEL
from heads.training import replace_text

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
    path = output / "scores.txt"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    replace_text(path, f"{before}\n{table}\n")
    picture = draw_confusion(mistakes["confusion"], mistakes["class_names"])
    save_picture(picture, output / "confusion.png")
    precision = measure_precision(truth, results, "bbox", max_detections, image_ids=image_ids)
    save_picture(draw_precision_recall(precision), output / "precision_recall.png")
    worst = find_worst(mistakes["per_picture_missed"] + mistakes["per_picture_false"], NUM_PICTURES)
    return worst, threshold


def draw_pictures(
    model, batches, class_names, output, worst=(), threshold=None, found=None, labels=None, bands=None
):
    """Draws image, truth and detections of the first pictures, and of those at the worst positions.

    Args:
        model: The detector.
        batches: Pictures as the model sees them, with their truth.
        class_names: Names of the truth's classes.
        output: Folder.
        worst: Positions.
        threshold: Score from which on detections are drawn. Default: chosen.
        found: What was found in each picture, in its own pixels. Default: what the model finds in the
            batches.
        labels: The truth's label of each label of the model. Default: the same.
        bands: --bands, of pictures of other than 3 channels.
    """
    first = range(NUM_PICTURES)
    if found is not None and threshold is not None:  # what is not drawn needs no masks
        found = [keep_certain(each, threshold) for each in found]
    examples = find_examples(model, batches, {*first, *worst}, found, labels)
    for name, positions in (("predictions.png", first), ("worst.png", worst)):
        found = [examples[place] for place in positions if place in examples]
        if found:
            save_picture(compare(found, class_names, threshold, bands), output / name)


def draw_first(model, batches, class_names, num_pictures=3, bands=None):
    """Returns a drawing of what a detector finds in the first pictures."""
    examples = find_examples(model, batches, range(num_pictures)).values()
    return compare(list(examples), class_names, bands=bands)


def compare(examples, class_names, threshold=None, bands=None):
    """Returns a drawing of images, their true objects, and the found ones above a score."""
    images, *objects = list(zip(*examples, strict=True))
    threshold = choose_threshold(*objects) if threshold is None else threshold
    shown = [show_pixels(image, bands) for image in images]
    return draw_detection_comparison(shown, *objects, class_names, score_threshold=threshold)


def find_examples(model, batches, positions, found=None, labels=None):
    """Returns position -> (image, truth, detections), as the model sees them; only up to the last picture.

    The arguments are those of `draw_pictures`.
    """
    examples, start = {}, 0
    for inputs, truth in batches.as_numpy_iterator():
        rows = [row for row in range(len(inputs["images"])) if start + row in positions]
        if rows and found is None:
            # Draws what the model sees.
            detected = model.predict_on_batch({**inputs, "original_sizes": inputs["image_sizes"]})
        for row in rows:
            height, width = inputs["image_sizes"][row]
            objects = {name: values[row] for name, values in truth.items()}
            if "masks" in truth:
                objects["masks"] = objects["masks"][:, :height, :width]
            if found is None:
                detections = {name: values[row] for name, values in detected.items()}
            else:
                original_size = inputs["original_sizes"][row]
                detections = resize_objects(found[start + row], original_size, (height, width))
            if labels is not None:
                known = np.append(labels, PADDING_LABEL)  # where the padding's -1 points
                detections["labels"] = known[detections["labels"]]
            examples[start + row] = inputs["images"][row, :height, :width], objects, detections
        start += len(inputs["images"])
        if start > max(positions):
            break
    return examples


def keep_certain(found, threshold):
    """Returns the objects of a picture, one of `predict_pictures`, that have at least a score."""
    rows = np.flatnonzero(found["scores"] >= threshold)
    kept = {name: found[name][rows] for name in ("boxes", "labels", "scores")}
    return {**kept, "masks": [found["masks"][row] for row in rows]} if "masks" in found else kept


def resize_objects(found, size, new_size):
    """Returns what was found in a picture of one (height, width), in pixels of another.

    Args:
        found: One of `predict_pictures`, its masks as run lengths.
        size: (height, width) of the picture.
        new_size: (height, width) to which it was resized.
    """
    (height, width), (new_height, new_width) = size, new_size
    scale = np.array([new_width / width, new_height / height] * 2, "float32")
    resized = {"boxes": found["boxes"] * scale, "labels": found["labels"], "scores": found["scores"]}
    if "masks" in found:
        masks = (Image.fromarray(decode_mask(mask)) for mask in found["masks"])
        masks = [np.asarray(mask.resize((int(new_width), int(new_height)))) for mask in masks]
        resized["masks"] = np.array(masks, bool).reshape(-1, new_height, new_width)
    return resized


def choose_threshold(truths, detections, highest=0.4):
    """Returns the lowest score that is drawn: `highest`, or lower, for as many detections as true objects."""
    num_objects = sum(int((truth["labels"] >= 0).sum()) for truth in truths)
    scores = np.sort(np.concatenate([found["scores"] for found in detections]))[::-1]
    return min(highest, float(scores[min(max(num_objects, 1), len(scores)) - 1])) if len(scores) else highest
