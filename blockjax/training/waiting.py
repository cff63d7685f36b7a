"""How much of a run's time devices wait for data, and what would make that less."""

from collections.abc import Callable

import ml_collections

from blockjax.config.modality import is_text
from blockjax.data import turbo
from blockjax.data.iterator import cpu_count

SHARE = 0.1  # of the time; more than that is worth a warning
SECONDS = 10.0  # that a warning is based on


class Waiting:
    """Turns seconds that were waited into shares of the time, and warns once."""

    def __init__(
        self, config: ml_collections.ConfigDict, waited: Callable[[], float], begin: float
    ):
        """Starts at `begin`, in seconds of any clock; `waited` tells the seconds waited so far."""
        self._config, self._waited = config, waited
        self._now, self._before = begin, waited()
        self._since = None  # time and seconds waited when what a warning is based on began
        self._is_told = False

    def share(self, now: float) -> float:
        """Returns the share of the time waited since the last call, or since the start."""
        waited = self._waited()
        share = (waited - self._before) / max(now - self._now, 1e-9)
        self._now, self._before = now, waited
        if self._since is None:  # the start of threads or workers, before this, is not typical
            self._since = now, waited
        return min(1.0, share)

    def warning(self) -> str | None:
        """Returns a sentence with what to change, the first time that many seconds show too much waiting."""
        if self._is_told or self._since is None or self._now - self._since[0] < SECONDS:
            return None
        share = (self._before - self._since[1]) / (self._now - self._since[0])
        self._since = self._now, self._before
        if share <= SHARE:
            return None
        self._is_told = True
        return (
            f"for {min(1.0, share):.0%} of the time the devices wait for data; {self._remedies()}"
        )

    def _remedies(self):
        workers, cores = self._config.data.workers, cpu_count()
        found = []
        if workers < cores and cores > 1:
            now = f"{workers} processes" if workers else "threads of one process"
            found.append(
                f"set --config.data.workers={cores} (now {now}; this machine has {cores} cores)"
            )
        if is_text(self._config):
            return "; or ".join([*found, "take more cores"])
        if not turbo.INSTALLED:
            found.append("pip install 'blockjax[turbo]', which decodes JPEGs faster")
        found.append(
            f"store the images smaller, {2 * self._config.model.image_size} pixels at their shorter side, or take more "
            "cores"
        )
        return "; or ".join(found)
