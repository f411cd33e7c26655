"""Scores as a file that people and programs read."""

import json
import math
from collections.abc import Sequence

import numpy as np

from heads.file_writing import replace_text

DIGITS = 4


def save_scores(scores: dict, path, class_names: Sequence[str] = (), **about):
    """Writes scores as JSON, in percent like all tables of scores.

    Args:
        scores: From a scoring function of `heads.metrics`: numbers 0 .. 1, arrays and dicts of them. Matrices
            and values of single pictures ("per_picture_...") are left out.
        path: Path of the file; its folder is made.
        class_names: Arrays of one number per class become dicts with these names.
        **about: What else the file says, at its top: the model and the data that were scored.
    """
    content = {name: str(value) for name, value in about.items()}
    content["unit"] = "percent"
    for name, value in scores.items():
        if np.ndim(value) < 2 and not name.startswith("per_picture"):
            content[name] = _to_percent(value, class_names if name.startswith("per_class") else ())
    replace_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _to_percent(value, class_names):
    """Returns numbers times 100; NaN (not measured) becomes None, as JSON has no NaN."""
    if isinstance(value, dict):
        return {str(name): _to_percent(each, ()) for name, each in value.items()}
    if np.ndim(value):
        numbers = [_to_percent(each, ()) for each in np.asarray(value).tolist()]
        if len(class_names) != len(numbers):
            return numbers
        names = [str(name) for name in class_names]
        twice = {name for name in names if names.count(name) > 1}
        keys = [f"{name} ({label})" if name in twice else name for label, name in enumerate(names)]
        return dict(zip(keys, numbers, strict=True))
    return None if math.isnan(value) else round(100 * float(value), DIGITS)
