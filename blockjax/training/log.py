"""The metrics of every step: checked, logged, and what they are signs of."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from blockjax.probes import collapse
from blockjax.report.progress import Progress
from blockjax.training.setup import Setup
from blockjax.training.waiting import Waiting
from blockjax.workdir.metrics import Writer


class MetricsLog:
    """Checks the metrics of every step, and writes every so many."""

    def __init__(
        self,
        run: Setup,
        writer: Writer,
        progress: Progress,
        start: int,
        waited: Callable[[], float] = lambda: 0.0,
    ):
        """Drops what the files say of steps after `start`, from which the run goes on.

        Args:
          run: says which steps are logged.
          writer: of metrics.jsonl and events.
          progress: on the screen.
          start: steps done before.
          waited: tells the seconds for which the devices had nothing to do but wait for a batch, so far.
        """
        self._run, self._writer, self._progress = run, writer, progress
        last = writer.resume_after(start)
        self._seconds_before = last["seconds"] if last else 0.0
        self._begin = self._since = self._called = time.perf_counter()
        self._since_step = start
        self._warned = set()
        self._waiting = Waiting(run.config, waited, self._begin)

    def steps(self, before, done, metrics, monitored):
        """Takes the metrics of one call, [K] of one step or [n, K] of several, whose time they share equally.

        What was monitored after the last one is logged with the last that is logged.
        """
        metrics, monitored = jax.device_get((metrics, monitored))
        now = time.perf_counter()
        for step in range(before + 1, done + 1):
            row = {
                name: value.reshape(-1, value.shape[-1])[step - before - 1]
                for name, value in metrics.items()
            }
            share = (step - before) / (done - before)
            is_last = not any(map(self._run.is_logged, range(step + 1, done + 1)))
            self.step(
                step, row, monitored if is_last else {}, self._called + share * (now - self._called)
            )
        self._called = now

    def step(self, step: int, metrics: dict, monitored: dict, now: float) -> None:
        """Takes the metrics of one step, {name: [K]}, which ended at this time.

        Raises:
          FloatingPointError: a loss or a gradient norm is not finite; names the blocks.
        """
        config = self._run.config
        learner = self._run.learner
        trained = range(len(metrics["loss"]))
        if learner.trained is not None:
            trained = [learner.trained(step - 1)[0]]
        _check_finite(step, metrics, trained)
        if not self._run.is_logged(step):
            return
        batch = learner.batch
        units = (step - self._since_step) * config.batch_size * batch.units
        rate = units / max(now - self._since, 1e-9)
        self._since, self._since_step = now, step
        row = {
            "step": step,
            "examples": step * config.batch_size,
            "seconds": self._seconds_before + now - self._begin,
            f"{batch.unit}_per_second": rate,
            "learning_rate": learner.learning_rate(step - 1),
            "data/wait_share": self._waiting.share(now),
        }
        # Under end_to_end features are read at K depths, though there is one loss.
        for name, values in [
            *sorted(metrics.items(), key=lambda item: item[0] != "loss"),
            *monitored.items(),
        ]:
            blocks = trained if name in metrics else range(len(values))
            row |= {f"block_{k + 1}/{name}": float(values[k]) for k in blocks}
        self._writer.write(row.pop("step"), row)
        self._progress.update(step, metrics["loss"].tolist(), rate)
        if warning := self._waiting.warning():
            self._progress.print(f"warning: step {step}: {warning}")
        objective, progress = learner.objective, step / self._run.steps
        # What is a sign of trouble in the objective's own loss is none in the sum with a technique's terms.
        own = {**metrics, "loss": metrics.get("local_loss", metrics["loss"])}
        self._warn(step, own, lambda of_block: objective.symptoms(of_block, progress), trained)
        blocks = range(len(next(iter(monitored.values()), ())))
        if learner.trained is not None:
            blocks = [k for k in blocks if k <= trained[0]]  # the others are as they started
        self._warn(step, monitored, collapse.symptoms, blocks)

    def _warn(self, step, metrics, symptoms, blocks):
        """Says what the metrics of a block are a sign of; once for each block."""
        for k in blocks:
            signs = symptoms({name: float(values[k]) for name, values in metrics.items()})
            if signs and k not in self._warned:
                self._warned.add(k)
                self._progress.print(f"warning: step {step}, block {k + 1}: " + "; ".join(signs))


def is_done(metrics: Any) -> bool:
    """Whether the step that these metrics are of has ended."""
    return all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))


def _check_finite(step, metrics, trained):
    for name in ("loss", "gradient_norm"):
        bad = [k + 1 for k in trained if not np.isfinite(metrics[name][k])]
        if bad:
            blocks = ", ".join(f"block {k}" for k in bad)
            raise FloatingPointError(
                f"step {step}: {name.replace('_', ' ')} of {blocks} is {metrics[name][bad[0] - 1]}. The newest "
                "checkpoint is from before that. Try a smaller optimizer.base_learning_rate, a longer "
                "optimizer.warmup_steps, optimizer.clip=1.0, or dtype=float32."
            )
