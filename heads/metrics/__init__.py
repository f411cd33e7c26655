"""Scores of predictions, as the benchmarks count them."""

from heads.coco.segmentations import encode_mask
from heads.metrics.average_precision import evaluate_coco, format_coco_scores
from heads.metrics.coco import CocoScores, predict_coco_results, save_results, to_coco_results
from heads.metrics.saliency import (
    SaliencyScores,
    compare_saliency,
    evaluate_saliency,
    format_saliency_scores,
    score_saliency,
)
from heads.metrics.semantic import count_confusion, format_scores, score_confusion

__all__ = [
    "CocoScores",
    "SaliencyScores",
    "compare_saliency",
    "count_confusion",
    "encode_mask",
    "evaluate_coco",
    "evaluate_saliency",
    "format_coco_scores",
    "format_saliency_scores",
    "format_scores",
    "predict_coco_results",
    "save_results",
    "score_confusion",
    "score_saliency",
    "to_coco_results",
]
