"""The things of the embedded data set, for detection and instance segmentation."""

import numpy as np
import tensorflow as tf

from heads.coco.segmentations import encode_mask
from heads.data.detection_moves import count_runs
from heads.data.shapes.scenes import THING_NAMES
from heads.data.shapes.semantic import MAX_CHECKED_SCENES, SemanticShapes


class DetectionShapes:
    """The scenes of `SemanticShapes` as a source for `heads.data.detection_batches`.

    Args:
        num_images: The number of scenes.
        image_size: (height, width) in pixels, each at least 32.
        seed: Data sets with different seeds share no scene, e.g. 0 for training and 1 for validation.
        with_masks: Whether batches have masks.

    Attributes:
        class_names: The names of the things: balls, boxes, stars, ...
        num_classes: Their number.
        category_ids: The category id of each label in `to_coco`, from 1.
        image_ids: The image ids in `to_coco`, from 1.
        image_sizes: int32 (images, 2), (height, width).
        with_masks: As given.
        num_channels: 3: the scenes are RGB.

    Raises:
        ValueError: If `num_images` is not positive or a side is too small.
    """

    def __init__(
        self,
        num_images: int = 1000,
        image_size: tuple[int, int] = (128, 128),
        seed: int = 0,
        with_masks: bool = False,
    ):
        self.scenes = SemanticShapes(num_images, image_size, seed)
        self.with_masks, self.num_channels = with_masks, self.scenes.num_channels
        self.class_names = THING_NAMES
        self.num_classes = len(THING_NAMES)
        self.category_ids = tuple(range(1, self.num_classes + 1))
        self.image_ids = list(range(1, num_images + 1))
        self.image_sizes = np.tile(np.array(self.scenes.image_size, np.int32), (num_images, 1))
        self._segmentations = {}

    def __len__(self):
        return len(self.scenes)

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the scenes with their things.

        Args:
            indices: Dataset of scene numbers, int64 scalars. Default: 0, 1, ..

        Returns:
            Dataset of dicts of "index": int64 (); "image": uint8 (height, width, 3); "boxes": float32 (n, 4),
            tight around the visible pixels; "labels": int32 (n,).
        """

        def draw(index):
            scene = self._draw(int(index))
            return scene["image"], scene["boxes"], scene["labels"]

        def read(index):
            image, boxes, labels = tf.numpy_function(draw, [index], (tf.uint8, tf.float32, tf.int32))
            return {
                "index": index,
                "image": tf.ensure_shape(image, (*self.scenes.image_size, 3)),
                "boxes": tf.ensure_shape(boxes, (None, 4)),
                "labels": tf.ensure_shape(labels, (None,)),
            }

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def load_segmentations(self, index: int) -> list:
        """Returns the visible pixels of each thing of a scene, as run lengths."""
        if index not in self._segmentations:
            self._draw(index)
        return self._segmentations[index]

    def check(self) -> np.ndarray:
        """Returns how many things of each class the first 64 scenes have, int64 (num_classes,)."""
        labels = [self.scenes[index]["labels"] for index in range(min(len(self), MAX_CHECKED_SCENES))]
        return np.bincount(np.concatenate(labels), minlength=self.num_classes).astype(np.int64)

    def to_coco(self) -> dict:
        """Returns all scenes as the content of a COCO instances file, for the scores; draws every scene."""
        pictures, annotations = [], []
        for index, image_id in enumerate(self.image_ids):
            height, width = self.scenes.image_size
            pictures.append(
                {"id": image_id, "file_name": f"{image_id}.png", "height": height, "width": width}
            )
            scene = self._draw(index)
            objects = zip(scene["boxes"].tolist(), scene["labels"], scene["masks"], strict=True)
            for (x1, y1, x2, y2), label, mask in objects:
                annotations.append(
                    {
                        "id": len(annotations) + 1,  # pycocotools takes an id of 0 for no match
                        "image_id": image_id,
                        "category_id": self.category_ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": float(mask.sum()),
                        "iscrowd": 0,
                        "segmentation": encode_mask(mask),
                    }
                )
        categories = [
            {"id": category_id, "name": name}
            for category_id, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        return {"images": pictures, "annotations": annotations, "categories": categories}

    def _draw(self, index):
        """Returns a scene, and keeps its masks as run lengths, so that they need not be drawn again."""
        scene = self.scenes[index]
        if self.with_masks:
            self._segmentations[index] = [count_runs(mask) for mask in scene["masks"]]
        return scene
