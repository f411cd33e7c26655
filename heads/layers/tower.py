"""A tower of convolutions between a pyramid and the outputs of a one-stage detector."""

import math

import keras

from heads.layers.blocks import Chain, make_small_convolution


@keras.saving.register_keras_serializable("van_backbones.heads")
class Tower(Chain):
    """3 x 3 convolutions with ReLU, all of one width. A head's output convolutions share its result.

    Args:
        channels: channels of each convolution.
        num_convs: number of convolutions; with 0 the map stays as it is.
        num_groups: groups of the group normalisation before each ReLU; None for biases instead of norms.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, channels: int, num_convs: int, num_groups: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.convs, self.norms, self.parts = [], [], []
        for index in range(num_convs):
            options = {"dtype": self.dtype_policy, "name": f"conv_{index}"}
            if num_groups is None:
                self.convs.append(make_small_convolution(channels, 3, activation="relu", **options))
                self.parts.append(self.convs[-1])
                continue
            self.convs.append(make_small_convolution(channels, 3, use_bias=False, **options))
            options["name"] = f"norm_{index}"
            self.norms.append(keras.layers.GroupNormalization(num_groups, epsilon=1e-5, **options))
            relu = keras.layers.ReLU(dtype=self.dtype_policy)
            self.parts += [self.convs[-1], self.norms[-1], relu]

    def reference_layers(self):
        """Returns mmcv's names: name -> layer."""
        names = {f"{index}.conv": conv for index, conv in enumerate(self.convs)}
        return names | {f"{index}.gn": norm for index, norm in enumerate(self.norms)}


def count_groups(channels: int) -> int:
    """Returns how many groups a tower's norms have: mmdetection's 32, or fewer of 8 or more channels."""
    return math.gcd(32, max(channels // 8, 1), channels)
