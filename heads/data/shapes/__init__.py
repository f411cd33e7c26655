"""The embedded data set: synthetic scenes with exact labels, drawn on the fly."""

from heads.data.shapes.detection import DetectionShapes
from heads.data.shapes.keypoints import KeypointShapes
from heads.data.shapes.panoptic import PanopticShapes
from heads.data.shapes.saliency import SaliencyShapes
from heads.data.shapes.semantic import SemanticShapes

__all__ = ["DetectionShapes", "KeypointShapes", "PanopticShapes", "SaliencyShapes", "SemanticShapes"]
