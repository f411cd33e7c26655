"""Several processes that train one model together, on JAX: the shares of each, and gathered results.

A process joins the others with `join_processes`, before Keras makes any array. From then on, the batches of
`heads.data` are its share of the joint batches, in the order that a single process would have, and the scores
of `heads.metrics` cover all pictures. A process that joins no others is the only one.
"""

import contextlib
import json
import os
import weakref

import keras
import numpy as np

from heads.ops.backends import keep_tensorflow_off_gpus

HEARTBEAT_SECONDS = 40  # a machine that is silent for this long counts as lost, and all processes end
JOIN_SECONDS = 600  # clusters start their machines one after the other
LEAVE_SECONDS = 3600  # the others wait while the first one draws

_place = (0, 1)
_copies = weakref.WeakKeyDictionary()


def join_processes(coordinator: str, index: int, count: int, device: int | None = None):
    """Joins the processes that train together; each calls it once, before anything else.

    Args:
        coordinator: "host:port" with the host of the process of index 0, and a free port there.
        index: This process's place among them, 0 .. count - 1.
        count: How many processes there are.
        device: Which of the machine's GPUs this process takes, from 0. None takes all visible ones.

    Raises:
        ValueError: On another backend than JAX, after JAX has made arrays, or for an `index` out of range.
    """
    global _place
    if keras.backend.backend() != "jax":
        raise ValueError(
            "several processes need Keras on JAX: set the environment variable KERAS_BACKEND=jax. "
            f"Received: {keras.backend.backend()}"
        )
    if not 0 <= index < count:
        raise ValueError(f"index must be 0 .. {count - 1}, one for each process. Received: {index}")
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    _wait_for_turns()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes=count,
            process_id=index,
            local_device_ids=None if device is None else [device],
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except RuntimeError as error:
        raise ValueError(
            f"process {index} of {count} could not join the others at {coordinator}: {error}"
        ) from error
    if jax.default_backend() != "cpu":
        keep_tensorflow_off_gpus()
    keras.distribution.set_distribution(keras.distribution.DataParallel(auto_shard_dataset=False))
    _place = (index, count)


def _wait_for_turns():
    """Keeps threads that are started from here on from interrupting each other, on Linux."""
    if not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    # If all cores are busy, gloo's thread wakes up while another one holds its lock, takes that one's core
    # and waits in vain for the lock until its time slice ends: 4 ms for each sum, which made steps twice as
    # long.
    with contextlib.suppress(OSError):  # a sandbox may forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def leave_processes():
    """Leaves the other processes: from here on this one works as if it were the only one."""
    global _place
    if _place[1] > 1:
        keras.distribution.set_distribution(None)
    _place = (0, 1)


def find_place() -> tuple[int, int]:
    """Returns (index, count): which process this is, and how many there are."""
    return _place


def is_first_process() -> bool:
    """Returns whether this process is the one that writes and prints."""
    return _place[0] == 0


def count_devices() -> int:
    """Returns the number of devices that share a batch."""
    if _place[1] == 1:
        return 1
    import jax

    return jax.device_count()


def split_batch(batch_size: int) -> tuple[int, int]:
    """Returns (start, size) of this process's share of a joint batch.

    Raises:
        ValueError: If the pictures cannot be divided equally.
    """
    index, count = _place
    if batch_size % count:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes, {count}. Received: {batch_size}"
        )
    size = batch_size // count
    return index * size, size


def find_own_pictures(num_pictures: int, batch_size: int) -> np.ndarray:
    """Returns the positions of the pictures that this process scores, int64: every `count`-th batch."""
    index, count = _place
    positions = np.arange(num_pictures, dtype=np.int64)
    return positions[positions // batch_size % count == index]


def gather_numbers(numbers) -> np.ndarray:
    """Returns the numbers of all processes, int32 (processes, n); all must call it at the same time.

    Args:
        numbers: n whole numbers.
    """
    numbers = np.array(numbers, np.int32)
    if _place[1] == 1:
        return numbers[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(numbers)


def gather(value) -> list:
    """Returns the values of all processes, in their order; all must call it at the same time.

    Args:
        value: Anything that JSON can hold, which loses no digits.
    """
    if _place[1] == 1:
        return [value]
    from jax.experimental import multihost_utils

    content = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = gather_numbers([len(content)])[:, 0]
    # Rounded up to powers of 2, because JAX compiles for each size.
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: len(content)] = content
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def gather_batches(values: list) -> list:
    """Returns the results of all batches of one pass, from all processes, in the order of the batches.

    Args:
        values: The result of each batch of this process (see `find_own_pictures`), as JSON can hold it.
    """
    return order_batches(gather(values))


def order_batches(rows: list) -> list:
    """Returns the results of all batches of one pass, in the order of the batches.

    Args:
        rows: What `gather` returned: a list for each process, with the results of its batches.
    """
    return [rows[batch % len(rows)][batch // len(rows)] for batch in range(sum(map(len, rows)))]


@contextlib.contextmanager
def without_the_others():
    """Lets Keras make arrays on this process alone until the block ends, as it needs to save a model."""
    if _place[1] == 1:
        yield
        return
    joint = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(joint)


@contextlib.contextmanager
def on_this_process(model):
    """Lets this process predict by itself, independently of the others.

    Args:
        model: A Keras model that the processes train together.

    Yields:
        A copy of the model with its current weights, on a device of this process; the model itself if this is
        the only process, or the weights are on this process already.
    """
    if _place[1] == 1:
        yield model
        return
    with without_the_others():
        yield model if _is_local(model) else _copy_model(model)


def read_array(variable) -> np.ndarray:
    """Returns the value of a variable, which all processes may share, without asking the others."""
    return np.asarray(variable.value)


def _is_local(model):
    return all(weight.value.is_fully_addressable for weight in getattr(model, "weights", ()))


def _copy_model(model):
    """Returns the copy of a model, which is made only once, so that its compiled functions are kept."""
    copy = _copies.get(model)
    if copy is None:
        copy = type(model).from_config(model.get_config())
        if model.compiled:
            # For losses and metrics, but without an optimizer's slots.
            copy.compile_from_config({**model.get_compile_config(), "optimizer": "sgd"})
        _copies[model] = copy
    copy.set_weights([read_array(weight) for weight in model.weights])
    return copy
