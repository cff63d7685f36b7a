"""Draws what every recipe of views, and every task that masks, turns or cuts images, makes of yours.

    python -m blockjax.gallery --source folder:/path/to/images --size 224 --out gallery

writes gallery/views.png and gallery/tasks.png; without arguments, of the embedded images.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

from blockjax import config as config_lib
from blockjax.data.evaluation import evaluation_images
from blockjax.data.sources import open_source
from blockjax.learner.build import make_learner
from blockjax.objectives import OBJECTIVES
from blockjax.objectives.objective import SMALL
from blockjax.objectives.two_view.augment import RECIPES, two_views
from blockjax.objectives.two_view.base import TwoView
from blockjax.report import figures
from blockjax.report.command import begin, check_devices
from blockjax.workdir.files import write_bytes_atomic

# Images beside each other in a row of tasks; a row of views has both views of half as many.
_COLUMNS = 8
# A vocabulary of visual tokens needs more images than are shown.
_IMAGES = 256


def main() -> None:
    """Reads the flags and draws."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.gallery",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", default="embedded", help="as data.source (default: embedded)")
    parser.add_argument("--split", default="train", help="default: train")
    parser.add_argument("--data_dir", help="as data.dir")
    parser.add_argument(
        "--size", type=int, default=32, help="side of the model's images, in pixels (default: 32)"
    )
    parser.add_argument(
        "--patch", type=int, help="side of a patch (default: an eighth of small images, else 16)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn at random")
    parser.add_argument("--out", default="gallery", help="folder (default: gallery)")
    arguments = parser.parse_args()
    begin()
    check_devices()
    size = arguments.size
    patch = arguments.patch or (size // 8 if size <= SMALL else 16)
    try:
        source = open_source(arguments.source, arguments.split, arguments.data_dir)
        images, _ = evaluation_images(source, size, limit=_IMAGES)
        pictures = {"views": views(images, arguments.seed)}
        pictures["tasks"] = tasks(images, patch, arguments.seed)
        for name, picture in pictures.items():
            path = Path(arguments.out) / f"{name}.png"
            write_bytes_atomic(path, picture)
            print(path)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def views(images_BHWC: np.ndarray, seed: int = 0) -> bytes:
    """Draws both views of four images, a recipe in each row.

    Args:
      images_BHWC: uint8, square.
      seed: of the views.

    Returns:
      A PNG.
    """
    images = images_BHWC[: _COLUMNS // 2]
    rows = {"image": np.repeat(images / 255.0, 2, axis=0)}
    for name in RECIPES:
        pairs = two_views(jax.random.key(seed), images, name, images.shape[1])
        rows[name] = np.reshape(pairs, (-1, *images.shape[1:]))
    return figures.grid(rows)


def tasks(
    images_BHWC: np.ndarray, patch_size: int, seed: int = 0, columns: int = _COLUMNS
) -> bytes:
    """Draws what the objectives that look at one view make of a few images, with the defaults for this size.

    Args:
      images_BHWC: uint8, square; all of them are what a vocabulary of visual tokens is fitted to.
      patch_size: side of a patch in pixels.
      seed: of masks and tiles.
      columns: how many images to show.

    Returns:
      A PNG; a task that these images do not suit is left out, and standard error says why.
    """
    rng, shown = jax.random.key(seed), images_BHWC[:columns]
    rows = {"image": shown / 255.0}
    for name, task in OBJECTIVES.items():
        if issubclass(task, TwoView):
            continue
        try:
            objective = _objective(name, images_BHWC.shape[1], patch_size, len(images_BHWC))
            known = () if objective.fitted_shape is None else (objective.fit(rng, images_BHWC),)
        except ValueError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        made = objective.seen(rng, shown, *known)
        rows |= {f"{name}: {key}": np.asarray(made[key]) for key in made if key != "image"}
    return figures.grid(rows)


def _objective(objective, size, patch_size, images):
    config = config_lib.default_config()
    config.objective, config.steps, config.mesh.data = objective, 1, 1
    config.model.image_size, config.model.patch_size = size, patch_size
    # As many as the images have patches for: in a run a vocabulary is fitted to thousands of images.
    config.tokenizer.codes = min(512, images * (size // patch_size) ** 2 // 16)
    config.tokenizer.examples = images
    config = config_lib.resolve(config, devices=1, platform="cpu")
    config_lib.fill_lengths(config, 1)
    return make_learner(config, 1).objective


if __name__ == "__main__":
    main()
