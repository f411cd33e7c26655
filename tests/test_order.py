import json
import pathlib
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from heads.data import (
    CocoDataset,
    DetectionAugmentation,
    DetectionShapes,
    SemanticFolder,
    SemanticShapes,
    detection_training_batches,
    find_training_pictures,
    semantic_training_batches,
)
from heads.data.order import BatchOrder

# Which pictures a batch holds

GROUPINGS = {
    "one": lambda count: np.zeros(count, int),
    "two": lambda count: (np.arange(count) % 3 == 0).astype(int),
    "a lone one": lambda count: (np.arange(count) == count // 2).astype(int),
    "four": lambda count: np.arange(count) % 4,
}


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_every_picture_once_an_epoch(grouping, seed):
    for count in (1, 2, 5, 8, 13, 16, 17, 31, 32, 33):
        groups = GROUPINGS[grouping](count)
        for batch_size in (1, 2, 3, 4, 8, 16):
            order = BatchOrder(groups, batch_size, seed)
            steps = 3 * count + 5
            batches = np.array([order.find(step) for step in range(steps)])
            assert batches.shape == (steps, batch_size)
            num_epochs = batches.size // count
            epochs = batches.ravel()[: num_epochs * count].reshape(num_epochs, count)
            np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(count), (num_epochs, 1)))
            if count >= batch_size:
                assert all(len(set(batch)) == batch_size for batch in batches.tolist())
                mixed = sum(len(set(groups[batch])) > 1 for batch in batches)
                assert mixed <= (num_epochs + 1) * len(set(groups))
            if seed is None and grouping == "one":
                np.testing.assert_array_equal(batches.ravel(), np.arange(batches.size) % count)
            elif seed is not None and count > 8:
                assert len({epoch.tobytes() for epoch in epochs}) == num_epochs


@pytest.mark.parametrize("count", [3, 16, 23, 30, 31, 200])
def test_an_order_is_a_function_of_the_step(count):
    groups = GROUPINGS["two"](count)
    order = BatchOrder(groups, 16, 5)
    batches = [order.find(step) for step in range(60)]
    for step in (59, 0, 31, 30, 7):
        np.testing.assert_array_equal(BatchOrder(groups, 16, 5).find(step), batches[step])
    others = [BatchOrder(groups, 16, 6).find(step) for step in range(60)]
    assert not np.array_equal(batches, others)


def test_groups_that_fill_their_batches_are_not_mixed():
    groups = np.arange(24) % 3 == 0
    order = BatchOrder(groups, 4, 1)
    assert all(len(set(groups[order.find(step)])) == 1 for step in range(60))


def test_far_steps_are_found_at_once():
    groups = np.arange(118_287) % 4 == 0
    order = BatchOrder(groups, 16, 0)
    start = time.perf_counter()
    order.find(1_000_000)
    assert time.perf_counter() - start < 0.5  # 0.03 s on an idle core


def test_pictures_of_a_step():
    scenes = SemanticShapes(5, 32)
    assert find_training_pictures(scenes, 2, 1, shuffle=False) == [2, 3]
    shuffled = [find_training_pictures(scenes, 5, 0, seed=seed) for seed in (0, 1)]
    assert shuffled[0] != shuffled[1]
    assert sorted(shuffled[0]) == list(range(5))


def write_picture(path, *shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros(shape, np.uint8)).save(path)


def test_pictures_of_a_step_are_those_of_the_batch(tmp_path):
    sizes = {"a.png": (8, 16), "b.png": (8, 24), "c.png": (8, 32), "d.png": (16, 8)}
    entries = [
        {"id": index, "file_name": name, "height": height, "width": width}
        for index, (name, (height, width)) in enumerate(sizes.items())
    ]
    content = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    for name, size in sizes.items():
        write_picture(tmp_path / name, *size, 3)
    dataset = CocoDataset(tmp_path / "coco.json", tmp_path)
    augment = DetectionAugmentation(8, long_side=64, flip=False)
    for step, (inputs, _) in enumerate(detection_training_batches(dataset, 2, augment, seed=4).take(6)):
        paths = find_training_pictures(dataset, 2, step, seed=4, group_by_ratio=True)
        assert [sizes[pathlib.Path(path).name] for path in paths] == [
            tuple(size) for size in inputs["image_sizes"].numpy()
        ]


def test_pictures_of_a_folder(tmp_path):
    for name in ("0.png", "1.png", "2.png"):
        write_picture(tmp_path / "images" / "train" / name, 4, 4, 3)
        write_picture(tmp_path / "labels" / "train" / name, 4, 4)
    folder = SemanticFolder(tmp_path, class_names=("a", "b"))
    found = find_training_pictures(folder, 2, 1, shuffle=False)
    assert found == [str(tmp_path / "images" / "train" / name) for name in ("2.png", "0.png")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, "step must be at least 0. Received: -1"),
        ({"step": 1.0}, "step must be a whole number, at least 0. Received: 1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1. Received: 0"),
        ({"seed": -1}, "seed must be a whole number, 0 to .*Received: -1"),
        ({"source": []}, "source must hold at least one picture"),
        ({"source": iter(())}, "source must have a length"),
    ],
)
def test_faulty_questions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_training_pictures(**{"source": SemanticShapes(2, 32), "batch_size": 1, "step": 0, **arguments})


# The stream of batches


def add_noise(image, label, seed):
    return tf.cast(image, tf.float32) + tf.random.stateless_uniform((), seed), label


def semantic_batches(**options):
    return semantic_training_batches(SemanticShapes(7, 32), 2, add_noise, **{"seed": 3, **options})


def detection_batches(**options):
    source = DetectionShapes(7, 32, with_masks=True)
    augment = DetectionAugmentation((32, 40))
    return detection_training_batches(source, 2, augment, **{"seed": 3, **options})


def take(dataset, count):
    """Bytes of each batch."""
    return [
        b"".join(value.numpy().tobytes() for value in tf.nest.flatten(batch)) for batch in dataset.take(count)
    ]


@pytest.mark.parametrize("make", [semantic_batches, detection_batches])
def test_passes_go_on_where_the_last_one_stopped(make):
    uninterrupted = take(make(), 9)
    assert len(set(uninterrupted)) == 9
    batches = make()
    assert take(batches, 1) + take(batches, 3) + take(batches, 5) == uninterrupted
    assert take(make(first_step=5), 4) == uninterrupted[5:]
    assert batches.cardinality() == tf.data.INFINITE_CARDINALITY


def test_two_iterators_in_turns():
    uninterrupted = take(semantic_batches(), 5)
    batches = semantic_batches()
    first, second = iter(batches), iter(batches)
    drawn = [
        uninterrupted.index(b"".join(value.numpy().tobytes() for value in next(iterator)))
        for iterator in (first, second, first, first, second)
    ]
    assert drawn == [0, 1, 1, 2, 2]
    assert take(batches, 1) == [uninterrupted[3]]


def test_a_failed_picture_moves_nothing():
    class Failing(SemanticShapes):
        fails = True

        def __getitem__(self, index):
            if self.fails:
                raise ValueError("no picture")
            return super().__getitem__(index)

    source = Failing(4, 32)
    batches = semantic_training_batches(source, 2, add_noise, seed=3)
    for _ in range(2):
        with pytest.raises(tf.errors.InvalidArgumentError, match="no picture"):
            take(batches, 1)
    source.fails = False
    expected = semantic_training_batches(SemanticShapes(4, 32), 2, add_noise, seed=3)
    assert take(batches, 3) == take(expected, 3)


def test_fits_go_on_in_the_data():
    """Keras makes an iterator for each `fit`, also if the dataset was mapped before."""
    seen = []

    def note(images, labels):
        def keep(images):
            seen.append(images.tobytes())
            return images

        return tf.ensure_shape(tf.numpy_function(keep, [images], tf.float32), images.shape), labels

    expected = [images.numpy().tobytes() for images, _ in semantic_batches().take(7)]
    batches = semantic_batches()
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(10, 1)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255))
    options = {"verbose": 0, "shuffle": False}
    model.fit(batches.map(note), steps_per_epoch=1, epochs=3, **options)
    model.fit(batches.map(note), steps_per_epoch=2, **options)
    assert seen == expected[:5]
    model.fit(batches, steps_per_epoch=1, **options)
    assert next(iter(batches))[0].numpy().tobytes() == expected[6]


@pytest.mark.parametrize("make", [semantic_batches, detection_batches])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("first_step", -1, "first_step must be at least 0. Received: -1"),
        ("first_step", True, "first_step must be a whole number"),
        ("seed", 0.5, "seed must be a whole number"),
        ("seed", -2, "seed must be .*Received: -2"),
        ("seed", 2**31, "seed must be"),
        ("shuffle", "no", "shuffle must be True or False. Received: 'no'"),
    ],
)
def test_faulty_streams_are_refused(make, option, value, message):
    with pytest.raises(ValueError, match=message):
        make(**{option: value})
