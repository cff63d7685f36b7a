"""Whether a run learned anything that an untrained encoder or raw pixels do not give, and what to change if not."""

import math
from collections.abc import Sequence
from typing import Any

import ml_collections

from blockjax.objectives import OBJECTIVES


def verdict(
    probes: Sequence[dict[str, Any]],
    tested: int,
    config: ml_collections.ConfigDict,
    *,
    epochs: float,
    images: int,
) -> list[str]:
    """Compares the best block with what needs no training.

    Args:
      probes: rows of `blockjax.probes.probe.probe_blocks`: pixels, untrained, then the blocks.
      tested: how many images they were tested with; a lead of less than two standard errors is none.
      config: of the run, resolved.
      epochs: how often it saw each image.
      images: of the training set.

    Returns:
      Sentences for the end of the run; none where a block leads in both probes.
    """
    rows = {row["features"]: row for row in probes}
    blocks = [row for name, row in rows.items() if name.startswith("block_")]
    lost = []
    for probe, name in (("linear", "linear probe"), ("knn", "kNN")):
        best = max(row[probe] for row in blocks)
        for rival, what in (("untrained", "an untrained encoder"), ("pixels", "raw pixels")):
            other = rows[rival][probe]
            error = math.sqrt(max(other * (1.0 - other), 1.0 / tested) / tested)
            if best < other + 2.0 * error:
                lost.append(f"{what} in the {name} ({best:.3f} against {other:.3f})")
    if not lost:
        return []
    return [
        f"warning: no block is clearly better than {', nor than '.join(lost)}, on {tested:,} test images",
        f"{'':12}{_remedies(config, epochs, images)}",
    ]


def _remedies(config, epochs, images):
    # These learn from few images what pixels teach only slowly; see the README.
    quicker = [name for name in ("context", "rotation") if name != config.objective]
    longer = f"{4 * epochs:,.0f}" if epochs >= 1 else f"{max(4 * epochs, 0.1):.2g}"
    found = [
        f"train longer: each of {images:,} images was seen {epochs:.3g} times; --config.epochs={longer}"
        + (" --config.steps=None" if config.steps is not None else "")
    ]
    if config.objective in OBJECTIVES and config.objective not in ("context", "rotation"):
        found.append(
            f"try another objective: {' or '.join(f'--config {name}' for name in quicker)}"
        )
    if config.objective == "mae":
        found.append(
            f"decode more of the masked patches: --config.decoder.fraction=1 (now {config.decoder.fraction:.2g})"
        )
    return "; or ".join(found)
