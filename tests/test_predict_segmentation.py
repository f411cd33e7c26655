"""The script that segments pictures, with a stand-in for the model: what it reads, refuses and names."""

import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "examples"))

import predict_segmentation

GREY = np.arange(48, dtype="uint8").reshape(6, 8) * 5


class Segmenter:
    """Keeps the pictures that it is given."""

    num_classes = 3
    class_names = None
    image_channels = 3

    def __init__(self):
        self.seen = []

    def segment(self, images):
        raise AssertionError("predict_pictures takes all options")

    def predict_pictures(self, image):
        self.seen.append(image)
        return [{"label_map": np.zeros(image.shape[:2], "int32")}]


@pytest.fixture
def predict(tmp_path, monkeypatch):
    """Returns a function of options that returns (exit code, pictures of the model, names of the results)."""
    (tmp_path / "model.keras").write_bytes(b"")
    (tmp_path / "pictures").mkdir()

    def run(*options):
        model = Segmenter()
        monkeypatch.setattr(predict_segmentation.keras.saving, "load_model", lambda *args, **options: model)
        places = [tmp_path / "model.keras", tmp_path / "pictures", "--output", tmp_path / "out", *options]
        code = predict_segmentation.main(list(map(str, places)))
        return code, model.seen, sorted(path.name for path in (tmp_path / "out").iterdir())

    return run


def test_models_of_other_channels_read_no_rgb(tmp_path, predict, monkeypatch, capsys):
    pytest.importorskip("tifffile", reason="pip install 'van-backbones[multispectral]'")
    Image.fromarray(GREY).save(tmp_path / "pictures" / "a.png")
    monkeypatch.setattr(Segmenter, "image_channels", 6)
    code, seen, names = predict()
    assert (code, seen, names) == (1, [], [])
    printed = capsys.readouterr()
    assert "Pictures of 6 channels, of which 0 1 2 are shown" in printed.out
    assert "a.png: cannot be read (not a TIFF file" in printed.err


def test_pictures_are_read_as_in_training(tmp_path, predict):
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(GREY[::-1, ::-1].copy()).save(tmp_path / "pictures" / "a.png", exif=exif)
    Image.fromarray(GREY.astype("uint16") * 256).save(tmp_path / "pictures" / "b.tif")
    code, seen, names = predict()
    assert code == 0
    assert names == ["a.overlay.png", "a.png", "b.overlay.png", "b.png"]
    for image in seen:
        np.testing.assert_array_equal(image, np.repeat(GREY[..., None], 3, -1))


def test_tiles(tmp_path, predict, monkeypatch, capsys):
    """Pictures are segmented in tiles, and the overlay of a large one is smaller than it."""
    monkeypatch.setattr(predict_segmentation, "LARGEST_OVERLAY", 4)
    Image.fromarray(GREY).save(tmp_path / "pictures" / "a.png")
    calls = []

    def segment(model, image, tile_size, progress, flip):
        calls.append((image.shape, tile_size, flip))
        return np.tile(np.array([0, 2], "uint8"), (6, 4))

    monkeypatch.setattr(predict_segmentation, "segment_in_tiles", segment)
    code, _, _ = predict("--tiles", "5", "--flip-test")
    assert code == 0
    assert calls == [((6, 8, 3), 5, True)]
    label_map = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    np.testing.assert_array_equal(label_map, np.tile([0, 2], (6, 4)))
    with pytest.raises(SystemExit):
        predict("--tiles", "5", "--crop-size", "4", "4")
    assert "--tiles and --crop-size are two ways to cut a picture" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_pictures_are_named_and_the_others_done(tmp_path, predict, capsys):
    for name in ("b.png", "._b.png", ".hidden.jpg"):
        Image.fromarray(GREY).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "._b.png").write_bytes(b"macOS")
    (tmp_path / "pictures" / "a.jpg").write_bytes(b"no picture")
    Image.fromarray(GREY.astype("float32")).save(tmp_path / "pictures" / "c.tif")
    damaged = b"Exif\0\0II*\0\x08\0\0\0\xff\xff"
    Image.fromarray(GREY).save(tmp_path / "pictures" / "d.jpg", exif=damaged)
    code, _, names = predict()
    printed = capsys.readouterr()
    assert code == 1
    assert names == ["b.overlay.png", "b.png", "d.overlay.png", "d.png"]
    assert "2 of 4 pictures" in printed.out
    assert "a.jpg: cannot be read" in printed.err
    assert "c.tif: cannot be read (floats have no known range" in printed.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"background\na\nb\nc", "each of the 3 classes of the model. Received: 4 names"),
        (b"a\nb", "Received: 2 names"),
        (b"a\n\nb", "non-empty names"),
        ("ä\nb\nc".encode("latin-1"), "must be UTF-8 text"),
        (None, "No such file"),
    ],
)
def test_class_names_fit_the_model(tmp_path, predict, capsys, text, message):
    Image.fromarray(GREY).save(tmp_path / "pictures" / "a.png")
    if text is not None:
        (tmp_path / "classes.txt").write_bytes(text)
    with pytest.raises(SystemExit):
        predict("--class-names", tmp_path / "classes.txt")
    assert message in capsys.readouterr().err


def test_class_names_with_a_byte_order_mark(tmp_path, predict, monkeypatch):
    Image.fromarray(GREY).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n", encoding="utf-8-sig")
    names = []
    draw = predict_segmentation.draw_result
    monkeypatch.setattr(
        predict_segmentation, "draw_result", lambda *args: names.extend(args[2]) or draw(*args)
    )
    assert predict("--class-names", tmp_path / "classes.txt")[0] == 0
    assert names == ["a", "b", "c"]
