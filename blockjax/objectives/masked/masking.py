"""Which patches are visible: one random order per image, of which every block sees a prefix."""

import math

import jax


def random_order(rng: jax.Array, images: int, patches: int) -> jax.Array:
    """Returns a random permutation of the patches for each image, int32 [B, N].

    The first so many are visible, the others masked: so visible sets of different sizes are nested.
    """
    return jax.random.uniform(rng, (images, patches)).argsort(axis=1)


def visible_counts(ratio: float, schedule: str, patches: int, blocks: int) -> tuple[int, ...]:
    """Returns how many of an image's patches each block sees.

    Args:
      ratio: fraction of the patches that is masked (in block 1, under a schedule).
      schedule: "constant"; "linear:R", the ratio rises evenly from `ratio` in block 1 to R in the last block; or a
        comma-separated ratio for each block, "0.5,0.6,0.7,0.75".
      patches: patches of an image.
      blocks: number of blocks.

    Raises:
      ValueError: the schedule cannot be read, a ratio leaves no visible or no masked patch, or a later block would see
        more patches than an earlier one.
    """
    for block, r in enumerate(ratios := _ratios(ratio, schedule, blocks), start=1):
        visible = _visible(r, patches)
        if not 1 <= visible < patches:
            what = "no visible" if visible < 1 else "no masked"
            low, high = 1 / patches, (patches - 1) / patches
            raise ValueError(
                f"mask.ratio {r:g} leaves {what} patch of {patches} in block {block}; "
                f"with {patches} patches it may be from {low:.3g} to {high:.3g}"
            )
    counts = tuple(_visible(r, patches) for r in ratios)
    if list(counts) != sorted(counts, reverse=True):
        raise ValueError(
            f"mask.schedule {schedule!r} gives blocks {counts} visible patches; later blocks cannot see more than "
            "earlier ones, so the ratios must not fall"
        )
    return counts


def _visible(ratio, patches):
    # As in MAE, rounded down; the small term keeps 100 · (1 − 0.9) from becoming 9 instead of 10.
    return math.floor(patches * (1 - ratio) + 1e-9)


def _ratios(ratio, schedule, blocks):
    if schedule == "constant":
        return [ratio] * blocks
    kind, _, end = schedule.partition(":")
    try:
        if kind == "linear" and end:
            last = float(end)
            if not math.isfinite(last):
                raise ValueError(end)
            return [ratio + (last - ratio) * k / max(1, blocks - 1) for k in range(blocks)]
        ratios = [float(part) for part in schedule.split(",")]
    except ValueError:
        ratios = []
    if len(ratios) != blocks or not all(map(math.isfinite, ratios)):
        raise ValueError(
            f"mask.schedule {schedule!r} cannot be read for {blocks} blocks; it may be 'constant', 'linear:0.9' "
            f"(the last block's ratio) or {blocks} ratios separated by commas"
        )
    return ratios
