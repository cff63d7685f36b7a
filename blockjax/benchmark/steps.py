"""How long a train step takes, what of it goes into preparing the batch, and how fast the host makes batches."""

import time
from collections.abc import Callable, Sequence

import jax
import ml_collections
import numpy as np

from blockjax.config.variants import vary
from blockjax.data.sources import open_source
from blockjax.memory.profiles import MIB, compile_step, place_config
from blockjax.report.table import render_table
from blockjax.training.data import host_batches
from blockjax.xla.rates import Rates

# The first is what all others are compared with.
STRATEGIES = (
    "blockwise",
    "blockwise+remat",
    "end_to_end",
    "end_to_end+unroll",
    "end_to_end+remat",
    "end_to_end+unroll+mae_decoder",
)


def step(config: ml_collections.ConfigDict, rounds: int, strategies: Sequence[str]) -> None:
    """Prints each strategy's step time as a ratio to the first: medians of steps taken in turns."""
    runners = {name: Runner(vary(config, name)) for name in strategies}
    times = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            runner.seconds()  # the variant before it has left its own data in the caches
            times[name].append(runner.seconds())
    medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
    base = medians[strategies[0]]
    render_table(
        f"step time, {jax.devices()[0].device_kind}, batch {config.batch_size}, {rounds} rounds",
        ["strategy", "ms", f"time / {strategies[0]}", "scratch MiB"],
        [
            [name, round(1000 * t), t / base, round(runners[name].profile.temp / MIB)]
            for name, t in medians.items()
        ],
    )


def preparation(config: ml_collections.ConfigDict, rounds: int) -> None:
    """Prints what the objective's views, tiles or masks take of a step, of which they are a part: medians, in turns."""
    runner = Runner(config)
    runner.preparation_seconds()  # compiles
    times = {"prepare": [], "step": []}
    for _ in range(rounds):
        times["prepare"].append(runner.preparation_seconds())
        times["step"].append(runner.seconds())
    made, whole = (float(np.median(seconds)) for seconds in times.values())
    render_table(
        f"{config.objective}: what is made of a batch of {config.batch_size}, {jax.devices()[0].device_kind}",
        ["prepare ms", "step ms", "share"],
        [[round(1000 * made, 1), round(1000 * whole, 1), f"{made / whole:.1%}"]],
    )


def pipeline(config: ml_collections.ConfigDict, rounds: int) -> None:
    """Prints how many images per second the host makes, and how many the train step takes."""
    resolved = place_config(config, jax.devices())[1]
    data = resolved.data
    batches = host_batches(resolved, open_source(data.source, data.train_split, data.dir))
    count = 20 * rounds
    start = time.perf_counter()  # from the start: a filled buffer would flatter the pipeline
    for _ in range(count):
        next(batches)
    made = count * resolved.batch_size / (time.perf_counter() - start)
    batches.close()
    runner = Runner(config)
    taken = resolved.batch_size / float(np.median([runner.seconds() for _ in range(rounds)]))
    render_table(
        f"host pipeline and train step, {data.source}, batch {resolved.batch_size}",
        ["pipeline images/s", "step images/s", "ratio"],
        [[round(made), round(taken), made / taken]],
    )


class Runner:
    """A compiled train step with its state, on one random batch.

    Attributes:
      profile: of the step; with an estimate of its time where rates are given.
    """

    def __init__(self, config: ml_collections.ConfigDict, rates: Rates | None = None):
        placement, config = place_config(config, jax.devices())
        learner = placement.learner
        self._step, self.profile = compile_step(placement, config.batch_size, rates=rates)
        self._state = placement.init_for(self._step, jax.random.key(0))
        self._made = learner.batch.random(config.batch_size)
        self._batches = learner.batches or 1
        self._batch = placement.place([self._made] * self._batches)
        self._key = jax.device_put(
            jax.random.key(1),
            jax.sharding.NamedSharding(placement.mesh, jax.sharding.PartitionSpec()),
        )
        self._prepare = jax.jit(learner.objective.prepare)
        fitted = self._state.fitted
        self._fitted = () if fitted is None else (np.asarray(fitted),)
        self.seconds()  # the first step warms up

    def seconds(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Takes a step; returns the seconds of a batch."""
        start = clock()
        self._state, _ = self._step(self._state, self._batch, self._key)
        jax.block_until_ready(self._state)
        return (clock() - start) / self._batches

    def preparation_seconds(self) -> float:
        """Measures `Objective.prepare` by itself."""
        start = time.perf_counter()
        jax.block_until_ready(self._prepare(jax.random.key(1), self._made, *self._fitted))
        return time.perf_counter() - start
