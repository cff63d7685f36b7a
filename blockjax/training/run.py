"""The training loop: a run from a config and a workdir to its summary."""

import collections
import contextlib
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from blockjax.data.evaluation import evaluation_images
from blockjax.learner.placement import program_at, state_formats
from blockjax.memory.frugal import what_fits
from blockjax.memory.profiles import MIB, DoesNotFit, compile_step
from blockjax.probes import collapse
from blockjax.report.progress import Progress
from blockjax.training.data import device_batches
from blockjax.training.log import MetricsLog, is_done
from blockjax.training.report import plan, report
from blockjax.training.setup import Setup
from blockjax.training.signals import caught_signals
from blockjax.workdir.checkpoint import Checkpoints, UnusableCheckpoint
from blockjax.workdir.lock import locked
from blockjax.workdir.metrics import Writer
from blockjax.xla.targets import local_limit


class Interrupted(Exception):
    """Training was stopped by a signal, after a checkpoint was written."""


class Training(Setup):
    """A run from its config and workdir to its summary."""

    def run(self) -> dict[str, Any]:
        """Trains, or goes on where a checkpoint of this workdir stands; then probes, draws and reports.

        Returns:
          The summary, as written to summary.json.

        Raises:
          ValueError: the step does not fit the device (`DoesNotFit`, which names what would), or the checkpoints cannot
            be used.
          WorkdirInUse: another process trains in the workdir.
          NotSaved: a checkpoint cannot be written.
          FloatingPointError: a loss or gradient is not finite; names step and block.
          Interrupted: a SIGTERM or SIGINT came; a checkpoint was written.
        """
        self.print(plan(self))
        with locked(self.workdir) if self.is_first_process else contextlib.nullcontext():
            state = self._trained()
            return report(self, self.placement.readable(state))

    def _trained(self):
        """Returns the last state, of the checkpoint that is there or after training."""
        with contextlib.closing(
            Checkpoints(self.workdir / "checkpoints", keep=self.config.checkpoint.keep)
        ) as checkpoints:
            restored = checkpoints.restore_newest(self.abstract_state)
            step, state, data_state = restored or (0, None, None)
            if step < self.steps:
                if step:
                    self.print(f"resume      at step {step}")
                state = self._train(step, state, data_state, checkpoints)
        return state

    def _compile(self):
        limit = local_limit(jax.local_devices()[0])
        try:
            compiled, memory = compile_step(self.placement, self.config.batch_size, limit)
        except DoesNotFit as error:
            raise DoesNotFit(f"{error}; {self._what_fits(limit)}") from error
        host = f"; {memory.host / MIB:,.0f} MiB of host memory" if memory.host else ""
        self.print(
            f"memory      {memory.total / MIB:,.0f} MiB on each device: {memory.temp / MIB:,.0f} scratch, "
            f"{memory.argument / MIB:,.0f} state and batch{host} (compiled in {memory.compile_seconds:.0f} s)"
        )
        for name, size in memory.programs.items():
            self.print(f"{'':12}{size / MIB:,.0f} MiB in steps of {name}")
        if memory.fits is False:
            raise DoesNotFit(
                f"the step needs {memory.total / MIB:,.0f} MiB on each device, which has {limit / MIB:,.0f}; "
                + self._what_fits(limit)
            )
        return compiled

    def _what_fits(self, limit):
        self.print("does not fit: looking for the nearest config that does")
        return what_fits(
            self.config, self.mesh, self.steps, limit, lambda text: self.print(f"{'':12}{text}")
        )

    def _train(self, start, state, data_state, checkpoints):
        """Trains from a restored state, or from a new one if that is None, and returns the last."""
        config = self.config
        batches = device_batches(config, self.train_source, self.placement, self.steps - start)
        if data_state is not None:
            try:
                batches.set_state(data_state)
            except ValueError as error:  # the data changed
                raise UnusableCheckpoint(f"--workdir {self.workdir}: {error}") from error
        train_step = self._compile()
        if state is None:
            state = self.placement.init_for(train_step, self.key("init"))
            if self.backbone is not None:
                state = self.learner.start_from(state, self.backbone)
            state = self._fitted(state)
        else:
            state = jax.device_put(state, state_formats(train_step), donate=True)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        key = jax.jit(lambda: self.key("train"), out_shardings=everywhere)()
        pending = collections.deque()  # metrics of steps that may still be running
        with (
            contextlib.closing(batches),
            contextlib.closing(Writer(self.workdir, enabled=self.is_first_process)) as writer,
            Progress(
                self.steps,
                start,
                speed_unit=self.learner.batch.unit,
                enabled=self.is_first_process,
            ) as progress,
            caught_signals() if jax.process_count() == 1 else contextlib.nullcontext([]) as caught,
        ):
            log = MetricsLog(self, writer, progress, start, lambda: batches.waited)
            done, at_once, every = start, self.learner.batches or 1, config.checkpoint.every
            while done < self.steps:
                batch = batches.take(lambda: bool(pending) and not is_done(pending[-1][2]))
                state, metrics = program_at(train_step, done)(state, batch, key)
                before, done = done, min(done + at_once, self.steps)
                pending.append((before, done, metrics, self._monitored(before, done, state, batch)))
                last = done == self.steps
                stop = self._is_stopped(caught, done)
                save = last or done // every > before // every or stop
                # Metrics are read a step late, so that the device never waits for the host; but nothing is saved
                # that was not seen to be finite.
                while len(pending) > (0 if save else 1):
                    log.steps(*pending.popleft())
                if save:
                    checkpoints.save(done, state, batches.get_state())
                if stop and not last:
                    checkpoints.wait()
                    name = signal.Signals(caught[0]).name if caught else "preempted"
                    raise Interrupted(
                        f"{name}: stopped after step {done} of {self.steps}, with a "
                        f"checkpoint in {self.workdir}. The same command goes on from there."
                    )
            checkpoints.wait()
        return state

    def _fitted(self, state):
        """Returns the first state with what the objective fits to the data before training, if it does."""
        objective, config = self.learner.objective, self.config
        if objective.fitted_shape is None:
            return state
        self.print(
            f"fit         {config.objective}: to at most {config.tokenizer.examples:,} images"
        )
        images, _ = evaluation_images(
            self.train_source,
            config.model.image_size,
            limit=config.tokenizer.examples,
            on_corrupt=config.data.on_corrupt,
        )
        fitted = objective.fit(self.key("fit"), images)
        return state.replace(fitted=jax.device_put(fitted, state.fitted.format))

    def _monitored(self, before, done, state, batch):
        """Returns how features differ after these steps, {name: [K]}; {} where nobody looks."""
        log = self.config.log
        if not log.monitor_every or self.learner.objective.modality != "images":
            return {}

        def is_due(step):
            logged = max(0, step - log.every)
            is_next = step // log.monitor_every > logged // log.monitor_every
            return self.is_logged(step) and (is_next or step == self.steps)

        if not any(map(is_due, range(before + 1, done + 1))):
            return {}
        # Later batches of the step are there to fill up.
        images = self.placement.encoded(batch, done - before - 1)
        return collapse.monitor(self.learner, self.mesh, self.placement.readable(state), images)

    def _is_stopped(self, caught, done):
        """Whether a signal came; with several processes, to any of them, and at a step on which all agree."""
        if jax.process_count() == 1:
            return bool(caught)
        return multihost_utils.reached_preemption_sync_point(done)
