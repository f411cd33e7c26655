"""Dense-prediction heads over any backbone that gives a feature pyramid."""

from heads.dense_model import DenseModel
from heads.faster_rcnn import FasterRCNN
from heads.fpn import FPN
from heads.mask_rcnn import MaskRCNN
from heads.pyramid_pooling import PyramidPooling
from heads.retinanet import RetinaNet
from heads.schedules import WarmUpPolynomialDecay, WarmUpStepDecay
from heads.segmentation import segment_images
from heads.semantic_fpn import SemanticFPN
from heads.upernet import UPerNet

__all__ = [
    "FPN",
    "DenseModel",
    "FasterRCNN",
    "MaskRCNN",
    "PyramidPooling",
    "RetinaNet",
    "SemanticFPN",
    "UPerNet",
    "WarmUpPolynomialDecay",
    "WarmUpStepDecay",
    "segment_images",
]
