"""The training loop: the only file that knows most others."""

import collections
import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from blockjax import config as config_lib
from blockjax import figures, finetune, monitor
from blockjax.checkpoint import Checkpoints
from blockjax.data.pipeline import DevicePrefetch, Groups, evaluation_images, train_batches
from blockjax.data.sources import fraction_of, open_source
from blockjax.learner import make_learner, run_key, state_formats
from blockjax.memory.profiles import MIB, DoesNotFit, compile_step
from blockjax.memory.targets import local_limit
from blockjax.objectives import TASKS
from blockjax.probes import probe_blocks
from blockjax.progress import Progress, render_table
from blockjax.sharding import make_mesh, mesh_shape, process_rows
from blockjax.transfer import fitted_params, start_of
from blockjax.writers import Writer, read_metrics, write_bytes_atomic, write_json_atomic


class Interrupted(Exception):
    """Training was stopped by a signal, after a checkpoint was written."""


class Pretraining:
    """A run: made from a config and a workdir, with everything checked before anything is compiled."""

    def __init__(self, config: ml_collections.ConfigDict, workdir: str | os.PathLike):
        """Checks the config, opens the data and claims the workdir.

        Args:
          config: as a config file returns it, with the command line's changes.
          workdir: folder for all that the run writes; a run that was stopped there goes on.

        Raises:
          ValueError: the config, the data or the workdir cannot be used; says what to change.
        """
        config, backbone = start_of(config)
        self.config = config_lib.resolve(
            config, devices=jax.device_count(), platform=jax.default_backend()
        )
        data = self.config.data
        self.train_source = fraction_of(
            open_source(data.source, data.train_split, data.dir), data.fraction, self.config.seed
        )
        self.test_source = open_source(data.source, data.test_split, data.dir)
        if TASKS[self.config.objective].takes_labels:
            self.config.classifier.classes = finetune.count_classes(
                self.config, self.train_source, self.test_source
            )
        self.steps = config_lib.total_steps(self.config, len(self.train_source))
        config_lib.fill_lengths(self.config, self.steps)
        self.workdir = claim_workdir(Path(workdir), self.config)
        self.mesh = make_mesh(mesh_shape(self.config.mesh, jax.device_count()))
        self.learner = make_learner(self.config, self.steps)
        self.abstract_state = self.learner.abstract_state(self.mesh)
        self._backbone = None
        if backbone is not None:
            self._backbone = fitted_params(backbone, self.learner.vit, config.backbone)
        self.is_first_process = jax.process_index() == 0

    def run(self) -> dict[str, Any]:
        """Trains, or goes on where a checkpoint of this workdir stands; then probes, draws and reports.

        Returns:
          The summary, as written to summary.json.

        Raises:
          ValueError: the step does not fit the device (`DoesNotFit`, which names what would), or the checkpoints cannot
            be used.
          FloatingPointError: a loss or gradient is not finite; names step and block.
          Interrupted: a SIGTERM or SIGINT came; a checkpoint was written.
        """
        self._print_plan()
        with contextlib.closing(
            Checkpoints(self.workdir / "checkpoints", keep=self.config.checkpoint.keep)
        ) as checkpoints:
            restored = checkpoints.restore_newest(self.abstract_state)
            step, state, data_state = restored or (0, None, None)
            if step < self.steps:
                if step:
                    self._print(f"resume      at step {step}")
                state = self._train(step, state, data_state, checkpoints)
        return self._report(state)

    def _print_plan(self):
        config, learner = self.config, self.learner
        abstract = self.abstract_state
        stem = _count(abstract.stem.params)
        layers = _count(abstract.blocks.params["layers"]) // learner.rows
        head = _count(abstract.blocks.params["head"]) // learner.rows
        device = jax.devices()[0]
        mesh = ", ".join(f"{axis} {size}" for axis, size in self.mesh.shape.items())
        each = "" if learner.rows == 1 else "each "
        self._print(
            f"run         {config.objective}, {config.strategy}, {config.dtype}, {self.steps} steps of "
            f"{config.batch_size} images -> {self.workdir}\n"
            f"data        {self.train_source.description}\n"
            f"devices     {jax.device_count()} x {device.device_kind}; mesh {mesh}\n"
            f"start       {config.backbone if self._backbone is not None else 'random numbers'}\n"
            f"encoder     {config.model.depth} layers of width {config.model.width} in {learner.rows} "
            f"block{'s' if learner.rows > 1 else ''}; stem {stem:,} parameters\n"
            f"blocks      {each}{layers:,} parameters in layers, {head:,} in the head"
        )

    def _compile(self):
        limit = local_limit(jax.local_devices()[0])
        try:
            compiled, memory = compile_step(self.learner, self.mesh, self.config.batch_size, limit)
        except DoesNotFit as error:
            raise DoesNotFit(f"{error}; {self._what_fits(limit)}") from error
        host = f"; {memory.host / MIB:,.0f} MiB of host memory" if memory.host else ""
        self._print(
            f"memory      {memory.total / MIB:,.0f} MiB on each device: {memory.temp / MIB:,.0f} scratch, "
            f"{memory.argument / MIB:,.0f} state and batch{host} (compiled in {memory.compile_seconds:.0f} s)"
        )
        if memory.fits is False:
            raise DoesNotFit(
                f"the step needs {memory.total / MIB:,.0f} MiB on each device, which has {limit / MIB:,.0f}; "
                + self._what_fits(limit)
            )
        return compiled

    def _what_fits(self, limit):
        """Names the nearest config whose step fits; compiles one after another, which takes a while."""
        self._print("does not fit: looking for the nearest config that does")
        for changes in config_lib.frugal_changes(self.config, self.mesh.size):
            config = self.config.copy_and_resolve_references()
            for field, value in changes.items():
                config_lib.set_field(config, field, value)
            text = " ".join(f"--config.{field}={value}" for field, value in changes.items())
            try:
                learner = make_learner(config, self.steps)
                _, memory = compile_step(learner, self.mesh, config.batch_size, limit)
            except DoesNotFit:
                memory = None
            if memory is not None and memory.fits is not False:
                return f"{text} needs {memory.total / MIB:,.0f} MiB"
            self._print(f"            {text}: does not fit either")
        return "nothing near fits: try a smaller model or more devices"

    def _key(self, name):
        return run_key(self.config.seed, name)

    def _batches(self, start, data_state):
        config = self.config
        batches = train_batches(
            self.train_source,
            batch_size=config.batch_size,
            image_size=config.model.image_size,
            seed=config.seed,
            flip=config.data.flip,
            crop_scale=tuple(config.data.crop_scale),
            shift=config.data.shift,
            workers=config.data.workers,
            on_corrupt=config.data.on_corrupt,
            rows=process_rows(self.mesh, config.batch_size),
        )
        if data_state is not None:
            batches.set_state(data_state)

        def put(group):
            return self.learner.place(self.mesh, group)

        groups = Groups(batches, self.learner.batches or 1, self.steps - start)
        return DevicePrefetch(groups, put, size=2 if self.learner.batches is None else 1)

    def _train(self, start, state, data_state, checkpoints):
        """Trains from a restored state, or from a new one if that is None, and returns the last."""
        config, train_step = self.config, self._compile()
        if state is None:
            state = self.learner.init_for(train_step, self._key("init"))
            if self._backbone is not None:
                state = self.learner.start_from(state, self._backbone)
            state = self._fitted(state)
        else:
            state = jax.device_put(state, state_formats(train_step), donate=True)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        key = jax.jit(lambda: self._key("train"), out_shardings=everywhere)()
        pending = collections.deque()  # metrics of steps that may still be running
        with (
            contextlib.closing(self._batches(start, data_state)) as batches,
            contextlib.closing(Writer(self.workdir, enabled=self.is_first_process)) as writer,
            Progress(self.steps, start, enabled=self.is_first_process) as progress,
            _caught_signals() if jax.process_count() == 1 else contextlib.nullcontext([]) as caught,
        ):
            log = _Log(self, writer, progress, start)
            done, at_once, every = start, self.learner.batches or 1, config.checkpoint.every
            while done < self.steps:
                batch = next(batches)
                state, metrics = train_step(state, batch, key)
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
        self._print(
            f"fit         {config.objective}: to at most {config.tokenizer.examples:,} images"
        )
        images, _ = evaluation_images(
            self.train_source,
            config.model.image_size,
            limit=config.tokenizer.examples,
            on_corrupt=config.data.on_corrupt,
        )
        fitted = objective.fit(self._key("fit"), images)
        return state.replace(fitted=jax.device_put(fitted, state.fitted.format))

    def is_logged(self, step: int) -> bool:
        """Whether metrics.jsonl has a row for this step."""
        return step % self.config.log.every == 0 or step in (1, self.steps)

    def _monitored(self, before, done, state, batch):
        """Returns how features differ after these steps, {name: [K]}; {} where nobody looks."""
        log = self.config.log
        if not log.monitor_every:
            return {}

        def is_due(step):
            logged = max(0, step - log.every)
            is_next = step // log.monitor_every > logged // log.monitor_every
            return self.is_logged(step) and (is_next or step == self.steps)

        if not any(map(is_due, range(before + 1, done + 1))):
            return {}
        last = done - before - 1  # later ones are there to fill up
        images = batch["batches"]["image"][last] if self.learner.batches else batch["image"]
        state = self.learner.readable(state, self.mesh)
        return monitor.monitor(self.learner, self.mesh, state, images)

    def _is_stopped(self, caught, done):
        """Whether a signal came; with several processes, to any of them, and at a step on which all agree."""
        if jax.process_count() == 1:
            return bool(caught)
        return multihost_utils.reached_preemption_sync_point(done)

    def _report(self, state):
        config, state = self.config, self.learner.readable(state, self.mesh)
        classifies = self.learner.objective.takes_labels
        probes = [] if classifies else self._probe(state)
        tested = finetune.accuracies(self, state) if classifies else []
        rows = read_metrics(self.workdir / "metrics.jsonl")
        summary = {
            "strategy": config.strategy,
            "steps": self.steps,
            "seconds": rows[-1]["seconds"] if rows else 0.0,
            "images_per_second": (rows[-1]["examples"] / rows[-1]["seconds"]) if rows else 0.0,
            "probes": probes,
        }
        if classifies:
            summary["accuracy"] = tested
        images, _ = evaluation_images(
            self.test_source, config.model.image_size, limit=10, on_corrupt=config.data.on_corrupt
        )
        # What the blocks make of an image where they make one; else what the objective sees.
        draws = hasattr(self.learner.objective, "picture")
        draw = figures.reconstruction if draws else figures.views
        picture = draw(self.learner, state, images, self._key("figure"))
        if not self.is_first_process:
            return summary
        folder = self.workdir / "figures"
        folder.mkdir(exist_ok=True)
        name = "reconstruction.png" if draws else "views.png"
        write_bytes_atomic(folder / name, picture)
        write_bytes_atomic(folder / "losses.png", figures.losses(rows, config.strategy))
        write_json_atomic(self.workdir / "summary.json", summary)
        if probes:
            render_table(
                f"accuracy on {config.data.source} [{config.data.test_split}]",
                ["features", "kNN", "linear probe"],
                [[row["features"], row["knn"], row["linear"]] for row in probes],
            )
        if tested:
            render_table(
                f"accuracy on {config.data.source} [{config.data.test_split}]",
                ["classifier", "top 1"],
                [[row["features"], row["top_1"]] for row in tested],
            )
        self._print(f"figures     {folder}/{name}, losses.png")
        return summary

    def _probe(self, state):
        """Returns the probes' rows; none where the data has no labels."""
        config = self.config
        for source, split in (
            (self.train_source, config.data.train_split),
            (self.test_source, config.data.test_split),
        ):
            if source.labels is None:
                self._print(
                    f"no probes: {config.data.source} [{split}] has no labels; pretraining does not need them"
                )
                return []
        size = config.model.image_size
        train = evaluation_images(
            self.train_source,
            size,
            limit=config.probe.train_examples,
            on_corrupt=config.data.on_corrupt,
        )
        test = evaluation_images(
            self.test_source,
            size,
            limit=config.probe.test_examples,
            on_corrupt=config.data.on_corrupt,
        )
        shardings = self.learner.state_shardings(self.mesh)
        untrained = self.learner.init_in(shardings, self._key("init"))
        untrained = self.learner.readable(untrained, self.mesh)
        classes = int(max(train[1].max(), test[1].max())) + 1
        return probe_blocks(
            self.learner, state, untrained, train, test, classes=classes, pool=config.probe.pool
        )

    def _print(self, text):
        if self.is_first_process:
            print(text, flush=True)


class _Log:
    """Checks the metrics of every step, and writes every so many."""

    def __init__(self, run, writer, progress, start):
        self._run, self._writer, self._progress = run, writer, progress
        last = writer.resume_after(start)
        self._seconds_before = last["seconds"] if last else 0.0
        self._begin = self._since = self._called = time.perf_counter()
        self._since_step = start
        self._warned = set()

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

    def step(self, step, metrics, monitored, now):
        config = self._run.config
        _check_finite(step, metrics)
        if not self._run.is_logged(step):
            return
        rate = (step - self._since_step) * config.batch_size / max(now - self._since, 1e-9)
        self._since, self._since_step = now, step
        row = {
            "step": step,
            "examples": step * config.batch_size,
            "seconds": self._seconds_before + now - self._begin,
            "images_per_second": rate,
            "learning_rate": float(self._run.learner.schedule(step - 1)),
        }
        # Under end_to_end features are read at K depths, though there is one loss.
        for name, values in [
            *sorted(metrics.items(), key=lambda item: item[0] != "loss"),
            *monitored.items(),
        ]:
            row |= {f"block_{k}/{name}": float(value) for k, value in enumerate(values, start=1)}
        self._writer.write(row.pop("step"), row)
        self._progress.update(step, metrics["loss"].tolist(), rate)
        objective, progress = self._run.learner.objective, step / self._run.steps
        self._warn(step, metrics, lambda own: objective.symptoms(own, progress))
        self._warn(step, monitored, monitor.symptoms)

    def _warn(self, step, metrics, symptoms):
        """Says what the metrics of a block are a sign of; once for each block."""
        for k in range(len(next(iter(metrics.values()), ()))):
            signs = symptoms({name: float(values[k]) for name, values in metrics.items()})
            if signs and k not in self._warned:
                self._warned.add(k)
                self._progress.print(f"warning: step {step}, block {k + 1}: " + "; ".join(signs))


def claim_workdir(workdir: Path, config: ml_collections.ConfigDict) -> Path:
    """Makes the workdir and writes config.json, or checks that the config there describes the same run.

    Raises:
      ValueError: the folder cannot be written, or belongs to a run with another config; names the fields.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"--workdir {workdir} cannot be written: {error.strerror}; choose another folder"
        ) from error
    path, new = workdir / "config.json", config_lib.to_json(config)
    if path.exists():
        try:
            saved = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read ({error}); choose another --workdir"
            ) from error
        if changed := config_lib.differences(saved, new):
            raise ValueError(
                f"--workdir {workdir} holds a run with another config:\n  "
                + "\n  ".join(changed)
                + "\nchoose another --workdir, or set these fields back to go on with that run"
            )
    if jax.process_index() == 0:
        write_json_atomic(path, new)
    return workdir


def _check_finite(step, metrics):
    for name in ("loss", "gradient_norm"):
        bad = [k for k, value in enumerate(metrics[name], start=1) if not np.isfinite(value)]
        if bad:
            blocks = ", ".join(f"block {k}" for k in bad)
            raise FloatingPointError(
                f"step {step}: {name.replace('_', ' ')} of {blocks} is {metrics[name][bad[0] - 1]}. The newest "
                "checkpoint was made before that. Try a smaller optimizer.base_learning_rate, a longer "
                "optimizer.warmup_steps, optimizer.clip=1.0, or dtype=float32."
            )


@contextlib.contextmanager
def _caught_signals():
    """Collects SIGTERM and SIGINT instead of dying of them; a second one has its usual effect.

    A signal that is ignored, as Ctrl-C is by a background job of a script, stays so.
    """
    caught, before = [], {}

    def catch(number, frame):
        del frame
        caught.append(number)
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, catch)
    except ValueError:  # not the main thread, as in some notebooks
        logging.info("signals are not caught outside the main thread")
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _count(params):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
