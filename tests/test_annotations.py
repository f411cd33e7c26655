"""COCO files as tools write them, and as nobody should: read correctly, or refused by name and quickly."""

import json
import os
import time

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from heads.data import CocoDataset
from heads.metrics import evaluate_coco

SIZE = (40, 60)
BOX = [6, 4, 14, 12]
BOX_MASK = np.zeros(SIZE, np.uint8, order="F")
BOX_MASK[4:16, 6:20] = 1


def annotation(key=1, **fields):
    return {"id": key, "image_id": 1, "category_id": 1, "bbox": BOX, "area": 168, "iscrowd": 0, **fields}


def make_content(*annotations, **content):
    return {
        "images": [{"id": 1, "file_name": "1.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": list(annotations),
        **content,
    }


def open_dataset(folder, content, with_masks=False):
    """Returns the data set of a JSON file, given as its content or as bytes, and of a black picture."""
    if not (folder / "1.png").exists():
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(folder / "1.png")
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "a.json").write_bytes(data)
    return CocoDataset(folder / "a.json", folder, with_masks)


def check(folder, content, with_masks=False):
    return open_dataset(folder, content, with_masks).check(progress=False).tolist()


def polygon(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def run_lengths(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


# What tools write, read correctly.


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_unicode_encodings(tmp_path, encoding):
    content = make_content(annotation(), categories=[{"id": 1, "name": "Möwe"}])
    dataset = open_dataset(tmp_path, json.dumps(content, ensure_ascii=False).encode(encoding))
    assert dataset.class_names == ("Möwe",)
    results = [{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.5}]
    (tmp_path / "results.json").write_bytes(json.dumps(results).encode(encoding))
    assert evaluate_coco(dataset.path, tmp_path / "results.json")["bbox_AP"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("flags", "labels"),
    [
        ({"iscrowd": "0"}, [0]),
        ({"iscrowd": "1"}, [-2]),
        ({"iscrowd": True}, [-2]),
        ({"iscrowd": None, "ignore": None}, [0]),
        ({"ignore": 1}, [-2]),
        ({"ignore": "0"}, [0]),
    ],
)
def test_flags(tmp_path, flags, labels):
    dataset = open_dataset(tmp_path, make_content(annotation(), annotation(2, **flags)))
    assert dataset.labels[0].tolist() == [0, *labels]
    assert dataset.check(progress=False).tolist() == [1 + labels.count(0)]


def test_flags_mean_the_same_in_scores():
    found = [{"image_id": 1, "category_id": 1, "bbox": [30, 20, 10, 10], "score": 0.9}]
    missed = evaluate_coco(make_content(annotation(), annotation(2, bbox=[30, 20, 10, 10])), found)
    crowd = evaluate_coco(
        make_content(annotation(), annotation(2, bbox=[30, 20, 10, 10], iscrowd="1")), found
    )
    assert missed["bbox_AP"] > 0
    assert crowd["bbox_AP"] == 0  # nothing is found but the crowd


@pytest.mark.parametrize("area", [0, 0.0, None])
def test_areas_that_say_nothing(tmp_path, area):
    """In training, the objects are kept; in scores, they are as large as their boxes."""
    content = make_content(annotation(area=area), annotation(2, area=area, bbox=[0, 0, 40, 40]))
    assert check(tmp_path, content) == [2]
    scores = evaluate_coco(content, [])
    assert scores["bbox_AP_small"] == scores["bbox_AP_medium"] == 0


@pytest.mark.parametrize("annotations", [None, []])
def test_files_without_annotations(tmp_path, annotations, capsys):
    assert check(tmp_path, make_content(annotations=annotations)) == [0]
    assert "no annotations" in capsys.readouterr().out
    assert np.isnan(evaluate_coco(make_content(annotations=annotations), [])["bbox_AP"])


def test_ids_as_text(tmp_path):
    content = make_content(
        annotation("x", image_id="i", category_id="c"),
        images=[{"id": "i", "file_name": "1.png", "height": 40, "width": 60}],
        categories=[{"id": "c", "name": "thing"}],
    )
    dataset = open_dataset(tmp_path, content)
    assert dataset.check(progress=False).tolist() == [1]
    assert (dataset.image_ids, dataset.category_ids) == (["i"], ("c",))
    results = [{"image_id": "i", "category_id": "c", "bbox": BOX, "score": 0.5}]
    assert evaluate_coco(content, results)["bbox_AP"] == pytest.approx(1)


def test_file_names_of_windows(tmp_path):
    picture = {"id": 1, "height": 40, "width": 60, "file_name": "part\\1.png"}
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="backslashes"):
        check(tmp_path, make_content(annotation(), images=[picture]))
    (tmp_path / "part").mkdir()
    os.rename(tmp_path / "1.png", tmp_path / "part" / "1.png")
    assert check(tmp_path, make_content(annotation(), images=[picture])) == [1]
    # A name that really has a backslash takes precedence.
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "part\\1.png")
    assert open_dataset(tmp_path, make_content(images=[picture])).image_paths == [tmp_path / "part\\1.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("as_stored", [False, True])
def test_turned_pictures(tmp_path, capsys, orientation, as_stored):
    """Boxes are on the upright picture, unless only the stored picture has the size in the JSON."""
    pixels = np.full((*SIZE, 3), 60, np.uint8)
    pixels[4:16, 6:20] = 250
    exif = Image.Exif()
    exif[274] = orientation
    is_turned = orientation > 1 and not (as_stored and orientation > 4)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's moves
    stored = Image.fromarray(pixels)
    stored = stored.transpose(undo[orientation]) if is_turned else stored
    stored.save(tmp_path / "1.png", exif=exif)
    dataset = open_dataset(tmp_path, make_content(annotation()))
    assert dataset.check(progress=False).tolist() == [1]
    assert ("1 pictures are turned upright" in capsys.readouterr().out) == is_turned
    (example,) = dataset.load().as_numpy_iterator()
    np.testing.assert_array_equal(example["image"], pixels)


def test_remarks(tmp_path, capsys):
    boxes = [[-3, 4, 12, 12], [0, 0, 60.5, 40], BOX]
    content = make_content(
        *(annotation(key, bbox=box) for key, box in enumerate(boxes)),
        annotation(9, ignore=1),
        categories=[{"id": key, "name": name} for key, name in enumerate("thing thing bar".split(), 1)],
    )
    assert check(tmp_path, content) == [3, 0, 0]
    assert capsys.readouterr().out.splitlines() == [
        "a.json: 1 boxes reach out of their picture by more than a pixel and are clipped",
        'a.json: 1 annotations have "ignore": 1, and are regions like crowds',
        "a.json: several categories have the name thing",
        "a.json: 2 of 3 classes have no objects: thing, bar",
    ]


def test_pictures_that_change_after_the_check(tmp_path):
    dataset = open_dataset(tmp_path, make_content(annotation()))
    dataset.check(progress=False)
    Image.fromarray(np.zeros((41, 60, 3), np.uint8)).save(tmp_path / "1.png")
    with pytest.raises(Exception, match=r"1\.png: the picture must have .*Received: \(41, 60\)"):
        list(dataset.load())
    (tmp_path / "1.png").write_text("no picture")
    with pytest.raises(Exception, match=r"1\.png: cannot be read"):
        list(dataset.load())


# What tools write, refused in training and in scores alike.

RELATIVE = [0.1, 0.1, 0.25, 0.3]
CORNERS = [36, 22, 56, 38]
BAD_FILES = {
    r"boxes lie in 0 \.\. 1": make_content(annotation(bbox=RELATIVE), annotation(2, bbox=[0, 0, 1, 1])),
    "look like corners.* 2 of 2 reach far": make_content(
        annotation(bbox=CORNERS), annotation(2, bbox=CORNERS)
    ),
    "look like corners.*areas are those of corners": make_content(annotation(bbox=[6, 4, 20, 16])),
    "annotation 1: unknown image id '1'; the file has 1: write both": make_content(annotation(image_id="1")),
    "annotation 1: unknown category id '1'; the file has 1": make_content(annotation(category_id="1")),
    "annotation 1: unknown category id 5$": make_content(annotation(category_id=5)),
    r"annotation 1: unknown image id \[1\]": make_content(annotation(image_id=[1])),
    r"annotation 2: unknown image id \{": make_content(annotation(), annotation(2, image_id={"a": 1})),
    "annotation True: the id must be a whole number or text, and unique": make_content(annotation(True)),
    r"annotation \[1\]: the id must be a whole number or text, and unique": make_content(annotation([1])),
    "annotation 1: the id must be a whole number or text, and": make_content(annotation(), annotation()),
    "annotation 1: iscrowd must be 0 or 1. Received: 'no'": make_content(annotation(iscrowd="no")),
    r"annotation 1: iscrowd must be 0 or 1. Received: \[\]": make_content(annotation(iscrowd=[])),
    "annotation 1: ignore must be 0 or 1. Received: 2": make_content(annotation(ignore=2)),
    "annotation 1: the box must be .* Received: None": make_content(annotation(bbox=None)),
    "annotation 1: the box must be .* Received: '6 4 14 12'": make_content(annotation(bbox="6 4 14 12")),
    r"annotation 1: the box must be .* Received: \['6'": make_content(annotation(bbox=["6", 4, 14, 12])),
    r"annotation 1: the box must be .* Received: \[True": make_content(annotation(bbox=[True, 4, 14, 12])),
    r"annotation 1: the box must be .* Received: \{": make_content(annotation(bbox=dict.fromkeys("1234"))),
    r"annotation 1: the box must be .* Received: \[1000": make_content(annotation(bbox=[10**400, 4, 14, 12])),
    r"annotation 1: the area must be .* Received: 1000": make_content(annotation(area=10**400)),
    "annotation 1: the area must be .* Received: '168'": make_content(annotation(area="168")),
    "annotation 1: the area must be .* Received: -1": make_content(annotation(area=-1)),
    "annotation at position 1: must be an object. Received: 5": make_content(annotation(), 5),
    '"annotations" must be a list. Received: {': make_content(annotations={"1": annotation()}),
    'list of "images"': make_content(annotation(), images=None),
    'list of "categories"': make_content(annotation(), categories={"1": "thing"}),
    "images 1: no usable height": make_content(
        annotation(), images=[{"id": 1, "file_name": "1.png", "height": "40", "width": 60}]
    ),
    r"outside of the picture, \(height, width\) \(40, 60\)": make_content(annotation(bbox=[70, 4, 14, 12])),
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_training_and_scores_refuse_the_same(tmp_path, message):
    content = BAD_FILES[message]
    with pytest.raises(ValueError, match=message) as error:
        check(tmp_path, content)
    assert "a.json" in str(error.value)
    for truth in (content, tmp_path / "a.json"):
        with pytest.raises(ValueError, match=message):
            evaluate_coco(truth, [])


NOTHING_LEFT = {
    "2 boxes have no area": [annotation(bbox=[5, 5, 0, 10]), annotation(2, bbox=[5, 5, 10, 0.5])],
    '2 are crowds \\("iscrowd": 1; it must be 0': [
        annotation(iscrowd=1, segmentation=run_lengths(BOX_MASK)),
        annotation(2, iscrowd=1),
    ],
    '1 have "ignore": 1': [annotation(ignore=1), annotation(2, iscrowd=1), annotation(3, bbox=[5, 5, 0, 0])],
}


@pytest.mark.parametrize("message", NOTHING_LEFT)
def test_nothing_is_left_to_learn(tmp_path, message):
    with pytest.raises(ValueError, match=message):
        check(tmp_path, make_content(*NOTHING_LEFT[message]))


def test_large_boxes_are_no_corners(tmp_path):
    """One large object in each picture, as in many small data sets; some are cut off."""
    boxes = [[2, 3, 57, 36], [1, 1, 59, 39], [5, 4, 50, 33], [10, 8, 45, 30], [3, 2, 58, 39]]
    content = make_content(*(annotation(key, bbox=box, area=1000) for key, box in enumerate(boxes)))
    assert check(tmp_path, content) == [5]
    assert evaluate_coco(content, [])["bbox_AP"] == 0


# Masks

IN_ROWS = {"size": list(SIZE), "counts": [4 * 60 + 6, *([14, 46] * 11), 14, 24 * 60 + 40]}
SPECK = BOX_MASK.copy()
SPECK[39, 59] = 1
MASKS = {
    "as polygon": (polygon(*BOX), None),
    "as run lengths": (run_lengths(BOX_MASK), None),
    "smaller than its box": (polygon(8, 6, 3, 3), None),
    "with a speck far away": (run_lengths(SPECK), None),
    "in two parts": (polygon(6, 4, 6, 12) + polygon(14, 4, 6, 12), None),
    "rows for columns": (IN_ROWS, "must lie in its box.*rows and columns"),
    "x and y exchanged": ([[y for pair in ([4, 6], [4, 20], [16, 20], [16, 6]) for y in pair]], "exchanged"),
    "elsewhere": (polygon(40, 20, 10, 10), r"in its box \[6.0, 4.0, 20.0, 16.0\], xyxy. Received: 0% of it"),
    "relative": (polygon(0.1, 0.1, 0.2, 0.2), "must lie in its box"),
    "empty": (run_lengths(np.zeros(SIZE, np.uint8)), "the mask is empty"),
    "a point": ([[6, 4, 6, 4, 6, 4]], "the mask is empty"),
    "no polygon": ([[]], "a polygon must be"),
    "points as pairs": ([[[6, 4], [20, 4], [20, 16]]], "a polygon must be"),
    "text": ([["6", "4", "20", "4", "20", "16"]], "a polygon must be"),
    "400 digits": ([[10**400, 4, 20, 4, 20, 16]], "a polygon must be"),
    "size as text": ({"size": "40x60", "counts": []}, "the mask has"),
    "no runs": ({"size": list(SIZE), "counts": []}, "add up"),
    "runs of 400 digits": ({"size": list(SIZE), "counts": [10**400]}, "add up"),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_must_lie_in_their_boxes(tmp_path, name):
    segmentation, message = MASKS[name]
    content = make_content(annotation(segmentation=segmentation))
    if message is None:
        assert check(tmp_path, content, with_masks=True) == [1]
        results = [{"image_id": 1, "category_id": 1, "score": 0.5, "segmentation": segmentation}]
        assert evaluate_coco(content, results, ("segm",))["segm_AP"] == pytest.approx(1)
    else:
        for read in (lambda: check(tmp_path, content, True), lambda: evaluate_coco(content, [], ("segm",))):
            with pytest.raises(ValueError, match=f"annotation 1: .*{message}"):
                read()


def test_degenerate_and_ignored_objects_need_no_mask(tmp_path):
    degenerate = annotation(2, bbox=[6, 4, 0.5, 5], segmentation=[[6, 4, 6, 9]])
    ignored = annotation(3, ignore=1, segmentation=[])
    good = annotation(segmentation=polygon(*BOX))
    assert check(tmp_path, make_content(good, degenerate, ignored), with_masks=True) == [1]


def test_runs_over_int32(tmp_path):
    """An honest mask of a huge scan; only the JSON is read."""
    side = 50_000
    picture = {"id": 1, "file_name": "1.png", "height": side, "width": side}
    counts = [side * side - side, 20_000, side - 20_000]
    entry = annotation(bbox=[side - 1, 0, 1, 20_000], area=20_000)
    entry["segmentation"] = {"size": [side, side], "counts": counts}
    dataset = open_dataset(tmp_path, make_content(entry, images=[picture]), with_masks=True)
    assert dataset.load_segmentations(0)[0]["counts"].tolist() == counts


# Hostile files

DEEP = b"[" * 100_000
HOSTILE = {
    "nested deep": (DEEP + b"]" * 100_000, "must be a JSON file"),
    "nested deep, cut": (b'{"images": ' + DEEP, "must be a JSON file"),
    "number of 10,000 digits": (b'{"images": ' + b"9" * 10_000 + b"}", "must be a JSON file"),
    "no Unicode": (b'{"images": "\xff"}', "must be a JSON file"),
    "cut": (json.dumps(make_content(annotation())).encode()[:-5], "must be a JSON file"),
    "empty": (b"", "must be a JSON file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(tmp_path, name):
    content, message = HOSTILE[name]
    with pytest.raises(ValueError, match=message) as error:
        open_dataset(tmp_path, content)
    assert "a.json" in str(error.value)
    with pytest.raises(ValueError, match=message):
        evaluate_coco(tmp_path / "a.json", [])


@pytest.mark.parametrize("counts", ["o" * 400_000 + "0", "P" * 400_000, "o" * 400_000, "!" * 400_000])
def test_run_lengths_without_end_are_refused_quickly(tmp_path, counts):
    content = make_content(annotation(segmentation={"size": list(SIZE), "counts": counts}))
    start = time.process_time()
    with pytest.raises(ValueError, match="annotation 1: the run lengths"):
        check(tmp_path, content, with_masks=True)
    assert time.process_time() - start < 3


def test_many_unknown_ids_are_refused_quickly(tmp_path):
    entries = [annotation(key, image_id=f"no {key}") for key in range(20_000)]
    start = time.process_time()
    with pytest.raises(ValueError, match="and 19980 more"):
        check(tmp_path, make_content(*entries))
    assert time.process_time() - start < 3


# Results


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": None}, '"score" must be a finite number. Received: None'),
        ({"score": float("nan")}, '"score" must be a finite number. Received: nan'),
        ({"score": "0.5"}, '"score" must be a finite number'),
        ({"bbox": None}, "the box must be .* Received: None"),
        ({"bbox": [1, 2, 3, float("inf")]}, "the box must be finite"),
    ],
)
def test_faulty_results_are_named(changes, message):
    good = {"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.5}
    with pytest.raises(ValueError, match=f"result at position 1, of image 1: {message}"):
        evaluate_coco(make_content(annotation()), [good, {**good, **changes}])


def test_results_of_unknown_ids_are_named():
    good = {"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.5}
    for key, value in (("image_id", None), ("image_id", [1]), ("category_id", "1")):
        with pytest.raises(ValueError, match=f"{key} of the results must be .*Received 1 that"):
            evaluate_coco(make_content(annotation()), [{**good, key: value}])
    with pytest.raises(ValueError, match="results must be a list of dicts"):
        evaluate_coco(make_content(annotation()), [5])
    with pytest.raises(ValueError, match="results must be a list of dicts"):
        evaluate_coco(make_content(annotation()), {"annotations": [good]})


def test_masks_of_results_are_checked_before_pycocotools_reads_them():
    result = {
        "image_id": 1,
        "category_id": 1,
        "score": 0.5,
        "segmentation": {"size": [40, 60], "counts": "o" * 9},
    }
    truth = make_content(annotation(segmentation=polygon(*BOX)))
    with pytest.raises(ValueError, match="result at position 0, of image 1: the run lengths"):
        evaluate_coco(truth, [result], ("segm",))
