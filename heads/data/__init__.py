"""Files to `tf.data` batches: data sets, their checks, and augmentation.

Images are RGB 0 .. 255 `(height, width, 3)`, label maps int32 `(height, width)` with 255 for ignored pixels,
boxes float32 `(n, 4)` xyxy in pixels, their labels int32 with -1 for padding and -2 for crowd regions. A
person's keypoints are float32 `(keypoints, 3)`: x, y and visibility.
"""

from heads.data.class_counts import balance_classes, format_class_counts
from heads.data.class_folder import ClassFolder, class_training_batches
from heads.data.class_moves import ClassAugmentation
from heads.data.coco import CocoDataset
from heads.data.coco_keypoints import CocoKeypoints
from heads.data.detection_batches import detection_evaluation_batches, detection_training_batches
from heads.data.detection_moves import DetectionAugmentation, Move, draw_masks, move_boxes, move_image
from heads.data.object_folder import ObjectFolder, open_detection_folder
from heads.data.object_label_maps import ObjectLabelMaps, open_semantic_folder
from heads.data.order import find_training_pictures
from heads.data.panoptic import PanopticDataset
from heads.data.panoptic_batches import panoptic_evaluation_batches, panoptic_training_batches
from heads.data.person_moves import PersonMove, PoseAugmentation, move_person
from heads.data.pose_batches import pose_evaluation_batches, pose_training_batches
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
from heads.data.shapes.keypoints import KeypointShapes
from heads.data.shapes.panoptic import PanopticShapes
from heads.data.shapes.saliency import SaliencyShapes
from heads.data.shapes.semantic import SemanticShapes
from heads.data.splits import choose_held_out

__all__ = [
    "ClassAugmentation",
    "ClassFolder",
    "CocoDataset",
    "CocoKeypoints",
    "DetectionAugmentation",
    "DetectionShapes",
    "KeypointShapes",
    "Move",
    "ObjectFolder",
    "ObjectLabelMaps",
    "PanopticDataset",
    "PanopticShapes",
    "PersonMove",
    "PoseAugmentation",
    "SaliencyAugmentation",
    "SaliencyFolder",
    "SaliencyShapes",
    "SemanticAugmentation",
    "SemanticFolder",
    "SemanticShapes",
    "balance_classes",
    "choose_held_out",
    "class_training_batches",
    "detection_evaluation_batches",
    "detection_training_batches",
    "draw_masks",
    "find_training_pictures",
    "format_class_counts",
    "move_boxes",
    "move_image",
    "move_person",
    "open_detection_folder",
    "open_semantic_folder",
    "panoptic_evaluation_batches",
    "panoptic_training_batches",
    "photometric_distortion",
    "pose_evaluation_batches",
    "pose_training_batches",
    "random_crop",
    "random_flip",
    "random_scale",
    "resize_keep_ratio",
    "semantic_evaluation_batches",
    "semantic_training_batches",
]
