"""What the backbone sees, as pictures: arrays in, arrays out; nothing is shown or saved."""

import re

import keras
import numpy as np
from PIL import Image, ImageDraw, ImageFont

MARGIN = 6
TEXT_SIZE = 13
# Images with a longer side below this are drawn larger, by a whole factor.
COMFORTABLE_SIDE = 192
EXPLANATIONS = (
    "mean: the size (absolute value) of the features, averaged over all channels",
    "colours: first three principal components over positions, as red, green, blue",
    "channel: those that vary most over the image; red above, blue below their mean",
    "attention: the size of the large-kernel attention in the stage's last block",
)


def draw_feature_maps(backbone, image, num_channels: int = 3) -> np.ndarray:
    """Draws the pyramid of one image: a row for each level, a column for each way to look at it.

    The columns are `mean_activation`, `project_to_rgb`, `strongest_channels` and `attention_maps`. Every map
    is enlarged to the size of the image; its cells stay visible.

    Args:
        backbone: A `VANBackbone`, or what `deploy` made of one.
        image: (height, width, 3), RGB, uint8 or float 0 .. 255, any size.
        num_channels: How many of the strongest channels to draw.

    Returns:
        One picture, uint8 (height, width, 3).

    Raises:
        ValueError: If `backbone` is none, `image` is not (height, width, 3) or not finite, `num_channels` is
            more than a level has, or the features are not finite.
    """
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"image must be (height, width, 3), RGB. Received shape: {image.shape}")
    images = image[None].astype("float32")
    if not np.isfinite(images).all():
        raise ValueError("image must be finite. Received: an image with NaN or infinite values")
    attention = attention_maps(backbone, images)
    pyramid = backbone(images, training=False)
    if not isinstance(pyramid, dict):
        raise ValueError(f"backbone must give a dict of levels. Received: {backbone!r}")
    for level, features in pyramid.items():
        if not np.isfinite(_to_float32(features)).all():
            raise ValueError(
                f"backbone must give finite features. Received: NaN or infinite ones at {level} of "
                f"{backbone.name}, whose weights may be NaN: load an earlier state"
            )
    factor = max(1, -(-COMFORTABLE_SIDE // max(image.shape[:2])))
    size = (image.shape[0] * factor, image.shape[1] * factor)

    rows = []
    for level in sorted(pyramid):
        features = _to_float32(pyramid[level])[0]
        indices, maps = strongest_channels(features, num_channels)
        cells = [
            (f"{level}: {features.shape[0]} x {features.shape[1]}, mean", _tint(mean_activation(features))),
            ("colours", project_to_rgb(features)),
            *((f"channel {i}", _tint_signed(m)) for i, m in zip(indices, maps, strict=True)),
            ("attention", _tint(attention[level][0], "inferno")),
        ]
        rows.append([_caption(_enlarge(picture, size), text) for text, picture in cells])
    head = _caption(_enlarge(np.clip(np.rint(images[0]), 0, 255).astype("uint8"), size), "image")
    width = sum(picture.shape[1] + MARGIN for picture in rows[0][1:]) - MARGIN
    return _tile([[head, _write(EXPLANATIONS, head.shape[0], width)], *rows])


def mean_activation(features) -> np.ndarray:
    """Returns the mean over the channels of the features' absolute value.

    Each stage ends in a layer norm over the channels, so the plain mean is nearly the same at all positions.

    Args:
        features: (height, width, channels).

    Returns:
        float32 (height, width).
    """
    return np.abs(_checked_features(features)).mean(axis=-1)


def project_to_rgb(features) -> np.ndarray:
    """Returns the first three principal components of the positions' features as a colour picture.

    Each component is stretched so that its 2nd and 98th percentiles become 0 and 255. Its sign is such that
    the channel with the largest weight has a positive one. A component without variance is 128.

    Args:
        features: (height, width, channels).

    Returns:
        uint8 (height, width, 3).
    """
    features = _checked_features(features)
    height, width, channels = features.shape
    positions = features.reshape(-1, channels).astype("float64")
    scale = np.abs(positions).max(initial=1e-30)
    positions = positions - positions.mean(axis=0)
    values, vectors = np.linalg.eigh(positions.T @ positions / len(positions))  # ascending
    picture = np.full((height * width, 3), 128, np.uint8)
    for component in range(min(3, channels)):
        value, vector = values[-1 - component], vectors[:, -1 - component]
        if value <= (1e-5 * scale) ** 2:  # rounding noise of float32 inputs
            break
        projected = positions @ (vector * np.sign(vector[np.argmax(np.abs(vector))]))
        picture[:, component] = np.rint(255 * _stretch(projected))
    return picture.reshape(height, width, 3)


def strongest_channels(features, num_channels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Returns the channels that vary most over the positions, the strongest first.

    Args:
        features: (height, width, channels).
        num_channels: How many.

    Returns:
        The channels' indices, int (num_channels,), and their maps, float32 (num_channels, height, width).

    Raises:
        ValueError: If there are fewer channels.
    """
    features = _checked_features(features)
    if not 1 <= num_channels <= features.shape[-1]:
        raise ValueError(f"num_channels must be in 1 .. {features.shape[-1]}. Received: {num_channels!r}")
    variances = features.astype("float64").var(axis=(0, 1))
    indices = np.argsort(-variances, kind="stable")[:num_channels]
    return indices, np.moveaxis(features[:, :, indices], -1, 0)


def attention_maps(backbone, images) -> dict[str, np.ndarray]:
    """Returns how strongly the large-kernel attention of each stage's last block weighs each position.

    The attention multiplies the block's features channel by channel (arXiv 2202.09741, equation 2). Its sign
    differs between channels and cancels in a plain mean, so its absolute value is averaged.

    Args:
        backbone: A `VANBackbone`, or what `deploy` made of one.
        images: (batch, height, width, 3), as the backbone takes them.

    Returns:
        A dict "P2" .. "P5" -> float32 (batch, height / stride, width / stride), rounded up.

    Raises:
        ValueError: If the model has no VAN blocks itself: of a classifier or a head, give the backbone.
    """
    last_blocks = {}
    for layer in getattr(backbone, "layers", ()):
        stage_and_block = re.fullmatch(r"stage(\d+)_block(\d+)", layer.name)
        if stage_and_block and hasattr(layer, "attention_map"):
            last_blocks[f"P{int(stage_and_block[1]) + 1}"] = layer  # layers come in the order of the graph
    if not last_blocks or not hasattr(backbone, "operations"):
        raise ValueError(
            "backbone must be a VANBackbone, or what `deploy` made of one, with layers stage1_block0, ...; "
            "of a classifier or a head give `model.backbone`, of another model the backbone in it, "
            f"`model.get_layer(name)`. Received: {backbone!r}"
        )
    block_inputs = keras.Model(backbone.inputs, {level: block.input for level, block in last_blocks.items()})
    features = block_inputs(keras.ops.convert_to_tensor(images), training=False)
    return {
        level: np.abs(_to_float32(block.attention_map(features[level]))).mean(axis=-1)
        for level, block in last_blocks.items()
    }


def _checked_features(features):
    features = _to_float32(features)
    if features.ndim != 3 or not features.size:
        raise ValueError(f"features must be (height, width, channels). Received shape: {features.shape}")
    if not np.isfinite(features).all():
        number = np.count_nonzero(~np.isfinite(features))
        raise ValueError(f"features must be finite. Received: {number} of {features.size} NaN or infinite")
    return features


def _to_float32(tensor):
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


def _tint(values, colours="viridis"):
    """Returns a map (h, w) in false colours, uint8 (h, w, 3)."""
    from matplotlib import colormaps  # costs a second; only pictures need it

    return colormaps[colours](_stretch(values), bytes=True)[:, :, :3]


def _tint_signed(values):
    """Returns a map (h, w) in red above and blue below its mean."""
    from matplotlib import colormaps

    values = values - values.mean()
    reach = max(np.percentile(np.abs(values), 98), 1e-12)
    return colormaps["RdBu_r"](np.clip(0.5 + 0.5 * values / reach, 0, 1), bytes=True)[:, :, :3]


def _enlarge(picture, size):
    return np.asarray(Image.fromarray(picture).resize(size[::-1], Image.Resampling.NEAREST))


def _caption(picture, text):
    """Puts a caption above a picture; what is too long is cut at the right."""
    return np.concatenate([_write([text], TEXT_SIZE + 8, picture.shape[1]), picture])


def _write(lines, height, width):
    """Returns a white picture with lines of text."""
    page = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(TEXT_SIZE)
    for index, line in enumerate(lines):
        pen.text((1, 2 + index * (TEXT_SIZE + 8)), line, "black", font)
    return np.asarray(page)


def _tile(rows):
    """Lays rows of pictures out on a white page."""
    heights = [max(picture.shape[0] for picture in row) + MARGIN for row in rows]
    width = max(sum(picture.shape[1] + MARGIN for picture in row) for row in rows) + MARGIN
    page = np.full((sum(heights) + MARGIN, width, 3), 255, np.uint8)
    y = MARGIN
    for row, height in zip(rows, heights, strict=True):
        x = MARGIN
        for picture in row:
            page[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
            x += picture.shape[1] + MARGIN
        y += height
    return page
