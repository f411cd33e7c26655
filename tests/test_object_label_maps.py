import json

import numpy as np
import pytest
from format_folders import draw_shapes, make_labelme, write_coco, write_labelme, write_voc, write_yolo
from PIL import Image

from heads.data import (
    ObjectLabelMaps,
    SemanticAugmentation,
    SemanticFolder,
    SemanticShapes,
    open_detection_folder,
    open_semantic_folder,
    semantic_evaluation_batches,
    semantic_training_batches,
)


@pytest.fixture(scope="module")
def shapes():
    return draw_shapes(4)


def write_shapes(folder, *shapes, name="a"):
    """Writes a picture of 20 x 40 with labelme's polygons: (label, points)."""
    Image.new("RGB", (40, 20)).save(folder / f"{name}.jpg")
    shapes = [{"label": label, "points": points, "shape_type": "polygon"} for label, points in shapes]
    picture = {"file_name": f"{name}.jpg", "height": 20, "width": 40}
    (folder / f"{name}.json").write_text(json.dumps(make_labelme(picture, shapes)))


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


@pytest.mark.parametrize(
    ("write", "options"), [(write_coco, {}), (write_labelme, {}), (write_voc, {"with_masks": True})]
)
def test_label_maps_are_the_masks(shapes, tmp_path, write, options):
    detection, content, pixels = shapes
    write(tmp_path, content, pixels, **options)
    data = open_semantic_folder(tmp_path)
    assert isinstance(data, ObjectLabelMaps)
    assert data.layout.startswith("objects in ")
    assert data.class_names[0] == "background"
    counts = data.check(progress=False)
    scenes = detection.scenes
    order = sorted(range(4), key=lambda place: data.image_paths[place].stem)
    wanted_counts = np.zeros_like(counts)
    for scene_index, place in enumerate(order):
        scene = scenes[scene_index]
        wanted = np.zeros(scene["semantic"].shape, int)
        for mask, label in zip(scene["masks"], scene["labels"], strict=True):
            wanted[mask.astype(bool)] = data.class_names.index(detection.class_names[label])
        np.testing.assert_array_equal(data.draw(place), wanted)
        wanted_counts += np.bincount(wanted.ravel(), minlength=data.num_classes)
    np.testing.assert_array_equal(counts, wanted_counts)
    image, label = next(iter(data.load()))
    assert (image.dtype, label.dtype) == ("uint8", "int32")
    np.testing.assert_array_equal(label, data.draw(0))


def test_the_smaller_object_lies_on_top(tmp_path):
    write_shapes(
        tmp_path, ("cat", square(4, 4, 2)), ("dog", square(2, 2, 10)), ("background", square(6, 6, 2))
    )
    data = open_semantic_folder(tmp_path, split=None)
    assert data.class_names == ("background", "cat", "dog")  # the background is not a class of its own
    label_map = data.draw(0)
    assert (label_map[5, 5], label_map[3, 3], label_map[7, 7], label_map[15, 15]) == (1, 2, 0, 0)
    assert data.check(progress=False).tolist() == [800 - 100 + 4, 4, 92]


def test_crowds_have_no_truth(tmp_path):
    entry = {"image_id": 1, "category_id": 1, "segmentation": [[2, 2, 12, 2, 12, 12, 2, 12]]}
    annotations = [
        {**entry, "id": 1, "bbox": [2, 2, 10, 10], "iscrowd": 0},
        {**entry, "id": 2, "bbox": [8, 2, 10.5, 4], "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 20, "width": 40}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    write_coco(tmp_path, content, {1: np.zeros((20, 40, 3), np.uint8)})
    data = open_semantic_folder(tmp_path)
    label_map = data.draw(0)
    assert (label_map == 1).sum() == 100
    assert (label_map == 255).sum() == 4 * (19 - 12)  # a pixel that is partly in it counts
    assert data.check(progress=False).tolist() == [800 - 100 - 28, 100]


def test_training_and_splitting(tmp_path):
    write_labelme(tmp_path / "data", *draw_shapes(8)[1:], split=".")
    data = open_semantic_folder(tmp_path / "data", split=None)
    train, held_out = data.split(0.25)
    assert len(train) + len(held_out) == len(data) == 8
    assert {*train.image_paths} | {*held_out.image_paths} == {*data.image_paths}
    augment = SemanticAugmentation(crop_size=(32, 48))
    images, labels = next(iter(semantic_training_batches(train, 2, augment)))
    assert images.shape == (2, 32, 48, 3)
    assert labels.shape == (2, 32, 48)
    assert len(list(semantic_evaluation_batches(held_out))) == len(held_out)


# Finding.


def test_label_pictures_come_first(shapes, tmp_path):
    write_coco(tmp_path, *shapes[1:])
    scenes = SemanticShapes(4, (64, 96))
    (tmp_path / "labels/train").mkdir(parents=True)
    for number in range(4):
        picture = Image.fromarray(scenes[number]["semantic"].astype("uint8"))
        picture.save(tmp_path / f"labels/train/{number + 1}.png")
    names = scenes.class_names
    data = open_semantic_folder(tmp_path, class_names=names)
    assert isinstance(data, SemanticFolder)
    assert (data.layout, data.class_names) == ("images and labels", names)


def test_what_does_not_fit_is_refused(shapes, tmp_path):
    with pytest.raises(ValueError, match="holds neither label pictures nor outlines of objects") as error:
        open_semantic_folder(tmp_path)
    for text in ("- label pictures: images/<split>/", "- labelme", "Received: nothing"):
        assert text in str(error.value)
    with pytest.raises(ValueError, match="path must be a folder that exists"):
        open_semantic_folder(tmp_path / "nowhere")
    write_labelme(tmp_path, *shapes[1:])
    assert open_semantic_folder(tmp_path, None, num_channels=None).num_channels == 3
    with pytest.raises(ValueError, match=r"are for label pictures\. Received: labelme's format"):
        open_semantic_folder(tmp_path, class_names=("a", "b"))
    with pytest.raises(ValueError, match="source must have masks: with_masks=True"):
        ObjectLabelMaps(open_detection_folder(tmp_path))
    _, content, pixels = draw_shapes(2, with_masks=False)
    for entry in content["annotations"]:
        del entry["segmentation"]
    write_yolo(tmp_path / "boxes", content, pixels)
    with pytest.raises(ValueError, match="with_masks needs a file with segmentations"):
        open_semantic_folder(tmp_path / "boxes")
