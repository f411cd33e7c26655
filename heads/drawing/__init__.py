"""Pictures of truth and predictions: arrays in, arrays out; nothing is shown or saved."""

from heads.drawing.bands import draw_bands
from heads.drawing.comparison import draw_detection_comparison
from heads.drawing.confusion import draw_confusion
from heads.drawing.curves import draw_curves, draw_precision_recall
from heads.drawing.label_maps import draw_comparison, draw_label_map, draw_segmentation, overlay_label_map
from heads.drawing.objects import draw_detections
from heads.drawing.pages import draw_legend, label_picture, tile_pictures
from heads.drawing.palette import class_palette
from heads.drawing.report import make_report
from heads.drawing.results import draw_result
from heads.drawing.saliency_maps import draw_saliency_comparison, draw_saliency_map
from heads.drawing.segments import draw_panoptic_comparison, draw_segments
from heads.drawing.skeletons import draw_pose_comparison, draw_skeletons

__all__ = [
    "class_palette",
    "draw_bands",
    "draw_comparison",
    "draw_confusion",
    "draw_curves",
    "draw_detection_comparison",
    "draw_detections",
    "draw_label_map",
    "draw_legend",
    "draw_panoptic_comparison",
    "draw_pose_comparison",
    "draw_precision_recall",
    "draw_result",
    "draw_saliency_comparison",
    "draw_saliency_map",
    "draw_segmentation",
    "draw_segments",
    "draw_skeletons",
    "label_picture",
    "make_report",
    "overlay_label_map",
    "tile_pictures",
]
