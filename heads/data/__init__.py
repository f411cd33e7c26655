"""Files to `tf.data` batches: data sets, their checks, and augmentation.

Images are RGB 0 .. 255 `(height, width, 3)`, label maps int32 `(height, width)` with 255 for ignored pixels.
"""

from heads.data.augmentation import (
    SemanticAugmentation,
    photometric_distortion,
    random_crop,
    random_flip,
    random_scale,
    resize_keep_ratio,
)
from heads.data.semantic import SemanticFolder, evaluation_batches, training_batches
from heads.data.shapes import ShapesDataset

__all__ = [
    "SemanticAugmentation",
    "SemanticFolder",
    "ShapesDataset",
    "evaluation_batches",
    "photometric_distortion",
    "random_crop",
    "random_flip",
    "random_scale",
    "resize_keep_ratio",
    "training_batches",
]
