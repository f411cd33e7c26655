"""The scenes of the embedded data set as segments, for panoptic segmentation."""

import numpy as np
import tensorflow as tf

from heads.data.shapes.scenes import CLASS_NAMES, STUFF_NAMES, THING_NAMES
from heads.data.shapes.semantic import MAX_CHECKED_SCENES, SemanticShapes
from heads.ops.labels import VOID_SEGMENT


class PanopticShapes:
    """The scenes of `SemanticShapes` as a source of segments (see `heads.data.panoptic_batches`).

    Args:
        num_images: The number of scenes.
        image_size: (height, width) in pixels, each at least 32.
        seed: Data sets with different seeds share no scene, e.g. 0 for training and 1 for validation.

    Attributes:
        class_names: The names of the things, then those of the stuff.
        num_things: Number of classes of things.
        num_stuff: Number of classes of stuff.
        num_classes: Their sum.
        image_ids: From 1.
        image_sizes: int32 (images, 2), (height, width).

    Raises:
        ValueError: If `num_images` is not positive or a side is too small.
    """

    def __init__(self, num_images: int = 1000, image_size: tuple[int, int] = (128, 128), seed: int = 0):
        self.scenes = SemanticShapes(num_images, image_size, seed)
        self.class_names = CLASS_NAMES
        self.num_things, self.num_stuff = len(THING_NAMES), len(STUFF_NAMES)
        self.num_classes = len(self.class_names)
        self.image_ids = list(range(1, num_images + 1))
        self.image_sizes = np.tile(np.array(self.scenes.image_size, np.int32), (num_images, 1))

    def __len__(self):
        return len(self.scenes)

    def load_segments(self, index: int) -> dict:
        """Returns the truth of a scene: see `PanopticDataset.load_segments`."""
        segments, labels = self._draw(index)[1:]
        return {"segments": segments, "labels": labels, "is_crowd": np.zeros(len(labels), bool)}

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the scenes with their segments: see `PanopticDataset.load`."""

        def read(index):
            image, segments, labels = tf.numpy_function(
                lambda index: self._draw(int(index)), [index], (tf.uint8, tf.int32, tf.int32)
            )
            return {
                "index": index,
                "image": tf.ensure_shape(image, (*self.scenes.image_size, 3)),
                "segments": tf.ensure_shape(segments, self.scenes.image_size),
                "labels": tf.ensure_shape(labels, (None,)),
            }

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def check(self) -> np.ndarray:
        """Returns how many segments of each class the first 64 scenes have, int64 (num_classes,)."""
        labels = [self._draw(index)[2] for index in range(min(len(self), MAX_CHECKED_SCENES))]
        return np.bincount(np.concatenate(labels), minlength=self.num_classes).astype(np.int64)

    def _draw(self, index):
        """Returns image, segments and labels: the things front to back, then the stuff that is visible."""
        scene = self.scenes[index]
        segments = np.full(self.scenes.image_size, VOID_SEGMENT, np.int32)
        for row, mask in enumerate(scene["masks"]):
            segments[mask] = row
        labels = scene["labels"].tolist()
        for stuff in range(self.num_things, self.num_classes):
            mask = scene["semantic"] == stuff
            if mask.any():
                segments[mask] = len(labels)
                labels.append(stuff)
        return scene["image"], segments, np.array(labels, np.int32)
