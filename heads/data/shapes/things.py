"""How the things of the embedded data set look; `scenes.py` places them.

A drawing function gets `(random, x, y, first, second)`: a NumPy generator, the local coordinates of each
pixel centre, float32 (h, w), with the thing within -1 .. 1, x to the right and y down, and two colours. It
returns the mask, bool (h, w), the colours, float32 (h, w, 3), and the local keypoints, a tuple of (x, y) that
is empty for all things but people.
"""

import colorsys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Left and right are the person's own: everybody faces the viewer.
KEYPOINT_NAMES = ("head", "neck", "left_hand", "right_hand", "hips", "left_foot", "right_foot")


class Thing(NamedTuple):
    """One kind of thing."""

    draw: Callable
    hue: float  # the favourite, 0 .. 1
    share: float  # of all things that are placed; thin shapes come more often
    stands: bool  # on the ground, upright


def pick_colour(random, hue):
    """Returns an RGB colour, 0 .. 255: near the favourite hue seven times out of ten, else of any hue."""
    hue = random.normal(hue, 0.05) if random.random() < 0.7 else random.random()
    return _rgb(hue, random.uniform(0.35, 0.9), random.uniform(0.5, 0.98))


def vary_colour(random, colour):
    """Returns an RGB colour, 0 .. 255, close to `colour`, which is (hue, saturation, value), 0 .. 1 each."""
    hue, saturation, value = np.array(colour) + random.normal(0, (0.02, 0.06, 0.06))
    return _rgb(hue, saturation, value)


def _rgb(hue, saturation, value):
    rgb = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return 255 * np.array(rgb, np.float32)


def _draw_ball(random, x, y, first, second):
    radius = np.sqrt(x * x + y * y)
    pattern = random.integers(4)
    if pattern == 0:  # beach ball
        marked = np.sin(random.integers(2, 5) * np.arctan2(y + 0.2, x - 0.1)) > 0
    elif pattern == 1:
        marked = np.abs(y) < 0.3
    elif pattern == 2:
        marked = np.sin(7 * x) * np.sin(7 * y) > 0.3
    else:
        marked = np.zeros(radius.shape, bool)
    round_shade = 0.5 + 0.6 * np.sqrt(np.clip(1 - radius**2, 0, 1))
    return radius <= 1, _mix(marked, first, second) * round_shade[:, :, None], ()


def _draw_box(random, x, y, first, second):
    left, right, top = -0.85, random.uniform(0.1, 0.6), random.uniform(-0.5, 0.0)
    depth = 0.35
    front = (x >= left) & (x <= right) & (y >= top) & (y <= 0.85)
    back = top - y  # how far above the front's upper edge
    lid = (back > 0) & (back <= depth) & (x - back >= left) & (x - back <= right)
    aside = x - right
    side = (aside > 0) & (aside <= depth) & (y + aside >= top) & (y + aside <= 0.85)
    pattern = random.integers(3)
    if pattern == 0:  # a parcel with tape
        marked = np.abs(x - (left + right) / 2 - np.where(lid, back, 0)) < 0.12
    elif pattern == 1:  # planks
        marked = np.sin(14 * y) > 0.75
    else:
        marked = np.zeros(front.shape, bool)
    shade = np.where(front, 0.95, np.where(lid, 1.25, 0.6))
    return front | lid | side, _mix(marked & ~side, first, second) * shade[:, :, None], ()


def _draw_star(random, x, y, first, second):
    spikes = random.integers(5, 7)
    inner = random.uniform(0.38, 0.55)
    angle = np.arctan2(x, -y) * spikes / (2 * np.pi)
    offset = angle - np.round(angle)  # -0.5 .. 0.5 across one spike
    radius = np.sqrt(x * x + y * y)
    along = radius * np.cos(2 * np.pi * offset / spikes)
    across = radius * np.abs(np.sin(2 * np.pi * offset / spikes))
    notch_x, notch_y = inner * np.cos(np.pi / spikes), inner * np.sin(np.pi / spikes)
    inside = notch_y * (1 - along) - across * (1 - notch_x) >= 0
    facet = np.where(offset > 0, 1.1, random.uniform(0.65, 1.0))[:, :, None]
    return inside, _mix(radius < random.choice([0.0, 0.3]), first, second) * facet, ()


def _draw_ring(random, x, y, first, second):
    squash = random.uniform(0.6, 1.0)
    radius = np.sqrt(x * x + (y / squash) ** 2)
    hole = random.uniform(0.45, 0.65)
    buoy = random.random() < 0.5
    marked = buoy & (np.sin(4 * np.arctan2(y, x)) > 0)
    bulge = np.clip(1 - ((radius - (1 + hole) / 2) / (1 - hole) * 2) ** 2, 0, 1)
    return (radius <= 1) & (radius >= hole), _mix(marked, first, second) * (0.6 + 0.5 * bulge)[:, :, None], ()


def _draw_tree(random, x, y, first, second):
    trunk = (np.abs(x) < random.uniform(0.07, 0.14)) & (y > 0.2) & (y <= 1)
    if random.random() < 0.5:  # a fir
        crown = np.zeros(trunk.shape, bool)
        for peak, foot, spread in ((-1.0, -0.35, 0.42), (-0.7, 0.1, 0.58), (-0.35, 0.6, 0.72)):
            crown |= (y >= peak) & (y <= foot) & (np.abs(x) <= spread * (y - peak) / (foot - peak))
    else:
        crown = x**2 + (y + 0.3) ** 2 <= 0.4**2
        for angle in random.uniform(0, 2 * np.pi, 5):
            crown |= (x - 0.35 * np.cos(angle)) ** 2 + (y + 0.3 - 0.3 * np.sin(angle)) ** 2 <= 0.38**2
    leaves = 1 + 0.22 * np.sin(15 * x + 4 * y) * np.sin(13 * y + random.uniform(0, 6))
    bark = vary_colour(random, (0.07, 0.45, 0.40))
    return trunk | crown, np.where(crown[:, :, None], first * leaves[:, :, None], bark), ()


def _draw_house(random, x, y, first, second):
    eaves = random.uniform(-0.35, 0.05)
    half = random.uniform(0.6, 0.85)
    walls = (np.abs(x) <= half) & (y > eaves) & (y <= 1)
    roof = (y <= eaves) & (y >= -1) & (np.abs(x) <= (half + 0.12) * (y + 1) / (eaves + 1))
    chimney = (x > 0.3 * half) & (x < 0.6 * half) & (y > -0.95) & (y <= eaves)
    door = (np.abs(x - random.choice([-0.4, 0, 0.4]) * half) < 0.14) & (y > 0.45)
    window = (np.abs(np.abs(x) - 0.6 * half) < 0.15) & (np.abs(y - eaves - 0.3) < 0.13)
    courses = 1 - 0.15 * (np.sin(random.choice([18, 26]) * y) > 0.6)
    plaster = vary_colour(random, (0.11, 0.25, 0.90))
    glass = np.array(random.choice([(250, 225, 120), (60, 75, 100)]), np.float32)
    colours = _mix(walls, first * 0.85, plaster) * courses[:, :, None]
    colours = np.where((door & walls)[:, :, None], second * 0.6, colours)
    colours = np.where((window & walls & ~door)[:, :, None], glass, colours)
    return walls | roof | chimney, colours, ()


def _draw_person(random, x, y, first, second):
    head, neck = np.array([0, -0.74]), np.array([0, -0.5])
    hips = np.array([random.uniform(-0.06, 0.06), 0.15])
    skin = vary_colour(random, (0.07, 0.45, random.uniform(0.4, 0.95)))
    # Half heights start at 7 pixels, so a limb this thick always holds the pixel of its end.
    thickness = random.uniform(0.11, 0.14)
    legs, arms, feet, hands = [], [], [], []
    for side in (1, -1):  # the person's left is the viewer's right
        feet.append(np.array([side * random.uniform(0.12, 0.4), random.uniform(0.78, 0.88)]))
        legs.append((hips + np.array([side * 0.06, 0]), feet[-1], thickness, second))
        lift, bend = random.uniform(-1.2, 1.2), random.uniform(-0.9, 0.9)
        shoulder = neck + np.array([side * 0.11, 0.08])
        elbow = shoulder + 0.3 * np.array([side * np.cos(lift), np.sin(lift)])
        hands.append(elbow + 0.3 * np.array([side * np.cos(lift + bend), np.sin(lift + bend)]))
        arms += [(shoulder, elbow, thickness, first * 0.85), (elbow, hands[-1], thickness, skin)]

    inside, colours = np.zeros(x.shape, bool), np.zeros((*x.shape, 3), np.float32)
    torso = (neck + np.array([0, 0.08]), hips, 0.21, first)
    for start, end, radius, colour in (*legs, *arms, torso, (head, head, 0.22, skin)):
        part = _distance_to_segment(x, y, start, end) <= radius
        inside |= part
        colours[part] = colour
    hair = part & (y < head[1] - 0.06)
    eyes = _distance_to_segment(np.abs(x), y, (0.08, -0.73), (0.08, -0.73)) <= 0.035
    colours[hair | eyes] = skin * 0.3
    return inside, colours, (head, neck, *hands, hips, *feet)


def _distance_to_segment(x, y, start, end):
    run_x, run_y = end[0] - start[0], end[1] - start[1]
    share = np.clip(((x - start[0]) * run_x + (y - start[1]) * run_y) / max(run_x**2 + run_y**2, 1e-6), 0, 1)
    return np.sqrt((x - start[0] - share * run_x) ** 2 + (y - start[1] - share * run_y) ** 2)


def _mix(marked, first, second):
    return np.where(marked[:, :, None], second, first)


THINGS = {
    "ball": Thing(_draw_ball, hue=0.00, share=0.12, stands=False),
    "box": Thing(_draw_box, hue=0.08, share=0.13, stands=False),
    "star": Thing(_draw_star, hue=0.14, share=0.15, stands=False),
    "ring": Thing(_draw_ring, hue=0.85, share=0.15, stands=False),
    "tree": Thing(_draw_tree, hue=0.30, share=0.15, stands=True),
    "house": Thing(_draw_house, hue=0.03, share=0.12, stands=True),
    "person": Thing(_draw_person, hue=0.55, share=0.18, stands=True),
}
