"""The seven published sizes of the Visual Attention Network, one row each."""

from typing import NamedTuple


class Variant(NamedTuple):
    """The numbers that set one size of VAN apart from another.

    Attributes:
        widths: channels of the four stages.
        depths: blocks in the four stages.
        expansion_ratios: hidden width over stage width in the feed-forward part, per stage.
        drop_path_rate: stochastic depth of the last block in dense-prediction training.
        source: where the row comes from.
    """

    widths: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    expansion_ratios: tuple[int, int, int, int]
    drop_path_rate: float
    source: str


# Widths, depths and ratios: arXiv 2202.09741, table 2 (b0 .. b3), and the authors' VAN-Classification
# and VAN-Segmentation code. Drop path: the UPerNet configurations of VAN-Segmentation; ImageNet training
# used 0.2 for b3.
VARIANTS = {
    "b0": Variant((32, 64, 160, 256), (3, 3, 5, 2), (8, 8, 4, 4), 0.1, "VAN-Tiny, paper's table 2"),
    "b1": Variant((64, 128, 320, 512), (2, 2, 4, 2), (8, 8, 4, 4), 0.1, "VAN-Small, paper's table 2"),
    "b2": Variant((64, 128, 320, 512), (3, 3, 12, 3), (8, 8, 4, 4), 0.1, "VAN-Base, paper's table 2"),
    "b3": Variant((64, 128, 320, 512), (3, 5, 27, 3), (8, 8, 4, 4), 0.3, "VAN-Large, paper's table 2"),
    "b4": Variant((64, 128, 320, 512), (3, 6, 40, 3), (8, 8, 4, 4), 0.4, "VAN-Segmentation, van_b4"),
    "b5": Variant((96, 192, 480, 768), (3, 3, 24, 3), (8, 8, 4, 4), 0.4, "VAN-Segmentation, van_b5"),
    "b6": Variant((96, 192, 384, 768), (6, 6, 90, 6), (8, 8, 4, 4), 0.5, "VAN-Segmentation, van_b6"),
}
