"""The script that scores a classifier: it must count what a loop over single pictures counts."""

import pathlib
import re
import sys

import numpy as np
import pytest
from PIL import Image

from van_backbones import VANClassifier
from van_backbones.classifier import preprocess_images

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import evaluate_classification

NUM_CLASSES = 7


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    model = VANClassifier("b0", num_classes=NUM_CLASSES)
    path = tmp_path_factory.mktemp("weights") / "van.weights.h5"
    model.save_weights(path)
    return model, path


def make_pictures(root, names):
    random = np.random.default_rng(0)
    pictures = []
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(2):
            image = random.integers(0, 255, (40 + 8 * index, 52, 3)).astype("uint8")
            Image.fromarray(image).save(root / name / f"{index}.png")
            pictures.append((image, label))
    return pictures


def run(capsys, *arguments):
    code = evaluate_classification.main([str(argument) for argument in arguments])
    return code, capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("names", [[str(label) for label in range(NUM_CLASSES)], list("gfedcba")[::-1]])
def test_scores_equal_a_loop(classifier, tmp_path, capsys, names):
    model, path = classifier
    pictures = make_pictures(tmp_path / "data", names)
    best, among_five = 0, 0
    for image, label in pictures:
        logits = np.asarray(model(preprocess_images(image[None], 32)))[0]
        order = list(np.argsort(-logits))
        best += order[0] == label
        among_five += label in order[:5]
    options = ("--weights", path, "--num-classes", NUM_CLASSES, "--image-size", 32, "--batch-size", 4)
    code, printed = run(capsys, "--data", tmp_path / "data", *options)
    assert code == 0
    top_1, top_5 = re.search(r"14 pictures: top-1 ([\d.]+)%, top-5 ([\d.]+)%", printed.out).groups()
    assert float(top_1) == pytest.approx(100 * best / 14, abs=0.01)
    assert float(top_5) == pytest.approx(100 * among_five / 14, abs=0.01)


def test_unreadable_pictures_are_named(classifier, tmp_path, capsys):
    make_pictures(tmp_path / "data", ["0", "1"])
    (tmp_path / "data" / "1" / "bad.jpg").write_bytes(b"no picture")
    options = ("--weights", classifier[1], "--num-classes", NUM_CLASSES, "--image-size", 32)
    code, printed = run(capsys, "--data", tmp_path / "data", *options)
    assert code == 1
    assert "4 pictures" in printed.out
    assert "bad.jpg" in printed.err


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "one folder per class"),
        (["9"], "class numbers 0 .. 6, or pass --num-classes. Received: 9"),
    ],
)
def test_folders_that_are_no_classes(tmp_path, capsys, names, message):
    make_pictures(tmp_path / "data", names)
    with pytest.raises(SystemExit):
        run(capsys, "--data", tmp_path / "data", "--num-classes", NUM_CLASSES)
    assert message in capsys.readouterr().err
