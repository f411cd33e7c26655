"""Folders of class folders, for image classification."""

import contextlib
import copy
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from heads.arguments import read_count
from heads.bands import BAND_SUFFIXES, count_bands, read_bands
from heads.data.label_folders import list_briefly
from heads.data.semantic_batches import semantic_training_batches
from heads.data.splits import choose_held_out
from heads.pictures import RGB_CHANNELS, read_picture, show_path

TIFF_SAMPLES_PER_PIXEL = 277
TIFF_EXTRA_SAMPLES = 338
TIFF_ALPHA = (1, 2)  # what an extra sample may be; 0 is anything
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ClassFolder:
    """A folder with one folder of pictures for each class, named after the class.

    Classes are numbered in the order of their names, or by value if all names are numbers. Hidden files,
    sub-folders of the class folders and files without a picture's suffix are ignored.

    Args:
        path: The folder.
        class_names: The names in the order of the labels, e.g. those of the training data for validation
            data, which may lack some of them. Default: the names of the folders.
        num_channels: Channels of the pictures, as many as the network takes. 3 is RGB, also from grey files;
            other pictures are TIFF files of so many bands, read as `heads.bands.read_bands` says. None: as
            `count_class_channels` finds.

    Attributes:
        num_channels: Channels of the pictures.
        class_names: Name of each class.
        num_classes: Their number.
        image_paths: The pictures, class by class.
        labels: int32 `(pictures,)`, the class of each.

    Raises:
        ValueError: For a missing folder, fewer than 2 classes, and folders that are not a class or have no
            picture.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        class_names: Sequence[str] | None = None,
        num_channels: int | None = RGB_CHANNELS,
    ):
        self.path = pathlib.Path(path)
        folders = find_class_folders(self.path)
        if num_channels is None:
            num_channels = count_class_channels(
                picture for folder in folders for picture in list_pictures(folder)
            )
        self.num_channels = read_count("num_channels", num_channels)
        self.class_names = tuple([each.name for each in folders] if class_names is None else class_names)
        self.num_classes = len(self.class_names)
        if self.num_classes < 2:
            raise ValueError(
                f"path must hold a folder for each of at least 2 classes. Received: {self.class_names} "
                f"in {show_path(self.path)}"
            )
        unknown = [folder.name for folder in folders if folder.name not in self.class_names]
        if unknown:
            raise ValueError(
                f"the folders in {show_path(self.path)} must be classes of the training data. "
                f"Received also: {', '.join(unknown)}"
            )
        suffixes = SUFFIXES if self.num_channels == RGB_CHANNELS else BAND_SUFFIXES
        pictures = {folder.name: list_pictures(folder, suffixes) for folder in folders}
        if empty := [name for name, found in pictures.items() if not found]:
            raise ValueError(
                f"each folder in {show_path(self.path)} must hold pictures ({', '.join(suffixes)}). "
                f"Received none in: {', '.join(empty)}"
            )
        examples = [
            (path, self.class_names.index(name)) for name, found in pictures.items() for path in found
        ]
        self.image_paths = [picture for picture, _ in examples]
        self.labels = np.array([label for _, label in examples], "int32")

    def __len__(self):
        return len(self.image_paths)

    def check(self, num_threads: int | None = None, progress: bool = True) -> np.ndarray:
        """Decodes every picture, so that faults are found now and not after hours.

        Args:
            num_threads: Threads that decode. Default: one per CPU core.
            progress: Whether to show a progress bar.

        Returns:
            Pictures of each class, `(num_classes,)`, int64.

        Raises:
            ValueError: Lists the pictures that cannot be read, or have another number of channels.
        """
        with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
            found = pool.map(self._find_fault, self.image_paths)
            title = f"check {self.path.name}"
            faults = [fault for fault in tqdm(found, title, len(self), disable=not progress) if fault]
        if faults:
            raise ValueError(f"{show_path(self.path)} has faulty files:\n{list_briefly(faults)}")
        return np.bincount(self.labels, minlength=self.num_classes)

    def split(self, share: float, seed: int = 0) -> tuple["ClassFolder", "ClassFolder"]:
        """Returns two parts, one to train on and one that is held out, the same for the same seed.

        Args:
            share: Share of each class that is held out, rounded; of two pictures or more at least one is held
                out, and at least one is trained on.
            seed: Seed of the choice.

        Raises:
            ValueError: For a share that is not below 1, or where no class has two pictures.
        """
        is_on = self.labels[:, None] == np.arange(self.num_classes)
        keys = [path.relative_to(self.path).as_posix() for path in self.image_paths]
        is_held_out = choose_held_out(is_on, keys, share, seed, self.path)
        return self._select(~is_held_out), self._select(is_held_out)

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the decoded pictures with their classes.

        Args:
            indices: Dataset of positions in `image_paths`, int64 scalars. Default: all, once, in order.

        Returns:
            Dataset of (image `(height, width, channels)`, uint8 if RGB, else float32; label int32 scalar). A
            picture that cannot be read ends the iteration with an error that names its path.
        """
        dtype = tf.uint8 if self.num_channels == RGB_CHANNELS else tf.float32

        def read(index):
            image = tf.numpy_function(lambda index: self.read(self.image_paths[index]), [index], dtype)
            image = tf.ensure_shape(image, (None, None, self.num_channels))
            return image, tf.gather(self.labels, index)

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def read(self, path) -> np.ndarray:
        """Returns a picture as `read_class_picture` does, with the folder's channels."""
        return read_class_picture(path, self.num_channels)

    def _find_fault(self, path):
        """Returns what is wrong with a picture, or None."""
        try:
            self.read(path)
        except ValueError as problem:
            return str(problem)
        return None

    def _select(self, is_kept):
        part = copy.copy(self)
        places = np.flatnonzero(is_kept)
        part.image_paths, part.labels = [self.image_paths[place] for place in places], self.labels[places]
        return part


def class_training_batches(source, batch_size: int, augment, seed: int = 0, first_step: int = 0):
    """Endless augmented batches of (images, labels `(batch,)`): see `semantic_training_batches`.

    A `ClassFolder` gives an image with a single label instead of a label map; all else is the same.
    """
    return semantic_training_batches(source, batch_size, augment, seed, first_step=first_step)


def find_class_folders(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders of the classes, in the order of the classes.

    Raises:
        ValueError: If there is none.
    """
    folders = sorted(each for each in path.glob("[!.]*") if each.is_dir())
    if not folders:
        raise ValueError(f"path must hold a folder of pictures for each class. Received: {show_path(path)}")
    if all(folder.name.isdigit() for folder in folders):
        folders.sort(key=lambda folder: int(folder.name))  # 2 before 10
    return folders


def list_pictures(folder: pathlib.Path, suffixes: Sequence[str] = SUFFIXES) -> list[pathlib.Path]:
    """Returns the pictures in a folder, except hidden ones."""
    return [each for each in sorted(folder.glob("[!.]*")) if each.suffix.lower() in suffixes]


def count_class_channels(paths) -> int:
    """Returns how many channels pictures have: those of the first if all are TIFF files, but at least 3.

    Grey pictures are read as RGB, and alpha does not count. What cannot be read is passed over.

    Raises:
        ImportError: If it needs tifffile, which is not installed.
    """
    paths = list(paths)
    if not all(path.suffix.lower() in BAND_SUFFIXES for path in paths):
        return RGB_CHANNELS
    for path in paths:
        with contextlib.suppress(ValueError):  # `check` lists it
            return RGB_CHANNELS if _is_read_as_rgb(path) else max(RGB_CHANNELS, count_bands(path))
    return RGB_CHANNELS


def _is_read_as_rgb(path):
    """Returns whether a TIFF file holds one picture of at most 3 channels, not counting alpha."""
    try:
        with Image.open(path) as picture:
            alphas = [kind for kind in picture.tag_v2.get(TIFF_EXTRA_SAMPLES, ()) if kind in TIFF_ALPHA]
            num_channels = picture.tag_v2.get(TIFF_SAMPLES_PER_PIXEL, 1) - len(alphas)
            return picture.n_frames == 1 and num_channels <= RGB_CHANNELS
    except Exception:  # Pillow raises many kinds of errors; it reads no more than 4 channels
        return False


def read_class_picture(path, num_channels: int = RGB_CHANNELS) -> np.ndarray:
    """Returns a picture `(height, width, num_channels)`: uint8 if RGB, else float32, as it is stored.

    Raises:
        ValueError: If it cannot be read, or has another number of channels. The message starts with the path.
    """
    return read_picture(path) if num_channels == RGB_CHANNELS else read_bands(path, num_channels)
