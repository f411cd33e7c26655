import csv
import json

import h5py
import keras
import numpy as np
import pytest
from coco_truths import make_results, make_truth
from pycocotools import mask as run_lengths

from heads.metrics import CocoScores, encode_mask, predict_coco_results, save_results, to_coco_results

# Result lists


def make_detections(**changes):
    detections = {
        "boxes": np.array([[[1.5, 2, 11, 22], [3, 4, 5, 6], [0, 0, 0, 0]]] * 2, "float32"),
        "scores": np.array([[0.9, 0.5, 0], [0.75, 0.25, 0]], "float32"),
        "labels": np.array([[1, 0, -1], [0, -1, -1]], "int32"),
    }
    return {**detections, **changes}


def test_result_list_by_hand():
    expected = [
        {"image_id": 7, "category_id": 3, "bbox": [1.5, 2.0, 9.5, 20.0], "score": pytest.approx(0.9)},
        {"image_id": 7, "category_id": 0, "bbox": [3.0, 4.0, 2.0, 2.0], "score": 0.5},
        {"image_id": "b", "category_id": 0, "bbox": [1.5, 2.0, 9.5, 20.0], "score": 0.75},
    ]
    results = to_coco_results(make_detections(), (np.int64(7), "b"), np.array([0, 3]))
    assert results == expected
    assert json.loads(json.dumps(results)) == results
    tensors = {name: keras.ops.convert_to_tensor(value) for name, value in make_detections().items()}
    assert to_coco_results(tensors, (7, "b"), (0, 3)) == results
    nothing = {name: value[:, :0] for name, value in make_detections().items()}
    assert to_coco_results(nothing, (7, "b"), (0, 3)) == []


def test_result_list_pastes_masks():
    masks = np.zeros((2, 3, 28, 28), "float32")
    masks[0, 0] = 1
    masks[1, 0, :14] = 0.9  # the upper half
    boxes = np.zeros((2, 3, 4), "float32")
    boxes[0, 0], boxes[1, 0] = (10, 20, 38, 48), (4, 0, 32, 28)
    detections = make_detections(masks=masks, boxes=boxes, labels=np.array([[0, -1, -1]] * 2))
    sizes = np.array([[60, 50], [30, 40]])
    results = to_coco_results(detections, (1, 2), (5,), sizes)
    assert json.loads(json.dumps(results)) == results
    expected = np.zeros((60, 50)), np.zeros((30, 40))
    expected[0][20:48, 10:38] = 1
    expected[1][0:14, 4:32] = 1
    assert len(results) == 2
    for result, mask in zip(results, expected, strict=True):
        assert isinstance(result["segmentation"]["counts"], str)
        np.testing.assert_array_equal(run_lengths.decode(result["segmentation"]), mask)


def test_result_list_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"image_ids must have 2 ids. Received: 1"):
        to_coco_results(make_detections(), (1,), (0, 3))
    with pytest.raises(ValueError, match=r"up to 1. Received: 1 ids"):
        to_coco_results(make_detections(), (1, 2), (0,))
    for sizes in (None, [(5, 5)]):
        with pytest.raises(ValueError, match=r"image_sizes must have.*Received"):
            to_coco_results(make_detections(masks=np.zeros((2, 3, 28, 28))), (1, 2), (0, 3), sizes)


def test_encode_mask_round_trip():
    mask = np.random.default_rng(0).random((13, 17)) < 0.5
    for kind in ("bool", "uint8", "float32"):
        encoded = encode_mask(mask.astype(kind))
        assert encoded["size"] == [13, 17]
        np.testing.assert_array_equal(run_lengths.decode(encoded), mask)


def test_saved_results(tmp_path):
    results = [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 1.0, "segmentation": {}}]
    save_results(results, tmp_path / "all.json")
    assert json.loads((tmp_path / "all.json").read_text()) == results
    save_results(results, str(tmp_path / "bbox.json"), "bbox")
    assert "segmentation" not in json.loads((tmp_path / "bbox.json").read_text())[0]
    with pytest.raises(ValueError, match="'boxes'"):
        save_results(results, tmp_path / "x.json", "boxes")
    with pytest.raises(ValueError, match="JSON"):
        save_results([{"score": float("nan")}], tmp_path / "x.json")


# A model


class Detector(keras.Model):
    """Finds one object per image: its box is in the first four numbers of the image."""

    def __init__(self, masks=False):
        super().__init__()
        self.with_masks = masks
        self.shift = self.add_weight(shape=(), initializer="zeros")

    def call(self, inputs):
        images = inputs["images"] if isinstance(inputs, dict) else inputs
        return keras.ops.reshape(images, (keras.ops.shape(images)[0], -1))[:, None, :4] + self.shift

    def predict_step(self, data):
        boxes = super().predict_step(data)
        ones = keras.ops.ones_like(boxes[:, :, 0])
        detections = {"boxes": boxes, "scores": ones, "labels": keras.ops.cast(ones * 0, "int32")}
        if self.with_masks:
            detections["masks"] = keras.ops.ones((*keras.ops.shape(boxes)[:2], 28, 28))
        return detections


def make_batches(boxes, size=(8, 8), batch=2, **sizes):
    """Returns batches of images that contain the detector's box, xyxy."""
    images = np.zeros((len(boxes), *size, 3), "float32")
    images.reshape(len(boxes), -1)[:, :4] = boxes
    batches = []
    for start in range(0, len(boxes), batch):
        part = slice(start, start + batch)
        extra = {name: np.asarray(value, "int32")[part] for name, value in sizes.items()}
        inputs = {"images": images[part], **extra} if sizes else images[part]
        batches.append((inputs, np.asarray(boxes, "float32")[part, None]))
    return batches


BOXES = [(10, 10, 30, 30), (20, 20, 60, 70), (5, 5, 90, 30)]
BOXES_XYWH = [(10, 10, 20, 20), (20, 20, 40, 50), (5, 5, 85, 25)]


def test_predicted_results_of_tuples_and_of_inputs_alone():
    expected = make_results([(n, 4, list(map(float, box)), 1.0) for n, box in enumerate(BOXES_XYWH)])
    batches = make_batches(BOXES)
    assert predict_coco_results(Detector(), batches, range(3), (4,)) == expected
    assert predict_coco_results(Detector(), [inputs for inputs, _ in batches], range(3), (4,)) == expected


def test_predicted_results_of_a_dataset_with_progress(capsys):
    tf = pytest.importorskip("tensorflow")
    signature = (
        {
            "images": tf.TensorSpec((None, None, None, 3)),
            "original_sizes": tf.TensorSpec((None, 2), tf.int32),
        },
        tf.TensorSpec((None, 1, 4)),
    )
    batches = make_batches(BOXES, original_sizes=[(80, 90)] * 3)
    dataset = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=signature)
    results = predict_coco_results(Detector(masks=True), dataset, range(3), (4,), progress=True)
    assert [result["segmentation"]["size"] for result in results] == [[80, 90]] * 3
    assert "batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({}, (50, 60)),
        ({"image_sizes": [(40, 41), (42, 43)]}, (40, 41)),
        ({"image_sizes": [(40, 41), (42, 43)], "original_sizes": [(70, 71), (72, 73)]}, (70, 71)),
    ],
)
def test_masks_are_as_large_as_the_picture(sizes, expected):
    batches = make_batches(BOXES[:2], size=(50, 60), **sizes)
    results = predict_coco_results(Detector(masks=True), batches, (1, 2), (4,))
    assert results[0]["segmentation"]["size"] == list(expected)


def test_the_number_of_images_must_fit():
    batches = make_batches(BOXES)
    with pytest.raises(ValueError, match=r"each of 3 pictures of the dataset. Received: 4 ids"):
        predict_coco_results(Detector(), batches, range(4), (4,))

    def forever():
        while True:
            yield batches[0]

    with pytest.raises(ValueError, match="more than 2"):
        predict_coco_results(Detector(), forever(), range(2), (4,))


# The callback


def make_callback(**changes):
    truth = make_truth(
        [(n, 0, box) for n, box in enumerate(BOXES_XYWH)], image_ids=range(3), category_ids=(0,)
    )
    arguments = {"dataset": make_batches(BOXES), "truth": truth, "image_ids": range(3), "category_ids": (0,)}
    return CocoScores(**{**arguments, **changes})


def fit(callbacks, epochs=1, verbose=0):
    model = Detector()
    # Each epoch moves all boxes by one pixel.
    model.compile(keras.optimizers.SGD(1.0), loss=lambda truth, found: keras.ops.mean(found, axis=(1, 2)))
    images, boxes = make_batches(BOXES, batch=3)[0]
    return model.fit(images, boxes, batch_size=3, epochs=epochs, callbacks=callbacks, verbose=verbose)


def test_callback_logs_scores_for_later_callbacks(tmp_path):
    rows = tmp_path / "scores.csv"
    best = tmp_path / "best.weights.h5"
    callbacks = [
        make_callback(results_path=tmp_path / "results.json"),
        keras.callbacks.CSVLogger(rows),
        keras.callbacks.ModelCheckpoint(
            best, "val_bbox_AP", mode="max", save_best_only=True, save_weights_only=True
        ),
    ]
    history = fit(callbacks, epochs=2).history
    assert 1 > history["val_bbox_AP"][0] > history["val_bbox_AP"][1] > 0
    assert len(history["val_bbox_AR_medium"]) == 2
    with rows.open() as file:
        logged = list(csv.DictReader(file))
    assert [float(row["val_bbox_AP50"]) for row in logged] == history["val_bbox_AP50"]
    assert best.exists()
    assert callbacks[0].last_scores["bbox_AP_per_class"].keys() == {"class 0"}
    assert len(json.loads((tmp_path / "results.json").read_text())) == 3


def test_callback_scores_the_model_as_it_is():
    callback = make_callback()
    callback.set_model(Detector())
    callback.set_params({"verbose": 0})
    logs = {"loss": 3.0}
    callback.on_epoch_end(0, logs)
    assert logs["val_bbox_AP"] == pytest.approx(1)
    assert "val_bbox_AP_per_class" not in logs
    callback.model.shift.assign(80.0)
    callback.on_epoch_end(1, logs)
    assert logs["val_bbox_AP"] == 0
    assert logs["loss"] == 3


def test_callback_scores_the_first_and_each_nth_epoch():
    """In between, the last scores remain: NaN would be the best for ever, and CSVLogger needs all columns."""
    history = fit([make_callback(every=3)], epochs=7).history
    scores = history["val_bbox_AP"]
    assert scores[0] == scores[1] > scores[2] == scores[3] == scores[4] > scores[5] == scores[6] > 0
    assert all(len(values) == 7 for values in history.values())


def test_best_model_is_the_best_scored(tmp_path):
    """Boxes that drift towards the truth: the last scored epoch is the best, and EarlyStopping sees it."""
    best = tmp_path / "best.weights.h5"
    callback = make_callback(dataset=make_batches(np.array(BOXES) + 6), every=2)
    checkpoint = keras.callbacks.ModelCheckpoint(
        best, "val_bbox_AP", mode="max", save_best_only=True, save_weights_only=True
    )
    stop = keras.callbacks.EarlyStopping("val_bbox_AP", mode="max", patience=2)
    history = fit([callback, checkpoint, stop], epochs=6).history
    assert len(history["loss"]) == 6
    with h5py.File(best) as file:
        assert float(file["vars/0"][()]) == -6


def test_callback_begins_anew_with_each_training():
    callback = make_callback(every=2)
    fit([callback])
    first = callback.last_scores
    assert fit([callback]).history["val_bbox_AP"] == [first["bbox_AP"]]
    assert callback.last_scores is not first


def test_callback_does_not_log_what_cannot_be_scored():
    history = fit([make_callback()]).history
    assert "val_bbox_AP_medium" in history
    assert not {"val_bbox_AP_large", "val_bbox_AR_large"} & history.keys()
    assert not np.isnan([value for values in history.values() for value in values]).any()


@pytest.mark.parametrize("objects", [[], [(0, 0, BOXES_XYWH[0])], [(1, 0, BOXES_XYWH[0])]])
def test_callback_refuses_a_truth_with_nothing_to_score(objects):
    """No annotations, only crowds, or only objects on other pictures."""
    truth = make_truth(objects, image_ids=range(3), category_ids=(0,))
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = int(annotation["image_id"] == 0)
    with pytest.raises(ValueError, match=r"truth must have annotations of objects.*on 1 pictures"):
        make_callback(truth=truth, dataset=make_batches(BOXES[:1]), image_ids=[0])


def test_results_path_is_prepared_at_once(tmp_path):
    path = tmp_path / "new" / "folder" / "results.json"
    callback = make_callback(results_path=path)
    assert path.parent.is_dir()
    with pytest.raises(ValueError, match=r"results_path must be a file. Received: the folder"):
        make_callback(results_path=path.parent)
    fit([callback])
    assert [each.name for each in path.parent.iterdir()] == ["results.json"]
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        save_results([{"score": float("nan")}], path)
    assert path.read_text() == before


def test_callback_scores_only_the_images_it_was_given(capsys):
    callback = make_callback(dataset=make_batches(BOXES[:1]), image_ids=[0])
    callback.set_model(Detector())
    callback.set_params({"verbose": 1})
    logs = {}
    callback.on_epoch_end(0, logs)
    assert logs["val_bbox_AP"] == pytest.approx(1)
    printed = "\nScoring the held-out data ...\n\nEpoch 1: bbox AP 100.00%, AP50 100.00% (on 1 of 3 images)\n"
    assert capsys.readouterr().out == printed


def test_callback_is_as_quiet_as_fit(capsys):
    fit([make_callback()], verbose=0)
    assert capsys.readouterr().out == ""
    fit([make_callback()], verbose=2)
    assert capsys.readouterr().out.count("Epoch 1: bbox AP") == 1


def test_callback_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"image_ids.*\[3\]"):
        make_callback(image_ids=range(4))
    with pytest.raises(ValueError, match=r"category_ids.*\[1\]"):
        make_callback(category_ids=(0, 1))
    for every in (0, 1.5, None):
        with pytest.raises(ValueError, match=f"every must be .*at least 1. Received: {every}"):
            make_callback(every=every)
    for limits in ((), (0, 10), (1, 10.5), 100, ("1",)):
        with pytest.raises(ValueError, match="max_detections must be whole numbers, at least 1"):
            make_callback(max_detections=limits)
    with pytest.raises(ValueError, match=r"each picture once. Received: 4 ids, 3 different"):
        make_callback(image_ids=[0, 1, 2, 0])
    callback = make_callback()
    callback.set_model(Detector())
    callback.model.num_classes = 2
    with pytest.raises(ValueError, match=r"each of the model's 2 classes. Received: 1 ids"):
        callback.on_train_begin()
    with pytest.raises(ValueError, match="kinds must be"):
        make_callback(kinds=("boxes",))
