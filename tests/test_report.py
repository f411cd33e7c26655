import base64
import html.parser
import io
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

from heads.drawing import make_report
from heads.drawing.report import LARGEST_PNG, embed_picture

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

from results import find_worst, keep_report


class Page(html.parser.HTMLParser):
    """Parses a page like a browser: all tags are closed, and nothing is loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.pictures, self.cells, self.links = [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        assert tag not in ("script", "link", "iframe")
        assert not {name for name in attributes if name.startswith("on")}
        if tag == "img":
            self.pictures.append((attributes["alt"], attributes["src"]))
        if tag == "a":
            self.links.append(attributes["href"])
        if tag == "td":
            self.cells.append(attributes.get("style", ""))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read_picture(source):
    kind, _, content = source.partition(";base64,")
    return kind, np.asarray(Image.open(io.BytesIO(base64.b64decode(content, validate=True))))


def test_all_kinds_of_parts():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype("uint8")
    parts = [
        ("Settings", {"head": "upernet", "steps": 3, "weights": None, "rate": 0.001, "resume": False}),
        ("Classes", {"IoU": {"wall": 75.0, "roof": None}, "accuracy": {"wall": 100.0, "tür": float("nan")}}),
        ("Table", "class  IoU\nwall   75.00"),
        ("Picture", picture),
    ]
    page = Page(make_report("runs/segmentation-1", parts))
    assert page.links == ["#part-0", "#part-1", "#part-2", "#part-3"]
    ((name, source),) = page.pictures
    assert name == "Picture"
    kind, found = read_picture(source)
    assert kind == "data:image/png"
    np.testing.assert_array_equal(found, picture)
    for text in ("runs/segmentation-1", "upernet", "3", "0.001", "False", "75.00", "100.00", "tür", "-"):
        assert text in page.texts, text
    assert "class  IoU\nwall   75.00" in page.texts
    assert [style for style in page.cells if "75.0%" in style]


def test_numbers_of_a_column_have_the_same_digits():
    page = Page(make_report("", [("Classes", {"IoU": {"wall": 75.0, "roof": 0.0, "door": 0.034}})]))
    assert [text for text in page.texts if text in ("75.00", "0.00", "0.03")] == ["75.00", "0.00", "0.03"]
    page = Page(make_report("", [("Settings", {"rate": 0.034, "weight_decay": 0.0})]))
    assert [text for text in page.texts if text[0] == "0"] == ["0.034", "0"]


def test_wide_parts_do_not_widen_the_page():
    """On narrow screens they are moved from side to side, and pictures keep a legible width."""
    wide, small = np.zeros((20, 2000, 3), "uint8"), np.zeros((20, 300, 3), "uint8")
    columns = {f"a_score_with_a_long_name_{k}": {"wall": 1.0} for k in range(9)}
    text = make_report("", [("a", wide), ("b", small), ("c", columns)])
    assert text.count('<div class="wide"><img') == 2
    assert text.count('<div class="wide"><table') == 1
    assert "min-width: 800px" in text
    assert "min-width: 300px" in text


def test_names_from_elsewhere_are_text():
    hostile = "<script>alert(1)</script> & \"x\" onload='y'"
    picture = np.zeros((2, 2, 3), "uint8")
    parts = [(hostile, hostile), ("a", {hostile: hostile}), ("b", {hostile: {hostile: 1.0}})]
    page = Page(make_report(hostile, [*parts, (hostile, picture)]))
    # Title and heading; links, headings and text of the parts; names in the tables.
    assert page.texts.count(hostile) == 2 + 2 + 2 + 1 + 2 + 2
    assert page.pictures[0][0] == hostile


def test_large_pictures_are_made_smaller():
    noise = np.random.default_rng(0).integers(0, 256, (1000, 3600, 3)).astype("uint8")
    kind, found = read_picture(embed_picture(noise))
    assert kind == "data:image/jpeg"
    assert found.shape == (500, 1800, 3)
    # Flat colours, such as those of curves, do not change.
    kind, found = read_picture(embed_picture(np.full((400, 400, 3), (10, 200, 30), "uint8")))
    assert kind == "data:image/png"
    assert (found == (10, 200, 30)).all()
    assert len(embed_picture(noise[:300, :300])) < 2 * LARGEST_PNG


def test_nothing_to_report():
    page = Page(make_report("empty", []))
    assert page.links == []
    assert Page(make_report("empty", [("none", {})])).cells == []


@pytest.mark.parametrize("part", [3, ["a"], None])
def test_other_parts_are_refused(part):
    message = f"must be a text, a picture.* Received: 'scores': {type(part).__name__}"
    with pytest.raises(ValueError, match=message):
        make_report("run", [("scores", part)])


# The report of a run's folder.


def test_a_report_holds_what_is_in_the_folder(tmp_path):
    folder = tmp_path / "runs" / "pose-1"
    folder.mkdir(parents=True)
    keep_report(folder)
    assert Page((folder / "report.html").read_text("utf-8")).links == []
    (folder / "settings.json").write_text('{"head": "gfl", "splits": ["train", "val"]}')
    (folder / "scores.json").write_text(
        '{"unit": "percent", "AP": 12.5, "AR": 0.3237, "small": null, "AP_per_class": {"cät": 99.0}}',
        encoding="utf-8",
    )
    (folder / "scores.txt").write_text("AP 12.5")
    Image.new("RGB", (8, 8), "red").save(folder / "worst.png")
    Image.new("RGBA", (8, 8), "red").save(folder / "curves.png")
    Image.new("RGB", (8, 8), "red").save(folder / "other.png")
    keep_report(folder)
    page = Page((folder / "report.html").read_text("utf-8"))
    assert [name for name, _ in page.pictures] == ["Learning curves", "The pictures with the most mistakes"]
    for text in ("runs/pose-1", "12.50", "0.32", "cät", "99.00", "gfl", "['train', 'val']", "AP 12.5"):
        assert text in page.texts, text


def test_the_worst_pictures():
    assert find_worst([0, 5, 2, 0, 5, 1]) == [1, 4, 2, 5]
    assert find_worst([0.5, np.nan, 0.9], most=1) == [2]
    assert find_worst([0, 0]) == find_worst([]) == []
