"""Outlines of objects as label maps, so that segmenters learn from annotations for detectors."""

import os
import pathlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from heads.data.coco import CocoDataset
from heads.data.detection_moves import Move, draw_masks
from heads.data.label_layouts import LAYOUTS, has_label_pictures, list_names
from heads.data.object_folder import find_format, list_layouts, open_detection_folder
from heads.data.semantic_folder import SemanticFolder
from heads.ops.labels import CROWD_LABEL, IGNORED_LABEL
from heads.pictures import RGB_CHANNELS, show_path

BACKGROUND = "background"


class ObjectLabelMaps:
    """The masks of objects as label maps, a source like `SemanticFolder`.

    Where objects overlap, the smaller one lies on top. Pixels without an object are background, which is
    label 0 unless a class has that name; in boxes of crowds and regions to ignore, they have no truth.

    Args:
        source: A `CocoDataset` with masks.

    Attributes:
        num_channels: Channels of the pictures, 3 for RGB.
        layout: Where the masks come from.
        class_names: The source's classes, after "background" if it is not one of them.
        num_classes: Their number.
        image_paths: Paths of the pictures.

    Raises:
        ValueError: If the source has no masks.
    """

    def __init__(self, source: CocoDataset):
        if not source.with_masks:
            raise ValueError(f"source must have masks: with_masks=True. Received: {show_path(source.path)}")
        self.source = source
        self.num_channels = source.num_channels
        self.path = source.path
        self.layout = f"objects in {source.format}'s format"
        others = [name for name in source.class_names if name.lower() != BACKGROUND]
        self.class_names = (BACKGROUND, *others)
        self.num_classes = len(self.class_names)
        self.image_paths = source.image_paths
        places = {name: label for label, name in enumerate(self.class_names)}
        self._labels = [places.get(name, 0) for name in source.class_names]

    def __len__(self):
        return len(self.source)

    def check(self, num_threads: int | None = None, progress: bool = True) -> np.ndarray:
        """Checks the source, and counts the pixels of each class.

        Args:
            num_threads: Threads. Default: one per CPU core.
            progress: See `CocoDataset.check`.

        Returns:
            Pixels of each class, `(num_classes,)`, int64.

        Raises:
            ValueError: See `CocoDataset.check`; and if no object has a mask.
        """
        if not self.source.check(num_threads, progress).any():
            raise ValueError(f"{show_path(self.path)} has nothing to learn: no object has a mask")

        def count(index):
            label_map = self.draw(index)
            return np.bincount(label_map[label_map != IGNORED_LABEL], minlength=self.num_classes)

        with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
            return sum(pool.map(count, range(len(self)))).astype(np.int64)

    def split(self, share: float, seed: int = 0) -> tuple["ObjectLabelMaps", "ObjectLabelMaps"]:
        """Returns two parts, one to train on and one that is held out: see `CocoDataset.split`."""
        train, held_out = self.source.split(share, seed)
        return ObjectLabelMaps(train), ObjectLabelMaps(held_out)

    def draw(self, index: int) -> np.ndarray:
        """Returns the label map of a picture, int32 `(height, width)`."""
        size = self.source.image_sizes[index]
        stay = Move(size, size, np.zeros(2, int), size, np.array(False))
        label_map = np.zeros(tuple(size), np.int32)
        boxes, labels = self.source.boxes[index], self.source.labels[index]
        for x1, y1, x2, y2 in boxes[labels == CROWD_LABEL]:
            label_map[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = IGNORED_LABEL
        masks = [
            # One by one: a hundred masks of a large photograph do not fit into memory.
            np.flatnonzero(draw_masks([segmentation], stay, tuple(size)))
            for segmentation in self.source.load_segmentations(index)
        ]
        for place in sorted(range(len(masks)), key=lambda place: -len(masks[place])):
            if labels[place] != CROWD_LABEL:
                label_map.flat[masks[place]] = self._labels[labels[place]]
        return label_map

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the decoded pictures with their label maps.

        Args:
            indices: Dataset of positions in `image_paths`, int64 scalars. Default: all, once, in order.

        Returns:
            Dataset of (image `(height, width, channels)`, uint8 of RGB and else float32, label
            `(height, width)` int32). A picture that cannot be read, or is not of its annotation's size, ends
            the iteration with an error that names its path.
        """
        image_dtype = tf.uint8 if self.num_channels == RGB_CHANNELS else tf.float32

        def read_pair(index):
            return self.source.read_image(index), self.draw(index)

        def read(index):
            image, label = tf.numpy_function(read_pair, [index], (image_dtype, tf.int32))
            image = tf.ensure_shape(image, (None, None, self.num_channels))
            return image, tf.ensure_shape(label, (None, None))

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def open_semantic_folder(
    path: str | os.PathLike,
    split: str | None = "train",
    class_names: Sequence[str] | str | os.PathLike | None = None,
    reduce_zero_label: bool = False,
    class_colours: Mapping | str | os.PathLike | None = None,
    num_channels: int | None = RGB_CHANNELS,
) -> SemanticFolder | ObjectLabelMaps:
    """A folder for semantic segmentation: label pictures in any layout, or outlines of objects.

    The attribute `layout` of the result tells what was found. If there are both, the label pictures are read.

    Args:
        path: The folder.
        split: See `SemanticFolder`.
        class_names: See `SemanticFolder`; like the next two, for label pictures only.
        reduce_zero_label: See `SemanticFolder`.
        class_colours: See `SemanticFolder`.
        num_channels: See `SemanticFolder`.

    Returns:
        A `SemanticFolder`, or `ObjectLabelMaps` of what `open_detection_folder` reads.

    Raises:
        ValueError: If neither is there; the message lists what was looked for.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise ValueError(f"path must be a folder that exists. Received: {show_path(path)}")
    if has_label_pictures(path):
        return SemanticFolder(path, split, class_names, reduce_zero_label, class_colours, num_channels)
    if find_format(path) is None:
        layouts = "\n".join([*(f"- label pictures: {layout}" for layout in LAYOUTS), list_layouts()])
        raise ValueError(
            f"{show_path(path)} holds neither label pictures nor outlines of objects. Looked for:\n"
            f"{layouts}\nReceived: {list_names(path)}"
        )
    source = open_detection_folder(path, split, with_masks=True, num_channels=num_channels)
    if class_names is not None or reduce_zero_label or class_colours is not None:
        raise ValueError(
            f"class_names, reduce_zero_label and class_colours are for label pictures. Received: "
            f"{source.format}'s format in {show_path(path)}, which names its classes"
        )
    return ObjectLabelMaps(source)
