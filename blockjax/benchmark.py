"""Measures what the README claims about speed: ratios against a baseline, taken in turns in one process."""

import argparse
import time

import jax
import ml_collections
import numpy as np

from blockjax import config as config_lib
from blockjax.data.pipeline import train_batches
from blockjax.data.sources import open_source
from blockjax.learner import make_learner
from blockjax.main import load_config
from blockjax.memory.profile import MIB, compile_step
from blockjax.progress import render_table
from blockjax.sharding import batch_sharding, make_mesh, mesh_shape

# Name -> what differs from the config. The first row is what all others are compared with.
STEP_VARIANTS = {
    "blockwise": {"strategy": "blockwise"},
    "blockwise, remat": {"strategy": "blockwise", "remat": "layer"},
    "end to end": {"strategy": "end_to_end"},
    "end to end, unrolled": {"strategy": "end_to_end", "unroll": True},
    "end to end, remat": {"strategy": "end_to_end", "remat": "layer"},
    "end to end, MAE's decoder": {"strategy": "end_to_end", "unroll": True, "mae_decoder": True},
}


def main() -> None:
    """Runs one benchmark and prints its table."""
    parser = argparse.ArgumentParser(prog="python -m blockjax.benchmark", description=__doc__)
    parser.add_argument("benchmark", choices=("step", "pipeline"))
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=10, help="how often each variant is timed")
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    {"step": step, "pipeline": pipeline}[arguments.benchmark](config, arguments.rounds)


def step(config: ml_collections.ConfigDict, rounds: int) -> None:
    """Prints each strategy's step time as a ratio to `blockwise`: medians of steps taken in turns."""
    runners = {name: _Runner(_variant(config, **fields)) for name, fields in STEP_VARIANTS.items()}
    times = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            runner.seconds()  # the variant before it has left its own data in the caches
            times[name].append(runner.seconds())
    medians = {name: float(np.median(seconds)) for name, seconds in times.items()}
    base = medians["blockwise"]
    render_table(
        f"step time, {jax.devices()[0].device_kind}, batch {config.batch_size}, {rounds} rounds",
        ["strategy", "ms", "time / blockwise", "scratch MiB"],
        [
            [name, round(1000 * t), t / base, round(runners[name].temp / MIB)]
            for name, t in medians.items()
        ],
    )


def pipeline(config: ml_collections.ConfigDict, rounds: int) -> None:
    """Prints how many images per second the host makes, and how many the train step takes."""
    resolved = _resolve(config)
    data = resolved.data
    batches = train_batches(
        open_source(data.source, data.train_split, data.dir),
        batch_size=resolved.batch_size,
        image_size=resolved.model.image_size,
        seed=resolved.seed,
        flip=data.flip,
        crop_scale=tuple(data.crop_scale),
        shift=data.shift,
        workers=data.workers,
        on_corrupt=data.on_corrupt,
    )
    count = 20 * rounds
    start = time.perf_counter()  # from the start: a filled buffer would flatter the pipeline
    for _ in range(count):
        next(batches)
    made = count * resolved.batch_size / (time.perf_counter() - start)
    batches.close()
    runner = _Runner(config)
    taken = resolved.batch_size / float(np.median([runner.seconds() for _ in range(rounds)]))
    render_table(
        f"host pipeline and train step, {data.source}, batch {resolved.batch_size}",
        ["pipeline images/s", "step images/s", "ratio"],
        [[round(made), round(taken), made / taken]],
    )


class _Runner:
    """A compiled train step with its state, on one random batch."""

    def __init__(self, config):
        config = _resolve(config)
        devices = jax.devices()
        mesh = make_mesh(mesh_shape(config.mesh, len(devices)), devices)
        learner = make_learner(config, config.steps)
        self._step, profile = compile_step(learner, mesh, config.batch_size)
        self.temp = profile.temp
        self._state = learner.init_for(self._step, jax.random.key(0))
        shape = (config.batch_size, config.model.image_size, config.model.image_size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self._batch = jax.device_put({"image": images}, batch_sharding(mesh))
        self._key = jax.device_put(
            jax.random.key(1), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        )
        self.seconds()  # the first step warms up

    def seconds(self):
        start = time.perf_counter()
        self._state, _ = self._step(self._state, self._batch, self._key)
        jax.block_until_ready(self._state)
        return time.perf_counter() - start


def _resolve(config):
    config = config_lib.resolve(config, devices=jax.device_count(), platform=jax.default_backend())
    config.steps = config.steps or 1000  # enters the learning rate only
    config_lib.fill_lengths(config, config.steps)
    return config


def _variant(config, *, strategy, remat="none", unroll=False, mae_decoder=False):
    config = config.copy_and_resolve_references()
    config.strategy, config.remat = strategy, remat
    if unroll:
        config.model.unroll = _resolve(config).model.depth
    if mae_decoder:
        config.decoder.kind = "self_attention"
        config.decoder.depth, config.decoder.width, config.decoder.fraction = 8, 512, 1.0
    return config


if __name__ == "__main__":
    main()
