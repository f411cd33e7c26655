"""Dense-prediction heads over any backbone that gives a feature pyramid."""

from heads.atss import ATSS
from heads.cascade_rcnn import CascadeMaskRCNN
from heads.dense_model import DenseModel
from heads.edn import EDN
from heads.faster_rcnn import FasterRCNN
from heads.gfl import GFL
from heads.layers.fpn import FPN
from heads.layers.pyramid_pooling import PyramidPooling
from heads.mask2former import Mask2Former
from heads.mask_rcnn import MaskRCNN
from heads.optimizers import AdamW
from heads.picture_sizes import Resizing
from heads.results import to_coco, to_supervision
from heads.retinanet import RetinaNet
from heads.schedules import WarmUpPolynomialDecay, WarmUpStepDecay
from heads.semantic_fpn import SemanticFPN
from heads.semantic_model import segment_images
from heads.simple_baseline import SimpleBaseline
from heads.sparse_rcnn import SparseRCNN
from heads.tiles import segment_in_tiles
from heads.upernet import UPerNet
from heads.views import detect_in_slices, detect_in_views

__all__ = [
    "ATSS",
    "EDN",
    "FPN",
    "GFL",
    "AdamW",
    "CascadeMaskRCNN",
    "DenseModel",
    "FasterRCNN",
    "Mask2Former",
    "MaskRCNN",
    "PyramidPooling",
    "Resizing",
    "RetinaNet",
    "SemanticFPN",
    "SimpleBaseline",
    "SparseRCNN",
    "UPerNet",
    "WarmUpPolynomialDecay",
    "WarmUpStepDecay",
    "detect_in_slices",
    "detect_in_views",
    "segment_images",
    "segment_in_tiles",
    "to_coco",
    "to_supervision",
]
