"""Names of ImageNet's and ADE20K's classes."""

import re

from van_backbones.class_names import read_ade20k_names, read_imagenet_names


def test_imagenet():
    names = read_imagenet_names()
    assert len(names) == 1000
    # The labels of ImageNet-1k are the places of the sorted WordNet ids.
    ids = [identifier for identifier, _ in names]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch(r"n\d{8}", identifier) for identifier in ids)
    assert all(re.fullmatch(r"[\w.'-]+", name) for _, name in names)
    known = {0: "tench", 1: "goldfish", 207: "golden_retriever", 281: "tabby", 340: "zebra", 985: "daisy"}
    assert {label: names[label][1] for label in known} == known
    assert names[999] == ("n15075141", "toilet_tissue")
    # Two of the words have two meanings each.
    assert len({name for _, name in names}) == 998
    assert names[134] == ("n02012849", "crane")
    assert names[517] == ("n03126707", "crane")


def test_ade20k():
    names = read_ade20k_names()
    assert len(names) == len(set(names)) == 150
    assert all(name == name.strip() and name for name in names)
    known = {0: "wall", 2: "sky", 7: "bed", 12: "person", 44: "chest of drawers", 115: "bag", 149: "flag"}
    assert {label: names[label] for label in known} == known
