"""The embedded data set: synthetic scenes with exact labels, drawn on the fly."""

from heads.data.shapes.detection import DetectionShapes
from heads.data.shapes.saliency import SaliencyShapes
from heads.data.shapes.semantic import SemanticShapes

__all__ = ["DetectionShapes", "SaliencyShapes", "SemanticShapes"]
