"""Image and label folders for semantic segmentation, as `tf.data` batches.

Label maps hold one class per pixel, int32; 255 is ignored. `*_size` = (height, width).
"""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from heads.data.arguments import read_count, read_flag, read_seed, read_size
from heads.data.augmentation import IGNORE_LABEL, pad_pair, resize_pair, scale_size
from heads.data.order import BatchOrder, continue_batches, find_groups
from heads.data.prefetching import prefetch_batches

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
LABEL_SUFFIXES = (".png",)
# What TensorFlow's decoder reads; MPO is a JPEG with further pictures behind it (many phones write it).
IMAGE_FORMATS = ("JPEG", "MPO", "PNG")
# ADE20K's folders spell the split's name out.
LONG_SPLIT_NAMES = {"train": "training", "val": "validation"}
MAX_LISTED = 20


class SemanticFolder:
    """A folder of images and label pictures, paired by file stem.

    Two layouts are read: `images/<split>/` with `labels/<split>/`, and ADE20K's `images/training/` with
    `annotations/training/`. Images are JPEG or PNG, label pictures are one-channel or palette PNG.
    A label value is the line number in `classes.txt`, from 0; 255 is ignored.

    Args:
        path: The folder.
        split: Name of the split; "train" and "val" also find "training" and "validation".
        class_names: Names in the order of the labels, or the path of a text file with one name per line.
            Default: the folder's `classes.txt`.
        reduce_zero_label: True where label 0 means unlabelled and the classes are 1 .. N, as in ADE20K:
            0 becomes 255 and k becomes k - 1.

    Raises:
        ValueError: For a missing folder or split, no class names, or files without a counterpart.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str = "train",
        class_names: Sequence[str] | str | os.PathLike | None = None,
        reduce_zero_label: bool = False,
    ):
        self.path = pathlib.Path(path)
        self.split = split
        self.reduce_zero_label = reduce_zero_label
        image_folder, label_folder = _find_split(self.path, split)
        self.class_names = _find_class_names(self.path, class_names)
        self.num_classes = len(self.class_names)
        self.pairs = _pair_files(image_folder, label_folder)

    def check(self, num_threads: int | None = None, progress: bool = True) -> np.ndarray:
        """Decodes every file and counts the pixels of each class.

        Run it once before training: what is wrong is found now and not after hours, all of it in one error.

        Args:
            num_threads: Threads that decode. Default: one per CPU core.
            progress: Whether to show a progress bar.

        Returns:
            Pixels of each class, `(num_classes,)`, int64.

        Raises:
            ValueError: Lists unreadable files, sizes that differ, colour label pictures and labels out of
                range.
        """
        examine = functools.partial(
            _examine_pair, num_classes=self.num_classes, reduce_zero_label=self.reduce_zero_label
        )
        counts = np.zeros(self.num_classes, "int64")
        problems = []
        with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
            reports = pool.map(examine, self.pairs)
            for found, pixels in tqdm(reports, f"check {self.split}", len(self.pairs), disable=not progress):
                problems += found
                counts += pixels
        if problems:
            raise ValueError(f"{self.path} has faulty files in {self.split!r}:\n{_list_briefly(problems)}")
        return counts

    def __len__(self):
        return len(self.pairs)

    @property
    def image_paths(self) -> list[pathlib.Path]:
        """Paths of the images, in the order of `pairs`."""
        return [image for image, _ in self.pairs]

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Gives the decoded pairs.

        Args:
            indices: Dataset of positions in `pairs`, int64 scalars. Default: all, once, in order.

        Returns:
            Dataset of (image `(height, width, 3)` uint8, label `(height, width)` int32). The pixels are as
            stored: an EXIF orientation is ignored, because the labels are drawn on the stored pixels.
        """
        images, labels = zip(*((str(image), str(label)) for image, label in self.pairs), strict=True)

        def find(index):
            return images[index], labels[index]

        def read(index):
            image, label = tf.numpy_function(find, [index], (tf.string, tf.string))
            return _read_pair(tf.ensure_shape(image, ()), tf.ensure_shape(label, ()), self.reduce_zero_label)

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def training_batches(
    source, batch_size: int, augment: Callable, seed: int = 0, shuffle: bool = True, first_step: int = 0
) -> tf.data.Dataset:
    """Endless augmented batches; the same `seed` gives the same batches.

    Each picture is drawn once per epoch; where an epoch ends within a batch, the next one fills it up. A
    second `fit` or loop over the dataset goes on after the last batch that was drawn from it, as with a
    generator; make the dataset anew to begin anew.

    Args:
        source: A `SemanticFolder`, or anything with a length and `load(indices=None)` that gives the same
            pairs. A source without a length has `load(shuffle_seed=None)` and shuffles them itself; what
            comes before `first_step` is read and left out then.
        batch_size: Images per batch.
        augment: Function `(image, label, seed) -> (image, label)` that gives one size; seed is int32 `(2,)`,
            for `tf.random.stateless_*`. See `SemanticAugmentation`.
        seed: Seed of the order and of the augmentation, 0 or more.
        shuffle: Whether to shuffle in each epoch.
        first_step: The number of batches that a training has had before, which are left out.

    Returns:
        Dataset of (images `(batch, height, width, 3)` float32 0 .. 255, labels `(batch, height, width)`
        int32).
    """
    read_count("batch_size", batch_size)
    order_seed = read_seed(seed) if read_flag("shuffle", shuffle) else None

    def augment_one(example, number):
        image, label = augment(*example, tf.stack([seed, tf.cast(number, tf.int32)]))
        return tf.cast(image, tf.float32), tf.cast(label, tf.int32)

    def make_batches(examples, numbers):
        numbered = tf.data.Dataset.zip((examples, numbers))
        augmented = numbered.map(augment_one, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        return prefetch_batches(augmented.batch(batch_size, drop_remainder=True))

    if not hasattr(source, "__len__"):
        first = read_count("first_step", first_step, smallest=0) * batch_size
        examples = source.load(shuffle_seed=order_seed).repeat().skip(first)
        return make_batches(examples, tf.data.Dataset.counter(first))
    order = BatchOrder(find_groups(source, group_by_ratio=False), batch_size, order_seed)
    return continue_batches(
        order,
        first_step,
        lambda positions, numbers: make_batches(source.load(indices=positions), numbers),
    )


def evaluation_batches(
    source, batch_size: int = 1, image_size: tuple[int, int] | None = None
) -> tf.data.Dataset:
    """Batches of one pass in file order, not augmented; the last batch may be smaller.

    Args:
        source: See `training_batches`.
        batch_size: Images per batch; above 1, all images must have one size, or `image_size` is needed.
        image_size: (height, width). Every picture is resized to fit into it with its ratio kept, then padded
            at the bottom and right: image with the mean grey, label with 255. None keeps the stored sizes.

    Returns:
        Dataset of (images `(batch, height, width, 3)` float32 0 .. 255, labels `(batch, height, width)`
        int32).

    Raises:
        ValueError: Where images of different sizes would share a batch.
    """
    read_count("batch_size", batch_size)
    image_size = None if image_size is None else read_size("image_size", image_size)
    if batch_size > 1 and image_size is None and isinstance(source, SemanticFolder):
        _check_one_size(source.pairs, batch_size)

    def prepare(image, label):
        if image_size is None:
            return tf.cast(image, tf.float32), label
        scale = tf.reduce_min(tf.constant(image_size, tf.float64) / tf.cast(tf.shape(label), tf.float64))
        size = tf.minimum(scale_size(tf.shape(label), scale), image_size)
        return pad_pair(*resize_pair(image, label, size), image_size)

    examples = source.load().map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return prefetch_batches(examples.batch(batch_size))


def decode_label(path: str | bytes | os.PathLike) -> np.ndarray:
    """The label values of a one-channel picture.

    Pillow reads it and not TensorFlow, which turns the indices of a palette picture into colours.

    Args:
        path: PNG file of 1, 8 or 16 bits grey, or with a palette.

    Returns:
        `(height, width)`, int32.

    Raises:
        ValueError: For a picture with colour channels.
    """
    with Image.open(os.fsdecode(path)) as picture:
        if len(picture.getbands()) != 1:
            raise ValueError(
                f"the label picture must have one channel or a palette; map its colours to class numbers and "
                f"save it as 8-bit grey. Received: mode {picture.mode!r} in {os.fsdecode(path)}"
            )
        return np.asarray(picture).astype("int32")


def shift_zero_label(label: np.ndarray) -> np.ndarray:
    """Labels with 0 for unlabelled turned into labels with 255 for it: k becomes k - 1, 255 stays."""
    return np.where((label == 0) | (label == IGNORE_LABEL), IGNORE_LABEL, label - 1).astype("int32")


def _read_pair(image_path, label_path, reduce_zero_label):
    def read_label(path):
        label = decode_label(path)
        return shift_zero_label(label) if reduce_zero_label else label

    # decode_jpeg reads PNG as well; only it can ask for the accurate DCT, which every other decoder uses.
    image = tf.io.decode_jpeg(tf.io.read_file(image_path), channels=3, dct_method="INTEGER_ACCURATE")
    label = tf.ensure_shape(tf.numpy_function(read_label, [label_path], tf.int32), (None, None))
    return image, label


def _examine_pair(pair, num_classes, reduce_zero_label):
    """Problems of one pair (a list of texts), and its pixels per class."""
    problems = []
    counts = np.zeros(num_classes, "int64")
    image_path, label_path = pair
    image_size = label = None
    try:
        image_size = _decode_image_size(image_path)
    except Exception as error:  # Pillow's decoders raise many kinds; each means that the file is no use
        problems.append(f"{image_path}: cannot be read ({error})")
    try:
        label = decode_label(label_path)
    except Exception as error:
        problems.append(f"{label_path}: cannot be read ({error})")
    if label is None:
        return problems, counts

    if image_size is not None and image_size != label.shape:
        problems.append(
            f"{label_path}: label of (height, width) {label.shape}, but {image_path} has {image_size}"
        )
    last = num_classes if reduce_zero_label else num_classes - 1
    values = np.unique(label)
    faulty = values[((values < 0) | (values > last)) & (values != IGNORE_LABEL)].tolist()
    if faulty:
        shown = ", ".join(map(str, faulty[:MAX_LISTED])) + (", ..." if len(faulty) > MAX_LISTED else "")
        problems.append(f"{label_path}: labels must be 0 .. {last} or {IGNORE_LABEL}. Received: {shown}")
        return problems, counts
    label = shift_zero_label(label) if reduce_zero_label else label
    return problems, np.bincount(label[label != IGNORE_LABEL], minlength=num_classes)


def _decode_image_size(path):
    """(height, width) of an image that decodes in full."""
    with Image.open(path) as image:
        if image.format not in IMAGE_FORMATS:
            raise ValueError(f"the image must be JPEG or PNG. Received: {image.format}")
        image.load()
        return image.height, image.width


def _find_split(path, split):
    """The image folder and the label folder of a split."""
    label_root = next((path / name for name in ("labels", "annotations") if (path / name).is_dir()), None)
    if label_root is None or not (path / "images").is_dir():
        raise ValueError(
            f"path must hold images/<split>/ with labels/<split>/ or annotations/<split>/. Received: {path}"
        )
    for name in (split, LONG_SPLIT_NAMES.get(split, split)):
        if (path / "images" / name).is_dir() and (label_root / name).is_dir():
            return path / "images" / name, label_root / name
    found = [folder.name for folder in (path / "images").iterdir() if (label_root / folder.name).is_dir()]
    raise ValueError(
        f"split must be one of {sorted(found)}, the folders in images/ and {label_root.name}/ of {path}. "
        f"Received: {split!r}"
    )


def _find_class_names(path, class_names):
    if class_names is None:
        class_names = path / "classes.txt"
        if not class_names.is_file():
            raise ValueError(
                f"class_names must be given (a sequence of names, or a text file with one name per line) "
                f"where the folder has no classes.txt. Received: class_names=None for {path}"
            )
    if isinstance(class_names, str | os.PathLike):
        text = pathlib.Path(class_names).read_text(encoding="utf-8")
        class_names = [line.strip() for line in text.rstrip().splitlines()]
    class_names = tuple(class_names)
    if not 1 <= len(class_names) <= IGNORE_LABEL or not all(class_names):
        raise ValueError(f"class_names must be 1 to {IGNORE_LABEL} non-empty names. Received: {class_names}")
    return class_names


def _pair_files(image_folder, label_folder):
    """Sorted (image, label) paths; every file must have its counterpart."""
    images, doubles = _files_by_stem(image_folder, IMAGE_SUFFIXES)
    labels, _ = _files_by_stem(label_folder, LABEL_SUFFIXES)
    problems = [f"{path}: a second image of this name" for path in doubles]
    problems += [f"{images[stem]}: no label picture" for stem in sorted(images.keys() - labels.keys())]
    problems += [f"{labels[stem]}: no image" for stem in sorted(labels.keys() - images.keys())]
    if problems:
        raise ValueError(
            f"Every image must have one label picture of the same name in {label_folder}:\n"
            f"{_list_briefly(problems)}"
        )
    if not images:
        raise ValueError(
            f"The split must hold {', '.join(IMAGE_SUFFIXES)} files. Received: none in {image_folder}"
        )
    return [(images[stem], labels[stem]) for stem in sorted(images)]


def _files_by_stem(folder, suffixes):
    files, doubles = {}, []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            doubles.append(path)
        files.setdefault(path.stem, path)
    return files, doubles


def _list_briefly(problems):
    more = [f"and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
    return "\n".join(problems[:MAX_LISTED] + more)


def _check_one_size(pairs, batch_size):
    """Reads the sizes from the file headers, which is cheap."""
    first_path, first_size = pairs[0][0], None
    for path, _ in pairs:
        with Image.open(path) as image:
            size = (image.height, image.width)
        first_size = first_size or size
        if size != first_size:
            raise ValueError(
                f"batch_size must be 1 or image_size=(height, width) be given, because the images differ in "
                f"size: {first_path} has {first_size}, {path} has {size}. Received: batch_size={batch_size}"
            )
