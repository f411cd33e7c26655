"""torchvision's RetinaNet and Mask R-CNN and segmentation_models_pytorch's UPerNet on VAN in PyTorch.

What `whole_models.py` compares ours with: equal backbone, channels, anchors, proposals and samples.
Needs PyTorch, torchvision and segmentation-models-pytorch.
"""

import torch
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from torch import nn
from torch.nn import functional
from torchvision.models.detection import MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from tests.benchmarks.torch_van import VAN

OCTAVE = tuple(2 ** (third / 3) for third in range(3))
RATIOS = (0.5, 1.0, 2.0)
# VAN normalises inside; and pictures come at the size that the network is to see.
AS_THEY_ARE = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "_skip_resize": True}


class Pyramid(nn.Module):
    """VAN and a feature pyramid in channels last, as torchvision's detectors take a backbone."""

    def __init__(self, row, levels, extra, channels=256):
        super().__init__()
        self.van, self.levels, self.out_channels = VAN(row), levels, channels
        widths = [row[0][int(level[1:]) - 2] for level in levels]
        self.fpn = FeaturePyramidNetwork(widths, channels, extra)

    def forward(self, images):
        maps = self.van(images.contiguous(memory_format=torch.channels_last))
        return self.fpn({level: maps[level] for level in self.levels})


def build_retinanet(row, size, num_classes):
    """Returns torchvision's RetinaNet with the anchors and extra levels of ours."""
    backbone = Pyramid(row, ("P3", "P4", "P5"), LastLevelP6P7(row[0][-1], 256))
    sizes = tuple(tuple(round(4 * 2**level * step) for step in OCTAVE) for level in range(3, 8))
    anchors = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
    return RetinaNet(
        backbone,
        num_classes,
        *(min(size), max(size)),
        anchor_generator=anchors,
        detections_per_img=100,
        **AS_THEY_ARE,
    )


def build_mask_rcnn(row, size, num_classes):
    """Returns torchvision's Mask R-CNN with the proposals, samples and RoIAlign of ours."""
    backbone = Pyramid(row, ("P2", "P3", "P4", "P5"), LastLevelMaxPool())
    anchors = AnchorGenerator(tuple((8 * 2**level,) for level in range(2, 7)), (RATIOS,) * 5)
    # 0: as many samples as an interval has pixels, as in ours and in mmdetection.
    pools = [MultiScaleRoIAlign(list(backbone.levels), side, 0) for side in (7, 14)]
    return MaskRCNN(
        backbone,
        num_classes + 1,
        *(min(size), max(size)),
        rpn_anchor_generator=anchors,
        rpn_post_nms_top_n_train=1000,
        box_roi_pool=pools[0],
        mask_roi_pool=pools[1],
        **AS_THEY_ARE,
    )


class UPerNet(nn.Module):
    """segmentation_models_pytorch's decoder on VAN, with ours' dropout, auxiliary head and loss."""

    def __init__(self, row, num_classes, channels=512, auxiliary_channels=256):
        super().__init__()
        self.van = VAN(row)
        self.decoder = UPerNetDecoder([3, 0, *row[0]], decoder_channels=channels)
        self.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in row[0])  # VAN's stages end with one
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
        self.auxiliary = nn.Sequential(
            nn.Conv2d(row[0][2], auxiliary_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(auxiliary_channels),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(auxiliary_channels, num_classes, 1),
        )

    def forward(self, images, targets=None):
        maps = self.van(images.contiguous(memory_format=torch.channels_last))
        size = images.shape[-2:]
        logits = self.classifier(self.decoder([images, images, *maps.values()]))
        if targets is None:
            return resize(logits, size).argmax(dim=1)
        losses = [
            functional.cross_entropy(resize(found, size), targets, ignore_index=255)
            for found in (logits, self.auxiliary(maps["P4"]))
        ]
        return {"segmentation_loss": losses[0], "auxiliary_loss": 0.4 * losses[1]}


def resize(logits, size):
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def let_pass(model, images, count):
    """Sets a detector's score threshold so that `count` pairs of a box and a class pass."""
    found = []
    is_retinanet = isinstance(model, RetinaNet)
    layer = model.head.classification_head if is_retinanet else model.roi_heads.box_predictor
    hook = layer.register_forward_hook(lambda module, inputs, outputs: found.append(outputs))
    with torch.inference_mode():
        model(images)
    hook.remove()
    scores = found[0].sigmoid() if is_retinanet else found[0][0].softmax(dim=-1)[:, 1:]
    threshold = float(scores.flatten().topk(count + 1).values[-1])
    if is_retinanet:
        model.score_thresh = threshold
    else:
        model.roi_heads.score_thresh = threshold
