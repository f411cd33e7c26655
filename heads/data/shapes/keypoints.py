"""The people of the embedded data set with their keypoints, for pose estimation."""

import numpy as np
import tensorflow as tf

from heads.data.shapes.scenes import THING_NAMES
from heads.data.shapes.semantic import SemanticShapes
from heads.data.shapes.things import KEYPOINT_NAMES

PERSON = THING_NAMES.index("person")
FLIP_PAIRS = [(2, 3), (5, 6)]
SKELETON = [(0, 1), (1, 2), (1, 3), (1, 4), (4, 5), (4, 6)]
SIGMAS = (0.08,) * len(KEYPOINT_NAMES)  # of the order of COCO's
CATEGORY_ID = 1


class KeypointShapes:
    """The people in the scenes of `SemanticShapes`, one by one, as a source for `heads.data.pose_batches`.

    Every scene is drawn once, when the data set is made, to find the people; the scenes with people stay in
    memory.

    Args:
        num_images: The number of scenes, in which there are about 1.3 times as many people.
        image_size: (height, width) in pixels, each at least 32.
        seed: Data sets with different seeds share no scene, e.g. 0 for training and 1 for validation.

    Attributes:
        category_id: The id of the category in `to_coco`.
        keypoint_names: "head", "neck", "left_hand", ...
        num_keypoints: Their number.
        skeleton, flip_pairs, sigmas: See `CocoKeypoints`.
        upper_body: Empty: no half bodies.
        image_ids: The image id of each person in `to_coco`, from 1.
        image_sizes: int32 (people, 2), (height, width).
        boxes: float32 (people, 4), xyxy, tight around the visible pixels.
        keypoints: float32 (people, keypoints, 3), x, y and visibility: 0 outside of the image, 1 covered, 2
            visible. The centre of the first pixel is (0, 0).

    Raises:
        ValueError: If `num_images` is not positive or a side is too small.
    """

    def __init__(self, num_images: int = 500, image_size: tuple[int, int] = (128, 128), seed: int = 0):
        scenes = SemanticShapes(num_images, image_size, seed)
        self.image_size = scenes.image_size
        self.category_id = CATEGORY_ID
        self.keypoint_names, self.num_keypoints = KEYPOINT_NAMES, len(KEYPOINT_NAMES)
        self.skeleton, self.flip_pairs, self.sigmas, self.upper_body = SKELETON, FLIP_PAIRS, SIGMAS, ()
        self.num_images = len(scenes)
        self.image_ids, self._images = [], {}
        boxes, keypoints, areas = [], [], []
        for index in range(len(scenes)):
            scene = scenes[index]
            for thing in np.flatnonzero(scene["labels"] == PERSON):
                points = scene["keypoints"][thing]
                if points[:, 2].any():
                    self._images[index + 1] = scene["image"]
                    self.image_ids.append(index + 1)
                    boxes.append(scene["boxes"][thing])
                    areas.append(float(scene["masks"][thing].sum()))
                    # The scenes have the first pixel's corner at (0, 0).
                    keypoints.append(points - (points[:, 2:] > 0) * np.float32([0.5, 0.5, 0.0]))
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)
        self.keypoints = np.array(keypoints, np.float32).reshape(-1, self.num_keypoints, 3)
        self.image_sizes = np.tile(np.array(self.image_size, np.int32), (len(self), 1))
        self._areas = areas

    def __len__(self):
        return len(self.image_ids)

    def check(self) -> np.ndarray:
        """Returns how many labels each keypoint has, int64 (keypoints,)."""
        return (self.keypoints[..., 2] > 0).sum(axis=0).astype(np.int64)

    def load(self, indices: tf.data.Dataset | None = None) -> tf.data.Dataset:
        """Returns the people, each with its scene.

        Args:
            indices: Dataset of people's numbers, int64 scalars. Default: all, once, in order.

        Returns:
            Dataset of dicts of "index": int64 (); "image": uint8 (height, width, 3); "box": float32 (4,);
            "keypoints": float32 (keypoints, 3).
        """

        def find(index):
            return self._images[self.image_ids[index]], self.boxes[index], self.keypoints[index]

        def read(index):
            image, box, keypoints = tf.numpy_function(find, [index], (tf.uint8, tf.float32, tf.float32))
            return {
                "index": index,
                "image": tf.ensure_shape(image, (*self.image_size, 3)),
                "box": tf.ensure_shape(box, (4,)),
                "keypoints": tf.ensure_shape(keypoints, (self.num_keypoints, 3)),
            }

        indices = tf.data.Dataset.range(len(self)) if indices is None else indices
        return indices.map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def to_coco(self) -> dict:
        """Returns all people as the content of a COCO keypoints file, for the scores."""
        height, width = self.image_size
        pictures = [
            {"id": key, "file_name": f"{key}.png", "height": height, "width": width}
            for key in range(1, self.num_images + 1)
        ]
        annotations = []
        for person, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            points = self.keypoints[person]
            annotations.append(
                {
                    "id": person + 1,  # pycocotools takes an id of 0 for no match
                    "image_id": self.image_ids[person],
                    "category_id": self.category_id,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": self._areas[person],
                    "iscrowd": 0,
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                    "keypoints": points.ravel().tolist(),
                }
            )
        category = {
            "id": self.category_id,
            "name": "person",
            "keypoints": list(self.keypoint_names),
            "skeleton": [[first + 1, second + 1] for first, second in self.skeleton],
        }
        return {"images": pictures, "annotations": annotations, "categories": [category]}
