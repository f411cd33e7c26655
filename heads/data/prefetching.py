"""The end of every pipeline."""

import atexit
import gc
import sys

import tensorflow as tf

# Batches with masks are large: a few wait for the model, not as many as fit into memory.
WAITING_BATCHES = 2


def prefetch_batches(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the batches, made ahead of their use.

    Without tf.data's autotuning: its thread wakes up at growing intervals, of up to a minute, and whoever
    drops an iterator waits for it, which is at the end of every `fit` and `evaluate`. Parallel steps then run
    on all cores.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(WAITING_BATCHES).with_options(options)


@atexit.register
def _drop_last_error():
    """Lets a program end that was stopped by an error in the midst of its batches.

    Python keeps the error with its frames, hence the iterator, until no thread may enter Python any more. The
    iterator would then wait for its threads, and those for Python, for ever.
    """
    sys.last_exc = sys.last_type = sys.last_value = sys.last_traceback = None
    gc.collect()
