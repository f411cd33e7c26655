"""UPerNet (arXiv 1807.10221) with an auxiliary head in training."""

from collections.abc import Sequence

import keras
from keras import ops

from heads.arguments import check_counts, check_shares
from heads.layers.blocks import ConvolutionBlock, PixelClassifier, join_reference_layers
from heads.layers.pyramid_pooling import PyramidPooling
from heads.ops.labels import check_num_classes
from heads.ops.losses import check_segmentation_loss, segmentation_loss
from heads.ops.resizing import resize_bilinear
from heads.semantic_model import SemanticModel

LEVELS = ("P2", "P3", "P4", "P5")


@keras.saving.register_keras_serializable("van_backbones.heads")
class UPerNet(SemanticModel):
    """Semantic segmentation by pyramid pooling on top of a feature pyramid, whose levels are all fused.

    `model(images)` gives logits at the images' size, float32 (batch, height, width, classes); with
    `training=True` it gives `{"logits", "auxiliary_logits"}`, both at that size. `model.predict` gives label
    maps, int32 (batch, height, width). `fit` takes label maps in which 255 is ignored: see `SemanticModel`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P2" .. "P5".
        num_classes: number of classes, including the background if there is one: 2 .. 255.
        channels: channels of the head. Cost grows with their square: 512 takes 77 GFLOP per 256 x 256 image
            for the last fusion alone.
        auxiliary_channels: channels of the auxiliary head, which reads "P4".
        auxiliary_weight: factor of the auxiliary loss.
        dropout_rate: share of the last map's channels that are dropped in training.
        loss: the loss of label maps: "cross_entropy", "focal", "dice" or "cross_entropy+dice", see
            `heads.ops.losses.segmentation_loss`.
        class_weights: how much each class counts in the loss, a number for each; see
            `heads.data.balance_classes`. None counts all pixels alike.
        **kwargs: `class_names` and `resizing`, see `DenseModel`; `name`, `trainable`, `dtype`.

    Raises:
        ValueError: if an argument is out of range or the backbone lacks a level.

    Reference:
        - Xiao et al., "Unified Perceptual Parsing for Scene Understanding", arXiv 1807.10221, section 3; the
          numbers are mmsegmentation's `UPerHead` and `FCNHead`, as VAN's authors configured them.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = ("decode_head.conv_seg", "auxiliary_head.conv_seg")

    def __init__(
        self,
        backbone,
        num_classes: int,
        channels: int = 512,
        auxiliary_channels: int = 256,
        auxiliary_weight: float = 0.4,
        dropout_rate: float = 0.1,
        loss: str = "cross_entropy",
        class_weights: Sequence[float] | None = None,
        **kwargs,
    ):
        check_num_classes(num_classes)
        check_counts(channels=channels, auxiliary_channels=auxiliary_channels)
        check_shares(dropout_rate=dropout_rate)
        class_weights = check_segmentation_loss(loss, class_weights, num_classes)
        if not 0 <= auxiliary_weight < float("inf"):
            raise ValueError(f"auxiliary_weight must be 0 or more. Received: {auxiliary_weight}")
        super().__init__(backbone, LEVELS, ("segmentation_loss", "auxiliary_loss"), locals(), **kwargs)
        *fine, coarsest = self.level_shapes

        def make_block(input_shape, filters, kernel_size, name, **options):
            block = ConvolutionBlock(filters, kernel_size, dtype=self.dtype_policy, name=name, **options)
            block.build(input_shape)
            return block

        def make_classifier(width, name):
            classifier = PixelClassifier(num_classes, dropout_rate, dtype=self.dtype_policy, name=name)
            classifier.build((None, None, None, width))
            return classifier

        self.pyramid_pooling = PyramidPooling(channels, dtype=self.dtype_policy, name="pyramid_pooling")
        self.pyramid_pooling.build(coarsest)
        wide = (None, None, None, channels)
        self.lateral_blocks = [make_block(shape, channels, 1, f"lateral_{i}") for i, shape in enumerate(fine)]
        self.output_blocks = [make_block(wide, channels, 3, f"output_{i}") for i in range(len(fine))]
        self.fusion_block = make_block([wide] * len(LEVELS), channels, 3, "fusion", joins_maps=True)
        self.classifier = make_classifier(channels, "classifier")
        self.auxiliary_block = make_block(fine[-1], auxiliary_channels, 3, "auxiliary")
        self.auxiliary_classifier = make_classifier(auxiliary_channels, "auxiliary_classifier")

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
        """Returns the logits before resizing, (batch, height / 4, width / 4, classes)."""
        *fine, coarsest = [pyramid[level] for level in LEVELS]
        blocks = zip(self.lateral_blocks, fine, strict=True)
        levels = [block(level, training=training) for block, level in blocks]
        levels.append(self.pyramid_pooling(coarsest, training=training))
        for index in reversed(range(len(fine))):
            # Not `+=`, which works in place and breaks PyTorch's gradients.
            coarse = resize_bilinear(levels[index + 1], ops.shape(levels[index])[1:3])
            levels[index] = levels[index] + coarse
        for index, block in enumerate(self.output_blocks):
            levels[index] = block(levels[index], training=training)
        return self.classifier(self.fusion_block(levels, training=training), training=training)

    def compute_auxiliary_logits(self, pyramid, training=None):
        """Returns the auxiliary head's logits before resizing, (batch, height / 16, width / 16, classes)."""
        features = self.auxiliary_block(pyramid["P4"], training=training)
        return self.auxiliary_classifier(features, training=training)

    def compute_losses(self, targets, predictions):
        """Returns "segmentation_loss" and, in training, "auxiliary_loss", times its weight.

        Args:
            targets: label maps (batch, height, width), 255 ignored.
            predictions: what `call` returned.
        """
        options = {"loss": self.loss, "class_weights": self.class_weights}
        if not isinstance(predictions, dict):
            return {"segmentation_loss": segmentation_loss(targets, predictions, **options)}
        auxiliary_loss = segmentation_loss(targets, predictions["auxiliary_logits"], **options)
        return {
            "segmentation_loss": segmentation_loss(targets, predictions["logits"], **options),
            "auxiliary_loss": self.auxiliary_weight * auxiliary_loss,
        }

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        if not isinstance(y_pred, dict):
            results.pop("auxiliary_loss")  # the auxiliary head only runs in training
        return results

    def reference_layers(self):
        """Returns mmsegmentation's names: name -> layer or variable."""
        parts = {"": self.pyramid_pooling, "fpn_bottleneck": self.fusion_block}
        parts |= {f"lateral_convs.{index}": block for index, block in enumerate(self.lateral_blocks)}
        parts |= {f"fpn_convs.{index}": block for index, block in enumerate(self.output_blocks)}
        parts["conv_seg"] = self.classifier.conv
        names = {f"decode_head.{name}": part for name, part in join_reference_layers(parts).items()}
        auxiliary = {"convs.0": self.auxiliary_block, "conv_seg": self.auxiliary_classifier.conv}
        names |= {f"auxiliary_head.{name}": part for name, part in join_reference_layers(auxiliary).items()}
        return self.backbone.reference_layers() | names
