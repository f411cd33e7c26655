import numpy as np
import pytest

from heads.ops import labels


@pytest.mark.parametrize("num_classes", [2, 150, 255, np.int64(19)])
def test_numbers_of_classes(num_classes):
    labels.check_num_classes(num_classes)


@pytest.mark.parametrize("num_classes", [-1, 0, 1, 256, 2.0, "2", None])
def test_what_is_no_number_of_classes_is_refused(num_classes):
    with pytest.raises(ValueError, match=r"num_classes must be between 2 and 255.*Received: ") as caught:
        labels.check_num_classes(num_classes)
    assert str(caught.value).endswith(repr(num_classes))


def test_marks_are_no_classes():
    assert {labels.PADDING_LABEL, labels.CROWD_LABEL} == {-1, -2}
    assert labels.BACKGROUND_MATCH != labels.IGNORED_MATCH
    assert max(labels.BACKGROUND_MATCH, labels.IGNORED_MATCH, labels.VOID_SEGMENT) < 0
