"""What the backbone sees, as pictures: arrays in, arrays out; nothing is shown or saved."""

from van_backbones.feature_maps.pages import (
    draw_feature_comparison,
    draw_feature_maps,
    draw_receptive_fields,
)
from van_backbones.feature_maps.relevance import (
    grad_cam,
    measure_reach,
    receptive_field,
)
from van_backbones.feature_maps.views import (
    attention_maps,
    compare_features,
    has_random_weights,
    project_to_rgb,
    project_together,
    similarity_to_point,
    strongest_channels,
)

__all__ = [
    "attention_maps",
    "compare_features",
    "draw_feature_comparison",
    "draw_feature_maps",
    "draw_receptive_fields",
    "grad_cam",
    "has_random_weights",
    "measure_reach",
    "project_to_rgb",
    "project_together",
    "receptive_field",
    "similarity_to_point",
    "strongest_channels",
]
