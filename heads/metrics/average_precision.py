"""Average precision and recall of detections as COCO defines them: dicts in, numbers and tables out."""

import contextlib
import importlib.util
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pycocotools import mask as run_lengths

KINDS = ("bbox", "segm")
SIZES = ("small", "medium", "large")
MAX_DETECTIONS = (1, 10, 100)


def evaluate_coco(
    truth,
    results,
    kinds: Sequence[str] = ("bbox",),
    max_detections: Sequence[int] = MAX_DETECTIONS,
    use_fast: bool | None = None,
    image_ids: Sequence | None = None,
) -> dict:
    """Average precision and recall as COCO defines them, counted by pycocotools or faster-coco-eval.

    A picture without results counts as all missed, results on a picture without truth as wrong. Ids may be
    anything unique, 0 included. A truth without "info", "iscrowd" or "area" is understood; for "bbox" it
    needs no "segmentation".

    Args:
        truth: COCO JSON of the truth, a path or a dict.
        results: Result list, or the path of its JSON.
        kinds: "bbox" and / or "segm".
        max_detections: Best results per picture and class that count: recall for each of these, precision
            for the largest. Make it larger where pictures have more than 100 objects of a class.
        use_fast: Whether faster-coco-eval counts; the numbers are equal. None: where it is installed.
        image_ids: Pictures to score. None: all of the truth.

    Returns:
        Dict of floats 0 .. 1, for each kind "{kind}_AP", "_AP50", "_AP75", "_AP_small", "_AP_medium",
        "_AP_large", "_AR1", "_AR10", "_AR100", "_AR_small", "_AR_medium", "_AR_large"; and the dicts
        "{kind}_AP_per_class" and "{kind}_AP50_per_class", name -> float. NaN where the truth has no such
        object; means leave it out.

    Raises:
        ValueError: For ids that the truth does not have, for "segm" without masks, or masks of another size
            than the picture.
        ImportError: Where `use_fast` is True and faster-coco-eval is not installed.
    """
    check_kinds(kinds)
    limits = sorted(max_detections)
    if not limits or limits[0] < 1:
        raise ValueError(f"max_detections must be numbers from 1 on. Received: {max_detections!r}")
    truth = read_truth(truth)
    results = _read_json(results)
    for key, entries in (("image_id", truth["images"]), ("category_id", truth["categories"])):
        check_known(f"{key} of the results", [each[key] for each in results], entries)
    if image_ids is not None:
        wanted = set(to_plain_list(image_ids))
        check_known("image_ids", wanted, truth["images"])
        truth = {**truth, "images": [image for image in truth["images"] if image["id"] in wanted]}
    names = _class_names(truth["categories"])
    scores = {}
    for kind in kinds:
        objects, found = _to_datasets(truth, results, kind)
        precision, recall = _count(objects, found, kind, limits, use_fast)
        summary = {**_summarise(precision, recall, limits), **_summarise_classes(precision, names)}
        scores.update({f"{kind}_{name}": score for name, score in summary.items()})
    return scores


def format_coco_scores(scores: dict) -> str:
    """The scores as plain text tables in percent; "-" where the truth has no such object.

    Args:
        scores: From `evaluate_coco`.

    Returns:
        Lines: one per score with a column per kind, an empty one, then one per class.
    """
    kinds = [kind for kind in KINDS if f"{kind}_AP" in scores]
    plain = [name.split("_", 1)[1] for name, score in scores.items() if isinstance(score, float)]
    rows = [("", *kinds)]
    rows += [(name, *(_percent(scores[f"{kind}_{name}"]) for kind in kinds)) for name in dict.fromkeys(plain)]
    columns = [f"{kind}_{name}" for kind in kinds for name in ("AP", "AP50")]
    classes = scores[f"{kinds[0]}_AP_per_class"] if kinds else ()
    per_class = [("class", *(column.replace("_", " ") for column in columns))]
    per_class += [
        (name, *(_percent(scores[f"{column}_per_class"][name]) for column in columns)) for name in classes
    ]
    return "\n".join([*_align(rows), "", *_align(per_class)])


def read_truth(truth) -> dict:
    """COCO JSON as a dict.

    Args:
        truth: The dict itself or the path of its file.

    Raises:
        ValueError: If "images", "annotations" or "categories" is missing.
    """
    truth = _read_json(truth)
    needed = ("images", "annotations", "categories")
    if not isinstance(truth, dict) or any(key not in truth for key in needed):
        found = list(truth) if isinstance(truth, dict) else type(truth).__name__
        raise ValueError(f"truth must be COCO JSON, a path or a dict with {list(needed)}. Received: {found}")
    return truth


def score_names(max_detections: Sequence[int] = MAX_DETECTIONS) -> list[str]:
    """Names of the scores of `evaluate_coco`, without the kind and without those per class."""
    precisions, recalls = ([f"{score}_{size}" for size in SIZES] for score in ("AP", "AR"))
    return ["AP", "AP50", "AP75", *precisions, *(f"AR{limit}" for limit in max_detections), *recalls]


def check_kinds(kinds):
    """Raises ValueError for anything but "bbox" and "segm", or none."""
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise ValueError(f"kinds must be a sequence of {' and / or '.join(KINDS)}. Received: {kinds!r}")


def check_known(name: str, ids, entries: list[dict]):
    """Raises ValueError, speaking of `name`, for ids that none of the truth's `entries` has."""
    unknown = sorted(set(ids) - {entry["id"] for entry in entries}, key=str)
    if unknown:
        raise ValueError(
            f"{name} must be those of the truth. Received {len(unknown)} that it does not have: {unknown[:5]}"
        )


def to_plain_list(values) -> list:
    """List of the values, with those of NumPy as Python's own."""
    return [value.item() if isinstance(value, np.generic) else value for value in values]


def _count(objects, found, kind, limits, use_fast):
    """Gives precision (thresholds, recalls, classes, areas, limits) and recall, the same without recalls.

    -1 where there is nothing to find. Thresholds are 0.5, 0.55 .. 0.95; areas all, small, medium, large.
    """
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if use_fast and not installed:
        raise ImportError('use_fast needs faster-coco-eval: pip install "van-backbones[fast-eval]"')
    if use_fast or (use_fast is None and installed):
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluation
    else:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    indices = []
    # Both libraries report to the screen.
    with contextlib.redirect_stdout(io.StringIO()):
        for dataset in (objects, found):
            indices.append(COCO())
            indices[-1].dataset = dataset
            indices[-1].createIndex()
        evaluation = Evaluation(*indices, kind)
        evaluation.params.maxDets = limits
        evaluation.evaluate()
        evaluation.accumulate()
    return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])


def _summarise(precision, recall, limits):
    best = precision[..., -1]
    scores = [_mean(best[:, :, :, 0]), _mean(best[0, :, :, 0]), _mean(best[5, :, :, 0])]
    scores += [_mean(best[:, :, :, area]) for area in (1, 2, 3)]
    scores += [_mean(recall[:, :, 0, index]) for index in range(len(limits))]
    scores += [_mean(recall[:, :, area, -1]) for area in (1, 2, 3)]
    return dict(zip(score_names(limits), scores, strict=True))


def _summarise_classes(precision, names):
    of_class = {name: precision[:, :, index, 0, -1] for index, name in enumerate(names)}
    return {
        "AP_per_class": {name: _mean(values) for name, values in of_class.items()},
        "AP50_per_class": {name: _mean(values[0]) for name, values in of_class.items()},
    }


def _mean(values):
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")


def _to_datasets(truth, results, kind):
    """Gives truth and results as two COCO data sets of what `kind` needs, with all ids counted from 1.

    pycocotools takes a match with the object of id 0 for none, and keeps one object of each id.
    """
    images = sorted(truth["images"], key=lambda image: image["id"])
    image_numbers = {image["id"]: number for number, image in enumerate(images, 1)}
    category_ids = sorted(category["id"] for category in truth["categories"])
    category_numbers = {category_id: number for number, category_id in enumerate(category_ids, 1)}
    sizes = ("height", "width") if kind == "segm" else ()
    unknown = [image["id"] for image in images if any(side not in image for side in sizes)]
    if unknown:
        raise ValueError(f'images need "height" and "width" for "segm". Received none for ids {unknown[:5]}')
    datasets = []
    for source, entries in (("truth", truth["annotations"]), ("results", results)):
        annotations = []
        for entry in entries:
            image, category = image_numbers.get(entry["image_id"]), category_numbers.get(entry["category_id"])
            if image is None or category is None:
                continue  # of a picture that is not scored
            annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": category}
            annotation |= _shape(entry, kind, images[image - 1], source)
            annotation["iscrowd"] = int(entry.get("iscrowd") or 0) if source == "truth" else 0
            if source == "results":
                annotation["score"] = float(entry["score"])
            elif entry.get("area") is not None:
                annotation["area"] = float(entry["area"])
            annotations.append(annotation)
        datasets.append(
            {
                "images": [
                    {"id": number, **{side: image[side] for side in sizes}}
                    for number, image in enumerate(images, 1)
                ],
                "categories": [{"id": number} for number in category_numbers.values()],
                "annotations": annotations,
            }
        )
    return datasets


def _shape(entry, kind, image, source):
    """Gives the box or the mask of an annotation or result, and its area."""
    if kind == "bbox":
        box = [float(value) for value in entry["bbox"]]
        return {"bbox": box, "area": box[2] * box[3]}
    segmentation = entry.get("segmentation")
    if not segmentation:
        raise ValueError(
            f'kinds has "segm", so each entry of the {source} must have a "segmentation"; kinds=("bbox",) '
            f"scores boxes. Received one without, on image {image['id']!r}: {sorted(entry)}"
        )
    size = [image["height"], image["width"]]
    if isinstance(segmentation, list):
        segmentation = run_lengths.merge(run_lengths.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        segmentation = run_lengths.frPyObjects(segmentation, *segmentation["size"])
    if list(segmentation["size"]) != size:
        raise ValueError(
            f"masks of the {source} must have the size of their picture, (height, width) = {size} for image "
            f"{image['id']!r}. Received: {list(segmentation['size'])}"
        )
    return {"segmentation": segmentation, "area": float(run_lengths.area(segmentation))}


def _class_names(categories):
    """Gives the names in order of the ids; those that several classes share get their id behind them."""
    names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
    repeated = Counter(names.values())
    return [f"{names[key]} ({key})" if repeated[names[key]] > 1 else names[key] for key in sorted(names)]


def _read_json(source):
    return json.loads(Path(source).read_text(encoding="utf-8")) if isinstance(source, str | Path) else source


def _percent(value):
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def _align(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        cells = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return lines
