"""docs/make_pictures.py, which draws the pictures of docs/tasks."""

import pathlib
import re
import sys

import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "docs"))

import make_pictures

PAGES = make_pictures.FOLDER.parent / "tasks"


def test_each_picture_is_on_the_page_of_its_task():
    for task in make_pictures.TASKS:
        text = (PAGES / f"{task}.md").read_text(encoding="utf-8")
        assert f"](../images/{task}.png)" in text
        assert re.search(rf"python\s+docs/make_pictures.py\s+{task}`", text)
    assert {path.stem for path in make_pictures.FOLDER.glob("*.png")} == {*make_pictures.TASKS, "predictions"}


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in make_pictures.FOLDER.glob("*.png")) < 900_000


@pytest.mark.slow
@pytest.mark.parametrize("task", make_pictures.TASKS)
def test_pictures_are_drawn(task, tmp_path, capsys):
    make_pictures.main([task, "--steps", "4", "--output", str(tmp_path)])
    assert capsys.readouterr().out.endswith(f"{tmp_path / task}.png\n")
    with Image.open(tmp_path / f"{task}.png") as picture:
        assert picture.width > 500
        assert all(low < high for low, high in picture.convert("RGB").getextrema())
