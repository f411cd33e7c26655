"""Picture and mask folders for salient object detection."""

import os

import numpy as np

from heads.data.semantic_folder import SemanticFolder
from heads.ops.labels import IGNORED_LABEL
from heads.pictures import show_path

CLASS_NAMES = ("background", "object")
WHITE, MIDDLE = 255, 128


class SaliencyFolder(SemanticFolder):
    """A folder of pictures and masks, paired by their names without suffix.

    Like `SemanticFolder`, with the masks in `masks/<split>/` or `labels/<split>/`. Masks are one-channel PNG.
    Where a mask holds nothing above 1, the object is 1; otherwise it is grey of 8 bits, and the object is
    what is at least 128 (the borders of many data sets are smoothed).

    Args:
        path: The folder.
        split: Name of the split; "train" and "val" also find "training" and "validation".
        ignored_value: The number of the pixels without truth in the masks; None where there are none.

    Raises:
        ValueError: For a missing folder or split, pictures with another suffix, files without a counterpart
            or with two, or an `ignored_value` that is not in 0 .. 255.
    """

    def __init__(self, path: str | os.PathLike, split: str = "train", ignored_value: int | None = None):
        if ignored_value is not None and ignored_value not in range(WHITE + 1):
            raise ValueError(f"ignored_value must be in 0 .. {WHITE}, or None. Received: {ignored_value!r}")
        super().__init__(path, split, CLASS_NAMES)
        self.ignored_value = ignored_value

    def _map_numbers(self, numbers, path):
        return map_mask(numbers, self.ignored_value, path)

    def _judge_counts(self, counts, num_ignored):
        """Refuses masks that leave nothing to learn."""
        if not counts.all():
            occurs = f"only {self.class_names[int(counts.argmax())]}" if counts.any() else "nothing"
            raise ValueError(
                f"{self.path} has nothing to learn in {self.split_name!r}: {occurs} occurs in its masks. "
                f"An object must be 1 or white. Received: {counts.tolist()} pixels, {num_ignored} ignored"
            )


def map_mask(numbers: np.ndarray, ignored_value: int | None, path) -> np.ndarray:
    """The labels of a mask's numbers.

    Args:
        numbers: int32 `(height, width)`.
        ignored_value: See `SaliencyFolder`.
        path: Path of the mask, for the message.

    Returns:
        0 for the background, 1 for the object, 255 where it is ignored; int32 `(height, width)`.

    Raises:
        ValueError: If a number is above 255.
    """
    ignored = numbers == ignored_value if ignored_value is not None else np.zeros(numbers.shape, bool)
    largest = numbers[~ignored].max(initial=0)
    if largest > WHITE:
        raise ValueError(
            f"{show_path(path)}: save the mask as 0 and 1, or as grey of 8 bits, 0 .. {WHITE}. "
            f"Received: values up to {largest}"
        )
    labels = numbers >= (1 if largest <= 1 else MIDDLE)
    return np.where(ignored, IGNORED_LABEL, labels).astype("int32")
