"""Semantic FPN: the semantic branch of Panoptic Feature Pyramid Networks (arXiv 1901.02446)."""

from collections.abc import Sequence

import keras
from keras import ops

from heads.arguments import check_counts, check_shares
from heads.layers.blocks import Chain, ConvolutionBlock, PixelClassifier, join_reference_layers
from heads.layers.fpn import FPN
from heads.ops.labels import check_num_classes
from heads.ops.losses import check_segmentation_loss, segmentation_loss
from heads.ops.resizing import resize_bilinear
from heads.semantic_model import SemanticModel

LEVELS = ("P2", "P3", "P4", "P5")


@keras.saving.register_keras_serializable("van_backbones.heads")
class SemanticFPN(SemanticModel):
    """Semantic segmentation by summing the levels of a feature pyramid.

    `model(images)` gives logits at the images' size, float32 (batch, height, width, classes);
    `model.predict` gives label maps, int32 (batch, height, width). `fit` takes label maps in which 255 is
    ignored: see `SemanticModel`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P2" .. "P5".
        num_classes: number of classes, including the background if there is one: 2 .. 255.
        channels: channels of the head.
        pyramid_channels: channels of the feature pyramid network.
        dropout_rate: share of the last map's channels that are dropped in training.
        loss: the loss of label maps: "cross_entropy", "focal", "dice" or "cross_entropy+dice", see
            `heads.ops.losses.segmentation_loss`.
        class_weights: how much each class counts in the loss, a number for each; see
            `heads.data.balance_classes`. None counts all pixels alike.
        **kwargs: `class_names` and `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if an argument is out of range or the backbone lacks a level.

    Reference:
        - Kirillov et al., "Panoptic Feature Pyramid Networks", arXiv 1901.02446, section 3.1; the numbers are
          mmsegmentation's `FPN` and `FPNHead`, as VAN's authors configured them.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = ("decode_head.conv_seg",)

    def __init__(
        self,
        backbone,
        num_classes: int,
        channels: int = 128,
        pyramid_channels: int = 256,
        dropout_rate: float = 0.1,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] | None = None,
        **kwargs,
    ):
        check_num_classes(num_classes)
        check_counts(channels=channels, pyramid_channels=pyramid_channels)
        check_shares(dropout_rate=dropout_rate)
        class_weights = check_segmentation_loss(loss, class_weights, num_classes)
        super().__init__(backbone, LEVELS, ("segmentation_loss",), locals(), **kwargs)
        dtype = self.dtype_policy
        self.neck = FPN(pyramid_channels, dtype=dtype, name="neck")
        self.neck.build(self.level_shapes)
        self.scale_heads = [
            ScaleHead(channels, num_doublings, dtype=dtype, name=f"scale_head_{num_doublings}")
            for num_doublings in range(len(LEVELS))
        ]
        for head in self.scale_heads:
            head.build((None, None, None, pyramid_channels))
        self.classifier = PixelClassifier(num_classes, dropout_rate, dtype=dtype, name="classifier")
        self.classifier.build((None, None, None, channels))

    def call(self, images, training=None):
        logits = self.compute_logits(images, training=training)
        return resize_bilinear(ops.cast(logits, "float32"), ops.shape(images)[1:3])

    def compute_logits(self, images, training=None):
        """Returns the logits before resizing, (batch, height / 4, width / 4, classes)."""
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        total = self.scale_heads[0](levels[0], training=training)
        for head, level in zip(self.scale_heads[1:], levels[1:], strict=True):
            # At odd sizes the doubled map differs a little from the finest level's size.
            level = head(level, training=training)
            # Not `+=`, which works in place and breaks PyTorch's gradients.
            total = total + resize_bilinear(level, ops.shape(total)[1:3])
        return self.classifier(total, training=training)

    def compute_losses(self, targets, predictions):
        """Returns `{"segmentation_loss"}` for label maps (batch, height, width), 255 ignored, and logits."""
        loss = segmentation_loss(targets, predictions, self.loss, self.class_weights)
        return {"segmentation_loss": loss}

    def reference_layers(self):
        """Returns mmsegmentation's names: name -> layer or variable."""
        heads = {f"decode_head.scale_heads.{index}": head for index, head in enumerate(self.scale_heads)}
        parts = {"neck": self.neck, **heads, "decode_head.conv_seg": self.classifier.conv}
        return self.backbone.reference_layers() | join_reference_layers(parts)


@keras.saving.register_keras_serializable("van_backbones.heads")
class ScaleHead(Chain):
    """Brings one level to the finest level's scale: convolution, then doubling, as often as needed.

    Args:
        channels: output channels.
        num_doublings: times that the map is doubled. With 0 there is one convolution and no doubling.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, channels: int, num_doublings: int, **kwargs):
        super().__init__(**kwargs)
        self.num_doublings = num_doublings
        self.parts = [
            ConvolutionBlock(channels, 3, dtype=self.dtype_policy, name=f"block_{index}")
            for index in range(max(1, num_doublings))
        ]

    def call(self, inputs, training=None):
        for block in self.parts:
            inputs = block(inputs, training=training)
            if self.num_doublings:
                height, width = ops.shape(inputs)[1:3]
                inputs = resize_bilinear(inputs, (2 * height, 2 * width))
        return inputs

    def reference_layers(self):
        """Returns mmsegmentation's names: every second module of the sequence is a resizing."""
        return join_reference_layers({f"{2 * index}": block for index, block in enumerate(self.parts)})
