"""Measures what the README claims about speed: ratios against a baseline, taken in turns in one process."""

import argparse
import sys
import time
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np

from blockjax import probes as probe_lib
from blockjax import stages as stages_lib
from blockjax.data.pipeline import train_batches
from blockjax.data.sources import open_source
from blockjax.kernels.masked_reconstruction import benchmark as kernel_lib
from blockjax.main import load_config
from blockjax.memory.profiles import MIB, compile_step, prepare
from blockjax.memory.targets import parse_target
from blockjax.progress import render_table
from blockjax.variants import OPTIONS, vary

# The first is what all others are compared with.
STRATEGIES = (
    "blockwise",
    "blockwise+remat",
    "end_to_end",
    "end_to_end+unroll",
    "end_to_end+remat",
    "end_to_end+unroll+mae_decoder",
)

BENCHMARKS = ("step", "prepare", "pipeline", "stages", "kernel", "probes")


def main() -> None:
    """Runs one benchmark and prints its table."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.benchmark", description=__doc__, epilog=f"options: {OPTIONS}"
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--rounds", type=int, default=10, help="how often each variant is timed")
    parser.add_argument(
        "--strategies",
        default=",".join(STRATEGIES),
        help="of step, with commas between; all are compared with the first (default: %(default)s)",
    )
    for name, default, text in (
        ("targets", "local", "devices to compile for, with commas between: h100, v5e, ..."),
        ("shapes", ",".join(kernel_lib.SHAPES), "of batches of patches, with commas between"),
        ("cases", ";".join(kernel_lib.CASES), "dtypes and normalisation, with semicolons between"),
    ):
        parser.add_argument(
            f"--{name}", default=default, help=f"of kernel: {text} (default: %(default)s)"
        )
    for name, default, text in (
        ("stages", 4, "how many"),
        ("batches", 32, "how many from filling to draining the pipeline"),
        ("blocks", 6, "of each stage"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"of stages: {text} (default: %(default)s)"
        )
    for name, default, text in (
        ("examples", 50_000, "features that are learned from"),
        ("width", 192, "of the features"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"of probes: {text} (default: %(default)s)"
        )
    arguments = parser.parse_args()
    try:
        if arguments.benchmark == "probes":
            probes(arguments.examples, arguments.width)
            return
        if arguments.benchmark == "stages":
            stages(arguments.stages, arguments.batches, arguments.blocks)
            return
        if arguments.benchmark == "kernel":
            kernel(
                arguments.targets.split(","),
                arguments.shapes.split(","),
                arguments.cases.split(";"),
            )
            return
        config = load_config(arguments.config)
        if arguments.benchmark == "step":
            step(config, arguments.rounds, arguments.strategies.split(","))
        elif arguments.benchmark == "prepare":
            preparation(config, arguments.rounds)
        else:
            pipeline(config, arguments.rounds)
    except ValueError as error:
        sys.exit(f"error: {error}")


def step(config: ml_collections.ConfigDict, rounds: int, strategies: Sequence[str]) -> None:
    """Prints each strategy's step time as a ratio to the first: medians of steps taken in turns."""
    runners = {name: _Runner(vary(config, name)) for name in strategies}
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
            [name, round(1000 * t), t / base, round(runners[name].temp / MIB)]
            for name, t in medians.items()
        ],
    )


def preparation(config: ml_collections.ConfigDict, rounds: int) -> None:
    """Prints what the objective's views, tiles or masks take of a step, of which they are a part: medians, in turns."""
    runner = _Runner(config)
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
    resolved = prepare(config, jax.devices())[2]
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


def stages(count: int, batches: int, blocks: int) -> None:
    """Prints how busy simulated stages are, block-wise and end to end with 1F1B, and what it takes."""
    runs = {"pipelined": stages_lib.blockwise(count, batches, blocks)}
    for microbatches in (1, count, 4 * count):
        name = f"end to end, 1F1B, {microbatches} microbatch{'es' if microbatches > 1 else ''}"
        runs[name] = stages_lib.one_forward_one_backward(count, batches, microbatches)
    render_table(
        f"simulated: {count} stages, {batches} batches, {blocks} blocks a stage; held: of a stage's activations",
        ["schedule", "busy", "held, first", "held, last", "streams sent"],
        [
            [name, f"{run.busy:.1%}", run.held[0], run.held[-1], run.sent]
            for name, run in runs.items()
        ],
    )


def kernel(targets: Sequence[str], shapes: Sequence[str], cases: Sequence[str]) -> None:
    """Prints for each implementation of the masked reconstruction loss what it moves and, on a device, its time."""
    for target in targets:
        rows, bandwidth = [], parse_target(target).bandwidth
        head = ["shape", "predictions, targets", "pass", "implementation", "moved MB", "/ least"]
        head += ["temp MB", "floor ms"]
        for row in kernel_lib.run(target, shapes, cases):
            print(
                f"{target}: {row.shape}, {row.case}, {row.part}, {row.implementation}", flush=True
            )
            rows.append([row.shape, row.case, row.part])
            rows[-1] += [row.implementation + (" (kernel)" if row.kernel else "")]
            rows[-1] += [round(row.moved / 1e6, 1), f"{row.moved / row.least:.2f}"]
            rows[-1] += [round(row.temp / 1e6, 1)]
            rows[-1] += ["-" if bandwidth is None else f"{1e3 * row.moved / bandwidth:.3f}"]
            if row.seconds is not None:
                rows[-1] += [f"{1e3 * row.seconds:.3f}", f"{row.copy_fraction:.0%}"]
                rows[-1] += [f"{row.error:.1e}"]
        if rows and len(rows[0]) > len(head):
            head += ["ms", "of a copy's speed", "error"]
        render_table(f"masked reconstruction loss, {target}", head, rows)


def probes(examples: int, width: int, tests: int = 5000, classes: int = 10) -> None:
    """Prints accuracy and time of probes beside scikit-learn's, on the same features: classes that overlap.

    Each is called twice and the second call is timed, so nothing is compiled in it.

    Raises:
      ValueError: scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression, RidgeClassifierCV, SGDClassifier
        from sklearn.neighbors import KNeighborsClassifier
    except ImportError as error:
        raise ValueError(
            "the benchmark compares with scikit-learn: pip install scikit-learn"
        ) from error
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(classes, width)).astype(np.float32)
    labels = rng.integers(0, classes, examples + tests)
    spread = 0.35 * np.sqrt(width)
    features = centers[labels] + spread * rng.normal(size=(len(labels), width)).astype(np.float32)
    train = features[:examples], labels[:examples]
    test = features[examples:], labels[examples:]
    mean, std = probe_lib.standardizer(train[0])
    scaled = [(part - mean) / std for part in (train[0], test[0])]

    def neighbours(k):
        def weights(distances):
            return np.exp((1.0 - distances) / probe_lib.TEMPERATURE)

        model = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=weights, n_jobs=-1
        )
        return model.fit(*train).score(*test)

    def linear(model):
        return model.fit(scaled[0], train[1]).score(scaled[1], test[1])

    def descent():
        """As many epochs at as many rates, the best by held-out data; an example at a time."""
        held = np.arange(examples) % 10 == 9

        def fitted(rate, rows):
            model = SGDClassifier(
                "log_loss",
                penalty=None,
                max_iter=probe_lib.EPOCHS,
                tol=None,
                learning_rate="constant",
                eta0=rate / 256,
                n_jobs=-1,
            )
            return model.fit(scaled[0][rows], train[1][rows])

        scores = [
            fitted(rate, ~held).score(scaled[0][held], train[1][held]) for rate in probe_lib.RATES
        ]
        best = fitted(probe_lib.RATES[int(np.argmax(scores))], slice(None))
        return best.score(scaled[1], test[1])

    penalties = np.float64(probe_lib.PENALTIES) * examples
    pairs = {
        "kNN, 20": (
            lambda: probe_lib.knn_accuracies(*train, *test, classes, (20,))[0],
            lambda: neighbours(20),
        ),
        "kNN, 200": (
            lambda: probe_lib.knn_accuracies(*train, *test, classes, (200,))[0],
            lambda: neighbours(200),
        ),
        "kNN, 20 and 200 (mean)": (
            lambda: np.mean(probe_lib.knn_accuracies(*train, *test, classes)),
            lambda: np.mean([neighbours(20), neighbours(200)]),
        ),
        "linear (RidgeClassifierCV)": (
            lambda: probe_lib.linear_accuracy(*train, *test, classes),
            lambda: linear(RidgeClassifierCV(penalties)),
        ),
        "linear_sgd (SGDClassifier)": (
            lambda: probe_lib.sgd_accuracy(*train, *test, classes),
            descent,
        ),
        "linear_sgd (LogisticRegression)": (
            lambda: probe_lib.sgd_accuracy(*train, *test, classes),
            lambda: linear(LogisticRegression(C=np.inf, max_iter=1000)),
        ),
    }
    rows = []
    for name, (ours, theirs) in pairs.items():
        ours()
        (mine, seconds), (other, their_seconds) = map(_timed, (ours, theirs))
        rows.append([name, mine, other, seconds, their_seconds, their_seconds / seconds])
        print(f"{name}: {mine:.4f}, scikit-learn {other:.4f}", flush=True)
    render_table(
        f"probes of {examples:,} features of width {width}, {tests:,} queries, {jax.devices()[0].device_kind}",
        ["probe", "accuracy", "scikit-learn's", "s", "scikit-learn's s", "times faster"],
        rows,
    )


def _timed(function):
    start = time.perf_counter()
    value = function()
    return value, time.perf_counter() - start


class _Runner:
    """A compiled train step with its state, on one random batch."""

    def __init__(self, config):
        learner, mesh, config = prepare(config, jax.devices())
        self._step, profile = compile_step(learner, mesh, config.batch_size)
        self.temp = profile.temp
        self._state = learner.init_for(self._step, jax.random.key(0))
        shape = (config.batch_size, config.model.image_size, config.model.image_size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self._batches = learner.batches or 1
        labels = np.zeros(len(images), np.int32)
        self._batch = learner.place(mesh, [{"image": images, "label": labels}] * self._batches)
        self._key = jax.device_put(
            jax.random.key(1), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        )
        self._prepare, self._images = jax.jit(learner.objective.prepare), {"image": images}
        fitted = self._state.fitted
        self._fitted = () if fitted is None else (np.asarray(fitted),)
        self.seconds()  # the first step warms up

    def seconds(self):
        start = time.perf_counter()
        self._state, _ = self._step(self._state, self._batch, self._key)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) / self._batches

    def preparation_seconds(self):
        """Measures `Objective.prepare` by itself."""
        start = time.perf_counter()
        jax.block_until_ready(self._prepare(jax.random.key(1), self._images, *self._fitted))
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
