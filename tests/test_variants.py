"""The variants against the published table. The parameter counts are exactly those of the official code."""

import math

import pytest

from van_backbones import VARIANTS, VANBackbone

PARAMETERS = {
    "b0": 3_848_800,
    "b1": 13_348_800,
    "b2": 26_065_472,
    "b3": 44_252_608,
    "b4": 59_770_176,
    "b5": 89_198_688,
    "b6": 199_060_416,
}


def count_parameters(widths, depths, expansion_ratios):
    """Returns the number of parameters by the architecture's description, term by term."""
    total, channels = 0, 3
    for stage, (width, depth, ratio) in enumerate(zip(widths, depths, expansion_ratios, strict=True)):
        kernel = 7 if stage == 0 else 3
        total += kernel * kernel * channels * width + width  # patch embedding
        total += 2 * width  # its norm
        hidden = width * ratio
        pointwise = width * width + width
        attention = 3 * pointwise + (5 * 5 * width + width) + (7 * 7 * width + width)
        feed_forward = (width * hidden + hidden) + (3 * 3 * hidden + hidden) + (hidden * width + width)
        norms_and_scales = 2 * 2 * width + 2 * width
        total += depth * (attention + feed_forward + norms_and_scales)
        total += 2 * width  # layer norm
        channels = width
    return total


LARGE = ("b4", "b5", "b6")  # these take seconds to build


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in PARAMETERS]
)
def test_trainable_parameters_are_the_official_ones(variant):
    backbone = VANBackbone(variant)
    counted = sum(math.prod(variable.shape) for variable in backbone.trainable_variables)
    assert counted == PARAMETERS[variant]


@pytest.mark.parametrize("variant", list(PARAMETERS))
def test_rows_add_up_to_the_official_parameters(variant):
    row = VARIANTS[variant]
    assert count_parameters(row.widths, row.depths, row.expansion_ratios) == PARAMETERS[variant]


def test_there_are_seven_variants_with_the_dense_prediction_drop_path_rates():
    assert list(VARIANTS) == list(PARAMETERS)
    rates = {name: row.drop_path_rate for name, row in VARIANTS.items()}
    assert rates == {"b0": 0.1, "b1": 0.1, "b2": 0.1, "b3": 0.3, "b4": 0.4, "b5": 0.4, "b6": 0.5}


def test_every_row_says_where_it_comes_from():
    assert all(row.source for row in VARIANTS.values())
