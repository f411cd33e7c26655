"""Dense-prediction heads over any backbone that gives a feature pyramid."""

from heads.dense_model import DenseModel
from heads.faster_rcnn import FasterRCNN
from heads.layers.fpn import FPN
from heads.layers.pyramid_pooling import PyramidPooling
from heads.mask_rcnn import MaskRCNN
from heads.picture_sizes import Resizing
from heads.retinanet import RetinaNet
from heads.schedules import WarmUpPolynomialDecay, WarmUpStepDecay
from heads.semantic_fpn import SemanticFPN
from heads.semantic_model import segment_images
from heads.upernet import UPerNet

__all__ = [
    "FPN",
    "DenseModel",
    "FasterRCNN",
    "MaskRCNN",
    "PyramidPooling",
    "Resizing",
    "RetinaNet",
    "SemanticFPN",
    "UPerNet",
    "WarmUpPolynomialDecay",
    "WarmUpStepDecay",
    "segment_images",
]
