"""The last step of every pipeline: prefetching."""

import atexit
import gc
import sys

import tensorflow as tf

# Batches with masks are large: only a few may wait for the model.
WAITING_BATCHES = 2


def prefetch_batches(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the batches, made ahead of their use.

    Without tf.data's autotuning: its thread wakes up at growing intervals, of up to a minute, and dropping an
    iterator, as at the end of every `fit` and `evaluate`, waits for it. Without autotuning, parallel steps
    run on all cores.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(WAITING_BATCHES).with_options(options)


@atexit.register
def _drop_last_error():
    """Lets a program exit after an error in the middle of its batches.

    Python keeps the error with its frames, and so the iterator, until no thread may enter Python any more.
    The iterator would then wait forever for its threads, which wait for Python.
    """
    sys.last_exc = sys.last_type = sys.last_value = sys.last_traceback = None
    gc.collect()
