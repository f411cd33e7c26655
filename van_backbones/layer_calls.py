"""The inputs and outputs of layers inside a model, which Keras does not show."""

import contextlib


@contextlib.contextmanager
def watch_calls(layers, watch):
    """Passes the outputs of layers to a function at each call, until the `with` block ends.

    Other models and layers are not affected. Existing graphs are not traced again, so call the model itself
    instead of `predict`.

    Args:
        layers: the layers.
        watch: a function of the layer, its positional arguments and its outputs; what it returns replaces the
            outputs.
    """
    watched = []
    try:
        for layer in layers:
            # In the object's own dictionary, as Keras would track an attribute.
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
