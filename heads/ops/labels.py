"""Names for the numbers in labels, label maps and matches that are not classes or boxes."""

import numbers

# Labels of boxes: 0 or more is a class.
PADDING_LABEL = -1
CROWD_LABEL = -2  # a region with many objects that were not labelled one by one
# Label maps: 0 or more is a class.
IGNORED_LABEL = 255
# Matches of anchors and proposals: 0 or more is the index of a box.
BACKGROUND_MATCH = -1
IGNORED_MATCH = -2
# Maps of segments: 0 or more is a row of the segments' labels.
VOID_SEGMENT = -1


def check_num_classes(num_classes):
    """Raises a ValueError unless label maps can hold this number of classes, at least 2."""
    if not isinstance(num_classes, numbers.Integral) or not 2 <= num_classes <= IGNORED_LABEL:
        raise ValueError(
            f"num_classes must be between 2 and {IGNORED_LABEL}: label {IGNORED_LABEL} is ignored, and a "
            "single class leaves nothing to tell apart, so count the background as a class. "
            f"Received: {num_classes!r}"
        )
