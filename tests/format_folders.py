"""Small data sets in the formats of other tools, for tests: one function per format writes a split."""

import base64
import io
import json
from xml.etree import ElementTree

import numpy as np
from PIL import Image
from pycocotools import mask as run_lengths

from heads.data import DetectionShapes


def draw_shapes(num_images=4, seed=0, size=(64, 96), with_masks=True):
    """Returns the embedded data set, the content of its COCO file, and its pictures by id."""
    shapes = DetectionShapes(num_images, size, seed, with_masks)
    images = [example["image"] for example in shapes.load().as_numpy_iterator()]
    return shapes, shapes.to_coco(), dict(zip(shapes.image_ids, images, strict=True))


def group_objects(content):
    """Yields each entry of a picture with its objects: (class number, box xyxy, entry)."""
    labels = {category["id"]: label for label, category in enumerate(content["categories"])}
    for picture in content["images"]:
        objects = [entry for entry in content["annotations"] if entry["image_id"] == picture["id"]]
        found = []
        for entry in objects:
            x, y, width, height = entry["bbox"]
            found.append((labels[entry["category_id"]], (x, y, x + width, y + height), entry))
        yield picture, found


def save_pictures(folder, content, pixels):
    folder.mkdir(parents=True, exist_ok=True)
    for picture in content["images"]:
        Image.fromarray(pixels[picture["id"]]).save(folder / picture["file_name"])


def name_classes(content):
    return [category["name"] for category in content["categories"]]


def stem(picture):
    return picture["file_name"].rsplit(".", 1)[0]


def write_coco(root, content, pixels, split="train"):
    save_pictures(root / "images" / split, content, pixels)
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))


def write_yolo(root, content, pixels, split="train"):
    """Writes images/<split>, labels/<split> and classes.txt, with polygons if there are any, else boxes."""
    save_pictures(root / "images" / split, content, pixels)
    (root / "labels" / split).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(name_classes(content)))
    for picture, objects in group_objects(content):
        sides = np.array([picture["width"], picture["height"]])
        lines = []
        for label, (x1, y1, x2, y2), entry in objects:
            polygons = entry.get("segmentation")
            if isinstance(polygons, list):
                shares = (np.reshape(polygons[0], (-1, 2)) / sides).ravel()
            else:
                shares = np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]) / [*sides, *sides]
            lines.append(f"{label} {' '.join(f'{value:.8f}' for value in shares)}")
        (root / "labels" / split / f"{stem(picture)}.txt").write_text("\n".join(lines) + "\n" * bool(lines))


def write_voc(root, content, pixels, split="train", with_masks=False):
    """Writes Annotations, JPEGImages, ImageSets and, if asked for, SegmentationObject."""
    save_pictures(root / "JPEGImages", content, pixels)
    for folder in ("Annotations", "ImageSets/Main", "ImageSets/Segmentation", "SegmentationObject"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = name_classes(content)
    for picture, objects in group_objects(content):
        tree = make_tree(picture, [(names[label], box) for label, box, _ in objects])
        tree.write(root / f"Annotations/{stem(picture)}.xml")
        if with_masks:
            numbers = np.zeros((picture["height"], picture["width"]), np.uint8)
            for number, (_, _, entry) in enumerate(objects, 1):
                numbers[run_lengths.decode(entry["segmentation"]).astype(bool)] = number
            save_palette(numbers, root / f"SegmentationObject/{stem(picture)}.png")
    text = "\n".join(map(stem, content["images"]))
    for kind in ("Main", *["Segmentation"] * with_masks):
        (root / f"ImageSets/{kind}/{split}.txt").write_text(text)


def make_tree(picture, objects, **fields):
    """Returns an XML tree of objects (name, box xyxy in continuous pixels), with further fields of each."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = picture["file_name"]
    size = ElementTree.SubElement(root, "size")
    for side in ("width", "height"):
        ElementTree.SubElement(size, side).text = str(picture[side])
    for name, (x1, y1, x2, y2) in objects:
        element = ElementTree.SubElement(root, "object")
        for field, value in {"name": name, **fields}.items():
            ElementTree.SubElement(element, field).text = str(value)
        box = ElementTree.SubElement(element, "bndbox")
        for field, value in {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}.items():
            ElementTree.SubElement(box, field).text = f"{value:g}"
    return ElementTree.ElementTree(root)


def save_palette(numbers, path):
    picture = Image.fromarray(numbers).convert("P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    picture.putdata(numbers.ravel().tolist())
    picture.save(path)


def write_labelme(root, content, pixels, split="train", embedded=False):
    """Writes a JSON file beside each picture, with masks, polygons, or else rectangles."""
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    if not embedded:
        save_pictures(folder, content, pixels)
    names = name_classes(content)
    for picture, objects in group_objects(content):
        shapes = []
        for label, box, entry in objects:
            shapes += make_shapes(names[label], box, entry.get("segmentation"), entry["id"])
        data = None
        if embedded:
            file = io.BytesIO()
            Image.fromarray(pixels[picture["id"]]).save(file, "PNG")
            data = base64.b64encode(file.getvalue()).decode()
        text = json.dumps(make_labelme(picture, shapes, imageData=data))
        (folder / f"{stem(picture)}.json").write_text(text)


def make_labelme(picture, shapes, **fields):
    sides = {"imageHeight": picture["height"], "imageWidth": picture["width"]}
    names = {"version": "5.4.1", "flags": {}, "imagePath": picture["file_name"], "imageData": None}
    return {**names, "shapes": shapes, **sides, **fields}


def make_shapes(name, box, segmentation=None, group=None):
    shape = {"label": name, "group_id": group, "flags": {}}
    if isinstance(segmentation, list):
        return [
            {**shape, "points": np.reshape(polygon, (-1, 2)).tolist(), "shape_type": "polygon"}
            for polygon in segmentation
        ]
    x1, y1, x2, y2 = box
    if segmentation is None:
        return [{**shape, "points": [[x2, y1], [x1, y2]], "shape_type": "rectangle"}]
    mask = run_lengths.decode(segmentation)[int(y1) : int(y2), int(x1) : int(x2)].astype(bool)
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    text = base64.b64encode(file.getvalue()).decode()
    points = [[x1, y1], [x2 - 1, y2 - 1]]  # of the first and the last pixel
    return [{**shape, "points": points, "shape_type": "mask", "mask": text}]
