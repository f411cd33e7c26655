"""The backbone in PyTorch, with the names of the official code, for comparisons.

As in VAN-Segmentation, but without drop path, which the comparisons do not use. Needs PyTorch.
"""

import torch
from torch import nn
from torch.nn import functional

MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class VAN(nn.Module):
    """Returns the four normed maps, (batch, channels, height, width), of RGB images of 0 .. 255.

    Args:
        row: widths, depths and expansion ratios, a row of `van_backbones.VARIANTS`.
    """

    def __init__(self, row):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).reshape(3, 1, 1), persistent=False)
        channels = 3
        for stage, (width, depth, ratio) in enumerate(zip(*row[:3], strict=True), 1):
            setattr(
                self, f"patch_embed{stage}", PatchEmbedding(channels, width, *((7, 4), (3, 2))[stage > 1])
            )
            setattr(self, f"block{stage}", nn.ModuleList(Block(width, ratio) for _ in range(depth)))
            setattr(self, f"norm{stage}", nn.LayerNorm(width, eps=1e-6))
            channels = width

    def forward(self, images):
        x = (images - self.mean) / self.deviation
        outputs = {}
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"block{stage}"):
                x = block(x)
            # In channels last, the permuted map is contiguous, and nothing is copied.
            x = getattr(self, f"norm{stage}")(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            outputs[f"P{stage + 1}"] = x
        return outputs


class PatchEmbedding(nn.Module):
    def __init__(self, channels, width, size, strides):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, size, strides, size // 2)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.norm(self.proj(x))


class Block(nn.Module):
    def __init__(self, width, ratio):
        super().__init__()
        self.layer_scale_1 = nn.Parameter(torch.full((width,), 1e-2))
        self.layer_scale_2 = nn.Parameter(torch.full((width,), 1e-2))
        self.norm1 = nn.BatchNorm2d(width)
        self.attn = Attention(width)
        self.norm2 = nn.BatchNorm2d(width)
        self.mlp = FeedForward(width, width * ratio)

    def forward(self, x):
        x = x + self.layer_scale_1[:, None, None] * self.attn(self.norm1(x))
        return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj_1 = nn.Conv2d(width, width, 1)
        self.spatial_gating_unit = GatingUnit(width)
        self.proj_2 = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.proj_2(self.spatial_gating_unit(functional.gelu(self.proj_1(x)))) + x


class GatingUnit(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv0 = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.conv_spatial = nn.Conv2d(width, width, 7, padding=9, dilation=3, groups=width)
        self.conv1 = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return x * self.conv1(self.conv_spatial(self.conv0(x)))


class FeedForward(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Conv2d(width, hidden, 1)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)})
        self.fc2 = nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        return self.fc2(functional.gelu(self.dwconv["dwconv"](self.fc1(x))))
