import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from heads.data.coco import CocoDataset
from heads.data.detection_moves import Move, draw_masks

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"needs the data sets in {SHARED_DATA}")
# Ids with gaps, not in order.
CATEGORIES = [{"id": 90, "name": "zebra"}, {"id": 3, "name": "car"}, {"id": 17, "name": "cat"}]
SIZES = {7: (30, 40), 2: (25, 20), 1000: (16, 16)}
SQUARE = [[4.0, 5.0, 14.0, 5.0, 14.0, 15.0, 4.0, 15.0]]


def some_mask(size=(30, 40), seed=0):
    random = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    mask[5:20, 8:30] = random.random((15, 22)) < 0.7
    return np.asfortranarray(mask)


def compressed(mask):
    runs = coco_mask.encode(mask)
    return {"size": runs["size"], "counts": runs["counts"].decode()}


def uncompressed(mask):
    pixels, counts, value = mask.ravel("F").tolist(), [0], 0
    for pixel in pixels:
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def annotation(key, image_id=7, category_id=3, bbox=(4, 5, 10, 10), **fields):
    segmentation = fields.pop("segmentation", SQUARE)
    return {
        "id": key,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(bbox),
        "area": 100.0,
        "iscrowd": 0,
        "segmentation": segmentation,
        **fields,
    }


GOOD_ANNOTATIONS = [
    annotation(1, category_id=90),
    annotation(2, category_id=3, bbox=(8, 5, 22, 15), segmentation=compressed(some_mask())),
    annotation(3, category_id=17, bbox=(8, 5, 22, 15), segmentation=uncompressed(some_mask(seed=1))),
    annotation(5, bbox=(0, 0, 40, 12), segmentation=uncompressed(some_mask(seed=2)), iscrowd=1),
    annotation(
        4, image_id=1000, bbox=(1, 2, 3, 4), segmentation=[[1, 2, 4, 2, 4, 6, 1, 6], [9, 9, 12, 9, 9, 12]]
    ),
]


def write_dataset(folder, annotations=GOOD_ANNOTATIONS, **content):
    """Writes three pictures with the annotations; returns the arguments of CocoDataset."""
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    entries = []
    for key, (height, width) in SIZES.items():
        name = f"{key}.jpg" if key == 2 else f"{key}.png"
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / name)
        entries.append({"id": key, "file_name": name, "height": height, "width": width})
    content = {"images": entries, "annotations": annotations, "categories": CATEGORIES, **content}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json", folder / "pictures"


def draw(dataset, index):
    size = dataset.image_sizes[index]
    stay = Move(size, size, np.zeros(2, int), size, np.array(False))
    return draw_masks(dataset.load_segmentations(index), stay, tuple(size))


# Reading


def test_ids_and_names(tmp_path):
    path, pictures = write_dataset(tmp_path)
    dataset = CocoDataset(path, pictures)
    assert dataset.category_ids == (3, 17, 90)
    assert dataset.class_names == ("car", "cat", "zebra")
    assert dataset.num_classes == 3
    assert dataset.image_ids == [7, 2, 1000]  # as in the file, not sorted
    assert dataset.path == path
    assert dataset.image_paths == [pictures / "7.png", pictures / "2.jpg", pictures / "1000.png"]
    np.testing.assert_array_equal(dataset.image_sizes, list(SIZES.values()))
    assert dataset.image_sizes.dtype == np.int32
    assert len(dataset) == 3
    assert not dataset.with_masks
    assert dataset.to_coco() == json.loads(path.read_text())


def test_objects(tmp_path):
    dataset = CocoDataset(*write_dataset(tmp_path))
    assert [labels.tolist() for labels in dataset.labels] == [[2, 0, 1, -2], [], [0]]
    assert dataset.boxes[0].tolist() == [[4, 5, 14, 15], [8, 5, 30, 20], [8, 5, 30, 20], [0, 0, 40, 12]]
    assert dataset.boxes[1].shape == (0, 4)
    assert dataset.boxes[2].tolist() == [[1, 2, 4, 6]]
    assert {boxes.dtype for boxes in dataset.boxes} == {np.dtype("float32")}
    assert {labels.dtype for labels in dataset.labels} == {np.dtype("int32")}


def test_a_file_without_annotations_or_segmentations(tmp_path):
    path, pictures = write_dataset(tmp_path, [])
    content = json.loads(path.read_text())
    for with_masks in (False, True):
        dataset = CocoDataset(path, pictures, with_masks)
        np.testing.assert_array_equal(dataset.check(progress=False), [0, 0, 0])
    del content["annotations"]  # as in COCO's lists of test pictures
    path.write_text(json.dumps(content))
    assert [len(labels) for labels in CocoDataset(path, pictures).labels] == [0, 0, 0]

    boxes_only = annotation(1)
    for field in ("segmentation", "area", "iscrowd"):
        del boxes_only[field]
    path, pictures = write_dataset(tmp_path, [boxes_only])
    assert CocoDataset(path, pictures).labels[0].tolist() == [0]
    with pytest.raises(ValueError, match=r"with_masks needs .* Received: .*instances\.json"):
        CocoDataset(path, pictures, with_masks=True)


def test_boxes_are_clipped_and_those_of_no_area_dropped(tmp_path, capsys):
    boxes = {
        1: (-3.5, -2, 10, 10),
        2: (35, 25, 10, 10.5),
        3: (5, 5, 0, 10),
        4: (5, 5, 10, 0.99),
        5: (5, 5, 1, 1),
        6: (100, 100, 0, 0),
    }
    annotations = [annotation(key, bbox=box) for key, box in boxes.items()] + [annotation(7, area=0)]
    dataset = CocoDataset(*write_dataset(tmp_path, annotations))
    assert dataset.boxes[0].tolist() == [[0, 0, 6.5, 8], [35, 25, 40, 30], [5, 5, 6, 6]]
    assert dataset.num_dropped == 4
    np.testing.assert_array_equal(dataset.check(), [3, 0, 0])
    assert (
        "3 images (2 without objects), 3 objects, 0 crowd regions; 4 boxes of no area"
        in capsys.readouterr().out
    )


def test_load_gives_pixels_and_objects(tmp_path):
    dataset = CocoDataset(*write_dataset(tmp_path))
    examples = list(dataset.load())
    assert [int(example["index"]) for example in examples] == [0, 1, 2]
    for example, path, boxes, labels in zip(
        examples, dataset.image_paths, dataset.boxes, dataset.labels, strict=True
    ):
        assert example["image"].dtype == tf.uint8
        np.testing.assert_array_equal(example["image"], np.asarray(Image.open(path)))
        np.testing.assert_array_equal(example["boxes"], boxes)
        np.testing.assert_array_equal(example["labels"], labels)
    order = tf.data.Dataset.from_tensor_slices(np.array([2, 0, 2]))
    assert [int(example["index"]) for example in dataset.load(order)] == [2, 0, 2]
    spec = dataset.load().element_spec
    assert spec["image"].shape.as_list() == [None, None, 3]
    assert spec["boxes"].shape.as_list() == [None, 4]
    assert spec["labels"].shape.as_list() == [None]


# Masks


def test_masks_equal_pycocotools(tmp_path):
    path, pictures = write_dataset(tmp_path)
    dataset = CocoDataset(path, pictures, with_masks=True)
    truth = COCO(path)
    for index, image_id in enumerate(dataset.image_ids):
        annotations = truth.loadAnns(truth.getAnnIds(image_id))
        masks = draw(dataset, index)
        assert masks.shape == (len(annotations), *SIZES[image_id])
        for mask, entry in zip(masks, annotations, strict=True):
            expected = truth.annToMask(entry)
            assert expected.any()
            np.testing.assert_array_equal(mask, 0 if entry["iscrowd"] else expected)


def test_run_lengths_of_all_kinds(tmp_path):
    random = np.random.default_rng(0)
    masks = [
        np.ones((16, 16)),
        np.eye(16),
        np.pad([[1]], ((0, 15), (15, 0))),
        *(random.random((16, 16)) < share for share in (0.02, 0.5, 0.98)),
    ]
    masks = [np.asfortranarray(mask, np.uint8) for mask in masks]
    annotations = [
        annotation(2 * index + kind + 1, 1000, bbox=(0, 0, 16, 16), segmentation=write(mask))
        for index, mask in enumerate(masks)
        for kind, write in enumerate((compressed, uncompressed))
    ]
    dataset = CocoDataset(*write_dataset(tmp_path, annotations), with_masks=True)
    assert dataset.check(progress=False)[0] == 12
    np.testing.assert_array_equal(draw(dataset, 2), np.repeat(masks, 2, axis=0))


def test_long_runs(tmp_path):
    mask = np.zeros((700, 900), np.uint8, order="F")
    mask[100:650, 200:800] = 1
    mask[300:302, 400:402] = 0
    entry = {"id": 1, "file_name": "1.png", "height": 700, "width": 900}
    path, pictures = write_dataset(
        tmp_path, [annotation(1, 1, bbox=(200, 100, 600, 550), segmentation=compressed(mask))], images=[entry]
    )
    np.testing.assert_array_equal(draw(CocoDataset(path, pictures, with_masks=True), 0)[0], mask)


# Checking


def test_check_counts_objects_without_crowds(tmp_path):
    for with_masks in (False, True):
        counts = CocoDataset(*write_dataset(tmp_path), with_masks).check(num_threads=1, progress=False)
        assert counts.dtype == np.int64
        np.testing.assert_array_equal(counts, [2, 1, 1])


MASK = compressed(some_mask())
FAULTY_ANNOTATIONS = {
    "unknown image id 8": annotation(11, image_id=8),
    "unknown category id 1": annotation(11, category_id=1),
    "unknown category id None": {"id": 11, "image_id": 7, "bbox": [1, 1, 5, 5]},
    "must be a whole number or text, and unique": annotation(1),
    "Received: None": annotation(11) | {"bbox": None},
    r"Received: \[1, 2, 3\]": annotation(11, bbox=(1, 2, 3)),
    r"Received: \['a', 2, 3, 4\]": annotation(11, bbox=("a", 2, 3, 4)),
    r"Received: \[nan, 2, 3, 4\]": annotation(11, bbox=(float("nan"), 2, 3, 4)),
    r"Received: \[1, 2, inf, 4\]": annotation(11, bbox=(1, 2, float("inf"), 4)),
    r"Received: \[10, 2, -5, 4\]": annotation(11, bbox=(10, 2, -5, 4)),
    r"\[40, 2, 5, 4\] lies outside .*\(30, 40\)": annotation(11, bbox=(40, 2, 5, 4)),
    "area must be a number": annotation(11, area="large"),
    "no segmentation": annotation(11, segmentation=[]),
    r"Received: \[1, 2, 3, 4, 5\]": annotation(11, segmentation=[[1, 2, 3, 4, 5]]),
    r"Received: 1": annotation(11, segmentation=[1, 2, 3, 4, 5, 6]),
    r"Received: \[1, 'x'": annotation(11, segmentation=[[1, "x", 3, 4, 5, 6]]),
    r"finite and near its picture. Received: \[nan": annotation(11, segmentation=[[float("nan")] * 6]),
    r"finite and near its picture. Received: \[1000000000": annotation(
        11, segmentation=[[1e9, 1, 3, 1, 3, 3]]
    ),
    r"the mask has \(height, width\) \[40, 30\], the picture \[30, 40\]": annotation(
        11, segmentation=MASK | {"size": [40, 30]}
    ),
    "add up": annotation(11, segmentation={"size": [30, 40], "counts": [600, 599]}),
    "whole numbers": annotation(11, segmentation={"size": [30, 40], "counts": [1250, -100, 50]}),
    "numbers that add up": annotation(11, segmentation={"size": [30, 40], "counts": [600.5, 599.5]}),
    "run lengths of the mask must": annotation(11, segmentation={"size": [30, 40], "counts": None}),
    "break off|add up to": annotation(11, segmentation=MASK | {"counts": MASK["counts"][:-1]}),
    "hold '!'": annotation(11, segmentation=MASK | {"counts": "!" + MASK["counts"]}),
    "run lengths of the mask must be whole": annotation(11, iscrowd=1, segmentation=MASK | {"counts": ""}),
}


@pytest.mark.parametrize("message", FAULTY_ANNOTATIONS)
def test_check_finds_faulty_annotations(tmp_path, message):
    faulty = FAULTY_ANNOTATIONS[message]
    dataset = CocoDataset(*write_dataset(tmp_path, [*GOOD_ANNOTATIONS, faulty]), with_masks=True)
    assert [len(labels) for labels in dataset.labels] == [4, 0, 1]  # without the faulty one
    with pytest.raises(ValueError, match=message) as error:
        dataset.check(progress=False)
    (line,) = str(error.value).splitlines()[1:]
    assert line.startswith(f"annotation {faulty['id']}: ")


def test_segmentations_do_not_matter_without_masks(tmp_path):
    faulty = [annotation(11, segmentation=[[1]]), annotation(12, segmentation=None)]
    assert CocoDataset(*write_dataset(tmp_path, faulty)).check(progress=False).sum() == 2


def test_check_lists_files_and_annotations_at_once(tmp_path):
    faulty = [annotation(100 + number, category_id=4) for number in range(23)]
    path, pictures = write_dataset(tmp_path, [*GOOD_ANNOTATIONS, *faulty])
    (pictures / "7.png").unlink()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (25, 20, 3), np.uint8)).save(pictures / "2.jpg")
    (pictures / "2.jpg").write_bytes((pictures / "2.jpg").read_bytes()[:-200])
    Image.fromarray(np.zeros((17, 16, 3), np.uint8)).save(pictures / "1000.png")
    with pytest.raises(ValueError, match="faulty files or annotations") as error:
        CocoDataset(path, pictures).check(progress=False)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3 + 20 + 1
    assert lines[0].startswith("image 7: ")
    assert "No such file" in lines[0]
    assert lines[1].startswith("image 2: ")
    assert "truncated" in lines[1]
    assert lines[2].startswith("image 1000: ")
    assert "must have the (height, width) of its annotation, (16, 16). Received: (17, 16)" in lines[2]
    assert lines[3].startswith("annotation 100: unknown category id 4")
    assert lines[-1] == "and 3 more"


def test_check_refuses_other_formats(tmp_path):
    path, pictures = write_dataset(tmp_path)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(pictures / "1000.png", format="WEBP")
    with pytest.raises(ValueError, match=r"image 1000: .*1000.png.* Received: WEBP"):
        CocoDataset(path, pictures).check(progress=False)


IMAGE = {"id": 1, "file_name": "1.png", "height": 4, "width": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": []}, 'list of "images"'),
        ({"categories": None}, 'list of "categories"'),
        ({"images": [IMAGE, IMAGE]}, "images at position 1: an earlier entry has id 1"),
        ({"images": [IMAGE | {"id": None}]}, "images at position 0: the id must be"),
        ({"images": [IMAGE, IMAGE | {"id": "1"}]}, "all numbers or all text. Received: 1 and '1'"),
        ({"images": [IMAGE | {"height": 4.5}]}, "images 1: no usable height. Received: 4.5"),
        ({"images": [IMAGE | {"height": 2**31}]}, "images 1: no usable height. Received: 2147483648"),
        ({"images": [IMAGE | {"height": 10**400}]}, r"images 1: no usable height. Received: 10+\.\.\.0+$"),
        ({"images": [IMAGE | {"file_name": "a\0.png"}]}, "images 1: no usable file_name"),
        ({"images": [IMAGE | {"file_name": "\ud800.png"}]}, "images 1: no usable file_name"),
        ({"images": [IMAGE | {"height": None, "file_name": ""}]}, "images 1: no usable file_name and height"),
        ({"images": [IMAGE | {"width": 0}]}, "images 1: no usable width"),
        ({"categories": [{"id": 1}]}, "categories 1: no usable name"),
        (
            {"categories": [*CATEGORIES, CATEGORIES[0]]},
            "categories at position 3: an earlier entry has id 90",
        ),
    ],
)
def test_faulty_entries_are_refused(tmp_path, content, message):
    path, pictures = write_dataset(tmp_path, **content)
    with pytest.raises(ValueError, match=message) as error:
        CocoDataset(path, pictures)
    assert str(path) in str(error.value)


def test_files_that_are_no_coco_json_are_refused(tmp_path):
    path = tmp_path / "instances.json"
    with pytest.raises(ValueError, match=r"must be a file that can be read. Received: .*\(No such file"):
        CocoDataset(path, tmp_path)
    path.write_text("no JSON")
    with pytest.raises(ValueError, match=r"must be a JSON file. Received: .*instances.json"):
        CocoDataset(path, tmp_path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"must hold a JSON object. Received: .*instances.json"):
        CocoDataset(path, tmp_path)


# Real data


def open_shared(name, split, with_masks=False):
    folder = SHARED_DATA / name
    return CocoDataset(folder / f"annotations/instances_{split}.json", folder / "images" / split, with_masks)


# The numbers are those of the data sets' READMEs.
@needs_data
@pytest.mark.parametrize(
    ("name", "split", "num_images", "num_objects", "classes"),
    [
        ("bccd", "val", 87, 1137, {"RBC": 967, "WBC": 87, "Platelets": 83}),
        ("nuclei", "train", 177, 6462, {"nucleus": 6462}),
        ("facades", "val", 50, 1571, {"window": 1042, "street": 48, "fence": 22}),
        ("coco_cc", "val", 37, 375 - 6, {}),
    ],
)
def test_real_counts(name, split, num_images, num_objects, classes):
    dataset = open_shared(name, split)
    counts = dataset.check(progress=False)
    assert len(dataset) == num_images
    assert counts.sum() == num_objects
    assert {key: counts[dataset.class_names.index(key)] for key in classes} == classes
    assert dataset.num_dropped == 0


@needs_data
@pytest.mark.parametrize("name", ["nuclei", "facades", "coco_cc"])
def test_real_masks_equal_pycocotools(name):
    dataset = open_shared(name, "val", with_masks=True)
    truth = COCO(dataset.path)
    for index in range(5):
        annotations = truth.loadAnns(truth.getAnnIds(dataset.image_ids[index]))
        for mask, entry in zip(draw(dataset, index), annotations, strict=True):
            np.testing.assert_array_equal(mask, 0 if entry["iscrowd"] else truth.annToMask(entry))


@needs_data
def test_real_coco_has_gaps_crowds_and_empty_images():
    dataset = open_shared("coco_cc", "train")
    assert dataset.num_classes == 80
    assert dataset.category_ids[-1] == 90
    assert dataset.class_names[79] == "toothbrush"
    assert sum(np.sum(labels == -2) for labels in dataset.labels) == 5
    assert sum(len(labels) == 0 for labels in dataset.labels) == 3
