"""Optimal assignment: which prediction learns which object, at the smallest total cost."""

import numpy as np
from keras import ops

from heads.ops.backends import call_on_host
from heads.ops.labels import BACKGROUND_MATCH


def assign_optimally(costs, exists):
    """Returns for each prediction the object that it is assigned to.

    There are as many pairs as predictions or objects, whichever are fewer; each is in at most one pair, and
    the sum of costs is the smallest (Kuhn, "The Hungarian Method for the Assignment Problem", 1955). SciPy's
    `linear_sum_assignment` computes it on the host.

    Args:
        costs: (..., predictions, objects), finite where there are objects.
        exists: bool (..., objects), False for padding, which is assigned to nothing.

    Returns:
        (..., predictions) int32: the index of an object, or -1 for none.

    Raises:
        ValueError: if an object's cost is not finite; inside a graph, the step ends with an error that
            contains the message.
    """
    *batch, num_predictions, num_objects = ops.shape(costs)
    costs = ops.reshape(ops.cast(costs, "float32"), (-1, num_predictions, num_objects))
    exists = ops.reshape(exists, (-1, num_objects))
    matches = call_on_host(_assign_all, (costs, exists), ops.shape(costs)[:2], "int32")
    return ops.reshape(matches, (*batch, num_predictions))


def _assign_all(costs, exists):
    """Returns int32 (problems, predictions) of NumPy arrays (problems, predictions, objects)."""
    from scipy.optimize import linear_sum_assignment  # here, as the import takes a quarter of a second

    costs, exists = np.asarray(costs), np.asarray(exists)
    matches = np.full(costs.shape[:2], BACKGROUND_MATCH, "int32")
    for problem, (table, columns) in enumerate(zip(costs, map(np.flatnonzero, exists), strict=True)):
        table = table[:, columns]
        faults = np.argwhere(~np.isfinite(table))
        if len(faults):
            row, column = faults[0]
            raise ValueError(
                f"costs must be finite. Received: {table[row, column]} for prediction {row} and object "
                f"{columns[column]} of problem {problem}"
            )
        rows, picked = linear_sum_assignment(table)
        matches[problem, rows] = columns[picked]
    return matches
