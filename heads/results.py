"""Results of `predict_pictures` in the forms of other tools: COCO's rows, supervision's objects."""

from collections.abc import Sequence

import numpy as np
from keras import ops

from heads.coco.entries import to_plain_list
from heads.coco.segmentations import decode_mask, encode_mask
from heads.ops.labels import IGNORED_LABEL
from heads.ops.segments import frame_masks


def to_coco(result: dict, image_id, category_ids: Sequence | None = None) -> list[dict] | dict:
    """Returns the result of one picture in COCO's format for results, in plain JSON types.

    Args:
        result: one of `predict_pictures`, with objects, panoptic segments or a label map.
        image_id: id of the picture.
        category_ids: category id of each label, 0 .. classes - 1; None counts them from 1.

    Returns:
        - For objects a list of rows: "image_id", "category_id", "bbox" (xywh), "score", and with masks
          "segmentation" (compressed run lengths).
        - For a label map a row for each class that occurs, as in COCO's stuff results: "image_id",
          "category_id", "segmentation". Pixels of label 255 are left out.
        - For panoptic segments an entry of "annotations": "image_id", "file_name" and "segments_info", whose
          ids are the rows counted from 1. `heads.data.panoptic.encode_ids(result["segments"] + 1)` makes the
          PNG file of that name.

    Raises:
        ValueError: for other results, or labels without a category.
    """
    if "keypoints" in result:
        raise ValueError(
            "result must have objects, segments or a label map; `heads.metrics.to_keypoint_results` makes "
            f"rows of people. Received: {sorted(result)}"
        )
    if "label_map" in result:
        label_map = np.asarray(result["label_map"])
        labels = _find_classes(label_map)
        ids = name_categories(category_ids, labels)
        rows = [{"image_id": image_id, "category_id": ids[label]} for label in labels]
        masks = (label_map == label for label in labels)  # never all of them at once
        return [{**row, "segmentation": encode_mask(mask)} for row, mask in zip(rows, masks, strict=True)]
    if "segments" in result:
        return _list_segments(result, image_id, category_ids)
    _check_objects(result)
    return list_objects(result, image_id, name_categories(category_ids, result["labels"]))


def list_objects(found: dict, image_id, category_ids: Sequence) -> list[dict]:
    """Returns COCO's rows of the objects of one picture: see `to_coco`.

    Args:
        found: "boxes" (n, 4) xyxy, "scores" (n,), "labels" (n,), which are below 0 where there is no object,
            and perhaps "masks", n bool (height, width) or run lengths, which may be made one by one.
        image_id: id of the picture.
        category_ids: category id of each label, as Python's own types.
    """
    rows = []
    masks = iter(found["masks"]) if "masks" in found else None
    for box, score, label in zip(found["boxes"], found["scores"], found["labels"], strict=True):
        mask = None if masks is None else next(masks)
        if label < 0:
            continue
        left, top, right, bottom = np.asarray(box, "float64").tolist()
        row = {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [left, top, right - left, bottom - top],
            "score": float(score),
        }
        if mask is not None:
            row["segmentation"] = mask if isinstance(mask, dict) else encode_mask(mask)
        rows.append(row)
    return rows


def name_categories(category_ids, labels) -> list:
    """Returns the category id of each label as Python's own types; None counts them from 1.

    Raises:
        ValueError: for fewer ids than there are labels.
    """
    largest = int(np.max(labels, initial=-1))
    ids = list(range(1, largest + 2)) if category_ids is None else to_plain_list(category_ids)
    if largest >= len(ids):
        raise ValueError(
            f"category_ids must have an id for each label, up to {largest}. Received: {len(ids)} ids"
        )
    return ids


def _list_segments(result, image_id, category_ids):
    """Returns COCO's entry of the panoptic segments of one picture: see `to_coco`."""
    segments, labels = np.asarray(result["segments"]), np.asarray(result["labels"])
    ids = name_categories(category_ids, labels)
    infos = []
    for row, label in enumerate(labels):
        mask = segments == row
        left, top, right, bottom = map(int, ops.convert_to_numpy(frame_masks(mask)))
        infos.append(
            {
                "id": row + 1,
                "category_id": ids[label],
                "area": int(mask.sum()),
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
                "score": float(result["scores"][row]),
            }
        )
    path = result.get("path")
    stem = str(image_id) if path is None else path.stem
    return {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": infos}


def to_supervision(result: dict, class_names: Sequence[str] | None = None):
    """Returns the result of one picture as `supervision.Detections`, for its trackers and annotators.

    Args:
        result: one of `predict_pictures`, with objects, panoptic segments or a label map. The classes of a
            label map are one detection each, without a score.
        class_names: names of all classes, for label maps, whose results have none.

    Raises:
        ImportError: where supervision is not installed.
        ValueError: for other results.
    """
    try:
        import supervision
    except ImportError as problem:
        raise ImportError(
            "to_supervision needs the package supervision: `pip install supervision`; or use the arrays of "
            "the result as they are"
        ) from problem

    confidence, names, masks = None, result.get("names"), None
    if "label_map" in result:
        label_map = np.asarray(result["label_map"])
        labels = _find_classes(label_map)
        masks = label_map == np.array(labels, label_map.dtype)[:, None, None]
        names = None if class_names is None else [class_names[label] for label in labels]
    elif "segments" in result:
        labels, confidence = result["labels"], result["scores"]
        masks = np.asarray(result["segments"]) == np.arange(len(labels))[:, None, None]
    else:
        _check_objects(result)
        labels, confidence = result["labels"], result["scores"]
        if "masks" in result:
            masks = read_masks(result["masks"])
    boxes = result["boxes"] if "boxes" in result else ops.convert_to_numpy(frame_masks(masks))
    return supervision.Detections(
        xyxy=np.asarray(boxes, "float32").reshape(-1, 4),
        # If there are no objects, the size of the masks may be unknown.
        mask=masks if masks is not None and masks.ndim == 3 else None,
        confidence=None if confidence is None else np.asarray(confidence, "float32"),
        class_id=np.asarray(labels, int),
        data={} if names is None else {"class_name": np.array(names, str)},
    )


def read_masks(masks) -> np.ndarray:
    """Returns the masks of a result, arrays or run lengths, as bool (n, height, width)."""
    if isinstance(masks, list):
        return np.array([decode_mask(each) if isinstance(each, dict) else each for each in masks], bool)
    return np.asarray(masks, bool)


def _find_classes(label_map):
    """Returns the labels that occur in a label map, a list."""
    return [label for label in np.unique(label_map).tolist() if label != IGNORED_LABEL]


def _check_objects(result):
    if "keypoints" in result or not {"boxes", "scores", "labels"} <= result.keys():
        raise ValueError(
            'result must have "boxes", "scores" and "labels", or "segments", or "label_map", as that of a '
            f"detector or segmenter has. Received: {sorted(result)}"
        )
