"""What the backbone sees, as pages: a row for each level, a column for each way to look at it."""

from typing import NamedTuple

import numpy as np

from van_backbones.feature_maps.cells import (
    BAR_HEIGHT,
    MARGIN,
    caption,
    choose_cell_size,
    draw_bar,
    mark_point,
    overlay,
    resize,
    tile,
    tint,
    write,
)
from van_backbones.feature_maps.relevance import measure_reach
from van_backbones.feature_maps.views import (
    attention_maps,
    compare_features,
    has_random_weights,
    project_to_rgb,
    project_together,
    similarity_to_point,
    strongest_channels,
    to_float32,
)

RANDOM_WEIGHTS = "RANDOM WEIGHTS: the maps show how the network is built, nothing that it learnt"
EXPLANATIONS = {
    "colours": "colours: first three principal components over positions, as red, green, blue",
    "channel": "channel: those that vary most over the picture, in deviations from their mean",
    "attention": "attention: how strong it is in the stage's last block, in units of its mean; near the "
    "borders it changes because its kernels reach over them",
    "class": "for ...: where the level speaks for that answer (Grad-CAM), in shares of its largest value",
    "point": "similar: to the features at the cross, as a cosine",
}


class Column(NamedTuple):
    """Maps with one scale: a column of a page, or several.

    Attributes:
        titles: level -> the caption.
        maps: level -> (height, width) or, of colours, uint8 (height, width, 3); None where there is none.
        colours: the name of a colour map of Matplotlib.
        limits: the values at its ends.
        ends: what is written at the ends of the colour bar; "" for no bar.
        is_overlay: whether the maps lie on the picture.
    """

    titles: dict
    maps: dict
    colours: str = "viridis"
    limits: tuple = (0.0, 1.0)
    ends: tuple = ("", "")
    is_overlay: bool = False


def draw_feature_maps(
    backbone, image, num_channels: int = 3, class_maps=None, point=None, shown=None
) -> np.ndarray:
    """Draws the pyramid of one image: a row for each level, a column for each way to look at it.

    The columns are `project_to_rgb`, `strongest_channels`, `attention_maps`, and, where they are asked for,
    `grad_cam` and `similarity_to_point`. All maps of a column have one scale, whose colours stand below. Each
    map is enlarged to the size of the image; its cells stay visible. The picture says so if a backbone was
    neither trained nor loaded.

    Args:
        backbone: a `VANBackbone`, or what `deploy` made of one; for a classifier or a head, pass
            `model.backbone`.
        image: (height, width, 3), RGB, uint8 or float 0 .. 255, any size; or, with `shown`, as the backbone
            takes it.
        num_channels: how many of the strongest channels to draw.
        class_maps: name of a class -> what `grad_cam` returned for it.
        point: (x, y) in pixels of the image, to which all positions are compared.
        shown: (height, width, 3), RGB, 0 .. 255: what is drawn of an image of other channels.

    Returns:
        One picture, uint8 (height, width, 3).

    Raises:
        ValueError: if `backbone` is not a backbone, `image` is not (height, width, 3) or not finite, `shown`
            not of its size, `num_channels` is more than a level has, `point` is outside, or the features are
            not finite.
    """
    image, shown = _check_image(image, shown)
    if point is not None and not (0 <= point[0] < image.shape[1] and 0 <= point[1] < image.shape[0]):
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise ValueError(f"point must be (x, y) within the image of {size} pixels. Received: {tuple(point)}")
    attention = attention_maps(backbone, image[None])
    features = _read_features(backbone, image)
    columns = [
        _make_colours(features),
        *_make_channels(features, num_channels),
        _make_attention(attention),
        *(_make_class_column(name, maps, features) for name, maps in (class_maps or {}).items()),
    ]
    if point is not None:
        columns.append(_make_similarity(features, point))
    notes = [EXPLANATIONS[key] for key in ("colours", "channel", "attention")]
    notes += [EXPLANATIONS["class"]] if class_maps else []
    notes += [EXPLANATIONS["point"]] if point is not None else []
    warning = RANDOM_WEIGHTS if has_random_weights(backbone) else None
    return _draw_page(shown, columns, sorted(features), notes, warning, point)


def draw_feature_comparison(backbones: dict, image, shown=None) -> np.ndarray:
    """Draws the features of one image in two backbones side by side, such as before and after fine-tuning.

    The principal components are computed from both together (`project_together`), so that equal colours mean
    equal features. The last column is `compare_features`.

    Args:
        backbones: two names -> their `VANBackbone`, or another functional model that returns a pyramid.
        image: see `draw_feature_maps`.
        shown: see `draw_feature_maps`.

    Returns:
        One picture, uint8 (height, width, 3).

    Raises:
        ValueError: unless there are two, with the same levels and channels.
    """
    image, shown = _check_image(image, shown)
    if len(backbones) != 2:
        raise ValueError(f"backbones must be two. Received: {list(backbones)}")
    pyramids = {name: _read_features(backbone, image) for name, backbone in backbones.items()}
    shapes = [{level: each.shape for level, each in pyramid.items()} for pyramid in pyramids.values()]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"both backbones must have the same levels and channels. Received: {shapes[0]} and {shapes[1]}"
        )
    levels = sorted(shapes[0])
    projected = {level: project_together([each[level] for each in pyramids.values()]) for level in levels}
    columns = [
        Column(
            {level: f"{level}, {name}" for level in levels},
            {level: projected[level][index] for level in levels},
        )
        for index, name in enumerate(pyramids)
    ]
    changes = {level: compare_features(*(each[level] for each in pyramids.values())) for level in levels}
    titles = {level: f"change, mean {changes[level].mean():.2f}" for level in levels}
    columns.append(Column(titles, changes, "inferno", (0.0, 1.0), ("0: the same", "1 or more"), True))
    notes = (
        "colours: first three principal components of both together: equal colours are equal features",
        "change: 1 - the cosine between the features of the two",
    )
    random = [name for name, backbone in backbones.items() if has_random_weights(backbone)]
    warning = f"RANDOM WEIGHTS: {', '.join(random)}" if random else None
    return _draw_page(shown, columns, levels, notes, warning)


def draw_receptive_fields(fields: dict, num_pictures: int, backbone=None) -> np.ndarray:
    """Draws effective receptive fields side by side, on a logarithmic scale.

    Args:
        fields: level -> what `receptive_field` returned.
        num_pictures: how many pictures they are averaged over, for the caption.
        backbone: the backbone; the picture says so if it was neither trained nor loaded.

    Returns:
        One picture, uint8 (height, width, 3).

    Raises:
        ValueError: if there is none.
    """
    if not fields:
        raise ValueError("fields must hold at least one level. Received: none")
    pictures = []
    for level, field in fields.items():
        reach = ", ".join(f"{share:.0%} within {measure_reach(field, share)}" for share in (0.5, 0.95))
        decades = np.log10(np.maximum(field, 1e-3))
        size = choose_cell_size(field.shape)
        pictures.append(caption(resize(tint(decades, "viridis", (-3.0, 0.0)), size), f"{level}: {reach} px"))
    bar = draw_bar("viridis", pictures[0].shape[1], ("1/1000", "the largest"))
    width = sum(picture.shape[1] + MARGIN for picture in pictures) - MARGIN
    height, side = next(iter(fields.values())).shape
    size = f"{side} x {height}"
    text = (
        f"effective receptive fields of the middle position, mean of {num_pictures} pictures of {size}",
        "how strongly a pixel raises its features; the sides of the squares that hold half and 95 % of it",
    )
    warning = RANDOM_WEIGHTS if backbone is not None and has_random_weights(backbone) else None
    return tile([[write(text, width, warning)], pictures, [bar]])


def _check_image(image, shown=None):
    """Returns the image, and what is drawn of it, as float32."""
    image = np.asarray(image)
    if image.ndim != 3 or not image.size or (shown is None and image.shape[2] != 3):
        raise ValueError(
            f"image must be (height, width, 3), RGB, or else `shown` be given. Received shape: {image.shape}"
        )
    shown = image if shown is None else np.asarray(shown)
    if shown.shape != (*image.shape[:2], 3):
        raise ValueError(
            "shown must be (height, width, 3), RGB, of the image's size. "
            f"Received shapes: {shown.shape}, of an image {image.shape}"
        )
    image = image.astype("float32")
    if not np.isfinite(image).all():
        raise ValueError("image must be finite. Received: an image with NaN or infinite values")
    return image, shown.astype("float32")


def _read_features(backbone, image):
    """Returns level -> float32 (height, width, channels)."""
    pyramid = backbone(image[None], training=False)
    if not isinstance(pyramid, dict):
        raise ValueError(f"backbone must give a dict of levels. Received: {backbone!r}")
    features = {level: to_float32(each)[0] for level, each in pyramid.items()}
    for level, each in features.items():
        if not np.isfinite(each).all():
            raise ValueError(
                f"backbone must give finite features. Received: NaN or infinite ones at {level} of "
                f"{backbone.name}, whose weights may be NaN: load an earlier state"
            )
    return features


def _make_colours(features):
    titles = {
        level: f"{level}: {each.shape[0]} x {each.shape[1]}, colours" for level, each in features.items()
    }
    return Column(titles, {level: project_to_rgb(each) for level, each in features.items()})


def _make_channels(features, num_channels):
    chosen = {level: strongest_channels(each, num_channels) for level, each in features.items()}
    columns = []
    for place in range(num_channels):
        titles = {level: f"channel {indices[place]}" for level, (indices, _) in chosen.items()}
        maps = {
            level: (maps[place] - maps[place].mean()) / max(maps[place].std(), 1e-12)
            for level, (_, maps) in chosen.items()
        }
        columns.append(Column(titles, maps, "RdBu_r", (-3.0, 3.0), ("-3 deviations", "+3")))
    return columns


def _make_attention(attention):
    maps = {level: each[0] / max(each[0].mean(), 1e-12) for level, each in attention.items()}
    top = max(1.0, np.percentile(np.concatenate([each.ravel() for each in maps.values()]), 98))
    titles = dict.fromkeys(maps, "attention")
    return Column(titles, maps, "inferno", (0.0, top), ("0", f"{top:.1f} times the mean"), True)


def _make_class_column(name, maps, features):
    shares = {
        level: maps[level] / max(maps[level].max(), 1e-30) if level in maps else None for level in features
    }
    titles = {level: f"for {name}" if level in maps else "not read by the head" for level in features}
    return Column(titles, shares, "inferno", (0.0, 1.0), ("0", "its largest"), True)


def _make_similarity(features, point):
    maps = {}
    for level, each in features.items():
        stride = 2 ** int(level[1:])
        maps[level] = similarity_to_point(each, (int(point[1]) // stride, int(point[0]) // stride))
    titles = dict.fromkeys(maps, "similar to the cross")
    return Column(titles, maps, "RdBu_r", (-1.0, 1.0), ("-1", "1: the same"), True)


def _draw_page(image, columns, levels, notes, warning=None, point=None):
    """Lays out a page: the picture and explanations, a row for each level, and the colour bars."""
    size = choose_cell_size(image.shape[:2])
    pixels = np.clip(np.rint(image), 0, 255).astype("uint8")
    backdrop = resize(pixels, size)

    def draw_cell(column, level):
        cells = column.maps[level]
        if cells is None:
            return np.full((*size, 3), 235, np.uint8)
        if cells.ndim == 2:
            cells = tint(cells, column.colours, column.limits)
        picture = resize(cells, size)
        picture = overlay(backdrop, picture) if column.is_overlay else picture
        return mark_point(picture, point, image.shape[:2])

    rows = [
        [caption(draw_cell(column, level), column.titles[level]) for column in columns] for level in levels
    ]
    bars = [
        draw_bar(column.colours, size[1], column.ends, column.is_overlay)
        if column.ends[0]
        else np.full((BAR_HEIGHT, size[1], 3), 255, np.uint8)
        for column in columns
    ]
    head = caption(mark_point(backdrop, point, image.shape[:2]), "image")
    width = max(len(columns) - 1, 1) * (size[1] + MARGIN) - MARGIN
    text = write(notes, width, warning)
    return tile([[head, text], *rows, bars])
