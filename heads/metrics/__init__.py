"""Scores of predictions, as the benchmarks count them."""

from heads.metrics.semantic import count_confusion, format_scores, score_confusion

__all__ = ["count_confusion", "format_scores", "score_confusion"]
