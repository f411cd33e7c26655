"""UPerNet (arXiv 1807.10221) with an auxiliary head in training."""

import keras
from keras import ops

from heads.dense_model import DenseModel, check_counts, check_shares
from heads.layers.blocks import ConvolutionBlock, PixelClassifier
from heads.layers.mean_iou import MeanIoU
from heads.layers.pyramid_pooling import PyramidPooling
from heads.ops.inputs import read_labels
from heads.ops.labels import IGNORED_LABEL, check_num_classes
from heads.ops.losses import semantic_cross_entropy
from heads.ops.resizing import resize_bilinear
from heads.ops.selection import label_pixels
from heads.semantic_model import segment_images

LEVELS = ("P2", "P3", "P4", "P5")


@keras.saving.register_keras_serializable(package="heads")
class UPerNet(DenseModel):
    """Semantic segmentation by pyramid pooling on top of a feature pyramid, all levels fused.

    `model(images)` gives logits at the images' size, float32 (batch, height, width, classes); with
    `training=True` it gives `{"logits", "auxiliary_logits"}`, both at that size. `model.predict` gives label
    maps, int32 (batch, height, width). `fit` takes label maps in which 255 is ignored,
    (batch, height, width) or (batch, height, width, 1). Metrics of `compile` compare them with the logits:
    `metrics` see all pixels, `weighted_metrics` count those of label 255 with weight 0.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P2" .. "P5".
        num_classes: number of classes, the background among them where there is one: 2 .. 255.
        channels: channels of the head. Cost grows with their square: 512 takes 77 GFLOP per 256 x 256 image
            for the last fusion alone.
        auxiliary_channels: channels of the auxiliary head, which reads "P4".
        auxiliary_weight: factor of the auxiliary loss.
        dropout_rate: share of the last map's channels that are dropped in training.
        **kwargs: `name`, `trainable`, `dtype`.

    Raises:
        ValueError: at an argument out of range or a backbone that lacks a level.

    Reference:
        - Xiao et al., "Unified Perceptual Parsing for Scene Understanding", arXiv 1807.10221, section 3; the
          numbers are mmsegmentation's `UPerHead` and `FCNHead`, as VAN's authors configured them.
    """

    takes_metrics = True
    # The reference names of the layers that depend on the number of classes.
    class_layers = ("decode_head.conv_seg", "auxiliary_head.conv_seg")

    def __init__(
        self,
        backbone,
        num_classes,
        channels=512,
        auxiliary_channels=256,
        auxiliary_weight=0.4,
        dropout_rate=0.1,
        **kwargs,
    ):
        check_num_classes(num_classes)
        check_counts(channels=channels, auxiliary_channels=auxiliary_channels)
        check_shares(dropout_rate=dropout_rate)
        if not 0 <= auxiliary_weight < float("inf"):
            raise ValueError(f"auxiliary_weight must be 0 or more. Received: {auxiliary_weight}")
        super().__init__(backbone, LEVELS, ("segmentation_loss", "auxiliary_loss"), **kwargs)
        self.num_classes = num_classes
        self.channels = channels
        self.auxiliary_channels = auxiliary_channels
        self.auxiliary_weight = auxiliary_weight
        self.dropout_rate = dropout_rate
        self.mean_iou = MeanIoU(num_classes)
        dtype = self.dtype_policy
        options = {"folded": self.folded, "dtype": dtype}
        fine = range(len(LEVELS) - 1)
        self.pyramid_pooling = PyramidPooling(channels, **options, name="pyramid_pooling")
        self.lateral_blocks = [ConvolutionBlock(channels, 1, **options, name=f"lateral_{i}") for i in fine]
        self.output_blocks = [ConvolutionBlock(channels, 3, **options, name=f"output_{i}") for i in fine]
        self.fusion_block = ConvolutionBlock(channels, 3, **options, name="fusion")
        self.classifier = PixelClassifier(num_classes, dropout_rate, dtype=dtype, name="classifier")
        self.auxiliary_block = ConvolutionBlock(auxiliary_channels, 3, **options, name="auxiliary")
        self.auxiliary_classifier = PixelClassifier(
            num_classes, dropout_rate, dtype=dtype, name="auxiliary_classifier"
        )
        self.build(backbone.input_shape)

    def build(self, input_shape):
        if self.built:
            return
        shapes = self.level_shapes
        self.pyramid_pooling.build(shapes[-1])
        for shape, lateral, output in zip(shapes[:-1], self.lateral_blocks, self.output_blocks, strict=True):
            lateral.build(shape)
            output.build((*shape[:-1], self.channels))
        self.fusion_block.build((*shapes[0][:-1], self.channels * len(LEVELS)))
        self.classifier.build((*shapes[0][:-1], self.channels))
        self.auxiliary_block.build(shapes[2])
        self.auxiliary_classifier.build((*shapes[2][:-1], self.auxiliary_channels))
        self.built = True

    def call(self, images, training=None):
        size = ops.shape(images)[1:3]
        pyramid = self.pyramid(images, training=training)
        logits = self.compute_logits(pyramid, training=training)
        logits = resize_bilinear(ops.cast(logits, "float32"), size)
        if not training:
            return logits
        auxiliary_logits = self.compute_auxiliary_logits(pyramid, training=training)
        auxiliary_logits = resize_bilinear(ops.cast(auxiliary_logits, "float32"), size)
        return {"logits": logits, "auxiliary_logits": auxiliary_logits}

    def compute_logits(self, pyramid, training=None):
        """Gives the logits before resizing, (batch, height / 4, width / 4, classes)."""
        *fine, coarsest = [pyramid[level] for level in LEVELS]
        blocks = zip(self.lateral_blocks, fine, strict=True)
        levels = [block(level, training=training) for block, level in blocks]
        levels.append(self.pyramid_pooling(coarsest, training=training))
        for index in reversed(range(len(fine))):
            # Not `+=`: in place, PyTorch's gradients break.
            coarse = resize_bilinear(levels[index + 1], ops.shape(levels[index])[1:3])
            levels[index] = levels[index] + coarse
        for index, block in enumerate(self.output_blocks):
            levels[index] = block(levels[index], training=training)
        size = ops.shape(levels[0])[1:3]
        levels = [levels[0], *(resize_bilinear(level, size) for level in levels[1:])]
        fused = self.fusion_block(ops.concatenate(levels, axis=-1), training=training)
        return self.classifier(fused, training=training)

    def compute_auxiliary_logits(self, pyramid, training=None):
        """Gives the auxiliary head's logits before resizing, (batch, height / 16, width / 16, classes)."""
        features = self.auxiliary_block(pyramid["P4"], training=training)
        return self.auxiliary_classifier(features, training=training)

    def compute_losses(self, targets, predictions):
        """Gives `{"segmentation_loss"}`, in training with `"auxiliary_loss"` beside it.

        Args:
            targets: label maps (batch, height, width), 255 ignored.
            predictions: what `call` returned.
        """
        if not isinstance(predictions, dict):
            return {"segmentation_loss": semantic_cross_entropy(targets, predictions)}
        auxiliary_loss = semantic_cross_entropy(targets, predictions["auxiliary_logits"])
        return {
            "segmentation_loss": semantic_cross_entropy(targets, predictions["logits"]),
            "auxiliary_loss": self.auxiliary_weight * auxiliary_loss,
        }

    def decode(self, predictions):
        """Gives label maps, int32 (batch, height, width), of what `call` returned."""
        logits = predictions["logits"] if isinstance(predictions, dict) else predictions
        return label_pixels(logits)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logits = y_pred["logits"] if isinstance(y_pred, dict) else y_pred
        labels, _ = read_labels(y, logits)
        self.mean_iou.update_state(labels, label_pixels(logits))
        known = ops.cast(ops.not_equal(labels, IGNORED_LABEL), "float32")
        results = super().compute_metrics(x, labels, logits, known)
        if not isinstance(y_pred, dict):
            results.pop("auxiliary_loss")  # the auxiliary head only runs in training
        return results

    def segment(self, images, crop=None, stride=None, scales=(1.0,), flip=False):
        """Gives label maps with sliding windows and several views: see `heads.segment_images`."""
        return segment_images(self, images, crop, stride, scales, flip)

    def reference_layers(self):
        """Gives mmsegmentation's names: name -> layer or variable."""
        names = dict(self.backbone.reference_layers())
        blocks = {"bottleneck": self.pyramid_pooling.bottleneck, "fpn_bottleneck": self.fusion_block}
        blocks |= {f"psp_modules.{i}.1": block for i, block in enumerate(self.pyramid_pooling.pool_blocks)}
        blocks |= {f"lateral_convs.{i}": block for i, block in enumerate(self.lateral_blocks)}
        blocks |= {f"fpn_convs.{i}": block for i, block in enumerate(self.output_blocks)}
        blocks = {f"decode_head.{name}": block for name, block in blocks.items()}
        blocks["auxiliary_head.convs.0"] = self.auxiliary_block
        for prefix, block in blocks.items():
            names |= {f"{prefix}.{name}": layer for name, layer in block.reference_layers().items()}
        names["decode_head.conv_seg"] = self.classifier.conv
        names["auxiliary_head.conv_seg"] = self.auxiliary_classifier.conv
        return names

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "channels": self.channels,
            "auxiliary_channels": self.auxiliary_channels,
            "auxiliary_weight": self.auxiliary_weight,
            "dropout_rate": self.dropout_rate,
        }
