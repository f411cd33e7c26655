"""What the backbone sees, as numbers: principal components, channels, attention, similarity."""

import re

import keras
import numpy as np

from van_backbones.layers import VANBlock


def project_to_rgb(features) -> np.ndarray:
    """Returns the first three principal components of the positions' features as a colour picture.

    Each component is stretched so that its 2nd and 98th percentiles become 0 and 255. Its sign is chosen so
    that the channel with the largest weight has a positive one. A component without variance becomes 128.

    Args:
        features: (height, width, channels).

    Returns:
        uint8 (height, width, 3).
    """
    return project_together([features])[0]


def project_together(maps) -> list[np.ndarray]:
    """Returns several feature maps in the colours of one projection: equal features have equal colours.

    Args:
        maps: feature maps (height, width, channels) with equal channels, such as those of a model before and
            after its fine-tuning. The components are computed from all their positions together.

    Returns:
        A uint8 picture (height, width, 3) for each, as of `project_to_rgb`.

    Raises:
        ValueError: if there is none, or they differ in channels.
    """
    maps = [_check_features(features) for features in maps]
    widths = [features.shape[-1] for features in maps]
    if len(set(widths)) != 1:
        raise ValueError(f"maps must be feature maps with equal channels. Received: channels {widths}")
    (channels,) = set(widths)
    positions = np.concatenate([features.reshape(-1, channels) for features in maps]).astype("float64")
    scale = np.abs(positions).max(initial=1e-30)
    positions = positions - positions.mean(axis=0)
    values, vectors = np.linalg.eigh(positions.T @ positions / len(positions))  # ascending
    colours = np.full((len(positions), 3), 128, np.uint8)
    for component in range(min(3, channels)):
        value, vector = values[-1 - component], vectors[:, -1 - component]
        if value <= (1e-5 * scale) ** 2:  # rounding noise of float32 inputs
            break
        projected = positions @ (vector * np.sign(vector[np.argmax(np.abs(vector))]))
        colours[:, component] = np.rint(255 * _stretch(projected))
    ends = np.cumsum([features[..., 0].size for features in maps])[:-1]
    parts = zip(np.split(colours, ends), maps, strict=True)
    return [part.reshape(*features.shape[:2], 3) for part, features in parts]


def strongest_channels(features, num_channels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Returns the channels that vary most over the positions, the strongest first.

    Args:
        features: (height, width, channels).
        num_channels: how many channels.

    Returns:
        The channels' indices, int (num_channels,), and their maps, float32 (num_channels, height, width).

    Raises:
        ValueError: If there are fewer channels.
    """
    features = _check_features(features)
    if not 1 <= num_channels <= features.shape[-1]:
        raise ValueError(f"num_channels must be in 1 .. {features.shape[-1]}. Received: {num_channels!r}")
    variances = features.astype("float64").var(axis=(0, 1))
    indices = np.argsort(-variances, kind="stable")[:num_channels]
    return indices, np.moveaxis(features[:, :, indices], -1, 0)


def attention_maps(backbone, images) -> dict[str, np.ndarray]:
    """Returns how strongly the large-kernel attention of each stage's last block weighs each position.

    The attention multiplies the block's features channel by channel (arXiv 2202.09741, equation 2). Its sign
    differs between channels and cancels in a plain mean, so its absolute value is averaged.

    Near the borders of the picture it says little about the content: the kernels reach 11 positions far, over
    the border into zeros, and the fewer of their positions lie in the picture, the smaller (or larger, where
    values cancel inside) their sum becomes. A constant picture shows this effect alone.

    Args:
        backbone: A `VANBackbone`, or what `deploy` made of one.
        images: (batch, height, width, 3), as the backbone takes them.

    Returns:
        A dict "P2" .. "P5" -> float32 (batch, height / stride, width / stride), rounded up.

    Raises:
        ValueError: if the model has no VAN blocks itself: for a classifier or a head, pass the backbone.
    """
    last_blocks = {}
    for layer in getattr(backbone, "layers", ()):
        stage_and_block = re.fullmatch(r"stage(\d+)_block(\d+)", layer.name)
        if stage_and_block and hasattr(layer, "attention_map"):
            last_blocks[f"P{int(stage_and_block[1]) + 1}"] = layer  # layers come in the order of the graph
    if not last_blocks or not hasattr(backbone, "operations"):
        raise ValueError(
            "backbone must be a VANBackbone, or what `deploy` made of one, with layers stage1_block0, ...; "
            "for a classifier or a head, pass `model.backbone`; for another model, the backbone in it, "
            f"`model.get_layer(name)`. Received: {backbone!r}"
        )
    block_inputs = keras.Model(backbone.inputs, {level: block.input for level, block in last_blocks.items()})
    features = block_inputs(keras.ops.convert_to_tensor(images), training=False)
    return {
        level: np.abs(to_float32(block.attention_map(features[level]))).mean(axis=-1)
        for level, block in last_blocks.items()
    }


def similarity_to_point(features, position) -> np.ndarray:
    """Returns how similar each position is to a given one: the cosine between their features.

    The mean over the positions, which all features have in common, is subtracted first.

    Args:
        features: (height, width, channels).
        position: (row, column) of the given position.

    Returns:
        float32 (height, width), -1 .. 1; 1 at the position itself.

    Raises:
        ValueError: if the position is outside.
    """
    features = _check_features(features)
    row, column = position
    height, width, _ = features.shape
    if not (0 <= row < height and 0 <= column < width):
        raise ValueError(
            f"position must be (row, column) within {height} x {width}. Received: {tuple(position)}"
        )
    centred = features - features.mean(axis=(0, 1))
    directions = centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-12)
    return np.clip(directions @ directions[row, column], -1.0, 1.0)


def compare_features(features, others) -> np.ndarray:
    """Returns how much the features of two models differ at each position: 1 - the cosine between them.

    Args:
        features: (height, width, channels).
        others: the same shape.

    Returns:
        float32 (height, width): 0 where they point in one direction, 1 where they have nothing in common, at
        most 2.

    Raises:
        ValueError: if the shapes differ.
    """
    features, others = _check_features(features), _check_features(others)
    if features.shape != others.shape:
        raise ValueError(
            f"both must be feature maps of one shape. Received: {features.shape} and {others.shape}"
        )
    sizes = np.linalg.norm(features, axis=-1) * np.linalg.norm(others, axis=-1)
    return 1.0 - np.clip((features * others).sum(axis=-1) / np.maximum(sizes, 1e-12), -1.0, 1.0)


def has_random_weights(backbone) -> bool:
    """Returns whether a backbone is as it was built: neither trained nor loaded.

    Judges by the statistics of the batch norms and the layer scales, which training and loading change. For a
    backbone from `deploy` this is unknown, and the result False.
    """
    parts = list(backbone._flatten_layers())
    norms = [part for part in parts if isinstance(part, keras.layers.BatchNormalization)]
    blocks = [part for part in parts if isinstance(part, VANBlock)]
    expected = [(norm.moving_mean, 0.0) for norm in norms] + [(norm.moving_variance, 1.0) for norm in norms]
    expected += [(block.layer_scale_1, block.layer_scale) for block in blocks]
    return bool(expected) and all(
        np.allclose(to_float32(variable), value, rtol=1e-2, atol=0.0) for variable, value in expected
    )


def _check_features(features):
    features = to_float32(features)
    if features.ndim != 3 or not features.size:
        raise ValueError(f"features must be (height, width, channels). Received shape: {features.shape}")
    if not np.isfinite(features).all():
        number = np.count_nonzero(~np.isfinite(features))
        raise ValueError(f"features must be finite. Received: {number} of {features.size} NaN or infinite")
    return features


def to_float32(tensor):
    """Returns a NumPy array of a tensor of any backend and precision (NumPy itself knows no bfloat16)."""
    return np.array(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")))


def _stretch(values):
    """Returns `values` as 0 .. 1 between their 2nd and 98th percentile, clipped; a constant gives 0.5."""
    low, high = np.percentile(values, (2, 98))
    if high <= low:  # nearly constant, with a few outliers at most
        low, high = values.min(), values.max()
    if high <= low:
        return np.full(values.shape, 0.5)
    return np.clip((values - low) / (high - low), 0, 1)
