"""COCO's JSON files and the entries of their lists, checked.

Data sets and scores read their truth with this module and `annotations.py`, so that neither uses what the
other refuses.
"""

import json
import numbers
import os
import pathlib
import reprlib
from collections.abc import Callable

import numpy as np

MAX_LISTED = 20
# TensorFlow and pycocotools count the pixels of a side in int32.
LONGEST_SIDE = 2**31 - 1

_SHORTENER = reprlib.Repr()
_SHORTENER.maxstring = _SHORTENER.maxother = 100
_SHORTENER.maxlist = 8


def read_json(source, name: str):
    """The content of a JSON file in any Unicode encoding, or `source` itself if it is not a path.

    Raises:
        ValueError: If the file is missing or not JSON; the message calls it `name`.
    """
    if not isinstance(source, str | os.PathLike):
        return source
    try:
        return json.loads(pathlib.Path(source).read_bytes())
    except OSError as error:
        raise ValueError(
            f"{name} must be a file that can be read. Received: {source} ({error.strerror})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be a JSON file. Received: {source} ({error})") from error


def read_entries(content: dict, name: str, find_problem: Callable, source) -> dict:
    """The entries of "images" or "categories" by their ids.

    Args:
        content: COCO's JSON.
        name: Name of the list.
        find_problem: Function of an entry that returns what is wrong with it, or None.
        source: Where the content is from, for the messages.

    Raises:
        ValueError: If there is no such list, an entry is faulty, or ids are missing, repeated, or some of
            them numbers and others text.
    """
    entries = content.get(name)
    if not isinstance(entries, list | tuple) or not entries:
        raise ValueError(f'{source} must hold a non-empty list of "{name}". Received: {show(entries)}')
    by_id, problems = {}, []
    for position, entry in enumerate(entries):
        where = f"{name} at position {position}"
        if not isinstance(entry, dict):
            problems.append(f"{where}: must be an object. Received: {show(entry)}")
            continue
        key, problem = entry.get("id"), find_problem(entry)
        if problem:
            problems.append(f"{name} {show(key)}: {problem}")
        if not is_id(key):
            problems.append(f"{where}: the id must be a whole number or text. Received: {show(key)}")
        elif key in by_id:
            problems.append(f"{where}: an earlier entry has id {show(key)}, too")
        else:
            by_id[key] = entry
    texts = [key for key in by_id if isinstance(key, str)]
    if 0 < len(texts) < len(by_id):
        number = next(key for key in by_id if not isinstance(key, str))
        problems.append(
            f"{name}: ids must be all numbers or all text. Received: {show(number)} and {show(texts[0])}"
        )
    if problems:
        raise ValueError(f"{source} has faulty entries:\n" + "\n".join(list_briefly(problems)))
    return by_id


class KnownIds:
    """The ids of images or categories, with an error for all others.

    Args:
        kind: "image" or "category".
        ids: The ids, a collection with a quick `in`.
    """

    def __init__(self, kind: str, ids):
        self.kind = kind
        self.ids = ids
        self.by_text = {str(key): key for key in ids}

    def check(self, key):
        """The id, if it is known.

        Raises:
            ValueError: If it is not.
        """
        if is_id(key) and key in self.ids:
            return key
        alike = self.by_text.get(str(key)) if is_id(key) else None
        hint = "" if alike is None else f"; the file has {show(alike)}: write both as numbers or as text"
        raise ValueError(f"unknown {self.kind} id {show(key)}{hint}")


def is_id(value) -> bool:
    """Whether a value can be an id: a whole number or text."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, str | int | np.integer) and not isinstance(value, bool)


def is_number(value) -> bool:
    """Whether a value is a number, and not too large for a float; NaN and infinity are numbers."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1023
    return isinstance(value, numbers.Real)


def is_side(value) -> bool:
    """Whether a value can be a side of a picture: a whole number of pixels, at least 1."""
    return is_number(value) and 1 <= value <= LONGEST_SIDE and value == int(value)


def show(value) -> str:
    """The value as Python writes it, shortened."""
    return _SHORTENER.repr(value)


def list_briefly(problems: list[str]) -> list[str]:
    """The first of the problems, and how many more there are."""
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    return problems[:MAX_LISTED] + more


def to_plain_list(values) -> list:
    """The values as a list, NumPy's scalars turned into Python's numbers."""
    return [value.item() if isinstance(value, np.generic) else value for value in values]
