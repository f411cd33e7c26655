"""Folders of class folders, for image classification."""

import copy
import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from heads.data.label_folders import list_briefly
from heads.data.semantic_batches import semantic_training_batches
from heads.data.splits import choose_held_out
from heads.pictures import read_picture, show_path

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ClassFolder:
    """A folder with one folder of pictures for each class, named after the class.

    Classes are numbered in the order of their names, or by value if all names are numbers. Hidden files,
    sub-folders of the class folders and files without a picture's suffix are ignored.

    Args:
        path: The folder.
        class_names: The names in the order of the labels, e.g. those of the training data for validation
            data, which may lack some of them. Default: the names of the folders.

    Attributes:
        class_names: Name of each class.
        num_classes: Their number.
        image_paths: The pictures, class by class.
        labels: int32 `(pictures,)`, the class of each.

    Raises:
        ValueError: For a missing folder, fewer than 2 classes, and folders that are not a class or have no
            picture.
    """

    def __init__(self, path: str | os.PathLike, class_names: Sequence[str] | None = None):
        self.path = pathlib.Path(path)
        folders = find_class_folders(self.path)
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
        pictures = {folder.name: list_pictures(folder) for folder in folders}
        if empty := [name for name, found in pictures.items() if not found]:
            raise ValueError(
                f"each folder in {show_path(self.path)} must hold pictures ({', '.join(SUFFIXES)}). "
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
            ValueError: Lists the pictures that cannot be read.
        """
        with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
            found = pool.map(_find_fault, self.image_paths)
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
            Dataset of (image `(height, width, 3)` uint8, label int32 scalar). A picture that cannot be read
            ends the iteration with an error that names its path.
        """

        def read(index):
            image = tf.numpy_function(lambda index: read_picture(self.image_paths[index]), [index], tf.uint8)
            return tf.ensure_shape(image, (None, None, 3)), tf.gather(self.labels, index)

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

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


def list_pictures(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the pictures in a folder, except hidden ones."""
    return [each for each in sorted(folder.glob("[!.]*")) if each.suffix.lower() in SUFFIXES]


def _find_fault(path):
    """Returns what is wrong with a picture, or None."""
    try:
        read_picture(path)
    except ValueError as problem:
        return str(problem)
    return None
