"""Pictures of what a head was told and what it said: arrays in, arrays out; nothing is shown or saved."""

from heads.drawing.label_maps import (
    class_palette,
    draw_comparison,
    draw_label_map,
    draw_legend,
    draw_segmentation,
    label_picture,
    overlay_label_map,
    tile_pictures,
)
from heads.drawing.objects import draw_detection_comparison, draw_detections

__all__ = [
    "class_palette",
    "draw_comparison",
    "draw_detection_comparison",
    "draw_detections",
    "draw_label_map",
    "draw_legend",
    "draw_segmentation",
    "label_picture",
    "overlay_label_map",
    "tile_pictures",
]
