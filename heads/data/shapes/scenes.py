"""Draws the embedded data set: synthetic scenes with exact labels, boxes, masks and keypoints.

Nothing here is a photograph and nothing is read from a file: every scene is drawn from its seed. Sky, ground
and water (stuff) are cut by a slanted, wavy horizon; balls, boxes, stars, rings, trees, houses and people
(things) stand on the ground or float, rotated, at sizes that vary at least fourfold, and cover one another. A
class only *prefers* a colour, and many scenes ignore the preference, so shape and context have to be learnt.

Every shape is a mask over pixel centres first and is coloured afterwards: labels are exact by construction.
"""

import numpy as np

from heads.arguments import read_size
from heads.data.shapes.things import KEYPOINT_NAMES, THINGS, pick_colour, vary_colour

STUFF_NAMES = ("sky", "ground", "water")
THING_NAMES = tuple(THINGS)
CLASS_NAMES = THING_NAMES + STUFF_NAMES  # of detection, panoptic and semantic segmentation: one colour each

SMALLEST_SCENE_SIDE = 32
MIN_VISIBLE_PIXELS = 12

# Hue, saturation, value of the families a stuff class picks from. They overlap between classes on purpose.
_SKY_COLOURS = (
    (0.57, 0.45, 0.95),
    (0.07, 0.50, 0.95),
    (0.60, 0.08, 0.80),
    (0.80, 0.35, 0.70),
    (0.65, 0.60, 0.35),
)
_GROUND_COLOURS = (
    (0.28, 0.55, 0.60),
    (0.12, 0.40, 0.85),
    (0.58, 0.05, 0.93),
    (0.08, 0.50, 0.50),
    (0.10, 0.08, 0.55),
)
_WATER_COLOURS = ((0.57, 0.65, 0.75), (0.49, 0.55, 0.65), (0.25, 0.35, 0.45), (0.62, 0.60, 0.50))


def draw_scene(seed, image_size: tuple[int, int] = (256, 256)) -> dict:
    """Draws one scene with everything that is known about it.

    Args:
        seed: A non-negative int or a sequence of them. Equal seeds give equal scenes.
        image_size: (height, width) in pixels, each at least 32.

    Returns:
        A dict of
            "image": uint8 (height, width, 3), RGB.
            "semantic": int32 (height, width), indices into `CLASS_NAMES`. No pixel is ignored.
            "boxes": float32 (things, 4), continuous xyxy pixels, tight around the visible pixels.
            "labels": int32 (things,), indices into `THING_NAMES`.
            "masks": bool (things, height, width), the visible pixels only: masks never overlap.
            "keypoints": float32 (things, 7, 3), x, y and visibility of `KEYPOINT_NAMES`: 2 is visible, 1 is
                covered by something in front, 0 is outside of the image or not a person (x and y are 0 then).
        Things come front to back. Each has at least 12 visible pixels; smaller remainders are not painted.

    Raises:
        ValueError: If a side is too small.
    """
    height, width = read_size("image_size", image_size, SMALLEST_SCENE_SIDE)
    random = np.random.default_rng(seed)
    semantic, horizon = _draw_layout(random, height, width)
    image = _paint_stuff(random, semantic)

    things = []
    free = np.ones((height, width), bool)
    for placed in _place_things(random, semantic, horizon):
        thing = _draw_thing(random, placed, free)
        if thing["mask"].sum() >= MIN_VISIBLE_PIXELS:
            free &= ~thing["mask"]
            things.append(thing)
    _paint_shadows(image, things)
    semantic += len(THING_NAMES)
    for thing in things:
        image[thing["window"]][thing["mask"][thing["window"]]] = thing["colours"]
        semantic[thing["mask"]] = thing["label"]

    masks = np.array([thing["mask"] for thing in things], bool).reshape(-1, height, width)
    keypoints = np.array([thing["keypoints"] for thing in things], np.float32)
    return {
        "image": _develop(random, image),
        "semantic": semantic,
        "boxes": np.array([_tight_box(mask) for mask in masks], np.float32).reshape(-1, 4),
        "labels": np.array([thing["label"] for thing in things], np.int32),
        "masks": masks,
        "keypoints": keypoints.reshape(-1, len(KEYPOINT_NAMES), 3),
    }


def _draw_layout(random, height, width):
    """Returns the stuff label map and the height of the horizon at each column, in pixels."""
    x = np.linspace(-1, 1, width)
    y = (np.arange(height)[:, None] + 0.5) / height

    def wave(size):
        frequencies, phases = random.uniform(1, 7, 3), random.uniform(0, 6.28, 3)
        return size * np.mean([np.sin(f * x + p) for f, p in zip(frequencies, phases, strict=True)], axis=0)

    slant = random.normal(0, 0.06) * x
    horizon = random.uniform(0.28, 0.55) + slant + wave(random.choice([0.02, 0.12]))
    below = y > horizon
    kind = random.choice(["lake", "sea", "dry"], p=[0.4, 0.45, 0.15])
    water = np.zeros((height, width), bool)
    if kind == "sea":
        water = below & (y < horizon + random.uniform(0.12, 0.4) + slant + wave(0.15))
    elif kind == "lake":
        reach_x = (x - random.uniform(-0.7, 0.7)) / random.uniform(0.5, 1.1)
        reach_y = (y - random.uniform(0.65, 0.95)) / random.uniform(0.12, 0.28)
        water = below & (reach_x**2 + reach_y**2 + wave(0.5) < 1)
    semantic = np.where(water, 2, np.where(below, 1, 0)).astype(np.int32)
    return semantic, horizon * height


def _paint_stuff(random, semantic):
    """Returns the float32 picture of sky, ground and water: clouds, speckles and ripples tell them apart."""
    height = semantic.shape[0]
    families = [_SKY_COLOURS, _GROUND_COLOURS, _WATER_COLOURS]
    colours = [vary_colour(random, family[random.integers(len(family))]) for family in families]
    if random.random() < 0.35:  # still water mirrors the sky
        colours[2] = colours[0] * random.uniform(0.75, 0.95)
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    clouds = _noise(random, semantic.shape, 4, 3) + _noise(random, semantic.shape, 10, 6)
    sky = 1 + random.uniform(0.05, 0.3) * down + random.uniform(0, 0.35) * np.clip(clouds - 0.3, 0, None)
    speckles = random.standard_normal(semantic.shape, dtype=np.float32)
    patches = _noise(random, semantic.shape, 6, 6)
    ground = 1 + 0.1 * patches + random.uniform(0.02, 0.09) * speckles - 0.12 * down
    ripples = _noise(random, semantic.shape, height // 4, 5) + _noise(random, semantic.shape, height // 7, 3)
    water = 1 + random.uniform(0.07, 0.16) * ripples + 0.1 * down
    brightness = np.where(semantic == 0, sky, np.where(semantic == 1, ground, water))
    return (np.array(colours, np.float32)[semantic] * brightness[:, :, None]).astype(np.float32)


def _place_things(random, semantic, horizon):
    """Returns (label, x, y of the centre, half height in pixels, angle) of each thing, front to back."""
    height, width = semantic.shape
    side = min(height, width)
    count = min(round(random.integers(6, 12) * (max(height, width) / side)), 60)
    placed = []
    for label in random.choice(len(THINGS), count, p=[thing.share for thing in THINGS.values()]):
        name = THING_NAMES[label]
        standing = THINGS[name].stands or random.random() < 0.35
        half = side * 0.075 * 4.0 ** random.random()
        angle = random.uniform(-0.15, 0.15) if standing else random.uniform(-3.1, 3.1)
        if name == "box":
            angle = np.clip(angle, -0.6, 0.6)
        if not standing:
            x, y = random.uniform(0, width), random.uniform(0, height)
            placed.append((random.uniform(0.3, 1.2), label, x, y, max(half, 7.0), angle))
            continue
        for _ in range(4):  # feet stay dry where there is ground
            x, nearness = random.uniform(0.02, 0.98) * width, random.uniform(0.03, 1.1)
            foot = horizon[int(x)] + nearness * (height - horizon[int(x)])
            if semantic[int(np.clip(foot, 0, height - 1)), int(x)] == 1:
                break
        half = max(half * (0.75 + 0.55 * nearness), 7.0)  # near things are large
        placed.append((foot / height, label, x, foot - half, half, angle))
    placed.sort(key=lambda row: -row[0])
    return [row[1:] for row in placed]


def _draw_thing(random, placed, free):
    """Returns the visible mask of one thing, its colours (one row per visible pixel) and its keypoints."""
    label, centre_x, centre_y, half, angle = placed
    height, width = free.shape
    reach = 1.45 * half  # a rotated unit square stays inside
    rows = slice(int(np.clip(centre_y - reach, 0, height)), int(np.clip(centre_y + reach + 1, 0, height)))
    columns = slice(int(np.clip(centre_x - reach, 0, width)), int(np.clip(centre_x + reach + 1, 0, width)))
    y = ((np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5 - centre_y) / half)[:, None]
    x = ((np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5 - centre_x) / half)[None, :]
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
    local_x, local_y = turn[0, 0] * x + turn[0, 1] * y, turn[1, 0] * x + turn[1, 1] * y
    kind = THINGS[THING_NAMES[label]]
    first, second = pick_colour(random, kind.hue), pick_colour(random, kind.hue)
    inside, colours, points = kind.draw(random, local_x, local_y, first, second)
    visible = inside & free[rows, columns]
    light = (1 - random.uniform(0.1, 0.3) * (0.6 * x + 0.8 * y))[:, :, None]
    grain = 1 + random.uniform(0, 0.06) * random.standard_normal(inside.shape, dtype=np.float32)[:, :, None]
    mask = np.zeros_like(free)
    mask[rows, columns] = visible

    keypoints = np.zeros((len(KEYPOINT_NAMES), 3), np.float32)
    for keypoint, point in zip(keypoints, points, strict=False):
        point_x, point_y = np.float32(half * (point @ turn) + (centre_x, centre_y))
        if 0 <= point_x < width and 0 <= point_y < height:
            keypoint[:] = point_x, point_y, 1 + mask[int(point_y), int(point_x)]
    return {
        "label": int(label),
        "mask": mask,
        "window": (rows, columns),
        "colours": (colours * light * grain)[visible],
        "keypoints": keypoints,
        "foot": (centre_x, centre_y + half, half),
    }


def _paint_shadows(image, things):
    """Darkens the stuff under standing things, in place; things are painted later, over it."""
    height, width = image.shape[:2]
    for label, (x, y, half) in ((thing["label"], thing["foot"]) for thing in things):
        if THINGS[THING_NAMES[label]].stands:
            rows = slice(*np.clip([int(y - half * 0.2), int(y + half * 0.2) + 1], 0, height))
            reach_y = (np.arange(rows.start, rows.stop)[:, None] + 0.5 - y) / (half * 0.18)
            reach_x = (np.arange(width) + 0.5 - x - half * 0.15) / (half * 0.9)
            image[rows] *= np.where(reach_x**2 + reach_y**2 < 1, 0.65, 1.0)[:, :, None].astype(np.float32)


def _develop(random, image):
    """Returns the uint8 photograph: exposure, tint, a little blur and noise."""
    image = image * (random.uniform(0.8, 1.15) * random.uniform(0.93, 1.07, 3).astype(np.float32))
    blur = random.uniform(0.1, 0.3)
    for axis in (0, 1):
        low, high = np.take(image, [0], axis), np.take(image, [-1], axis)
        padded = np.concatenate([low, image, high], axis)
        count = image.shape[axis]
        neighbours = np.take(padded, range(count), axis) + np.take(padded, range(2, count + 2), axis)
        image = (1 - 2 * blur) * image + blur * neighbours
    image += random.uniform(1, 7) * random.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _noise(random, size, rows, columns):
    """Returns smooth noise: a coarse grid of normal numbers, stretched bilinearly to `size`."""
    grid = random.standard_normal((rows + 1, columns + 1), dtype=np.float32)
    for axis, length in enumerate(size):
        position = np.linspace(0, grid.shape[axis] - 1.001, length, dtype=np.float32)
        floor = position.astype(int)
        share = (position - floor).reshape((-1, 1) if axis == 0 else (1, -1))
        share = share * share * (3 - 2 * share)
        grid = np.take(grid, floor, axis) * (1 - share) + np.take(grid, floor + 1, axis) * share
    return grid


def _tight_box(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
