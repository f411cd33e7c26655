import keras
import numpy as np
import pytest

from heads.training.states import States


def build_model(num_dropouts=2):
    layers = [keras.layers.Dropout(0.5, seed=3) for _ in range(num_dropouts)]
    model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def read_seeds(model):
    return [np.asarray(layer.seed_generator.state).tolist() for layer in model.layers[:-1]]


def save(states, model, step):
    with states.write(model, {"step": step, "rows": [step]}):
        pass


def restore(states, model):
    said = []
    return states.restore(model, lambda record: None, said.append), said


def test_a_state_holds_weights_optimizer_random_numbers_and_its_record(tmp_path):
    model = build_model()
    model.train_on_batch(np.ones((4, 8)), np.ones((4, 1)))
    assert read_seeds(model) == [[3, 1], [3, 1]]
    save(States(tmp_path, 2), model, 1)
    other = build_model()
    (record, path), said = restore(States(tmp_path, 2), other)
    assert (record["step"], record["rows"], path, said) == (1, [1], tmp_path / "latest.weights.h5", [])
    assert read_seeds(other) == [[3, 1], [3, 1]]
    for ours, theirs in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    # And what is drawn next is the same.
    losses = [float(each.train_on_batch(np.ones((4, 8)), np.ones((4, 1)))) for each in (model, other)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    states, model = States(tmp_path, keep), build_model()
    for step in (5, 9, 10, 200):
        save(states, model, step)
    names = [f"step-{step:09d}.weights.h5" for step in (10, 9)][: keep - 1]
    assert [path.name for path in states.older] == names
    assert len(list(tmp_path.iterdir())) == keep


def test_a_broken_state_is_told_and_does_not_become_an_older_one(tmp_path):
    states, model = States(tmp_path, 2), build_model()
    save(states, model, 1)
    save(states, model, 2)
    states.latest.write_bytes(b"torn")
    states = States(tmp_path, 2)
    (record, path), said = restore(states, model)
    assert (record["step"], path.name) == (1, "step-000000001.weights.h5")
    assert len(said) == 1
    assert f"{states.latest} cannot be read" in said[0]
    save(states, model, 2)
    assert [path.name for path in states.older] == ["step-000000001.weights.h5"]


def test_a_state_of_another_model_is_not_half_used(tmp_path):
    save(States(tmp_path, 2), build_model(num_dropouts=3), 1)
    with pytest.raises(ValueError, match="3 random number generators, and the model has 2"):
        restore(States(tmp_path, 2), build_model())


def test_a_block_that_fails_leaves_the_state_as_it_was(tmp_path):
    states, model = States(tmp_path, 2), build_model()
    save(states, model, 1)
    before = states.latest.read_bytes()
    with pytest.raises(OSError, match="full"), states.write(model, {"step": 2}):
        raise OSError("full")
    assert states.latest.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["latest.weights.h5"]


def test_nothing_to_restore(tmp_path):
    assert restore(States(tmp_path / "none", 2), build_model()) == (None, [])
