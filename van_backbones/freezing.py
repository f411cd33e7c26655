"""Which parts of a model are frozen, so that a model that is built again can have it so."""


def list_frozen(model):
    """Returns the paths of the parts with weights that are not trainable, a list of texts."""
    return [path for path, part in _walk(model) if not part.trainable]


def freeze_parts(model, paths):
    """Makes the parts at these paths not trainable, and all others trainable.

    Raises:
        ValueError: For a path that the model does not have.
    """
    parts = dict(_walk(model))
    unknown = sorted(set(paths) - set(parts))
    if unknown:
        raise ValueError(f"frozen_parts must be parts of the model {model.name}. Received: {unknown}")
    for path, part in parts.items():  # what holds others first, as it passes its state on to them
        part.trainable = path not in paths


def _walk(layer, prefix=""):
    """Yields (path, part) of all parts with weights; the others may have a new name in each model."""
    for part in layer._layers:
        if part.weights:
            yield f"{prefix}{part.name}", part
            yield from _walk(part, f"{prefix}{part.name}/")
