"""Which parts of a picture matter: Grad-CAM for a class, and the effective receptive field."""

import keras
import numpy as np
from keras import ops

from van_backbones.feature_maps.views import to_float32
from van_backbones.gradients import differentiate
from van_backbones.layer_calls import watch_calls


def grad_cam(model, image, score) -> dict[str, np.ndarray]:
    """Returns where the features of each level of the pyramid raise a score of the model (Grad-CAM).

    Each channel of a level is weighted by its gradient of the score, averaged over the positions; the
    weighted channels are summed, and negative values become 0 (Selvaraju et al., arXiv 1610.02391, equations
    1 and 2).

    Args:
        model: a `VANClassifier`, or a head with a `backbone` and a `pyramid`.
        image: (height, width, 3), RGB, 0 .. 255, as the model takes it.
        score: a function of what `model(images)` returns, of one image, to a scalar, such as the logit of a
            class before the softmax: `lambda logits: logits[0, 207]`. `heads.class_scores.score_class` works
            for each head.

    Returns:
        Level -> float32 (height / stride, width / stride), rounded up, 0 and above; all 0 at a level that the
        score does not depend on.

    Raises:
        ValueError: if the model has no backbone inside, or `score` returns no scalar.
    """
    images = np.asarray(image)[None].astype("float32")
    pyramid = getattr(model, "pyramid", None) or getattr(model, "backbone", None)
    if pyramid is None:
        raise ValueError(
            f"model must be a classifier or a head, with a backbone inside that it calls. Received: {model!r}"
        )
    features = {}

    def remember(layer, args, outputs):
        features.update({level: to_float32(outputs[level]) for level in outputs})
        return outputs

    with watch_calls([pyramid], remember):
        model(images, training=False)

    def shifted_score(shifts):
        # The gradient at no shift is that of the features.
        def shift(layer, args, outputs):
            return {
                level: ops.add(outputs[level], ops.cast(shifts[level], outputs[level].dtype))
                for level in outputs
            }

        with watch_calls([pyramid], shift):
            value = score(model(images, training=False))
        if len(value.shape):
            raise ValueError(f"score must return a scalar. Received: shape {tuple(value.shape)}")
        return ops.cast(value, "float32")

    gradients = differentiate(shifted_score, {level: np.zeros_like(each) for level, each in features.items()})
    return {
        level: np.maximum((features[level][0] * gradients[level][0].mean(axis=(0, 1))).sum(axis=-1), 0.0)
        for level in sorted(features)
    }


def receptive_field(backbone, images, level: str = "P5") -> np.ndarray:
    """Returns how strongly each pixel influences the features in the middle of a level.

    The gradient of the middle position's positive features is averaged over pictures; only its positive part
    counts (Luo et al., arXiv 1701.04128, as measured by Ding et al., arXiv 2203.06717). The paper of VAN
    shows it in figure 8, for pictures of 1120 x 1120.

    Args:
        backbone: a `VANBackbone`, or another functional model with `pyramid_outputs`.
        images: pictures of one size, (n, height, width, 3) or an iterator of (height, width, 3), RGB,
            0 .. 255. They go through the network one by one.
        level: of the pyramid.

    Returns:
        float32 (height, width), the largest is 1.

    Raises:
        ValueError: if the backbone has no such level, there is no picture, or their sizes differ.
    """
    outputs = getattr(backbone, "pyramid_outputs", {})
    if level not in outputs:
        raise ValueError(f"level must be one of {list(outputs)} of the backbone. Received: {level!r}")
    network = keras.Model(backbone.inputs, outputs[level])

    def read_middle(tensors):
        features = network(tensors["images"], training=False)
        row, column = (side // 2 for side in features.shape[1:3])
        return ops.sum(ops.relu(ops.cast(features[:, row, column], "float32")))

    total, count = 0.0, 0
    for image in images:
        image = np.asarray(image, "float32")
        if count and image.shape[:2] != total.shape:
            raise ValueError(
                f"images must all have the same size, {total.shape}. Received: one of {image.shape[:2]}"
            )
        gradient = differentiate(read_middle, {"images": image[None]})["images"]
        total, count = total + np.maximum(gradient[0], 0.0).sum(axis=-1), count + 1
    if not count:
        raise ValueError("images must hold at least one picture. Received: none")
    return total / max(total.max(), 1e-30)


def measure_reach(field, share: float = 0.95) -> int:
    """Returns the side in pixels of the smallest square around the middle with a share of a receptive field.

    Args:
        field: what `receptive_field` returned.
        share: of the sum over all pixels, above 0 and at most 1.

    Raises:
        ValueError: at another share.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1. Received: {share!r}")
    height, width = field.shape
    rows, columns = np.abs(np.arange(height) - height // 2), np.abs(np.arange(width) - width // 2)
    distances = np.maximum(rows[:, None], columns[None])  # the square that a pixel lies on
    sums = np.cumsum(np.bincount(distances.ravel(), weights=field.ravel().astype("float64")))
    return 2 * int(np.searchsorted(sums, share * sums[-1] * (1 - 1e-12))) + 1
