"""Draw the images of the service's parity check: python -m experiments.bench.draw_parity_images FOLDER

Dead leaves: discs whose sizes follow a power law hide one another, which gives the edges, textures and frequencies of
photographs (Lee, Mumford and Huang, 2001), with colors and grain of its own for each image. Drawn once and stored,
so that no library version and no random generator changes them; they are free of rights.

Shapes: H height, W width; 3 colors, red first.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

_NUM_IMAGES = 4
_SIDE_PX = 288
_NUM_LEAVES = 3000


def draw(seed: int) -> bytes:
    """One image as a JPEG of some 15 KB."""
    dice = np.random.default_rng(seed)
    y_H1, x_1W = np.ogrid[:_SIDE_PX, :_SIDE_PX]
    tones = dice.uniform(30, 225, (4, 3))
    light_HW1 = (0.75 + 0.5 * (x_1W * dice.uniform(-1, 1) + y_H1 * dice.uniform(-1, 1)) / _SIDE_PX)[..., None]
    image_HW3 = np.full((_SIDE_PX, _SIDE_PX, 3), tones[0])
    for _ in range(_NUM_LEAVES):
        # Radii as r^-3 between 2 px and 96 px: equally many edges at every scale.
        radius = (dice.uniform(1 / 96**2, 1 / 2**2)) ** -0.5
        x, y = dice.uniform(-20, _SIDE_PX + 20, 2)
        inside_HW = (x_1W - x) ** 2 + (y_H1 - y) ** 2 < radius**2
        color_3 = tones[dice.integers(4)] + dice.normal(0, 25, 3)
        waves_HW1 = np.sin(x_1W * dice.uniform(0, 1) + y_H1 * dice.uniform(0, 1))[..., None] * dice.uniform(0, 25)
        image_HW3 = np.where(inside_HW[..., None], color_3 + waves_HW1, image_HW3)
    image_HW3 = image_HW3 * light_HW1 + dice.normal(0, dice.uniform(0, 8), image_HW3.shape)
    file = io.BytesIO()
    Image.fromarray(image_HW3.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=75)
    return file.getvalue()


def main(argv: list[str]) -> int:
    """Draw them all."""
    (folder,) = map(Path, argv)
    for seed in range(_NUM_IMAGES):
        (folder / f"{seed}.jpg").write_bytes(draw(seed))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
