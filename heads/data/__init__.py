"""Files to `tf.data` batches: data sets, their checks, and augmentation.

Images are RGB 0 .. 255 `(height, width, 3)`, label maps int32 `(height, width)` with 255 for ignored pixels,
boxes float32 `(n, 4)` xyxy in pixels, their labels int32 with -1 for padding and -2 for crowd regions.
"""

from heads.data.class_folder import ClassFolder, class_training_batches
from heads.data.class_moves import ClassAugmentation
from heads.data.coco import CocoDataset
from heads.data.detection_batches import detection_evaluation_batches, detection_training_batches
from heads.data.detection_moves import DetectionAugmentation, Move, draw_masks, move_boxes, move_image
from heads.data.order import find_training_pictures
from heads.data.saliency_folder import SaliencyFolder
from heads.data.saliency_moves import SaliencyAugmentation
from heads.data.semantic_batches import semantic_evaluation_batches, semantic_training_batches
from heads.data.semantic_folder import SemanticFolder
from heads.data.semantic_moves import (
    SemanticAugmentation,
    photometric_distortion,
    random_crop,
    random_flip,
    random_scale,
    resize_keep_ratio,
)
from heads.data.shapes.detection import DetectionShapes
from heads.data.shapes.saliency import SaliencyShapes
from heads.data.shapes.semantic import SemanticShapes

__all__ = [
    "ClassAugmentation",
    "ClassFolder",
    "CocoDataset",
    "DetectionAugmentation",
    "DetectionShapes",
    "Move",
    "SaliencyAugmentation",
    "SaliencyFolder",
    "SaliencyShapes",
    "SemanticAugmentation",
    "SemanticFolder",
    "SemanticShapes",
    "class_training_batches",
    "detection_evaluation_batches",
    "detection_training_batches",
    "draw_masks",
    "find_training_pictures",
    "move_boxes",
    "move_image",
    "photometric_distortion",
    "random_crop",
    "random_flip",
    "random_scale",
    "resize_keep_ratio",
    "semantic_evaluation_batches",
    "semantic_training_batches",
]
