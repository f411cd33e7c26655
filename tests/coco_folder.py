"""A small data set in COCO's layout, for the tests of the examples."""

import json

import numpy as np
from PIL import Image

NAMES = ("square", "bar")
CATEGORY_IDS = (3, 7)


def write_coco_folder(root):
    """Writes two splits of four pictures, with gapped category ids; the last two have no objects."""
    (root / "annotations").mkdir()
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(4):
            image, boxes = draw_example(generator)
            Image.fromarray(image).save(root / "images" / split / f"{index}.png")
            images.append({"id": 10 + index, "file_name": f"{index}.png", "height": 48, "width": 64})
            for box, category_id in zip(boxes if index < 2 else [], CATEGORY_IDS, strict=False):
                annotation = {"id": len(annotations) + 1, "image_id": 10 + index, "iscrowd": 0}
                annotation |= {"category_id": category_id, "bbox": box, "area": box[2] * box[3]}
                annotations.append({**annotation, "segmentation": to_polygon(box)})
        categories = [{"id": key, "name": name} for key, name in zip(CATEGORY_IDS, NAMES, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def draw_example(generator, size=(48, 64)):
    """Returns a bright square and a dark bar on grey: (image, boxes xywh)."""
    image = generator.normal(120, 10, (*size, 3))
    top, left = generator.integers(2, 10, 2)
    image[top : top + 20, left : left + 20] = 220
    image[34:42, 30:60] = 30
    return np.clip(image, 0, 255).astype("uint8"), [[int(left), int(top), 20, 20], [30, 34, 30, 8]]


def to_polygon(box):
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]
