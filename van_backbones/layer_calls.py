"""What goes in and out of layers inside of a model, which Keras shows nobody."""

import contextlib


@contextlib.contextmanager
def watch_calls(layers, watch):
    """Hands over what layers return, each time that one is called, until the block ends.

    Other models, and layers that share no object with these, are as they were. Graphs that were made before
    are not traced anew, so call the model itself, and not `predict`.

    Args:
        layers: the layers.
        watch: a function of the layer, its positional arguments and its outputs; what it returns takes the
            place of the outputs.
    """
    watched = []
    try:
        for layer in layers:
            # In the object's own dictionary: as an attribute, Keras would track it.
            vars(layer)["call"] = _wrap(layer, layer.call, watch)
            watched.append(layer)
        yield
    finally:
        for layer in watched:
            del vars(layer)["call"]


def _wrap(layer, call, watch):
    def watched_call(*args, **kwargs):
        return watch(layer, args, call(*args, **kwargs))

    return watched_call
