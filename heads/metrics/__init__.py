"""Scores of predictions, by the rules of the benchmarks."""

from heads.coco.segmentations import encode_mask
from heads.metrics.average_precision import evaluate_coco, format_coco_scores, measure_precision
from heads.metrics.coco import CocoScores, predict_coco_results, save_results, to_coco_results
from heads.metrics.keypoint_precision import evaluate_keypoints, format_keypoint_scores
from heads.metrics.keypoints import KeypointScores, predict_keypoint_results, to_keypoint_results
from heads.metrics.mistakes import count_mistakes, format_mistakes
from heads.metrics.panoptic import (
    PanopticCounts,
    PanopticScores,
    count_panoptic,
    evaluate_panoptic,
    format_panoptic_scores,
    score_panoptic,
)
from heads.metrics.saliency import (
    SaliencyScores,
    compare_saliency,
    evaluate_saliency,
    format_saliency_scores,
    score_saliency,
)
from heads.metrics.score_files import save_scores
from heads.metrics.scorer import Scorer
from heads.metrics.semantic import (
    SemanticScores,
    count_confusion,
    evaluate_semantic,
    format_semantic_scores,
    score_confusion,
)

__all__ = [
    "CocoScores",
    "KeypointScores",
    "PanopticCounts",
    "PanopticScores",
    "SaliencyScores",
    "Scorer",
    "SemanticScores",
    "compare_saliency",
    "count_confusion",
    "count_mistakes",
    "count_panoptic",
    "encode_mask",
    "evaluate_coco",
    "evaluate_keypoints",
    "evaluate_panoptic",
    "evaluate_saliency",
    "evaluate_semantic",
    "format_coco_scores",
    "format_keypoint_scores",
    "format_mistakes",
    "format_panoptic_scores",
    "format_saliency_scores",
    "format_semantic_scores",
    "measure_precision",
    "predict_coco_results",
    "predict_keypoint_results",
    "save_results",
    "save_scores",
    "score_confusion",
    "score_panoptic",
    "score_saliency",
    "to_coco_results",
    "to_keypoint_results",
]
