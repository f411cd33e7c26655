import numpy as np
import pytest
from PIL import Image

from heads.data import SemanticFolder
from heads.data.colour_tables import ColourTable, find_colours, pack, read_colour_table, unpack

COLOURS = {"wall": (128, 64, 0), "void": (0, 0, 0), "door": (0, 0, 255)}
LABELS = np.array([[0, 1, 255], [1, 1, 0]])


def paint(labels=LABELS):
    table = np.zeros((256, 3), np.uint8)
    table[:2] = COLOURS["wall"], COLOURS["door"]
    return Image.fromarray(table[labels])


# Pictures.


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_labels(tmp_path, mode):
    picture = paint().quantize(4) if mode == "P" else paint().convert(mode)
    picture.save(tmp_path / "a.png")
    table = ColourTable(COLOURS)
    assert table.class_names == ("wall", "door")
    labels = table.decode(tmp_path / "a.png")
    np.testing.assert_array_equal(labels, LABELS)
    assert labels.dtype == np.int32


def test_grey_counts_as_a_colour(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "a.png")
    table = ColourTable({"black": (0, 0, 0), "white": (255, 255, 255)})
    assert table.decode(tmp_path / "a.png").tolist() == [[0, 1]]


def test_other_colours_are_listed_with_their_pixels(tmp_path):
    picture = np.array(paint())
    picture[0, 0], picture[0, 2] = (1, 2, 3), (1, 2, 3)
    picture[1, 0] = (255, 255, 255)  # above the largest of the table
    Image.fromarray(picture).save(tmp_path / "a.png")
    message = (
        r"a\.png: the colours must be .* 2 others: \(1, 2, 3\) \(2 pixels\), \(255, 255, 255\) \(1 pixels\)$"
    )
    with pytest.raises(ValueError, match=message):
        ColourTable(COLOURS).decode(tmp_path / "a.png")


def test_pictures_that_blur_or_are_turned_are_refused(tmp_path):
    paint().save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(ValueError, match="must be PNG by content; JPEG blurs"):
        ColourTable(COLOURS).decode(tmp_path / "a.png")
    exif = Image.Exif()
    exif[274] = 3
    paint().save(tmp_path / "a.png", exif=exif)
    with pytest.raises(ValueError, match="must have no EXIF orientation"):
        ColourTable(COLOURS).decode(tmp_path / "a.png")


def test_codes_of_colours():
    colours = np.array([[1, 2, 3], [255, 255, 255], [0, 0, 0]], np.uint8)
    assert [unpack(code) for code in pack(colours)] == [tuple(colour) for colour in colours.tolist()]


# Tables.


@pytest.mark.parametrize(
    "text",
    [
        "wall 128 64 0\nvoid 0 0 0\ndoor 0 0 255\n",
        "# label:color_rgb:parts:actions\nwall:128,64,0::\nvoid:0,0,0::\ndoor:0,0,255:left:open\n",  # CVAT
        "128 64 0\twall\n0 0 0\t\tvoid\n0 0 255 door\n",  # CamVid
        'name,r,g,b\nwall,128,64,0\nvoid, 0, 0, 0\n"door",0,0,255\n',
        "wall;128;64;0;  # brown\n\nvoid: 0, 0, 0\ndoor\t0\t0\t255",
    ],
)
def test_tables_of_tools(tmp_path, text):
    (tmp_path / "table.txt").write_text(text)
    table = read_colour_table(tmp_path / "table.txt")
    assert table.class_names == ("wall", "door")
    paint().save(tmp_path / "a.png")
    np.testing.assert_array_equal(table.decode(tmp_path / "a.png"), LABELS)


def test_names_may_have_spaces_and_numbers(tmp_path):
    (tmp_path / "table.txt").write_text("class 1 255 0 0\n0 255 0 class, two\nclass 3:0,0,255::\n")
    assert read_colour_table(tmp_path / "table.txt").class_names == ("class 1", "class, two", "class 3")


def test_all_faulty_lines_are_in_one_error(tmp_path):
    (tmp_path / "table.txt").write_text("a 1 2 3\nb 1 2\n1 255 0 0\na 4 5 6\n")
    with pytest.raises(ValueError, match="is not a table of colours") as error:
        read_colour_table(tmp_path / "table.txt")
    assert str(error.value).splitlines()[1:] == [
        "line 2: must be a name and three numbers. Received: 'b 1 2'",
        "line 3: must be a name and three numbers. Received: '1 255 0 0'",
        "line 4: an earlier line has the name a, too",
    ]
    (tmp_path / "table.txt").write_text("names of colours\n")
    with pytest.raises(ValueError, match="it has no line with a name"):
        read_colour_table(tmp_path / "table.txt")
    with pytest.raises(ValueError, match="class_colours must be a text file"):
        read_colour_table(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("colours", "message"),
    [
        ({"a": (1, 2)}, r"a: a colour must be three numbers, 0 \.\. 255\. Received: \(1, 2\)"),
        ({"a": (1, 2, 256)}, "Received: .1, 2, 256"),
        ({"a": 7}, "Received: 7"),
        ({"a": (1, 2, 3), "b": (1, 2, 3)}, r"b: has the colour of a, \(1, 2, 3\)"),
    ],
)
def test_faulty_colours(colours, message):
    with pytest.raises(ValueError, match=message):
        ColourTable(colours)


# Folders.


@pytest.fixture
def folder(tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(tmp_path / "images/train/a.jpg")
    paint().save(tmp_path / "labels/train/a.png")
    return tmp_path


def test_a_folder_with_a_table(folder):
    (folder / "labelmap.txt").write_text("wall:128,64,0::\nvoid:0,0,0::\ndoor:0,0,255::\n")
    for options in ({}, {"class_colours": folder / "labelmap.txt"}, {"class_colours": COLOURS}):
        data = SemanticFolder(folder, **options)
        assert data.class_names == ("wall", "door")
        assert data.check(progress=False).tolist() == [2, 3]
        ((_, label),) = data.load()
        np.testing.assert_array_equal(label, LABELS)


def test_check_lists_all_files_with_other_colours(folder):
    for name in "bc":
        Image.new("RGB", (3, 2)).save(folder / f"images/train/{name}.jpg")
        Image.new("RGB", (3, 2), (9, 9, 9)).save(folder / f"labels/train/{name}.png")
    Image.new("RGB", (3, 3)).save(folder / "images/train/a.jpg")
    with pytest.raises(ValueError, match="faulty files in 'train'") as error:
        SemanticFolder(folder, class_colours=COLOURS).check(progress=False)
    lines = str(error.value).splitlines()[1:]
    assert len(lines) == 3
    assert "a.jpg: the picture must have" in lines[0]
    assert "(9, 9, 9) (6 pixels)" in lines[1]
    assert "(9, 9, 9) (6 pixels)" in lines[2]


def test_names_come_before_tables(folder):
    (folder / "colours.txt").write_text("wall 128 64 0\ndoor 0 0 255\n")
    assert find_colours(folder, None, None, False).class_names == ("wall", "door")
    assert find_colours(folder, ["a", "b"], None, False) is None
    (folder / "classes.txt").write_text("a\nb\n")
    assert find_colours(folder, None, None, False) is None
    for options in ({"class_names": ["a", "b"]}, {"reduce_zero_label": True}):
        with pytest.raises(ValueError, match=r"leave out class_names and reduce_zero_label\. Received: "):
            SemanticFolder(folder, class_colours=COLOURS, **options)


def test_one_class_is_too_few(folder):
    with pytest.raises(ValueError, match="class_names must be 2 to 255 non-empty names"):
        SemanticFolder(folder, class_colours={"wall": (1, 2, 3), "void": (0, 0, 0)})
