import numpy as np
import pytest
from PIL import Image

from heads.data import SaliencyFolder, semantic_evaluation_batches


def write_folder(root, masks, kind="masks", split="train"):
    """Writes a picture for each mask, which is an array or a Pillow picture."""
    for name in ("images", kind):
        (root / name / split).mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(masks):
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        mask.save(root / kind / split / f"{index}.png")
        pixels = np.random.default_rng(index).integers(0, 256, (mask.height, mask.width, 3), dtype="uint8")
        Image.fromarray(pixels).save(root / "images" / split / f"{index}.png")
    return root


def read_masks(folder):
    return [mask for _, mask in folder.load().as_numpy_iterator()]


HALF = np.array([[0, 0, 1], [0, 1, 1]], "uint8")


@pytest.mark.parametrize("kind", ["masks", "labels"])
def test_masks_of_every_kind(tmp_path, kind):
    smooth = np.array([[0, 90, 140], [127, 128, 255]], "uint8")
    full = np.full((2, 3), 255, "uint8")
    palette = Image.fromarray(HALF).convert("P")
    palette.putpalette([200, 0, 0, 0, 200, 0])
    masks = [
        HALF,
        HALF * 255,
        smooth,
        full,
        np.zeros((2, 3), "uint8"),
        Image.fromarray(HALF * 255).convert("1"),
    ]
    folder = SaliencyFolder(write_folder(tmp_path, [*masks, palette], kind))
    expected = [HALF, HALF, HALF, full // 255, HALF * 0, HALF, HALF]
    assert folder.class_names == ("background", "object")
    for mask, truth in zip(read_masks(folder), expected, strict=True):
        assert mask.dtype == np.int32
        np.testing.assert_array_equal(mask, truth)
    counts = [sum(int((truth == label).sum()) for truth in expected) for label in (0, 1)]
    assert folder.check(progress=False).tolist() == counts


@pytest.mark.parametrize(
    ("ignored", "mask"), [(255, [[0, 1, 255]]), (128, [[0, 255, 128]]), (7, [[0, 1, 7]])]
)
def test_ignored_pixels(tmp_path, ignored, mask):
    folder = SaliencyFolder(write_folder(tmp_path, [np.array(mask, "uint8")]), ignored_value=ignored)
    assert read_masks(folder)[0].tolist() == [[0, 1, 255]]
    assert folder.check(progress=False).tolist() == [1, 1]


def test_check_lists_all_faults(tmp_path):
    wide = Image.fromarray(np.array([[0, 65535]], "uint16"))
    colours = Image.fromarray(np.zeros((2, 2, 3), "uint8"))
    folder = SaliencyFolder(write_folder(tmp_path, [HALF, wide, colours, HALF]))
    (tmp_path / "images/train/3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="faulty files") as caught:
        folder.check(progress=False)
    message = str(caught.value)
    assert "1.png: save the mask as 0 and 1, or as grey of 8 bits, 0 .. 255" in message
    assert "Received: values up to 65535" in message
    assert "2.png: cannot be read (the label picture must have one channel" in message
    assert "3.png: cannot be read" in message


@pytest.mark.parametrize(
    ("mask", "occurs"),
    [(HALF * 0, "only background"), (HALF * 0 + 1, "only object"), (HALF * 0 + 9, "nothing")],
)
def test_nothing_to_learn(tmp_path, mask, occurs):
    folder = SaliencyFolder(write_folder(tmp_path, [mask]), ignored_value=9)
    with pytest.raises(
        ValueError, match=rf"nothing to learn in 'train': {occurs}.*Received: \[\d, \d\] pixels"
    ):
        folder.check(progress=False)


@pytest.mark.parametrize("value", [-1, 256, "white"])
def test_ignored_values_that_are_no_grey_are_refused(tmp_path, value):
    with pytest.raises(ValueError, match=rf"ignored_value must be in 0 .. 255, or None. Received: {value!r}"):
        SaliencyFolder(tmp_path, ignored_value=value)


def test_evaluation_batches_ignore_the_padding(tmp_path):
    folder = SaliencyFolder(write_folder(tmp_path, [HALF * 255, HALF.T * 255]))
    ((images, masks),) = semantic_evaluation_batches(folder, 2, (6, 6)).as_numpy_iterator()
    assert images.shape == (2, 6, 6, 3)
    assert (masks[0, :4] != 255).all()
    assert (masks[0, 4:] == 255).all()
    assert (masks[1, :, 4:] == 255).all()
