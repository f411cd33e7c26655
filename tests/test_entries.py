import numpy as np
import pytest

from heads.coco.entries import (
    LONGEST_SIDE,
    MAX_LISTED,
    KnownIds,
    is_id,
    is_number,
    is_side,
    list_briefly,
    read_entries,
    read_json,
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_json_of_any_encoding(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"name": "Möwe"}'.encode(encoding))
    assert read_json(tmp_path / "a.json", "annotations") == {"name": "Möwe"}
    assert read_json(str(tmp_path / "a.json"), "annotations") == {"name": "Möwe"}


def test_content_is_itself():
    content = {"images": []}
    assert read_json(content, "annotations") is content


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xd8\xff\xe0", b"[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"annotations must be a JSON file. Received: .*a\.json"):
        read_json(tmp_path / "a.json", "annotations")


def read(*entries, find_problem=lambda entry: None):
    return read_entries({"images": list(entries)}, "images", find_problem, "a.json")


def test_entries_by_id():
    assert read({"id": 3}, {"id": 1, "more": 2}) == {3: {"id": 3}, 1: {"id": 1, "more": 2}}
    assert list(read({"id": "b"}, {"id": "a"})) == ["b", "a"]


@pytest.mark.parametrize("content", [{}, {"images": []}, {"images": {}}, {"images": None}])
def test_lists_must_be_there(content):
    with pytest.raises(ValueError, match=r'a\.json must hold a non-empty list of "images". Received: '):
        read_entries(content, "images", lambda entry: None, "a.json")


def test_all_faults_are_told_together():
    entries = [{"id": 1}, [], {"id": 1}, {}, {"id": "x"}, {"id": 2, "bad": True}]
    with pytest.raises(ValueError, match=r"a\.json has faulty entries") as caught:
        read(*entries, find_problem=lambda entry: "is bad" if "bad" in entry else None)
    assert str(caught.value).splitlines()[1:] == [
        "images at position 1: must be an object. Received: []",
        "images at position 2: an earlier entry has id 1, too",
        "images at position 3: the id must be a whole number or text. Received: None",
        "images 2: is bad",
        "images: ids must be all numbers or all text. Received: 1 and 'x'",
    ]


def test_unknown_ids():
    known = KnownIds("image", {1: None, 2: None})
    assert known.check(2) == 2
    with pytest.raises(
        ValueError, match="unknown image id '2'; the file has 2: write both as numbers or as text"
    ):
        known.check("2")
    for key in (3, None, [], True):
        with pytest.raises(ValueError, match="unknown image id"):
            known.check(key)


def test_kinds_of_values():
    assert [is_id(value) for value in (1, "a", 2.0, np.int64(3))] == [True] * 4
    assert not any(is_id(value) for value in (True, None, 1.5, float("nan"), [], {}))
    assert [is_number(value) for value in (1, -0.5, float("nan"), np.float32(2))] == [True] * 4
    assert not any(is_number(value) for value in (True, None, "1", 10**400))
    assert [is_side(value) for value in (1, 640.0, LONGEST_SIDE)] == [True] * 3
    assert not any(
        is_side(value) for value in (0, -1, 0.5, 1.5, LONGEST_SIDE + 1, float("nan"), float("inf"), "9")
    )


def test_long_lists_are_shortened():
    problems = [str(number) for number in range(MAX_LISTED + 3)]
    assert list_briefly(problems[:MAX_LISTED]) == problems[:MAX_LISTED]
    assert list_briefly(problems) == [*problems[:MAX_LISTED], "and 3 more"]
