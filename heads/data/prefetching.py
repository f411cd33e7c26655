"""The end of every pipeline."""

import tensorflow as tf

# Batches with masks are large: a few wait for the model, not as many as fit into memory.
WAITING_BATCHES = 2


def prefetch_batches(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Gives the batches, made ahead of their use.

    Without tf.data's autotuning: its thread wakes up at growing intervals, of up to a minute, and whoever
    drops an iterator waits for it, which is at the end of every `fit` and `evaluate`. Parallel steps then run
    on all cores.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(WAITING_BATCHES).with_options(options)
