"""Names of the classes that published weights know, in the order of their labels.

`imagenet.txt` holds the WordNet ids and names of ImageNet-1k's 1000 classes, as KerasHub 0.32 lists them
(Apache-2.0; ids and words are WordNet's, whose licence allows copies). `ade20k.txt` holds the 150 of ADE20K's
scene parsing benchmark, as mmsegmentation 1.2 lists them (Apache-2.0).
"""

import functools
import importlib.resources


@functools.cache
def read_imagenet_names() -> tuple[tuple[str, str], ...]:
    """Returns (WordNet id, name) of each of the 1000 classes of ImageNet-1k."""
    return tuple(tuple(line.split(" ", 1)) for line in _read_lines("imagenet.txt"))


@functools.cache
def read_ade20k_names() -> tuple[str, ...]:
    """Returns the names of the 150 classes of ADE20K."""
    return tuple(_read_lines("ade20k.txt"))


def _read_lines(name):
    return importlib.resources.files(__name__).joinpath(name).read_text("utf-8").splitlines()
