"""The pictures of the demo: one to three things of one shape and colour, somewhere on pale paper."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIDE = 224
"""Width and height in pixels."""

COLOURS = {
    "red": (205, 30, 35),
    "orange": (245, 140, 20),
    "yellow": (240, 220, 40),
    "green": (35, 150, 60),
    "blue": (35, 75, 200),
    "purple": (125, 45, 160),
    "brown": (115, 70, 35),
    "black": (25, 25, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
PLACES = ("left", "middle", "right")
COUNTS = (1, 2, 3)
_RADII = {1: (29, 36), 2: (26, 32), 3: (19, 23)}  # pixels; no two things touch


@dataclass(frozen=True)
class Scene:
    """What is in a picture."""

    colour: str
    shape: str
    place: str
    count: int


def draw_scene(chance: random.Random) -> Scene:
    """A random scene."""
    return Scene(chance.choice(list(COLOURS)), chance.choice(SHAPES), chance.choice(PLACES), chance.choice(COUNTS))


def draw_picture(scene: Scene, chance: random.Random) -> Image.Image:
    """A picture of a scene; paper, size, position and shade are drawn from `chance`, so that no two are alike."""
    paper = tuple(chance.randint(225, 250) for _ in range(3))
    image = Image.new("RGB", (SIDE, SIDE), paper)
    pen = ImageDraw.Draw(image)
    colour = tuple(min(255, max(0, part + chance.randint(-12, 12))) for part in COLOURS[scene.colour])
    radius = chance.uniform(*_RADII[scene.count])
    column = SIDE * (2 * PLACES.index(scene.place) + 1) / 6 + chance.uniform(-4, 4)
    for number in range(scene.count):
        row = SIDE * (number + 1) / (scene.count + 1) + chance.uniform(-4, 4)
        _draw_shape(pen, scene.shape, (column, row), radius, colour, paper)
    return image


def _draw_shape(
    pen: ImageDraw.ImageDraw,
    shape: str,
    centre: tuple[float, float],
    radius: float,
    colour: tuple[int, ...],
    paper: tuple[int, ...],
) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "ring":
        pen.ellipse(box, fill=colour)
        pen.ellipse((x - radius / 2, y - radius / 2, x + radius / 2, y + radius / 2), fill=paper)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "cross":
        pen.rectangle((x - radius, y - radius / 3, x + radius, y + radius / 3), fill=colour)
        pen.rectangle((x - radius / 3, y - radius, x + radius / 3, y + radius), fill=colour)
    elif shape == "triangle":
        pen.polygon(_corners(centre, [radius] * 3), fill=colour)
    else:
        pen.polygon(_corners(centre, [radius, 0.45 * radius] * 5), fill=colour)


def _corners(centre: tuple[float, float], radii: list[float]) -> list[tuple[float, float]]:
    """Corners at equal angles around a centre, the first one above it."""
    angles = [2 * math.pi * number / len(radii) - math.pi / 2 for number in range(len(radii))]
    return [
        (centre[0] + radius * math.cos(angle), centre[1] + radius * math.sin(angle))
        for radius, angle in zip(radii, angles, strict=True)
    ]
