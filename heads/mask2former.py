"""Mask2Former: Masked-attention Mask Transformer for Universal Image Segmentation (arXiv 2112.01527)."""

import keras
from keras import ops

from heads.arguments import check_counts, check_shares
from heads.dense_model import DenseModel
from heads.layers.attention import NUM_HEADS
from heads.layers.blocks import join_reference_layers
from heads.layers.masked_attention import MaskedAttentionLayer
from heads.layers.pixel_decoder import PixelDecoder, encode_positions
from heads.ops.assignment import assign_optimally
from heads.ops.inputs import read_inputs, read_segments
from heads.ops.losses import average_losses, binary_cross_entropy, dice_loss
from heads.ops.matching import compare_masks
from heads.ops.points import choose_uncertain_points, sample_maps, sample_truth
from heads.ops.resizing import resize_bilinear, resize_masks
from heads.ops.segments import label_segments, merge_segments, number_segments, select_objects
from heads.ops.selection import restore_boxes

LEVELS = ("P2", "P3", "P4", "P5")
TASKS = ("panoptic", "instance", "semantic")
# Sec. 4.1: the same weights in the assignment and in the losses; "no object" counts a tenth.
CLASS_WEIGHT, MASK_WEIGHT, DICE_WEIGHT = 2.0, 5.0, 5.0
NO_OBJECT_WEIGHT = 0.1
# Sec. 3.3, as PointRend: the most uncertain ones of three times as many points, and a quarter chosen at
# random.
OVERSAMPLING, UNCERTAIN_SHARE = 3, 0.75


@keras.saving.register_keras_serializable("van_backbones.heads")
class Mask2Former(DenseModel):
    """Panoptic, instance or semantic segmentation by queries that each learn a class and a mask.

    `model(images)` gives raw predictions, float32: "class_logits" (batch, layers + 1, queries, classes + 1),
    things first, then stuff, then "no object"; "mask_logits" (batch, layers + 1, queries, height / 4, width /
    4), of which the last layer is the last, and outside of training the only one; "inside" bool (batch,
    height, width), False for padding; and "image_sizes" (batch, 2). `model.predict` gives results of `task`,
    `fit` takes labels and masks: see `decode` and `compute_losses`.

    Inputs are images (batch, height, width, 3) or a dict, which also tells the sizes: see
    `heads.ops.inputs.read_inputs`.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` "P2" .. "P5".
        num_things: number of classes of countable objects, labels 0 .. things - 1.
        num_stuff: number of classes of regions such as sky; their labels follow.
        num_queries: number of queries, the most segments that an image can have.
        channels: channels of the pyramid and the queries, a multiple of 8.
        num_encoder_layers: layers of deformable attention over the pyramid.
        num_decoder_layers: layers of masked attention from the queries to the pyramid.
        num_points: at how many points each mask is compared with the truth.
        task: what `predict` and `predict_pictures` return: "panoptic", "instance" or "semantic".
            `predict_pictures(pictures, task=...)` overrides it.
        score_threshold: segments below are left out of the panoptic result.
        **kwargs: `class_names` (things, then stuff) and `resizing`, see `DenseModel`; `name`, `trainable`,
            `dtype`.

    Raises:
        ValueError: if an argument is out of range or the backbone lacks a level.

    Reference:
        - Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", arXiv
          2112.01527; the numbers are mmdetection's `Mask2Former`.
    """

    def __init__(
        self,
        backbone,
        num_things: int = 80,
        num_stuff: int = 53,
        num_queries: int = 100,
        channels: int = 256,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 9,
        num_points: int = 12544,
        task: str = "panoptic",
        score_threshold: float = 0.8,
        **kwargs,
    ):
        check_counts(num_queries=num_queries, channels=channels, num_encoder_layers=num_encoder_layers)
        check_counts(num_decoder_layers=num_decoder_layers)
        check_counts(least=4, num_points=num_points)
        check_counts(least=0, num_things=num_things, num_stuff=num_stuff)
        check_shares(score_threshold=score_threshold)
        if num_things + num_stuff < 1:
            raise ValueError("num_things and num_stuff must not both be 0. Received: 0 and 0")
        if channels % NUM_HEADS:
            raise ValueError(f"channels must be a multiple of {NUM_HEADS}. Received: {channels}")
        _check_task(task)
        super().__init__(backbone, LEVELS, ("class_loss", "mask_loss", "dice_loss"), locals(), **kwargs)
        self.seed_generator = keras.random.SeedGenerator()
        # The reference names of the layers that depend on the number of classes.
        self.class_layers = ("panoptic_head.cls_embed",)
        dtype = self.dtype_policy
        self.pixel_decoder = PixelDecoder(channels, num_encoder_layers, dtype=dtype, name="pixel_decoder")
        self.pixel_decoder.build(self.level_shapes)

        def make_table(rows, name):
            return self.add_weight((rows, channels), keras.initializers.RandomNormal(0.0, 1.0), name=name)

        def make_dense(units, name, **options):
            # As in PyTorch's linear layers.
            options["kernel_initializer"] = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
            layer = keras.layers.Dense(units, dtype=dtype, name=name, **options)
            layer.build((None, None, channels))
            return layer

        self.query_features = make_table(num_queries, "query_features")
        self.query_positions = make_table(num_queries, "query_positions")
        self.level_features = make_table(self.pixel_decoder.num_levels, "level_features")
        self.decoder_layers = [
            MaskedAttentionLayer(channels, dtype=dtype, name=f"decoder_{index}")
            for index in range(num_decoder_layers)
        ]
        for layer in self.decoder_layers:
            layer.build((None, None, channels))
        self.output_norm = keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name="output_norm")
        self.output_norm.build((None, None, channels))
        self.classifier = make_dense(self.num_classes + 1, "classifier")
        self.mask_layers = [make_dense(channels, f"mask_{i}", activation="relu") for i in range(2)]
        self.mask_layers.append(make_dense(channels, "mask_2"))

    @property
    def num_classes(self):
        return self.num_things + self.num_stuff

    @property
    def with_masks(self):
        return self.task == "instance"

    def call(self, inputs, training=None):
        images, sizes = read_inputs(inputs)
        pyramid = self.pyramid(images, training=training)
        levels, mask_features = self.pixel_decoder([pyramid[level] for level in LEVELS])
        memories = [self.describe_level(index, level) for index, level in enumerate(levels)]
        # Masks are linear in the features, so small features give the masks for the attention directly.
        small = [resize_bilinear(mask_features, ops.shape(level)[1:3]) for level in levels]
        batch = ops.shape(images)[0]
        features, positions = (
            ops.broadcast_to(ops.cast(table, self.compute_dtype), (batch, *table.shape))
            for table in (self.query_features, self.query_positions)
        )
        outputs = [self.read_queries(features)]
        for index, layer in enumerate(self.decoder_layers):
            level = index % len(levels)
            visible = self.find_visible(outputs[-1][1], small[level], index)
            features = layer(features, positions, *memories[level], visible)
            outputs.append(self.read_queries(features))
        if not training:
            outputs = outputs[-1:]
        class_logits, embeddings = (ops.stack(parts, axis=1) for parts in zip(*outputs, strict=True))
        mask_logits = ops.einsum("blqc,bhwc->blqhw", embeddings, mask_features)
        rows, columns = (ops.arange(side, dtype="float32") for side in ops.shape(images)[1:3])
        limits = sizes["image_sizes"][:, None, None]
        inside = (rows[:, None] < limits[..., 0]) & (columns < limits[..., 1])
        class_logits, mask_logits = ops.cast(class_logits, "float32"), ops.cast(mask_logits, "float32")
        return {"class_logits": class_logits, "mask_logits": mask_logits, "inside": inside, **sizes}

    def describe_level(self, index, level):
        """Returns the keys and values of a level for the queries, both (batch, positions, channels)."""
        batch, height, width, channels = ops.shape(level)
        values = ops.reshape(level, (batch, height * width, channels))
        values = values + ops.cast(self.level_features[index], values.dtype)
        return values + ops.cast(encode_positions(height, width, channels), values.dtype), values

    def read_queries(self, features):
        """Returns what queries predict: class logits, and weights of the mask features."""
        features = self.output_norm(features)
        embeddings = features
        for dense in self.mask_layers:
            embeddings = dense(embeddings)
        return self.classifier(features), embeddings

    def find_visible(self, embeddings, mask_features, layer_index):
        """Returns where a layer's queries may look on its level: inside their current masks.

        Args:
            embeddings: (batch, queries, channels).
            mask_features: (batch, height, width, channels), at the size of the level.
            layer_index: number of the layer, from 0.

        Returns:
            bool (batch, queries, height * width); a query with an empty mask may look everywhere.
        """
        batch, height, width, channels = ops.shape(mask_features)
        flat = ops.reshape(mask_features, (batch, height * width, channels))
        logits = ops.stop_gradient(ops.einsum("bqc,bpc->bqp", embeddings, flat))
        visible = ops.sigmoid(ops.cast(logits, "float32")) >= 0.5
        return visible | ops.logical_not(ops.any(visible, axis=-1, keepdims=True))

    def compute_losses(self, targets, predictions):
        """Returns "class_loss", "mask_loss" (cross-entropy) and "dice_loss", summed over all layers.

        In each layer, each segment is learned by one query, chosen so that the total cost is the smallest.
        Masks are compared at random points, most of them uncertain ones (sec. 3.3).

        Args:
            targets: a dict of "labels" (batch, n), 0 .. classes - 1, -1 for padding, -2 for crowds, which no
                query learns; and either "masks" (batch, n, height, width), 0 or 1, or, where masks do not
                overlap, "segments" (batch, height, width), rows of "labels", -1 for pixels without truth.
            predictions: what `call` returned with `training=True`, for all layers.

        Returns:
            A dict of float32 scalars; NaN where a target is faulty: see `heads.ops.inputs.read_segments`.
        """
        labels, masks, poison = read_segments(targets, self.num_classes, predictions["inside"])
        matches = self.match_queries(labels, masks, predictions)
        class_logits, mask_logits = predictions["class_logits"], predictions["mask_logits"]
        batch, num_layers, num_queries, *mask_size = ops.shape(mask_logits)
        num_objects = ops.shape(labels)[1]

        # After the last segment comes the class of queries that learn none: (batch, n + 1).
        classes = ops.pad(labels, ((0, 0), (0, 1)), constant_values=self.num_classes)
        rows = ops.where(matches >= 0, matches, num_objects)
        classes = ops.take_along_axis(classes, ops.reshape(rows, (batch, -1)), axis=1)
        classes = ops.reshape(classes, ops.shape(matches))
        weights = ops.where(matches >= 0, 1.0, NO_OBJECT_WEIGHT)
        entropies = ops.sparse_categorical_crossentropy(classes, class_logits, from_logits=True)

        # The query of each segment: (batch, layers, n).
        is_pair = matches[..., None] == ops.arange(num_objects, dtype="int32")
        found = ops.cast(ops.any(is_pair, axis=2), "float32")
        queries = ops.argmax(ops.cast(is_pair, "int32"), axis=2)
        starts = ops.arange(batch * num_layers, dtype="int32") * num_queries
        queries = ops.cast(queries, "int32") + ops.reshape(starts, (batch, num_layers, 1))
        logits = ops.reshape(mask_logits, (batch * num_layers * num_queries, *mask_size))
        logits = ops.take(logits, ops.reshape(queries, (-1,)), axis=0)
        points = self.choose_points(logits)
        sampled = sample_maps(logits[..., None], points)
        truth = sample_truth(masks, ops.reshape(points, (batch, num_layers, num_objects, self.num_points, 2)))
        sampled, truth = (ops.reshape(x, ops.shape(truth)) for x in (sampled, truth))
        mask_losses = ops.mean(binary_cross_entropy(truth, sampled), axis=-1)
        dice_losses = dice_loss(truth, ops.sigmoid(sampled))

        losses = {
            "class_loss": (CLASS_WEIGHT * entropies, weights),
            "mask_loss": (MASK_WEIGHT * mask_losses, found),
            "dice_loss": (DICE_WEIGHT * dice_losses, found),
        }
        # Each layer has equally many pairs.
        return {
            name: average_losses(ops.sum(values * shares), ops.sum(shares) / num_layers) + poison
            for name, (values, shares) in losses.items()
        }

    def choose_points(self, logits):
        """Returns the points at which masks (n, height, width) are compared: (n, num_points, 2)."""
        logits = ops.stop_gradient(logits)
        count, num_uncertain = ops.shape(logits)[0], int(UNCERTAIN_SHARE * self.num_points)
        candidates = self.draw_points((count, OVERSAMPLING * self.num_points, 2))
        uncertain = choose_uncertain_points(logits, candidates, num_uncertain)
        rest = self.draw_points((count, self.num_points - num_uncertain, 2))
        return ops.concatenate([uncertain, rest], axis=1)

    def draw_points(self, shape):
        """Returns random points, (x, y) as shares of the width and height."""
        return keras.random.uniform(shape, seed=self.seed_generator)

    def match_queries(self, labels, masks, predictions):
        """Returns the segment that each query learns, or -1: int32 (batch, layers, queries)."""
        class_logits = ops.stop_gradient(predictions["class_logits"])
        mask_logits = ops.stop_gradient(predictions["mask_logits"])
        batch, num_layers, num_queries, height, width = ops.shape(mask_logits)
        points = self.draw_points((batch * num_layers, self.num_points, 2))
        maps = ops.reshape(mask_logits, (batch * num_layers, num_queries, height, width))
        ours = sample_maps(ops.transpose(maps, (0, 2, 3, 1)), points)  # (batch * layers, points, queries)
        ours = ops.reshape(ours, (batch, num_layers, self.num_points, num_queries))
        # All segments are compared at the same points.
        points = ops.reshape(points, (batch, num_layers * self.num_points, 2))
        truth = sample_maps(ops.transpose(masks, (0, 2, 3, 1)), points)
        truth = ops.reshape(truth, (batch, num_layers, self.num_points, -1))

        shape = (batch, num_layers, num_queries, ops.shape(labels)[1])
        classes = ops.broadcast_to(ops.maximum(labels, 0)[:, None, None], shape)
        class_costs = -ops.take_along_axis(ops.softmax(class_logits, axis=-1), classes, axis=-1)
        mask_costs, dice_costs = compare_masks(truth, ours)
        costs = CLASS_WEIGHT * class_costs + MASK_WEIGHT * mask_costs + DICE_WEIGHT * dice_costs
        # Predictions that are not finite show in the losses, which end the training with a message.
        costs = ops.where(ops.isfinite(costs), costs, 0.0)
        exists = ops.broadcast_to((labels >= 0)[:, None], (batch, num_layers, shape[-1]))
        return assign_optimally(costs, exists)

    def decode(self, predictions):
        """Returns the results of `task`, at the size of the input.

        Returns:
            - for "panoptic" a dict of "segments" int32 (batch, height, width), rows of "labels" and "scores",
              -1 for none; "labels" int32 (batch, queries), -1 where there is no segment; "scores" (batch,
              queries);
            - for "instance" a dict of "boxes" (batch, 100, 4), xyxy pixels of the original picture where its
              size was among the inputs; "scores" (batch, 100); "labels" (batch, 100), -1 for none; "masks"
              bool (batch, 100, height, width), of the input's size;
            - for "semantic" label maps, int32 (batch, height, width).
        """
        class_logits, masks = predictions["class_logits"][:, -1], predictions["mask_logits"][:, -1]
        masks = resize_masks(masks, ops.shape(predictions["inside"])[1:])
        results = self.decode_masks(class_logits, masks, predictions["inside"], self.task)
        if self.task == "semantic":
            return results
        # NaN where the sizes are: see `read_inputs`.
        results["scores"] = results["scores"] + 0.0 * predictions["image_sizes"][:, :1]
        if self.task == "panoptic":
            return results
        return restore_boxes(results, predictions["image_sizes"], predictions.get("original_sizes"))

    def decode_masks(self, class_logits, mask_logits, inside, task):
        """Returns a task's results from masks (batch, queries, height, width) of their final size."""
        if task == "semantic":
            return label_segments(class_logits, mask_logits)
        if task == "instance":
            return select_objects(class_logits, mask_logits, inside, self.num_things)
        return merge_segments(class_logits, mask_logits, inside, self.num_things, self.score_threshold)

    def predict_resized(self, images, image_sizes, original_sizes, task=None):
        """Returns a task's results of each image at its original size: see `predict_pictures`."""
        task = self.task if task is None else task
        _check_task(task)
        predictions = self.predict_raw({"images": images, "image_sizes": image_sizes})
        results = []
        for row, ((height, width), size) in enumerate(zip(image_sizes, original_sizes.tolist(), strict=True)):
            class_logits = predictions["class_logits"][row : row + 1, -1]
            masks = resize_masks(predictions["mask_logits"][row : row + 1, -1], images.shape[1:3])
            masks = resize_masks(masks[:, :, :height, :width], tuple(size))
            found = self.decode_masks(class_logits, masks, ops.ones((1, *size), "bool"), task)
            if task == "semantic":
                results.append({"label_map": ops.convert_to_numpy(found)[0]})
                continue
            found = {name: ops.convert_to_numpy(values)[0] for name, values in found.items()}
            results.append(number_segments(found) if task == "panoptic" else found)
        return results

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer or variable."""
        parts = {
            "pixel_decoder": self.pixel_decoder,
            "transformer_decoder.post_norm": self.output_norm,
            "query_embed.weight": self.query_positions,
            "query_feat.weight": self.query_features,
            "level_embed.weight": self.level_features,
            "cls_embed": self.classifier,
        }
        parts |= {f"mask_embed.{2 * index}": dense for index, dense in enumerate(self.mask_layers)}
        parts |= {f"transformer_decoder.layers.{i}": layer for i, layer in enumerate(self.decoder_layers)}
        parts = {f"panoptic_head.{name}": part for name, part in parts.items()}
        return self.backbone.reference_layers() | join_reference_layers(parts)


def _check_task(task):
    if task not in TASKS:
        raise ValueError(f"task must be one of {list(TASKS)}. Received: {task!r}")
