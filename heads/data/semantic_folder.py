"""Image and label folders for semantic segmentation, as `tf.data` batches.

Label maps hold one class per pixel, int32; 255 is ignored. `*_size` = (height, width).
"""

import copy
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from heads.arguments import read_count
from heads.bands import BAND_SUFFIXES, find_num_channels, read_data_picture
from heads.data.colour_tables import find_colours
from heads.data.label_folders import IMAGE_SUFFIXES, MAX_LISTED, find_class_names, list_briefly
from heads.data.label_layouts import VOC_CLASS_NAMES, find_pairs
from heads.data.label_pictures import LabelPicture, decode_label_picture, find_other_order, map_numbers
from heads.data.splits import choose_held_out
from heads.ops.labels import IGNORED_LABEL
from heads.pictures import RGB_CHANNELS, show_path


class SemanticFolder:
    """A folder of images and label pictures, paired by their names without suffix.

    These layouts are read: `images/<split>/` with `labels/<split>/`, or without splits; ADE20K's
    `images/training/` with `annotations/training/`; and Pascal VOC's. Sub-folders belong to the split. Images
    are JPEG or PNG, label pictures are PNG with the class numbers in one channel or as indices of a palette.
    A number is the line in `classes.txt`, from 0; 255 is ignored. Coloured label pictures need a table of the
    classes' colours. `heads.pictures.decode_picture` reads the images: the EXIF orientation is applied unless
    only the stored pixels have the size of the label.

    Args:
        path: The folder.
        split: Name of the split; "train" and "val" also find "training", "valid", "validation" and the like.
            None: all pictures of a folder without splits, the only split, or else "train".
        class_names: Names in the order of the labels, at least 2, or the path of a text file with one name
            per line. Default: the folder's `classes.txt`, or the names of its table of colours.
        reduce_zero_label: True where label 0 means unlabelled and the classes are 1 .. N, as in ADE20K:
            0 becomes 255 and k becomes k - 1.
        class_colours: Of coloured label pictures: (red, green, blue) by name, or the path of a text file, see
            `read_colour_table`. Then there are no `class_names` beside it. Default: where the folder has no
            `classes.txt`, its `labelmap.txt`, `class_dict.csv`, `label_colors.txt` or `colours.txt`.
        num_channels: Channels of the images, as many as the backbone takes. 3 is RGB; other images are TIFF
            files of so many bands, read as `heads.bands.read_bands` says. None: as many as the first image
            has if all are TIFF files, else 3.

    Attributes:
        layout: Name of the layout.
        num_channels: Channels of the images.
        pairs: (image, label picture), paths.
        class_names: Names of the classes.
        num_classes: Their number.

    Raises:
        ValueError: For a missing folder or split, class names that are missing, unreadable, fewer than 2 or
            more than the numbers beside 255, pictures with another suffix, or files without a counterpart or
            with two.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        split: str | None = "train",
        class_names: Sequence[str] | str | os.PathLike | None = None,
        reduce_zero_label: bool = False,
        class_colours: Mapping | str | os.PathLike | None = None,
        num_channels: int | None = RGB_CHANNELS,
    ):
        self.path = pathlib.Path(path)
        if num_channels is None:
            _, _, pairs = find_pairs(self.path, split, (*IMAGE_SUFFIXES, *BAND_SUFFIXES))
            num_channels = find_num_channels(image for image, _ in pairs)
        self.num_channels = read_count("num_channels", num_channels)
        self.split_name = split or self.path.name
        self.reduce_zero_label = reduce_zero_label
        suffixes = IMAGE_SUFFIXES if self.num_channels == RGB_CHANNELS else BAND_SUFFIXES
        self.layout, start, self.pairs = find_pairs(self.path, split, suffixes)
        if class_names is None and start.name.startswith("VOC2") and not (start / "classes.txt").is_file():
            class_names = VOC_CLASS_NAMES
        self._colours = find_colours(start, class_names, class_colours, reduce_zero_label)
        names = class_names if self._colours is None else self._colours.class_names
        self.class_names = find_class_names(start, names, reduce_zero_label)
        self.num_classes = len(self.class_names)
        self._is_on = None  # (pairs, classes), which classes are on which picture

    def check(self, num_threads: int | None = None, progress: bool = True) -> np.ndarray:
        """Decodes every file and counts the pixels of each class.

        Run it once before training: all faults are found now and not after hours, and listed in one error.
        Warns where classes never occur, and where palettes give one colour different numbers.

        Args:
            num_threads: Threads that decode. Default: one per CPU core.
            progress: Whether to show a progress bar, and how many images their EXIF orientation turns.

        Returns:
            Pixels of each class, `(num_classes,)`, int64.

        Raises:
            ValueError: Lists unreadable files, sizes that differ, images of another number of channels, label
                pictures that hold no class numbers and labels out of range. If every pixel is ignored, or all
                but those of one class.
        """
        with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
            reports = pool.map(self._examine_pair, self.pairs)
            reports = list(tqdm(reports, f"check {self.split_name}", len(self), disable=not progress))
        problems = [problem for report in reports for problem in report.problems]
        if problems:
            raise ValueError(
                f"{self.path} has faulty files in {self.split_name!r}:\n{list_briefly(problems)}"
            )
        if progress:
            _tell_orientations(self.split_name, reports)
        self._is_on = np.array([report.counts > 0 for report in reports])
        counts = sum(report.counts for report in reports)
        self._judge_counts(counts, sum(report.num_ignored for report in reports))
        self._judge_palettes(reports)
        return counts

    def split(self, share: float, seed: int = 0) -> tuple["SemanticFolder", "SemanticFolder"]:
        """Returns two parts, one to train on and one that is held out: see `choose_held_out`.

        Decodes all label pictures, unless `check` has done so.

        Args:
            share: Share of the pictures of each class that is held out.
            seed: Seed of the choice; the same seed chooses the same pictures.

        Raises:
            ValueError: For a share that is not below 1, where no class is on two pictures, or where a label
                picture cannot be read.
        """
        if self._is_on is None:
            labels = (self._map_numbers(self._decode_label(path).numbers, path) for _, path in self.pairs)
            counts = [np.bincount(label.ravel(), minlength=IGNORED_LABEL + 1) for label in labels]
            self._is_on = np.array(counts)[:, : self.num_classes] > 0
        keys = [image.relative_to(self.path).as_posix() for image in self.image_paths]
        is_held_out = choose_held_out(self._is_on, keys, share, seed, self.path)
        return self._select(~is_held_out), self._select(is_held_out)

    def _select(self, is_kept):
        part, places = copy.copy(self), np.flatnonzero(is_kept)
        part.pairs, part._is_on = [self.pairs[place] for place in places], self._is_on[places]
        return part

    def __len__(self):
        return len(self.pairs)

    @property
    def image_paths(self) -> list[pathlib.Path]:
        """Paths of the images, in the order of `pairs`."""
        return [image for image, _ in self.pairs]

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the decoded pairs.

        Args:
            indices: Dataset of positions in `pairs`, int64 scalars. Default: all, once, in order.

        Returns:
            Dataset of (image `(height, width, channels)`, uint8 of RGB and else float32, label
            `(height, width)` int32). A file that cannot be read, an image of another size than its label and
            a label out of range end the iteration with the path.
        """
        image_dtype = tf.uint8 if self.num_channels == RGB_CHANNELS else tf.float32

        def read_pair(index):
            image_path, label_path = self.pairs[index]
            label = self._decode_label(label_path)
            return (
                self._read_image(image_path, label_path, label).pixels,
                self._map_numbers(label.numbers, label_path),
            )

        def read(index):
            image, label = tf.numpy_function(read_pair, [index], (image_dtype, tf.int32))
            image = tf.ensure_shape(image, (None, None, self.num_channels))
            return image, tf.ensure_shape(label, (None, None))

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def _read_image(self, image_path, label_path, label):
        """The `Picture` of an image, to be of the size of its label (None where that is unreadable)."""
        size = None if label is None else label.numbers.shape
        size_from = f"its label {show_path(label_path)}"
        return read_data_picture(image_path, self.num_channels, size, size_from)

    def _decode_label(self, path):
        """Returns the `LabelPicture` of a file; the numbers of a coloured picture are already labels."""
        return (
            decode_label_picture(path)
            if self._colours is None
            else LabelPicture(self._colours.decode(path), None)
        )

    def _map_numbers(self, numbers, path):
        """Returns the labels of a label picture's numbers."""
        return map_numbers(numbers, self.num_classes, self.reduce_zero_label, path)

    def _examine_pair(self, pair):
        """A `_PairReport` of an image and its label picture."""
        image_path, label_path = pair
        report = _PairReport(label_path, np.zeros(self.num_classes, "int64"))
        picture = label = None
        try:
            picture = self._decode_label(label_path)
            label = self._map_numbers(picture.numbers, label_path)
        except ValueError as problem:
            report.problems.append(str(problem))
        try:
            image = self._read_image(image_path, label_path, picture)
            report.orientation, report.is_turned = image.orientation, image.is_turned
        except ValueError as problem:
            report.problems.append(str(problem))
        if label is not None:
            labelled = label[label != IGNORED_LABEL]
            report.counts = np.bincount(labelled, minlength=self.num_classes)
            report.num_ignored = label.size - labelled.size
            report.palette = picture.palette
        return report

    def _judge_counts(self, counts, num_ignored):
        """Refuses labels that leave nothing to learn; warns of classes that never occur."""
        absent = [name for name, count in zip(self.class_names, counts, strict=True) if not count]
        if num_ignored and len(absent) >= self.num_classes - 1:
            occurs = f"only {self.class_names[int(counts.argmax())]!r}" if counts.any() else "no class"
            hint = "reduce_zero_label=True ignores number 0, too; leave it out if 0 is a class. "
            raise ValueError(
                f"{self.path} has nothing to learn in {self.split_name!r}: {occurs} occurs in its labels, "
                f"and {num_ignored} pixels are ignored. {hint if self.reduce_zero_label else ''}"
                f"Label {IGNORED_LABEL} is ignored: save masks of 0 and 255 as 0 and 1, with names for both."
            )
        if absent:
            more = f" and {len(absent) - MAX_LISTED} more" if len(absent) > MAX_LISTED else ""
            warnings.warn(
                f"{self.path}: the labels in {self.split_name!r} never hold {len(absent)} of the "
                f"{self.num_classes} classes: {', '.join(absent[:MAX_LISTED])}{more}. Class number k is line "
                f"k + 1 of the class names; if the numbers begin at 1 and 0 means unlabelled, pass "
                f"reduce_zero_label=True.",
                stacklevel=3,
            )

    def _judge_palettes(self, reports):
        """Warns where a colour stands for different numbers in different files."""
        palettes = {}
        for report in reports:
            if report.palette is not None:
                numbers = palettes.setdefault(report.palette.tobytes(), (report.label_path, set()))[1]
                numbers.update((np.flatnonzero(report.counts) + self.reduce_zero_label).tolist())
        if other_order := find_other_order(palettes):
            path, number, other_path, other_number = other_order
            warnings.warn(
                f"{self.path}: label pictures in {self.split_name!r} have palettes of different order. One "
                f"colour is number {number} in {show_path(path)} and {other_number} in "
                f"{show_path(other_path)}. The numbers count, not the colours: if the numbers are right, "
                f"save the pictures as grey.",
                stacklevel=3,
            )


@dataclasses.dataclass
class _PairReport:
    """What `SemanticFolder.check` finds in one pair; `counts` are pixels per class."""

    label_path: pathlib.Path
    counts: np.ndarray
    num_ignored: int = 0
    orientation: int = 1
    is_turned: bool = False
    palette: np.ndarray | None = None
    problems: list[str] = dataclasses.field(default_factory=list)


def _tell_orientations(split, reports):
    num_turned = sum(report.is_turned for report in reports)
    num_left = sum(report.orientation != 1 for report in reports) - num_turned
    if num_turned:
        tqdm.write(f"{split}: {num_turned} of {len(reports)} images are turned upright by EXIF orientation")
    if num_left:
        tqdm.write(
            f"{split}: {num_left} of {len(reports)} images are left as stored, because only then they have "
            f"the size of their labels; predictions on these files turn them by their EXIF orientation"
        )
