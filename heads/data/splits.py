"""The splits of a folder, and which pictures are held out where it has none."""

import hashlib
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from heads.arguments import read_seed, read_share
from heads.pictures import show_path

# The names that tools use for the same split.
SPLIT_NAMES = {
    "train": ("train", "training", "train2017"),
    "val": ("val", "valid", "validation", "val2017"),
    "test": ("test", "testing", "test2017"),
}


def list_split_folders(path: pathlib.Path) -> dict[str, pathlib.Path]:
    """The sub-folders of a folder by name, if at least one of them has the name of a split, else none."""
    folders = {each.name: each for each in sorted(path.iterdir()) if each.is_dir()}
    folders = {name: each for name, each in folders.items() if not name.startswith(".")}
    known = {name for names in SPLIT_NAMES.values() for name in names}
    return folders if known & folders.keys() else {}


def choose_split(path: pathlib.Path, split: str | None, splits: Iterable, source: str):
    """The name of the wanted split among the existing ones.

    Args:
        path: The folder, for messages.
        split: Its name, or another one of `SPLIT_NAMES` for the same. None: the only split, or else "train".
        splits: The names; None alone for a folder without splits.
        source: Where the names come from, for the message.

    Raises:
        ValueError: If there is no such split.
    """
    splits = list(splits)
    if split is None and len(splits) == 1:
        return splits[0]
    wanted = "train" if split is None else split
    for name in (wanted, *SPLIT_NAMES.get(wanted, ())):
        if name in splits:
            return name
    if None in splits:
        raise ValueError(
            f"{show_path(path)} has no splits: open it with split=None, and hold out a part (`split(0.2)`, "
            f"or --val-share 0.2 of the scripts). Received: split={split!r}"
        )
    hint = (
        "; --val-share 0.2 of the scripts, or `split(0.2)`, holds out a part of it"
        if len(splits) == 1
        else ""
    )
    raise ValueError(f"split must be one of {splits}, {source} {show_path(path)}{hint}. Received: {split!r}")


def choose_held_out(is_on: np.ndarray, keys: Sequence, share: float, seed: int, path) -> np.ndarray:
    """Which pictures are held out, so that as far as possible each class has the same share in both parts.

    The choice follows from the names and the seed alone, not from the order of the files or the machine.
    Where classes that share pictures allow it, a class on two or more pictures is in both parts, and one on a
    single picture is trained on. Pictures without any class are divided like a class of their own.

    Args:
        is_on: Bool (pictures, classes), whether a class is on a picture.
        keys: A name of each picture that is the same on every machine.
        share: Share that is held out, above 0 and below 1.
        seed: Seed of the choice.
        path: Path of the data, for messages.

    Returns:
        Bool (pictures,).

    Raises:
        ValueError: For a share that is not below 1, or where no class is on two pictures.

    Reference:
        - Sechidis et al., "On the Stratification of Multi-Label Data", ECML 2011, algorithm 1.
    """
    if read_share("share", share) == 1:
        raise ValueError(f"share must be below 1, or nothing is left to train on. Received: {share!r}")
    is_on = np.column_stack([is_on, ~is_on.any(axis=1)])
    counts = is_on.sum(axis=0)
    if counts.max(initial=0) < 2:
        raise ValueError(
            f"{show_path(path)} must have two pictures of some class, so that one can be held out. "
            "Received: no such class"
        )
    is_needed = is_on[:, counts == 1].any(axis=1)  # to train on the class that no other picture has
    hashes = {place: _hash(read_seed(seed), key) for place, key in enumerate(keys)}
    order = np.array(sorted(hashes, key=lambda place: (not is_needed[place], hashes[place])))
    num_held_out = np.clip(np.round(share * counts), 1, np.maximum(counts - 1, 1))
    wanted = np.stack([counts - num_held_out, num_held_out])  # (parts, classes): still to be divided
    places = np.array([1 - share, share]) * len(keys)
    part, left = np.full(len(keys), -1), np.where(counts > 1, counts, 0)
    while left.any():
        label = int(np.argmin(np.where(left > 0, left, len(keys) + 1)))  # the rarest has the fewest chances
        for place in order[(part[order] < 0) & is_on[order, label]]:
            lacks = wanted[:, label]
            chosen = int(np.argmax(places if lacks[0] == lacks[1] else lacks))
            chosen = 0 if is_needed[place] and lacks[0] > 0 else chosen
            part[place] = chosen
            wanted[chosen, is_on[place]] -= 1
            places[chosen] -= 1
            left = np.maximum(left - is_on[place], 0)
    return part == 1


def _hash(seed, key):
    return hashlib.sha256(f"{seed}/{key}".encode("utf-8", "backslashreplace")).digest()
