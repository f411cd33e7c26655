"""Trains a head of KerasCV and one of ours on the same VAN backbone with the same batches, and scores both.

    python examples/keras_cv_heads.py detection
    python examples/keras_cv_heads.py segmentation --data path/to/data --variant b1 --weights imagenet

Detection: KerasCV's RetinaNet and ours. Segmentation: KerasCV's DeepLabV3Plus and our SemanticFPN. The script
shows what a model of another package needs to use `VANBackbone`, to read batches of `heads.data`, and to be
scored by `heads.metrics`. Without --data, the embedded, synthetic data set is used.
"""

from options import add_variant, load_keras, make_parser, number, whole_number

TASKS = ("detection", "segmentation")


def parse_arguments(argv=None):
    """Returns the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("task", choices=TASKS)
    data = "folder as for train_detection.py or finetune_segmentation.py; default: the embedded data set"
    add("--data", help=data)
    add_variant(parser)
    count = whole_number(1)
    side = "side of the square pictures; default: %(default)s"
    add("--image-size", type=count, default=128, metavar="SIDE", help=side)
    add("--batch-size", type=count, default=4, help="pictures per batch; default: %(default)s")
    add("--steps", type=count, default=1000, help="steps of each training; default: %(default)s")
    add("--learning-rate", type=number(above=0), default=2e-3, help="default: %(default)s")
    add("--seed", type=whole_number(0, 2**31 - 1), default=0, help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.image_size % 32:
        # KerasCV's anchors and its decoder round in another way than the levels of the backbone.
        parser.error(f"--image-size must be a multiple of 32. Received: {arguments.image_size}")
    return arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import warnings

import keras
import keras_cv
import numpy as np
from faults import explain_faults

from heads import RetinaNet, SemanticFPN, WarmUpPolynomialDecay
from heads.data import (
    DetectionAugmentation,
    DetectionShapes,
    SemanticAugmentation,
    SemanticFolder,
    SemanticShapes,
    detection_evaluation_batches,
    detection_training_batches,
    open_detection_folder,
    semantic_evaluation_batches,
    semantic_training_batches,
)
from heads.metrics import (
    evaluate_coco,
    evaluate_semantic,
    format_coco_scores,
    format_semantic_scores,
    predict_coco_results,
)
from heads.ops.boxes import clip_boxes
from heads.ops.selection import label_pixels, restore_boxes
from van_backbones import VANBackbone


def main(argv=None):
    """Trains and scores both models of the task."""
    arguments = parse_arguments(argv)
    script = "train_detection.py" if arguments.task == "detection" else "finetune_segmentation.py"
    with explain_faults(arguments.data, script):
        train, validation = open_data(arguments)
    compare = compare_detectors if arguments.task == "detection" else compare_segmenters
    compare(arguments, train, validation)


def open_data(arguments):
    """Returns the training and the validation data."""
    size = (arguments.image_size,) * 2
    if arguments.data is None:
        shapes = DetectionShapes if arguments.task == "detection" else SemanticShapes
        return [shapes(count, size, seed) for count, seed in ((2000, 0), (100, 1))]
    is_detection = arguments.task == "detection"
    open_split = open_detection_folder if is_detection else SemanticFolder
    datasets = [open_split(arguments.data, split) for split in ("train", "val")]
    for dataset in datasets:
        dataset.check()
    return datasets


def compare_detectors(arguments, train, validation):
    """Trains and scores KerasCV's RetinaNet and ours."""
    size = (arguments.image_size,) * 2
    augment = DetectionAugmentation(image_size=size, scale_range=(0.8, 1.25))

    def make_batches():
        return detection_training_batches(train, arguments.batch_size, augment, seed=arguments.seed)

    truth = validation.to_coco()

    def score(name, model):
        batches = detection_evaluation_batches(validation, 4, image_size=size)
        results = predict_coco_results(model, batches, validation.image_ids, validation.category_ids)
        print(f"\n{name}\n{format_coco_scores(evaluate_coco(truth, results))}", flush=True)

    model = RetinaNet(make_backbone(arguments), train.num_classes)
    model.compile(optimizer=make_optimizer(arguments))
    fit(model, make_batches(), arguments)
    score("RetinaNet of heads", model)

    model = keras_cv.models.RetinaNet(
        num_classes=train.num_classes,
        bounding_box_format="xyxy",
        backbone=make_backbone(arguments, input_shape=(*size, 3)),  # its anchors are for one size of images
    )
    model.compile(optimizer=make_optimizer(arguments), classification_loss="focal", box_loss="smoothl1")
    with warnings.catch_warnings():
        # It is built for {"images": ...}, but its own training step passes it the images.
        warnings.filterwarnings("ignore", "The structure of `inputs` doesn't match the expected")
        fit(model, make_batches().map(to_keras_cv), arguments)
    score("RetinaNet of KerasCV", KerasCVDetector(model))


def to_keras_cv(inputs, targets):
    """Returns a batch of `heads.data` as KerasCV's detectors take it; -1 marks empty rows for both."""
    return inputs["images"], {"boxes": targets["boxes"], "classes": targets["labels"]}


class KerasCVDetector:
    """A detector of KerasCV with the method that `heads.metrics` calls for detections.

    Args:
        model: A trained `keras_cv.models.RetinaNet` with boxes in "xyxy".
    """

    def __init__(self, model):
        self.model = model

    def predict_on_batch(self, inputs):
        images = inputs["images"]
        found = self.model.decode_predictions(self.model({"images": images}, training=False), images)
        scores = np.asarray(found["confidence"])
        labels = np.where(scores > 0, np.asarray(found["classes"]), -1).astype(
            "int32"
        )  # rows without an object
        boxes = clip_boxes(found["boxes"], inputs["image_sizes"])  # like ours
        detections = {"boxes": boxes, "scores": scores, "labels": labels}
        return restore_boxes(detections, inputs["image_sizes"], inputs["original_sizes"])


def compare_segmenters(arguments, train, validation):
    """Trains and scores KerasCV's DeepLabV3Plus and our SemanticFPN."""
    augment = SemanticAugmentation((arguments.image_size,) * 2)

    def make_batches():
        return semantic_training_batches(train, arguments.batch_size, augment, seed=arguments.seed)

    def score(name, model):
        scores = evaluate_semantic(model, semantic_evaluation_batches(validation))
        print(f"\n{name}\n{format_semantic_scores(scores, validation.class_names)}", flush=True)

    model = SemanticFPN(make_backbone(arguments), train.num_classes)
    model.compile(optimizer=make_optimizer(arguments))
    fit(model, make_batches(), arguments)
    score("SemanticFPN of heads", model)

    model = keras_cv.models.DeepLabV3Plus(num_classes=train.num_classes, backbone=make_backbone(arguments))
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)  # it ends in a softmax
    model.compile(optimizer=make_optimizer(arguments), loss=loss)
    fit(model, make_batches(), arguments)
    score("DeepLabV3Plus of KerasCV", KerasCVSegmenter(model, train.num_classes))


class KerasCVSegmenter:
    """A segmenter of KerasCV with the method that `heads.metrics` calls for label maps.

    Args:
        model: A trained `keras_cv.models.DeepLabV3Plus`.
        num_classes: Number of its classes.
    """

    def __init__(self, model, num_classes):
        self.model, self.num_classes = model, num_classes

    def predict_on_batch(self, images):
        height, width = images.shape[1:3]
        padding = ((0, 0), (0, -height % 32), (0, -width % 32), (0, 0))
        shares = self.model.predict_on_batch(np.pad(images, padding))  # its decoder adds maps of equal sizes
        return np.asarray(label_pixels(shares[:, :height, :width]))


def make_backbone(arguments, **options):
    """Returns the backbone, which both models start from."""
    keras.utils.set_random_seed(arguments.seed)
    return VANBackbone(arguments.variant, weights=arguments.weights, **options)


def make_optimizer(arguments):
    """Returns AdamW as in the paper's recipes: no weight decay on norms and biases."""
    schedule = WarmUpPolynomialDecay(arguments.learning_rate, arguments.steps // 10, arguments.steps)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.05, global_clipnorm=1.0)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return optimizer


def fit(model, batches, arguments):
    """Trains for the steps."""
    print(f"\n{model.name}: {model.count_params():,} parameters, {arguments.steps:,} steps", flush=True)
    model.fit(batches, steps_per_epoch=arguments.steps, shuffle=False, verbose=2)


if __name__ == "__main__":
    main()
