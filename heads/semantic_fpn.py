"""Semantic FPN: the semantic branch of Panoptic Feature Pyramid Networks (arXiv 1901.02446)."""

import keras
from keras import ops

from heads.dense_model import DenseModel, check_counts, check_shares
from heads.layers.blocks import ConvolutionBlock, PixelClassifier
from heads.layers.fpn import FPN
from heads.layers.mean_iou import MeanIoU
from heads.ops.inputs import read_labels
from heads.ops.labels import IGNORED_LABEL, check_num_classes
from heads.ops.losses import semantic_cross_entropy
from heads.ops.resizing import resize_bilinear
from heads.ops.selection import label_pixels
from heads.semantic_model import segment_images

LEVELS = ("P2", "P3", "P4", "P5")


@keras.saving.register_keras_serializable(package="heads")
class SemanticFPN(DenseModel):
    """Semantic segmentation by summing the levels of a feature pyramid.

    `model(images)` gives logits at the images' size, float32 (batch, height, width, classes);
    `model.predict` gives label maps, int32 (batch, height, width). `fit` takes label maps in which 255 is
    ignored, (batch, height, width) or (batch, height, width, 1). Metrics of `compile` compare them with the
    logits: `metrics` see all pixels, `weighted_metrics` count those of label 255 with weight 0.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P2" .. "P5".
        num_classes: number of classes, the background among them where there is one: 2 .. 255.
        channels: channels of the head.
        pyramid_channels: channels of the feature pyramid network.
        dropout_rate: share of the last map's channels that are dropped in training.
        **kwargs: `name`, `trainable`, `dtype`.

    Raises:
        ValueError: at an argument out of range or a backbone that lacks a level.

    Reference:
        - Kirillov et al., "Panoptic Feature Pyramid Networks", arXiv 1901.02446, section 3.1; the numbers are
          mmsegmentation's `FPN` and `FPNHead`, as VAN's authors configured them.
    """

    takes_metrics = True
    # The reference names of the layers that depend on the number of classes.
    class_layers = ("decode_head.conv_seg",)

    def __init__(self, backbone, num_classes, channels=128, pyramid_channels=256, dropout_rate=0.1, **kwargs):
        check_num_classes(num_classes)
        check_counts(channels=channels, pyramid_channels=pyramid_channels)
        check_shares(dropout_rate=dropout_rate)
        super().__init__(backbone, LEVELS, ("segmentation_loss",), **kwargs)
        self.num_classes = num_classes
        self.channels = channels
        self.pyramid_channels = pyramid_channels
        self.dropout_rate = dropout_rate
        self.mean_iou = MeanIoU(num_classes)
        dtype = self.dtype_policy
        self.neck = FPN(pyramid_channels, dtype=dtype, name="neck")
        self.scale_heads = [
            ScaleHead(channels, num_doublings, self.folded, dtype=dtype, name=f"scale_head_{num_doublings}")
            for num_doublings in range(len(LEVELS))
        ]
        self.classifier = PixelClassifier(num_classes, dropout_rate, dtype=dtype, name="classifier")
        self.build(backbone.input_shape)

    def build(self, input_shape):
        if self.built:
            return
        self.neck.build(self.level_shapes)
        for head in self.scale_heads:
            head.build((None, None, None, self.pyramid_channels))
        self.classifier.build((None, None, None, self.channels))
        self.built = True

    def call(self, images, training=None):
        logits = self.compute_logits(images, training=training)
        return resize_bilinear(ops.cast(logits, "float32"), ops.shape(images)[1:3])

    def compute_logits(self, images, training=None):
        """Gives the logits before resizing, (batch, height / 4, width / 4, classes)."""
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        total = self.scale_heads[0](levels[0], training=training)
        for head, level in zip(self.scale_heads[1:], levels[1:], strict=True):
            # At odd sizes the doubled map is not quite the finest level's size.
            level = head(level, training=training)
            # Not `+=`: in place, PyTorch's gradients break.
            total = total + resize_bilinear(level, ops.shape(total)[1:3])
        return self.classifier(total, training=training)

    def compute_losses(self, targets, predictions):
        """Gives `{"segmentation_loss"}` of label maps (batch, height, width), 255 ignored, and logits."""
        return {"segmentation_loss": semantic_cross_entropy(targets, predictions)}

    def decode(self, predictions):
        """Gives label maps, int32 (batch, height, width), of logits."""
        return label_pixels(predictions)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        labels, _ = read_labels(y, y_pred)
        self.mean_iou.update_state(labels, self.decode(y_pred))
        known = ops.cast(ops.not_equal(labels, IGNORED_LABEL), "float32")
        return super().compute_metrics(x, labels, y_pred, known)

    def segment(self, images, crop=None, stride=None, scales=(1.0,), flip=False):
        """Gives label maps with sliding windows and several views: see `heads.segment_images`."""
        return segment_images(self, images, crop, stride, scales, flip)

    def reference_layers(self):
        """Gives mmsegmentation's names: name -> layer or variable."""
        names = dict(self.backbone.reference_layers())
        names |= {f"neck.{name}": layer for name, layer in self.neck.reference_layers().items()}
        for index, head in enumerate(self.scale_heads):
            names |= {
                f"decode_head.scale_heads.{index}.{name}": layer
                for name, layer in head.reference_layers().items()
            }
        return names | {"decode_head.conv_seg": self.classifier.conv}

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "channels": self.channels,
            "pyramid_channels": self.pyramid_channels,
            "dropout_rate": self.dropout_rate,
        }


@keras.saving.register_keras_serializable(package="heads")
class ScaleHead(keras.layers.Layer):
    """Brings one level to the finest level's scale: convolution, then doubling, as often as needed.

    Args:
        channels: output channels.
        num_doublings: times that the map is doubled. With 0 there is one convolution and no doubling.
        folded: whether norms are part of the convolutions: see `ConvolutionBlock`.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, channels, num_doublings, folded=False, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.num_doublings = num_doublings
        self.folded = folded
        self.blocks = [
            ConvolutionBlock(channels, 3, folded, dtype=self.dtype_policy, name=f"block_{index}")
            for index in range(max(1, num_doublings))
        ]

    def build(self, input_shape):
        for block in self.blocks:
            block.build(input_shape)
            input_shape = (*input_shape[:-1], self.channels)
        self.built = True

    def call(self, inputs, training=None):
        for block in self.blocks:
            inputs = block(inputs, training=training)
            if self.num_doublings:
                height, width = ops.shape(inputs)[1:3]
                inputs = resize_bilinear(inputs, (2 * height, 2 * width))
        return inputs

    def reference_layers(self):
        """Gives mmsegmentation's names: every second module of the sequence is a resizing."""
        return {
            f"{2 * index}.{name}": layer
            for index, block in enumerate(self.blocks)
            for name, layer in block.reference_layers().items()
        }

    def get_config(self):
        config = {"channels": self.channels, "num_doublings": self.num_doublings, "folded": self.folded}
        return {**super().get_config(), **config}
