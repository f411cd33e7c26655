"""Files to `tf.data` batches: data sets, their checks, and augmentation.

Images are RGB 0 .. 255 `(height, width, 3)`, label maps int32 `(height, width)` with 255 for ignored pixels,
boxes float32 `(n, 4)` xyxy in pixels, their labels int32 with -1 for padding and -2 for crowd regions.
"""

from heads.data.augmentation import (
    SemanticAugmentation,
    photometric_distortion,
    random_crop,
    random_flip,
    random_scale,
    resize_keep_ratio,
)
from heads.data.coco import CocoDataset
from heads.data.detection import (
    DetectionAugmentation,
    detection_evaluation_batches,
    detection_training_batches,
)
from heads.data.geometry import Geometry, draw_masks, move_boxes, move_image
from heads.data.order import find_training_pictures
from heads.data.semantic import SemanticFolder, evaluation_batches, training_batches
from heads.data.shapes import ShapesDataset
from heads.data.shapes_detection import ShapesDetection

__all__ = [
    "CocoDataset",
    "DetectionAugmentation",
    "Geometry",
    "SemanticAugmentation",
    "SemanticFolder",
    "ShapesDataset",
    "ShapesDetection",
    "detection_evaluation_batches",
    "detection_training_batches",
    "draw_masks",
    "evaluation_batches",
    "find_training_pictures",
    "move_boxes",
    "move_image",
    "photometric_distortion",
    "random_crop",
    "random_flip",
    "random_scale",
    "resize_keep_ratio",
    "training_batches",
]
