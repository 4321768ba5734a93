"""Draw pictures to train on: ten shapes in noise, of many colours, places and sizes.

python bench/shapes.py FOLDER [--count 200] [--side 256]
python -m fastcnn train --data FOLDER --size 112 --adaptive
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

Points = list[tuple[float, float]]
STEPS = 64


def regular(corners: int, inner: float = 1) -> Points:
    """On a circle of radius 1; every other corner on one of radius ``inner``."""
    radii = [1 if i % 2 == 0 else inner for i in range(corners)]
    angles = [2 * math.pi * i / corners for i in range(corners)]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def mirrored(half: Points) -> Points:
    """Closed by the same points on the other side of the x axis."""
    return half + [(x, -y) for x, y in reversed(half)]


SHAPES: dict[str, Callable[[], Points]] = {
    "triangle": lambda: regular(3),
    "square": lambda: regular(4),
    "pentagon": lambda: regular(5),
    "disc": lambda: regular(STEPS),
    "star": lambda: regular(10, 0.4),
    "bar": lambda: mirrored([(-1, 0.15), (1, 0.15)]),
    "cross": lambda: regular(8, 0.3),
    "arrow": lambda: mirrored([(-1, 0.15), (0.2, 0.15), (0.2, 0.55), (1, 0)]),
    "ell": lambda: [(-0.8, -0.9), (-0.3, -0.9), (-0.3, 0.4), (0.8, 0.4), (0.8, 0.9), (-0.8, 0.9)],
    "wedge": lambda: [(0, 0), *regular(STEPS)[: STEPS * 3 // 4]],
}


def picture(points: Points, side: int, draw: random.Random) -> Image.Image:
    """The shape, in a bright colour and a little tilted, on dark noise."""
    image = Image.frombytes("RGB", (side // 4, side // 4), draw.randbytes(3 * (side // 4) ** 2))
    image = image.resize((side, side), Image.Resampling.BILINEAR).point(lambda value: value // 2)
    colour = tuple(draw.randrange(128, 256) for _ in range(3))
    radius, angle = draw.uniform(0.25, 0.4) * side, draw.uniform(-0.3, 0.3)
    x, y = (draw.uniform(radius, side - radius) for _ in range(2))
    cos, sin = radius * math.cos(angle), radius * math.sin(angle)
    turned = [(x + cos * px - sin * py, y + sin * px + cos * py) for px, py in points]
    ImageDraw.Draw(image).polygon(turned, fill=colour)
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200, help="pictures of each shape")
    parser.add_argument("--side", type=int, default=256, help="pixels")
    args = parser.parse_args()
    draw = random.Random(0)
    for name, shape in SHAPES.items():
        (args.folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(args.count):
            picture(shape(), args.side, draw).save(args.folder / name / f"{i:04}.jpg", quality=90)


if __name__ == "__main__":
    main()
