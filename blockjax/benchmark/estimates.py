"""How far the estimates of `python -m blockjax.memory` are from the time that steps take."""

import dataclasses
import math
import time
from collections.abc import Sequence

import jax
import numpy as np
from scipy.stats import spearmanr

from blockjax.benchmark.steps import Runner
from blockjax.config.files import load_config
from blockjax.config.variants import vary
from blockjax.report.table import render_table
from blockjax.xla.calibration import measured_rates

CONFIGS = (
    "digits",
    "bim:model=ti8,size=64,blocks=4,batch=16,data=embedded",
    "bim:model=s16,size=128,blocks=12,batch=8,data=embedded",
)
STRATEGIES = ("end_to_end", "end_to_end+remat", "blockwise", "streamed+remat")


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well estimates agree with times.

    Attributes:
      rank: Spearman's correlation.
      factor: time / estimate, the geometric mean.
      error: the mean of the relative errors of the estimates, each times that factor.
    """

    rank: float
    factor: float
    error: float


def agreement(estimated: Sequence[float], measured: Sequence[float]) -> Agreement:
    """Compares estimates with the times of the same steps, in seconds."""
    ratios = np.divide(measured, estimated)
    factor = math.exp(np.mean(np.log(ratios)))
    error = float(np.mean(np.abs(factor / ratios - 1)))
    return Agreement(float(spearmanr(estimated, measured).statistic), factor, error)


def estimates(configs: Sequence[str], strategies: Sequence[str], rounds: int) -> None:
    """Prints estimated and measured times of each config under each strategy, and how well they agree.

    Rates are measured before, as the best of some runs; so of each step the best of the rounds is taken. Steps of the
    strategies of a config are taken in turns. On CPU both are seconds that the processor spent on this process, which
    other load hardly changes; on one core (`taskset -c 0`) they are what it takes alone.
    """
    is_cpu = jax.devices()[0].platform == "cpu"
    clock = time.process_time if is_cpu else time.perf_counter
    rates = measured_rates(jax.devices(), clock)
    print(
        f"measured: {rates.float32 / 1e9:.0f} GFLOP/s of float32, memory {rates.memory / 1e9:.1f} GB/s"
        + (f", link {rates.link / 1e9:.1f} GB/s" if rates.link else ""),
        flush=True,
    )
    rows, of_config = [], {}
    for source in configs:
        runners = {name: Runner(vary(load_config(source), name), rates) for name in strategies}
        times = {name: [] for name in strategies}
        for _ in range(rounds):
            for name, runner in runners.items():
                runner.seconds()  # the variant before it has left its own data in the caches
                times[name].append(runner.seconds(clock))
        pairs = []
        for name, runner in runners.items():
            found, seconds = runner.profile.estimate, min(times[name])
            pairs.append((found.seconds, seconds))
            rows.append([source, name, f"{1e3 * found.seconds:.1f}", f"{1e3 * seconds:.1f}"])
            rows[-1] += [seconds / found.seconds, found.limit]
            print(*rows[-1], sep=", ", flush=True)
        of_config[source] = pairs
    columns = ["config", "strategy", "~ms", "ms", "ms / ~ms", "limited by"]
    render_table(f"estimates and times, {jax.devices()[0].device_kind}", columns, rows)
    of_config["all"] = [pair for pairs in of_config.values() for pair in pairs]
    agreements = {name: agreement(*zip(*pairs, strict=True)) for name, pairs in of_config.items()}
    render_table(
        "agreement; error: of estimates, each times the factor",
        ["config", "rank correlation", "factor", "error"],
        [[name, a.rank, a.factor, f"{a.error:.0%}"] for name, a in agreements.items()],
    )
