"""How a config may be run: the settings among which the fastest that fits is looked for."""

import dataclasses
import math
from collections.abc import Sequence

import ml_collections

from blockjax.checks import one_of
from blockjax.config.coupling import SWITCHES
from blockjax.config.defaults import STRATEGIES
from blockjax.config.fields import set_field
from blockjax.config.resolve import depth
from blockjax.strategies import END_TO_END

_SHARES = (1, 4, 16)  # microbatches, and batches for which a block stays
# What saves more memory, and takes no less time.
_NEXT_REMATS = {"none": ("layer",), "layer": ("nested", "offload")}


@dataclasses.dataclass(frozen=True, order=True)
class Setting:
    """What may be chosen.

    Attributes:
      strategy: as in a config.
      remat: as in a config.
      blocks: K.
      batches: M, for which a block stays.
      microbatches: of a batch.
      batch: images of a batch, over all devices.
    """

    strategy: str
    remat: str
    blocks: int
    batches: int
    microbatches: int
    batch: int

    def fields(self) -> dict[str, str | int]:
        """Returns the config fields that it sets."""
        return {
            "strategy": self.strategy,
            "remat": self.remat,
            "blocks": self.blocks,
            "pipeline.batches": self.batches,
            "microbatches": self.microbatches,
            "batch_size": self.batch,
        }

    def apply(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """Returns a config with this setting; end to end, whose only block couples with none, without couplings."""
        config = config.copy_and_resolve_references()
        for field, value in self.fields().items():
            set_field(config, field, value)
        if self.strategy in END_TO_END:
            for field, off in SWITCHES.items():
                set_field(config, field, off)
        return config

    def __str__(self) -> str:
        """In words."""
        parts = [self.strategy]
        parts += [f"K={self.blocks}"] if self.strategy not in END_TO_END else []
        parts += [f"M={self.batches}"] if self.batches > 1 else []
        parts += [f"remat {self.remat}"] if self.remat != "none" else []
        parts += [f"{self.microbatches} microbatches"] if self.microbatches > 1 else []
        return ", ".join([*parts, f"{self.batch} images"])


def roots(
    config: ml_collections.ConfigDict, strategies: Sequence[str] = (), batches: Sequence[int] = ()
) -> list[Setting]:
    """Lists settings that compute nothing twice, with the config's K, and its M or 1.

    Args:
      config: as a config file returns it.
      strategies: to choose from; default: all, but `pipelined` only where the config spreads blocks over devices.
      batches: numbers of images to choose from; default: the config's.

    Raises:
      ValueError: a strategy that does not exist, or M is more than the steps of the run.
    """
    for strategy in strategies:
        one_of("strategy", strategy, STRATEGIES)
    check_stay_fits_run(config)
    strategies = strategies or [
        name for name in STRATEGIES if name != "pipelined" or config.mesh.block != 1
    ]
    stay = config.pipeline.batches or 1
    return [
        Setting(strategy, "none", config.blocks, stay, 1, batch)
        for strategy in strategies
        for batch in batches or [config.batch_size]
    ]


def beside(
    setting: Setting,
    config: ml_collections.ConfigDict,
    *,
    rows: int,
    is_moved: bool,
    blocks: Sequence[int] = (),
) -> list[Setting]:
    """Lists settings that may be slower or faster than a root, and need more memory or less: other K and M.

    Args:
      setting: the root.
      config: as a config file returns it.
      rows: blocks with states of their own under the root; of one, K says nothing.
      is_moved: whether states or activations cross a link, so that M may save time.
      blocks: K to choose from; default: 2, a layer a block, and about every doubling between, with the config's.
    """
    counts, stays = [setting.blocks], [setting.batches]
    if rows > 1:
        counts = sorted(blocks or {setting.blocks, *_doublings(depth(config))})
    if rows > 1 and is_moved and config.pipeline.batches is None:
        stays = [stay for stay in _SHARES if stay <= (config.steps or math.inf)]
    found = [
        dataclasses.replace(setting, blocks=count, batches=stay)
        for count in counts
        for stay in stays
    ]
    return found


def smaller(setting: Setting) -> list[Setting]:
    """Lists settings that differ in one thing, need less memory and take no less time."""
    found = [
        dataclasses.replace(setting, remat=remat) for remat in _NEXT_REMATS.get(setting.remat, ())
    ]
    further = [share for share in _SHARES if share > setting.microbatches]
    if further and setting.batch % further[0] == 0:
        found.append(dataclasses.replace(setting, microbatches=further[0]))
    return found


def check_stay_fits_run(config: ml_collections.ConfigDict) -> None:
    """Checks that a step takes no more batches than there are in the run.

    Raises:
      ValueError: it does.
    """
    given, steps = config.pipeline.batches, config.steps
    if given is not None and steps is not None and given > steps:
        raise ValueError(
            f"pipeline.batches={given} is more batches than the run has, steps={steps}; set it to at most {steps}"
        )


def _doublings(layers):
    """Returns divisors from 2 to the number of layers, each at least twice the one before."""
    found = []
    for count in (n for n in range(2, layers) if layers % n == 0):
        if not found or count >= 2 * found[-1]:
            found.append(count)
    return [*found, layers]
