"""Faster R-CNN on a feature pyramid (arXiv 1506.01497 and 1612.03144)."""

import keras
from keras import ops

from heads.dense_model import DenseModel, check_counts, check_shares
from heads.layers.fpn import FPN
from heads.layers.roi_align import align_regions
from heads.layers.rpn import RegionProposalNetwork, compute_proposal_losses, select_proposals
from heads.ops.boxes import decode_boxes, encode_boxes
from heads.ops.inputs import read_inputs, read_targets
from heads.ops.matching import match_boxes
from heads.ops.sampling import sample_matches
from heads.ops.selection import restore_boxes, select_detections, select_pairs, take_rows

LEVELS = ("P2", "P3", "P4", "P5")
CANDIDATES_PER_LEVEL = 1000
TRAINING_CANDIDATES_PER_LEVEL = 2000
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
POSITIVE_FRACTION = 0.25
POOLED_SIZE = 7
# Pairs of a proposal and a class that go into the suppression; a full picture has some hundreds.
NUM_PAIRS = 5000


@keras.saving.register_keras_serializable(package="heads")
class FasterRCNN(DenseModel):
    """Object detection in two stages: proposals, then a classifier of the features under each.

    `model(images)` gives raw predictions: those of `heads.layers.rpn.RegionProposalNetwork`, "pyramid" (the
    maps P2 .. P5), "image_sizes" (batch, 2), and, except in training, "proposals" (batch, proposals, 4),
    "proposal_scores" (batch, proposals), "class_logits" (batch, proposals, classes + 1), the background last,
    and "box_deltas" (batch, proposals, classes, 4). `model.predict` gives detections, `fit` takes padded
    boxes and labels: see `decode` and `compute_losses`.

    Inputs are images (batch, height, width, 3) or a dict, which also tells the sizes: see
    `heads.ops.inputs.read_inputs`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P2" .. "P5".
        num_classes: number of classes without the background.
        channels: channels of the pyramid and the heads.
        num_proposals: proposals of each image that the second stage looks at.
        num_samples: proposals of each image that the second stage learns from, at most a quarter of them
            objects; at least 4.
        score_threshold: detections below are left out.
        iou_threshold: of two detections of one class that overlap by more, the better one stays.
        max_detections: rows of `predict`'s result.
        **kwargs: `name`, `trainable`, `dtype`.

    Raises:
        ValueError: at an argument out of range or a backbone that lacks a level.

    Reference:
        - Ren et al., "Faster R-CNN", arXiv 1506.01497; Lin et al., "Feature Pyramid Networks for Object
          Detection", arXiv 1612.03144, section 4; the numbers are mmdetection's.
    """

    # The reference names of the layers that depend on the number of classes.
    class_layers = ("roi_head.bbox_head.fc_cls", "roi_head.bbox_head.fc_reg")
    with_masks = False
    loss_names = ("objectness_loss", "proposal_loss", "class_loss", "box_loss")

    def __init__(
        self,
        backbone,
        num_classes=80,
        channels=256,
        num_proposals=1000,
        num_samples=512,
        score_threshold=0.05,
        iou_threshold=0.5,
        max_detections=100,
        **kwargs,
    ):
        check_counts(
            num_classes=num_classes,
            channels=channels,
            num_proposals=num_proposals,
            max_detections=max_detections,
        )
        check_shares(score_threshold=score_threshold)
        check_shares(with_one=True, iou_threshold=iou_threshold)
        # Fewer have no place for an object: see POSITIVE_FRACTION.
        check_counts(least=4, num_samples=num_samples)
        super().__init__(backbone, LEVELS, self.loss_names, **kwargs)
        # Each batch has its own number of objects: XLA would compile anew for each.
        self.supports_jit = keras.backend.backend() != "tensorflow"
        self.num_classes = num_classes
        self.channels = channels
        self.num_proposals = num_proposals
        self.num_samples = num_samples
        self.score_threshold = score_threshold
        self.iou_threshold = iou_threshold
        self.max_detections = max_detections
        self.seed_generator = keras.random.SeedGenerator()
        dtype = self.dtype_policy
        self.neck = FPN(channels, num_extra_levels=1, extra_levels_from="pool", dtype=dtype, name="neck")
        self.rpn = RegionProposalNetwork(channels, dtype=dtype, name="rpn")
        self.box_head = BoxHead(num_classes, dtype=dtype, name="box_head")
        self.build(backbone.input_shape)

    def build(self, input_shape):
        if self.built:
            return
        self.neck.build(self.level_shapes)
        self.rpn.build([(None, None, None, self.channels)])
        self.box_head.build((None, POOLED_SIZE, POOLED_SIZE, self.channels))
        self.built = True

    def call(self, inputs, training=None):
        images, sizes = read_inputs(inputs)
        pyramid = self.pyramid(images, training=training)
        levels = self.neck([pyramid[level] for level in LEVELS])
        predictions = {**self.rpn(levels), "pyramid": levels[: len(LEVELS)], **sizes}
        if training:  # the second stage runs on samples, which depend on the targets
            return predictions
        proposals, scores = select_proposals(predictions, CANDIDATES_PER_LEVEL, self.num_proposals)
        class_logits, box_deltas = self.classify_regions(predictions["pyramid"], proposals)
        return {
            **predictions,
            "proposals": proposals,
            "proposal_scores": scores,
            "class_logits": class_logits,
            "box_deltas": box_deltas,
        }

    def classify_regions(self, pyramid, boxes):
        """Gives the second stage's logits (batch, n, classes + 1) and deltas (batch, n, classes, 4)."""
        batch, num_boxes = ops.shape(boxes)[:2]
        class_logits, box_deltas = self.box_head(flatten_regions(align_regions(pyramid, boxes, POOLED_SIZE)))
        class_logits = ops.reshape(class_logits, (batch, num_boxes, self.num_classes + 1))
        return class_logits, ops.reshape(box_deltas, (batch, num_boxes, self.num_classes, 4))

    def compute_losses(self, targets, predictions):
        """Gives the losses of both stages: two of the proposals, two of the classified regions.

        Args:
            targets: a dict of "boxes" (batch, n, 4), xyxy pixels, and "labels" (batch, n), 0 .. classes - 1,
                -1 for padding, -2 for crowds, in which nothing counts as background.
            predictions: what `call` gave.

        Returns:
            A dict of float32 scalars "objectness_loss", "proposal_loss", "class_loss" and "box_loss"; NaN
            where a target is faulty: see `heads.ops.inputs.read_targets`.
        """
        image_sizes = predictions["image_sizes"]
        targets, poisons = read_targets(targets, self.num_classes, self.with_masks, image_sizes)
        losses = compute_proposal_losses(targets, predictions, self.draw_priorities)
        samples = self.sample_regions(targets, predictions)
        losses |= self.compute_region_losses(targets, predictions, samples)
        return {name: loss + poisons.get(name, 0.0) for name, loss in losses.items()}

    def sample_regions(self, targets, predictions):
        """Gives regions to learn from: the true boxes and the proposals, matched and sampled.

        Returns:
            A dict of "boxes" (batch, num_samples, 4); "kinds" (batch, num_samples), 1 for objects, which come
            first, 0 for background, -1 for none; and "matches" (batch, num_samples), the objects' indices.
        """
        boxes, labels = targets["boxes"], targets["labels"]
        proposals, scores = select_proposals(predictions, TRAINING_CANDIDATES_PER_LEVEL, self.num_proposals)
        matches = match_boxes(proposals, boxes, labels, 0.5, 0.5, min_positive_iou=0.5, inside=scores >= 0.0)
        own = ops.broadcast_to(ops.arange(ops.shape(labels)[1], dtype="int32"), ops.shape(labels))
        matches = ops.concatenate([ops.where(labels >= 0, own, -2), matches], axis=1)
        regions = ops.concatenate([boxes, proposals], axis=1)
        rows, kinds = sample_matches(
            matches, self.num_samples, POSITIVE_FRACTION, self.draw_priorities(matches)
        )
        return {
            "boxes": ops.where(kinds[..., None] >= 0, take_rows(regions, rows), 0.0),
            "kinds": kinds,
            "matches": ops.maximum(take_rows(matches, rows), 0),
        }

    def compute_region_losses(self, targets, predictions, samples):
        """Gives "class_loss" and "box_loss" of sampled regions: see `sample_regions`."""
        positive = samples["kinds"] == 1
        counted = ops.cast(samples["kinds"] >= 0, "float32")
        num_regions = ops.maximum(ops.sum(counted), 1.0)
        class_logits, box_deltas = self.classify_regions(predictions["pyramid"], samples["boxes"])

        classes = ops.clip(take_rows(targets["labels"], samples["matches"]), 0, self.num_classes - 1)
        truth = ops.where(positive, classes, self.num_classes)
        entropies = ops.sparse_categorical_crossentropy(truth, class_logits, from_logits=True)

        matched_boxes = take_rows(targets["boxes"], samples["matches"])
        deltas = encode_boxes(matched_boxes, samples["boxes"], DEVIATIONS)
        of_class = ops.take_along_axis(box_deltas, classes[:, :, None, None], axis=2)[:, :, 0]
        distances = ops.where(positive[..., None], ops.abs(of_class - deltas), 0.0)
        # mmdetection divides by all regions, not by the objects among them.
        return {
            "class_loss": ops.sum(entropies * counted) / num_regions,
            "box_loss": ops.sum(distances) / num_regions,
        }

    def draw_priorities(self, values):
        """Gives a random number for each place of `values`: those of the smallest are sampled."""
        return keras.random.uniform(ops.shape(values), seed=self.seed_generator)

    def decode(self, predictions):
        """Gives detections of raw predictions.

        Returns:
            A dict of "boxes" (batch, max_detections, 4), xyxy pixels of the original picture where its size
            was among the inputs, else of the input; "scores" (batch, max_detections); "labels"
            (batch, max_detections), -1 where there is no detection. The best come first.
        """
        return restore_boxes(self.detect(predictions), predictions)

    def detect(self, predictions):
        """Gives detections as `decode` does, in pixels of the input."""
        scores = ops.softmax(predictions["class_logits"], axis=-1)[..., :-1]
        exists = ops.expand_dims(predictions["proposal_scores"], -1) >= 0.0
        scores = ops.where(exists & (scores > self.score_threshold), scores, 0.0)
        scores, rows, labels = select_pairs(scores, NUM_PAIRS)
        deltas = take_rows(predictions["box_deltas"], rows)
        deltas = ops.take_along_axis(deltas, ops.reshape(labels, (*ops.shape(labels), 1, 1)), axis=2)[:, :, 0]
        boxes = decode_boxes(deltas, take_rows(predictions["proposals"], rows), DEVIATIONS)
        return select_detections(
            boxes, scores, labels, predictions["image_sizes"], self.iou_threshold, self.max_detections
        )

    def reference_layers(self):
        """Gives mmdetection's names: name -> layer or variable."""
        names = dict(self.backbone.reference_layers())
        for prefix, part in (
            ("neck", self.neck),
            ("rpn_head", self.rpn),
            ("roi_head.bbox_head", self.box_head),
        ):
            names |= {f"{prefix}.{name}": layer for name, layer in part.reference_layers().items()}
        return names

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "channels": self.channels,
            "num_proposals": self.num_proposals,
            "num_samples": self.num_samples,
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "max_detections": self.max_detections,
        }


def flatten_regions(regions):
    """Gives (batch, n, height, width, channels) as (batch * n, height, width, channels)."""
    batch, num_regions, *size, channels = ops.shape(regions)
    return ops.reshape(regions, (batch * num_regions, *size, channels))


@keras.saving.register_keras_serializable(package="heads")
class BoxHead(keras.layers.Layer):
    """Classifies the features under a box and shifts it: two wide dense layers, then two outputs.

    Args:
        num_classes: number of classes without the background.
        width: units of the two dense layers.
        **kwargs: base arguments of the layer.

    Call arguments:
        regions: (n, height, width, channels).

    Returns:
        float32 (n, num_classes + 1), the background last, and (n, 4 * num_classes).
    """

    def __init__(self, num_classes, width=1024, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.width = width

        def make_dense(units, name, deviation=None, activation=None):
            initializer = keras.initializers.RandomNormal(0.0, deviation) if deviation else "glorot_uniform"
            return keras.layers.Dense(
                units, activation, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
            )

        self.shared = [make_dense(width, f"shared_{index}", activation="relu") for index in range(2)]
        self.classifier = make_dense(num_classes + 1, "classifier", 0.01)
        self.regressor = make_dense(4 * num_classes, "regressor", 0.001)

    def build(self, input_shape):
        _, height, width, channels = input_shape
        self.shared[0].build((None, height * width * channels))
        for layer in (self.shared[1], self.classifier, self.regressor):
            layer.build((None, self.width))
        self.built = True

    def call(self, regions):
        # Channels first, as the reference's weights are ordered.
        count, height, width, channels = ops.shape(regions)
        x = ops.reshape(ops.transpose(regions, (0, 3, 1, 2)), (count, height * width * channels))
        for layer in self.shared:
            x = layer(x)
        return ops.cast(self.classifier(x), "float32"), ops.cast(self.regressor(x), "float32")

    def reference_layers(self):
        """Gives mmdetection's names: name -> layer."""
        names = {f"shared_fcs.{index}": layer for index, layer in enumerate(self.shared)}
        return names | {"fc_cls": self.classifier, "fc_reg": self.regressor}

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes, "width": self.width}
