"""Which found objects belong to which true ones, where one IoU decides."""

import numpy as np
from pycocotools import mask as coco_masks

LEAST_OVERLAP = 0.5  # IoU of a match


def match_greedily(overlaps, scores, least_overlap: float = LEAST_OVERLAP):
    """Matches found objects to true ones, the best score first, each to the free one that it overlaps most.

    Args:
        overlaps: (n, m), the IoU of each of n true objects with each of m found ones; 0 where they must not
            match.
        scores: (m,), of the found objects.
        least_overlap: Least IoU of a match.

    Returns:
        (truth, found): for each true object the row of its found one, or -1, int (n,); for each found object
        that of its true one, or -1, int (m,).
    """
    truth, found = np.full(overlaps.shape[0], -1), np.full(overlaps.shape[1], -1)
    for row in np.argsort(-np.asarray(scores), kind="stable"):
        free = np.where(truth < 0, overlaps[:, row], 0.0)
        if free.max(initial=0.0) >= least_overlap:
            partner = free.argmax()
            truth[partner], found[row] = row, partner
    return truth, found


def encode_masks(masks) -> list:
    """Returns bool masks (n, height, width) as COCO's compressed run lengths."""
    return coco_masks.encode(np.asfortranarray(np.asarray(masks).transpose(1, 2, 0), "uint8"))


def measure_overlaps_of_shapes(truth, found, is_crowd=None) -> np.ndarray:
    """Returns the IoU of each true object with each found one, (n, m).

    Args:
        truth: Boxes (n, 4), xywh, or COCO's compressed run lengths, n of them.
        found: The same (m) of the same kind.
        is_crowd: bool (n,), which true objects are crowds: their IoU is the share of the found object that
            lies in them, as in COCO. None for no crowds.
    """
    if not len(truth) or not len(found):
        return np.zeros((len(truth), len(found)))
    is_crowd = np.zeros(len(truth), bool) if is_crowd is None else np.asarray(is_crowd, bool)
    # pycocotools returns (found, truth) and takes the crowd flags of the truth.
    return np.asarray(coco_masks.iou(found, truth, is_crowd.astype("uint8").tolist())).T
