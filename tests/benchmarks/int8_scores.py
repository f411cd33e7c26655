"""Scores a trained model and its exports, in float32 and int8, on the held-out pictures of a data folder.

    python -m tests.benchmarks.int8_scores runs/blood/best.keras --data ../shared/data/bccd

Segmenters are scored by mean IoU on whole pictures, detectors by the AP of boxes on pictures that are fitted
into --image-size, all by `heads.metrics`. Training pictures calibrate, without augmentation.
"""

import argparse
import os
import pathlib
import tempfile

import numpy as np

from tests.benchmarks.results import add_output, write_results

SUFFIXES = {"openvino": ".xml", "onnx": ".onnx", "litert": ".tflite"}


def main(argv=None):
    """Prints the scores of the model and of each export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file of a segmenter or a detector")
    add("--data", required=True)
    add("--image-size", type=int, nargs=2, help="of detectors' pictures; default: 192 256")
    add("--formats", nargs="+", choices=SUFFIXES, default=["openvino"])
    add("--pictures", type=int, default=100, help="for calibration; default: %(default)s")
    add_output(parser)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras

    import heads
    from van_backbones.exporting import export, load_export

    model = keras.saving.load_model(arguments.model, compile=False)
    is_segmenter = isinstance(model, (heads.SemanticFPN, heads.UPerNet))
    task = (Segmentation if is_segmenter else Detection)(arguments)
    calibration = task.list_pictures(arguments.pictures)
    found = {"Keras": task.score(model)}
    print(f"Keras: {found['Keras']}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for format in arguments.formats:
            for name, pictures in (("float32", None), ("int8", calibration)):
                path = pathlib.Path(folder) / f"{name}{SUFFIXES[format]}"
                export(model, path, format, task.image_size, 1, calibration=pictures)
                found[f"{format} {name}"] = task.score(task.wrap(load_export(path)))
                print(f"{format} {name}: {found[f'{format} {name}']}", flush=True)
    case = f"{arguments.model.parent.name} {type(model).__name__} {pathlib.Path(arguments.data).name}"
    rows = [
        (case, *(title.split() if " " in title else (title, "float32")), quantity, value)
        for title, scores in found.items()
        for quantity, value in scores.items()
    ]
    write_results(arguments.output, "int8_scores", rows)


class Segmentation:
    """Scores of segmenters."""

    image_size = (None, None)

    def __init__(self, arguments):
        from heads.data import open_semantic_folder

        self.training, self.validation = (
            open_semantic_folder(arguments.data, split) for split in ("train", "val")
        )

    def list_pictures(self, count):
        """Returns at most so many batches of one training picture."""
        from heads.data import semantic_evaluation_batches

        batches = semantic_evaluation_batches(self.training).take(count)
        return [read_pixels(images) for images, _ in batches.as_numpy_iterator()]

    def score(self, model):
        """Returns quantity -> percent."""
        from heads.data import semantic_evaluation_batches
        from heads.metrics import evaluate_semantic

        scores = evaluate_semantic(model, semantic_evaluation_batches(self.validation))
        return {"mean IoU": 100 * scores["mean_iou"]}

    def wrap(self, run):
        """Returns an export as `evaluate_semantic` takes a model."""

        def predict(images):
            return run(read_pixels(images))["outputs"]

        return Exported(predict, self.validation.num_classes)


class Detection:
    """Scores of detectors."""

    def __init__(self, arguments):
        from heads.data import CocoDataset

        data = pathlib.Path(arguments.data)
        self.training, self.validation = (
            CocoDataset(data / f"annotations/instances_{split}.json", data / "images" / split)
            for split in ("train", "val")
        )
        self.image_size = tuple(arguments.image_size or (192, 256))

    def list_pictures(self, count):
        """Returns at most so many batches of one training picture."""
        batches = self.make_batches(self.training).take(count)
        return [read_pixels(inputs["images"]) for inputs, _ in batches.as_numpy_iterator()]

    def make_batches(self, source):
        """Returns batches of one picture."""
        from heads.data import detection_evaluation_batches

        return detection_evaluation_batches(source, image_size=self.image_size)

    def score(self, model):
        """Returns quantity -> percent."""
        from heads.metrics import evaluate_coco, predict_coco_results

        ids = self.validation.image_ids, self.validation.category_ids
        results = predict_coco_results(model, self.make_batches(self.validation), *ids)
        return {"AP": 100 * evaluate_coco(self.validation.path, results)["bbox_AP"]}

    def wrap(self, run):
        """Returns an export as `predict_coco_results` takes a model."""
        from heads.ops.selection import restore_boxes

        def predict(inputs):
            found = {name: np.asarray(values) for name, values in run(read_pixels(inputs["images"])).items()}
            return restore_boxes(found, inputs["image_sizes"], inputs["original_sizes"])

        return Exported(predict, self.validation.num_classes)


class Exported:
    """A function with the names by which `heads.metrics` knows models."""

    def __init__(self, predict, num_classes):
        self.predict_on_batch, self.num_classes = predict, num_classes


def read_pixels(images):
    """Returns images as exports take them."""
    return np.asarray(images).round().astype("uint8")


if __name__ == "__main__":
    main()
