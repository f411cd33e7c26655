"""How pictures are resized before a model sees them."""

import keras
import numpy as np

from heads.arguments import read_count, read_size


@keras.saving.register_keras_serializable("van_backbones.heads")
class Resizing:
    """How pictures are resized before a model sees them, their ratio always kept.

    Args:
        image_size: (height, width), or one length for a square. Pictures are resized to fit into it and
            padded to it at the bottom and right.
        short_side: pictures are resized to this short side, unless their long side then exceeds `long_side`.
        long_side: limit of the long side, with `short_side`.

    With neither an `image_size` nor a `short_side`, pictures keep their size.

    Raises:
        ValueError: if an argument is out of range, or there are both an `image_size` and a `short_side`.

    Reference:
        - The numbers are those of mmdetection's `Resize` with `keep_ratio=True`.
    """

    def __init__(self, image_size=None, short_side=None, long_side: int = 1333):
        self.image_size = None if image_size is None else read_size("image_size", image_size)
        self.short_side = None if short_side is None else read_count("short_side", short_side)
        self.long_side = read_count("long_side", long_side)
        if short_side is not None and (image_size is not None or short_side > long_side):
            raise ValueError(
                "short_side must be at least 1, not above long_side, and None where image_size is given. "
                f"Received: short_side={short_side}, long_side={long_side}, image_size={image_size}"
            )

    def fit(self, size, factor: float = 1.0) -> tuple[int, int]:
        """Returns the (height, width) that a picture of (height, width) `size` is resized to.

        Args:
            size: (height, width) of the picture.
            factor: factor of all lengths, for views at other scales.
        """
        sides = np.asarray(size, "float64")
        if self.image_size is not None:
            scale = np.min(self.image_size / sides)
            limits = self._scale_limits(factor)
        elif self.short_side is not None:
            scale = min(self.long_side / sides.max(), self.short_side / sides.min())
            limits = np.inf
        else:
            scale, limits = 1.0, np.inf
        scaled = np.maximum(np.floor(sides * scale * factor + 0.5), 1.0)
        return tuple(np.minimum(scaled, limits).astype(int).tolist())

    def pad(self, size, divisor: int = 1, factor: float = 1.0) -> tuple[int, int]:
        """Returns the (height, width) of the padded picture, `image_size` or multiples of the divisor.

        Args:
            size: (height, width) of the resized picture, from `fit`.
            divisor: divisor of the padded sides, if there is no `image_size`, or a `factor`.
            factor: see `fit`.
        """
        if self.image_size is not None and factor == 1:
            return self.image_size
        size = size if self.image_size is None else self._scale_limits(factor)
        return tuple(-(-side // divisor) * divisor for side in size)

    def _scale_limits(self, factor):
        return tuple(max(1, int(side * factor + 0.5)) for side in self.image_size)

    def get_config(self):
        return {name: getattr(self, name) for name in ("image_size", "short_side", "long_side")}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
