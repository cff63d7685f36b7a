"""Makes a small folder of images that no recipe was tuned on: 20 letters in the fonts of this machine on photo crops.

    python results/own_images/make.py letters

writes letters/train/CLASS/*.png (150 images a class) and letters/test/CLASS/*.png (50), 48 x 48 pixels. Test images
have other crops and other fonts: every fifth font is theirs.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from blockjax.data.embedded.compose import read_photos

LETTERS = "ABCDEFGHIJKLMNOPQRST"
SIDE = 48


def fonts():
    """Returns the files of fonts that have these letters, in a fixed order."""
    found = {}
    for path in sorted(font_manager.findSystemFonts() + _of_matplotlib()):
        try:
            font = ImageFont.truetype(path, 24)
            shapes = {font.getmask(letter).getbbox() for letter in LETTERS}
            drawn = {bytes(font.getmask(letter)) for letter in LETTERS}
        except OSError:
            continue
        if None not in shapes and len(drawn) == len(LETTERS):
            found.setdefault(Path(path).name, path)
    return [found[name] for name in sorted(found)]


def _of_matplotlib():
    return [
        str(path) for path in Path(font_manager.__file__).parent.glob("mpl-data/fonts/ttf/*.ttf")
    ]


def image(rng, photos, letter, font, part):
    """Returns one image: a letter of random size, colour, angle and place on a crop."""
    photo = photos[rng.integers(len(photos))]
    height, width, _ = photo.shape
    low, high = (0, int(0.6 * width)) if part == "train" else (int(0.65 * width), width)
    side = int(rng.integers(40, min(height, high - low) + 1))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(low, high - side + 1))
    crop = Image.fromarray(photo[top : top + side, left : left + side]).resize((SIDE, SIDE))
    mask = Image.new("L", (SIDE, SIDE))
    size = int(rng.integers(20, 37))
    x, y = (float(v) for v in rng.uniform(-5, 5, 2))
    draw = ImageDraw.Draw(mask)
    draw.text(
        (SIDE / 2 + x, SIDE / 2 + y), letter, 255, ImageFont.truetype(font, size), anchor="mm"
    )
    mask = mask.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BILINEAR)
    colour = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in rng.integers(0, 256, 3)))
    return Image.composite(colour, crop, mask)


def main():
    """Writes the folder of the first argument."""
    folder, rng, photos, files = Path(sys.argv[1]), np.random.default_rng(0), read_photos(), fonts()
    print(f"{len(files)} fonts")
    for part, count in (("train", 150), ("test", 50)):
        own = [file for i, file in enumerate(files) if (i % 5 == 0) == (part == "test")]
        for letter in LETTERS:
            target = folder / part / letter
            target.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                font = own[rng.integers(len(own))]
                image(rng, photos, letter, font, part).save(target / f"{i:03}.png")


if __name__ == "__main__":
    main()
