import json

import numpy as np
import tensorflow as tf
from PIL import Image
from pycocotools.coco import COCO

from heads.data.coco import CocoDataset
from heads.data.detection_batches import detection_evaluation_batches, detection_training_batches
from heads.data.detection_moves import DetectionAugmentation, count_runs
from heads.data.shapes.detection import DetectionShapes
from heads.data.shapes.scenes import THING_NAMES, draw_scene


def test_shapes_are_the_things_of_the_scenes():
    source = DetectionShapes(3, (48, 64), seed=5, with_masks=True)
    assert (source.class_names, source.num_classes, len(source)) == (THING_NAMES, len(THING_NAMES), 3)
    assert source.image_sizes.tolist() == [[48, 64]] * 3
    batches = list(detection_evaluation_batches(source, image_size=(48, 64)))
    assert len(batches) == 3
    for index, (inputs, targets) in enumerate(batches):
        scene = draw_scene((5, index), (48, 64))
        assert len(scene["labels"]) > 0
        np.testing.assert_array_equal(inputs["images"][0], scene["image"])
        for key in ("boxes", "labels", "masks"):
            np.testing.assert_array_equal(targets[key][0], scene[key])
    counts = sum(np.bincount(targets["labels"][0], minlength=len(THING_NAMES)) for _, targets in batches)
    np.testing.assert_array_equal(source.check(), counts)
    # If no batch was made before, the masks are drawn when they are asked for.
    fresh = DetectionShapes(3, (48, 64), seed=5, with_masks=True).load_segmentations(2)
    np.testing.assert_array_equal(fresh[0]["counts"], count_runs(scene["masks"][0])["counts"])


def test_shapes_as_coco():
    source = DetectionShapes(3, (48, 64), seed=5)
    inputs, targets = next(iter(detection_training_batches(source, 2, DetectionAugmentation((48,)))))
    assert inputs["images"].shape == (2, 64, 64, 3)
    assert "masks" not in targets
    truth = COCO()
    truth.dataset = source.to_coco()
    truth.createIndex()
    assert truth.getImgIds() == source.image_ids
    assert [category["name"] for category in truth.loadCats(source.category_ids)] == list(THING_NAMES)
    for index, image_id in enumerate(source.image_ids):
        scene = draw_scene((5, index), (48, 64))
        annotations = truth.loadAnns(truth.getAnnIds(image_id))
        assert [source.category_ids.index(entry["category_id"]) for entry in annotations] == scene[
            "labels"
        ].tolist()
        for entry, box, mask in zip(annotations, scene["boxes"], scene["masks"], strict=True):
            np.testing.assert_array_equal(truth.annToMask(entry), mask)
            assert entry["area"] == mask.sum()
            x, y, width, height = entry["bbox"]
            assert [x, y, x + width, y + height] == box.tolist()
    assert min(truth.anns) == 1


def test_shapes_written_as_coco_are_read_back(tmp_path):
    source = DetectionShapes(2, (48, 64), with_masks=True)
    content = source.to_coco()
    (tmp_path / "shapes.json").write_text(json.dumps(content))
    for index, entry in enumerate(content["images"]):
        Image.fromarray(draw_scene((0, index), (48, 64))["image"]).save(tmp_path / entry["file_name"])
    read = CocoDataset(tmp_path / "shapes.json", tmp_path, with_masks=True)
    np.testing.assert_array_equal(read.check(progress=False), source.check())
    augment = DetectionAugmentation(image_size=(40, 40), scale_range=(0.8, 1.5))
    batches = (detection_training_batches(found, 2, augment).take(2) for found in (source, read))
    for first, second in zip(*batches, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, first, second)
