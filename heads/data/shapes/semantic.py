"""The scenes of the embedded data set with a class for each pixel, for semantic segmentation."""

import numpy as np
import tensorflow as tf

from heads.arguments import read_count, read_seed, read_size
from heads.data.shapes.scenes import CLASS_NAMES, SMALLEST_SCENE_SIDE, draw_scene
from heads.pictures import RGB_CHANNELS


class SemanticShapes:
    """A data set of synthetic scenes, each drawn on the fly from `(seed, index)`.

    Args:
        num_images: The number of scenes.
        image_size: (height, width) in pixels, each at least 32.
        seed: Data sets with different seeds share no scene, e.g. 0 for training and 1 for validation.

    Attributes:
        num_channels: 3: the scenes are RGB.
        class_names: The names of the semantic classes.
        num_classes: Their number.

    Raises:
        ValueError: If `num_images` is not positive or a side is too small.
    """

    num_channels = RGB_CHANNELS

    def __init__(self, num_images: int = 1000, image_size: tuple[int, int] = (128, 128), seed: int = 0):
        self.num_images = read_count("num_images", num_images)
        self.image_size = read_size("image_size", image_size, SMALLEST_SCENE_SIDE)
        self.seed = read_seed(seed)
        self.class_names = CLASS_NAMES
        self.num_classes = len(CLASS_NAMES)

    def __len__(self):
        return self.num_images

    def __getitem__(self, index):
        if not 0 <= index < self.num_images:
            raise IndexError(f"index must be in 0 .. {self.num_images - 1}. Received: {index!r}")
        return draw_scene((self.seed, int(index)), self.image_size)

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the scenes as single (image, label map) pairs.

        Args:
            indices: Dataset of scene numbers, int64 scalars. Default: 0, 1, ..

        Returns:
            Dataset of (uint8 (height, width, 3), int32 (height, width)), drawn in parallel, the order kept.
        """

        def draw(index):
            scene = self[int(index)]
            return scene["image"], scene["semantic"]

        def map_index(index):
            image, label_map = tf.numpy_function(draw, [index], (tf.uint8, tf.int32))
            return tf.ensure_shape(image, (*self.image_size, 3)), tf.ensure_shape(label_map, self.image_size)

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(map_index, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def check(self):
        """Returns how many pixels of each class the first 64 scenes have, int64 (num_classes,)."""
        counts = np.zeros(self.num_classes, np.int64)
        for index in range(min(len(self), MAX_CHECKED_SCENES)):
            counts += np.bincount(self[index]["semantic"].ravel(), minlength=self.num_classes)
        return counts


MAX_CHECKED_SCENES = 64
