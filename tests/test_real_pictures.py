"""A few steps on real pictures: the losses fall, the pictures are drawn, the results can be scored."""

import csv
import json
import pathlib
import sys

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import finetune_segmentation
import train_detection

DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason="needs the pictures in ../shared/data"),
    pytest.mark.filterwarnings("default"),  # from TensorBoard, and for data with rare classes
]


def train(script, data, output, options):
    script.main(["--data", str(DATA / data), "--output", str(output), *options.split()])
    with open(output / "log.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_segmentation(tmp_path):
    options = "--crop-size 128 128 --batch-size 4 --steps 30 --evaluate-every 15"
    losses = train(finetune_segmentation, "facades", tmp_path, options)
    assert losses[-1] < losses[0]
    for name in ("predictions.png", "features.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_detection(tmp_path):
    options = "--image-size 160 --scale-range 0.8 1.25 --channels 64 --num-convs 1 --clip-norm 10"
    options += " --batch-size 4 --steps 40 --evaluate-every 20"
    losses = train(train_detection, "bccd", tmp_path, options)
    assert losses[-1] < losses[0]
    assert (tmp_path / "predictions.png").stat().st_size > 10_000
    truth = COCO(DATA / "bccd" / "annotations" / "instances_val.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results
    evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] >= 0
