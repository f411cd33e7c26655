"""One of several processes that join each other, for test_processes.py.

KERAS_BACKEND=jax python tests/join_in_processes.py PORT INDEX COUNT
"""

import os
import sys

import jax
import keras
import numpy as np

from heads import processes
from heads.ops.assignment import assign_optimally


def check_gathering(index, count):
    own = {"name": "bär" * index, "values": [0.1] * index, "nothing": None}
    found = processes.gather(own)
    assert [len(each["values"]) for each in found] == list(range(count))
    assert found[index] == own
    assert processes.gather_batches([index, index + count][: 2 - index]) == list(range(count + 1))
    np.testing.assert_array_equal(processes.gather_numbers([7, index])[:, 1], range(count))


def check_calls_to_the_host(index, count):
    """Each process assigns its own rows, with the same result as one process with all rows."""
    random = np.random.default_rng(0)
    arrays = random.random((2 * count, 5, 3)).astype("float32"), random.random((2 * count, 3)) < 0.7
    with processes.without_the_others():
        expected = np.asarray(assign_optimally(*arrays))
    layout = keras.distribution.distribution().get_data_layout(arrays[0].shape).backend_layout
    rows = slice(2 * index, 2 * index + 2)
    shares = [jax.make_array_from_process_local_data(layout, array[rows]) for array in arrays]
    matches = jax.jit(lambda *joint: assign_optimally(*joint))(*shares)
    assert matches.shape == (2 * count, 5)
    found = np.concatenate([shard.data for shard in matches.addressable_shards])
    np.testing.assert_array_equal(found, expected[rows])
    assert (found >= 0).any()


def check_models(index):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    assert not model.weights[0].value.is_fully_addressable
    images = np.ones((1 + index, 3), "float32")  # not in step with the other processes
    kernel, bias = map(processes.read_array, model.weights)
    for change in (0.0, 1.0):
        model.weights[1].assign(bias + change)
        with processes.on_this_process(model) as copy:
            np.testing.assert_allclose(copy.predict_on_batch(images), images @ kernel + bias + change, 1e-5)
            assert copy is not model
            with processes.on_this_process(copy) as same:
                assert same is copy
    assert keras.distribution.distribution() is not None


def check_threads(earlier):
    """All threads started since then, those of gloo and JAX, have the policy that waits for its turn."""
    started = set(os.listdir("/proc/self/task")) - earlier
    assert len(started) > 2
    assert {os.sched_getscheduler(int(thread)) for thread in started} == {os.SCHED_BATCH}


def main(port, index, count):
    is_linux = hasattr(os, "SCHED_BATCH")
    earlier = set(os.listdir("/proc/self/task")) if is_linux else None
    processes.join_processes(f"127.0.0.1:{port}", index, count)
    assert processes.find_place() == (index, count)
    assert processes.count_devices() == count
    assert processes.split_batch(6) == (6 // count * index, 6 // count)
    check_gathering(index, count)
    if is_linux:
        check_threads(earlier)
    check_calls_to_the_host(index, count)
    check_models(index)
    processes.leave_processes()
    assert processes.find_place() == (0, 1)
    assert keras.distribution.distribution() is None
    sys.stdout.write("joined\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
