"""Which parts of a model are frozen, so that a model rebuilt from its config is frozen alike."""


def list_frozen(model):
    """Returns the paths of the parts with weights that are frozen, a list of strings."""
    return [path for path, part in _walk(model) if not part.trainable]


def freeze_parts(model, paths):
    """Makes the parts at these paths not trainable, and all others trainable.

    Raises:
        ValueError: for a path that the model does not have.
    """
    parts = dict(_walk(model))
    unknown = sorted(set(paths) - set(parts))
    if unknown:
        raise ValueError(f"frozen_parts must be parts of the model {model.name}. Received: {unknown}")
    for path, part in parts.items():  # outer parts first, as they pass their state on to inner ones
        part.trainable = path not in paths


def _walk(layer, prefix=""):
    """Yields (path, part) of all parts with weights; the others may have a new name in each model."""
    for part in layer._layers:
        if part.weights:
            yield f"{prefix}{part.name}", part
            yield from _walk(part, f"{prefix}{part.name}/")
