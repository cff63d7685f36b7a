"""Draws what each block of a run makes of images: reconstructions from what is visible, or what CLS attends to.

    python -m blockjax.reconstruct --workdir runs/quickstart --images photo.jpg other.png --output reconstruction.png

Images of any size and mode are resized, and what is not square is cut off at the sides.
"""

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import logging

from blockjax.data.cut import resize_and_center_crop
from blockjax.data.decode import CorruptImage
from blockjax.data.evaluation import evaluation_images
from blockjax.data.sources import open_source
from blockjax.data.sources.folder import SUFFIXES
from blockjax.probes import pictures
from blockjax.report import figures
from blockjax.report.command import begin, check_devices
from blockjax.weights.loading import Run, open_run
from blockjax.workdir.files import write_bytes_atomic

_MOST = 16  # images in a picture


def main() -> None:
    """Reads the flags, and draws."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.reconstruct",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workdir", required=True, help="a run's workdir")
    add("--images", nargs="+", help="files, or folders of them (default: test images of the run)")
    add("--output", default="reconstruction.png", help="a PNG file (default: %(default)s)")
    add("--attention", action="store_true", help="draw what the CLS token attends to instead")
    add("--seed", type=int, default=0, help="seed of the masks (default: %(default)s)")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    begin()
    check_devices()
    try:
        reconstruct(**vars(arguments))
    except (ValueError, CorruptImage) as error:
        sys.exit(f"error: {error}")


def reconstruct(
    workdir: str | os.PathLike,
    images: Sequence[str | os.PathLike] | None = None,
    output: str | os.PathLike = "reconstruction.png",
    attention: bool = False,
    seed: int = 0,
) -> None:
    """Draws a grid, an image per column; arguments are the command's flags.

    Raises:
      ValueError: no run, no images, or an objective that reconstructs nothing.
      CorruptImage: a file that cannot be read as an image.
    """
    output = Path(output)
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output {output} should end in .png")
    run = open_run(workdir)
    run.check_images()
    if not attention and not run.learner.objective.reconstructs:
        raise ValueError(
            f"{workdir} was trained by {run.config.objective}, which reconstructs nothing; give --attention"
        )
    pixels = _images(run, images)
    if attention:
        picture = figures.grid(_attention_rows(run, pixels))
    else:
        rng = jax.random.fold_in(jax.random.key(seed), 0)
        picture = pictures.reconstruction(run.learner, run.state, pixels, rng)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(output, picture)
    print(f"{output}: {len(pixels)} images", flush=True)


def _images(run: Run, paths) -> np.ndarray:
    """Returns uint8 images of the encoder's size, [B, H, W, 3]."""
    side = run.backbone.vit.image_size
    if not paths:
        data = run.config.data
        source = open_source(data.source, data.test_split, data.dir)
        return evaluation_images(source, side, limit=10)[0]
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"--images {path} has no image files ({', '.join(SUFFIXES)})")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"--images {path}: there is no such file or folder")
    if len(files) > _MOST:
        print(f"drawing the first {_MOST} of {len(files)} images", flush=True)
    found = []
    for file in files[:_MOST]:
        try:
            found.append(resize_and_center_crop(file.read_bytes(), side))
        except (CorruptImage, OSError) as error:
            raise CorruptImage(f"{file}: {error}") from error
    return np.stack(found)


def _attention_rows(run, pixels):
    """Returns the images, and each depth's attention over them: bright where CLS looks, mean over heads."""
    maps = np.asarray(jax.jit(run.backbone.attention)(run.params, pixels)).mean(axis=2)
    patch = run.backbone.vit.patch_size
    upsampled = maps.repeat(patch, axis=2).repeat(patch, axis=3)
    upsampled = upsampled / upsampled.max(axis=(2, 3), keepdims=True)
    images = pixels / 255.0
    shade = functools.partial(np.multiply, images)
    rows = {f"block {k}": shade(0.15 + 0.85 * m[..., None]) for k, m in enumerate(upsampled, 1)}
    return {"image": images, **rows}


if __name__ == "__main__":
    main()
