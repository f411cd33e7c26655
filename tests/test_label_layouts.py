import numpy as np
import pytest
from format_folders import save_palette
from PIL import Image

from heads.data import SaliencyFolder, SemanticFolder, SemanticShapes
from heads.data.label_layouts import VOC_CLASS_NAMES, find_pairs


def write_pairs(images, labels, names, num_classes=3, seed=0):
    random = np.random.default_rng(seed)
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        numbers = random.integers(0, num_classes, (6, 8), np.uint8)
        numbers[0] = 255
        Image.new("RGB", (8, 6)).save(images / f"{name}.jpg")
        save_palette(numbers, labels / f"{name}.png")


def names_of(pairs):
    return [image.stem for image, _ in pairs]


@pytest.fixture
def voc(tmp_path):
    write_pairs(tmp_path / "JPEGImages", tmp_path / "SegmentationClass", "abc", num_classes=21)
    Image.new("RGB", (8, 6)).save(tmp_path / "JPEGImages/without_label.jpg")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\na\n")
    (lists / "val.txt").write_text("c\n")
    return tmp_path


def test_pascal_voc(voc):
    layout, start, pairs = find_pairs(voc, "train")
    assert (layout, start) == ("Pascal VOC", voc)
    assert names_of(pairs) == ["b", "a"]
    assert names_of(find_pairs(voc, None)[2]) == ["b", "a"]
    assert names_of(find_pairs(voc, "val")[2]) == ["c"]
    with pytest.raises(ValueError, match=r"\['train', 'val'\], those of ImageSets/Segmentation in .*'test'"):
        find_pairs(voc, "test")
    data = SemanticFolder(voc, class_names=VOC_CLASS_NAMES)
    with pytest.warns(UserWarning, match="never hold"):
        counts = data.check(progress=False)
    assert counts.sum() == 2 * 5 * 8  # 255, the border, is ignored
    (voc / "ImageSets/Segmentation/val.txt").write_text("c\nwithout_label\nnowhere\n")
    with pytest.raises(ValueError, match="must hold an image for each label picture") as error:
        find_pairs(voc, "val")
    assert "nowhere: no image in" in str(error.value)
    assert "without_label: no label picture in" in str(error.value)
    (voc / "ImageSets/Segmentation/val.txt").write_text("")
    with pytest.raises(ValueError, match="there is none"):
        find_pairs(voc, "val")


def test_pascal_voc_itself_knows_its_classes(voc, tmp_path_factory):
    year = tmp_path_factory.mktemp("kit") / "VOCdevkit/VOC2012"
    year.parent.mkdir()
    voc.rename(year)
    (year / "Annotations").mkdir()
    data = SemanticFolder(year.parent.parent)
    assert data.class_names == VOC_CLASS_NAMES
    assert data.num_classes == 21
    (year / "classes.txt").write_text("a\nb\n")
    assert SemanticFolder(year.parent.parent).class_names == ("a", "b")


def test_pascal_voc_without_lists_has_all_label_pictures(voc):
    for name in ("train", "val"):
        (voc / f"ImageSets/Segmentation/{name}.txt").unlink()
    assert names_of(find_pairs(voc, None)[2]) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="has no splits"):
        find_pairs(voc, "train")


def test_the_export_of_labelme(voc):
    # labelme2voc: arrays in SegmentationClass, pictures in a folder of their own, names with a background.
    (voc / "SegmentationClass").rename(voc / "SegmentationClassPNG")
    (voc / "SegmentationClass").mkdir()
    (voc / "SegmentationClass/a.npy").touch()
    (voc / "class_names.txt").write_text("_background_\n" + "\n".join("bcdefghijklmnopqrstu"))
    data = SemanticFolder(voc)
    assert data.class_names[:2] == ("_background_", "b")
    assert len(data) == 2


def test_folders_without_splits(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "labels", ["a"])
    with pytest.raises(ValueError, match=r"has no splits: open it with split=None.* Received: split='val'"):
        find_pairs(tmp_path, "val")
    write_pairs(tmp_path / "images/city", tmp_path / "labels/city", ["b"])
    layout, _, pairs = find_pairs(tmp_path, None)
    assert layout == "images and labels"
    assert names_of(pairs) == ["a", "b"]
    assert names_of(find_pairs(tmp_path, "city")[2]) == ["b"]


def test_folders_with_splits(tmp_path):
    for split, name in (("training", "a"), ("valid", "b"), ("mine", "c")):
        write_pairs(tmp_path / "images" / split, tmp_path / "annotations" / split, [name])
    chosen = {split: names_of(find_pairs(tmp_path, split)[2]) for split in (None, "train", "val", "mine")}
    assert chosen == {None: ["a"], "train": ["a"], "val": ["b"], "mine": ["c"]}
    with pytest.raises(ValueError, match=r"the folders in images/ and annotations/ of .* Received: 'test'"):
        find_pairs(tmp_path, "test")


def test_the_error_lists_what_was_looked_for(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(ValueError, match="path must hold images and label pictures") as error:
        find_pairs(tmp_path, "train")
    for text in ("- images/<split>/ with one of labels", "- Pascal VOC's JPEGImages/", "with pictures"):
        assert text in str(error.value)


# Splits.


@pytest.fixture
def flat(tmp_path):
    """Writes forty pictures of ten classes, some of which are rare."""
    scenes = SemanticShapes(40, (32, 48))
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for number in range(40):
        Image.fromarray(scenes[number]["image"]).save(tmp_path / f"images/{number}.jpg")
        Image.fromarray(scenes[number]["semantic"].astype("uint8")).save(tmp_path / f"labels/{number}.png")
    (tmp_path / "classes.txt").write_text("\n".join(scenes.class_names))
    return tmp_path


def test_a_part_is_held_out(flat):
    data = SemanticFolder(flat, split=None)
    train, held_out = data.split(0.2, seed=1)
    assert len(train) + len(held_out) == 40
    assert 6 <= len(held_out) <= 11
    assert not {*train.pairs} & {*held_out.pairs}
    counts, held_counts = data.check(progress=False), held_out.check(progress=False)
    assert (held_counts[counts > 0] > 0).all()
    # The same after a check, which has read the labels already, and for parts of parts.
    again = data.split(0.2, seed=1)[1]
    assert again.pairs == held_out.pairs
    assert len(list(held_out.load())) == len(held_out)
    assert len(held_out.split(0.5)[0]) < len(held_out)
    assert data.split(0.2, seed=2)[1].pairs != held_out.pairs


def test_parts_of_faulty_data_name_the_file(flat):
    Image.fromarray(np.full((32, 48), 77, "uint8")).save(flat / "labels/7.png")
    with pytest.raises(ValueError, match=r"7\.png: labels must be 0 \.\. 9 or 255\. Received: 77"):
        SemanticFolder(flat, split=None).split(0.2)


def test_saliency_has_no_table_of_colours(flat):
    (flat / "classes.txt").unlink()
    (flat / "labels").rename(flat / "masks")
    (flat / "colours.txt").write_text("nothing that counts\n")
    data = SaliencyFolder(flat, split=None)
    assert data.class_names == ("background", "object")
