"""What a run says: its plan before it trains; probes, pictures and a summary after."""

from typing import Any

import jax
import numpy as np

from blockjax.data.evaluation import evaluation_images
from blockjax.probes import pictures
from blockjax.probes.classifiers import accuracies
from blockjax.probes.probe import probe_blocks
from blockjax.report import figures
from blockjax.report.table import render_table
from blockjax.strategies import TrainState
from blockjax.training.setup import Setup
from blockjax.training.text import report_text
from blockjax.training.verdict import verdict
from blockjax.workdir.files import write_bytes_atomic, write_json_atomic
from blockjax.workdir.metrics import read_metrics


def plan(run: Setup) -> str:
    """Returns what a run is going to do: data, devices, start, and parameters of each block."""
    config, learner, abstract = run.config, run.learner, run.abstract_state
    examples = "sequences" if learner.batch.unit == "tokens" else learner.batch.unit
    stem = _count(abstract.stem.params)
    layers = _count(abstract.blocks.params["layers"]) // learner.losses
    if learner.shares_head:
        head = f"{_count(abstract.head.params):,} in the head"
        head += " that they share" if learner.losses > 1 else ""
    else:
        head = f"{_count(abstract.blocks.params['head']) // learner.rows:,} in the head"
    mesh = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items())
    each = "" if learner.losses == 1 else "each "
    return (
        f"run         {config.objective}, {config.strategy}, {config.dtype}, {run.steps} steps of "
        f"{config.batch_size} {examples} -> {run.workdir}\n"
        f"data        {run.train_source.description}; {_epochs(run):.3g} epochs\n"
        f"devices     {jax.device_count()} x {jax.devices()[0].device_kind}; mesh {mesh}\n"
        f"start       {config.backbone if run.backbone is not None else 'random numbers'}\n"
        f"encoder     {config.model.depth} layers of width {config.model.width} in {learner.losses} "
        f"block{'s' if learner.losses > 1 else ''}; stem {stem:,} parameters\n"
        f"blocks      {each}{layers:,} parameters in layers, {head}"
    )


def report(run: Setup, state: TrainState) -> dict[str, Any]:
    """Tests and draws what was trained, and writes summary.json.

    Args:
      run: at its end.
      state: trained; programs on the run's mesh can read its parameters.

    Returns:
      The summary.
    """
    rows = read_metrics(run.workdir / "metrics.jsonl")
    speed = f"{run.learner.batch.unit}_per_second"
    units = run.learner.batch.units
    summary = {
        "strategy": run.config.strategy,
        "steps": run.steps,
        "seconds": rows[-1]["seconds"] if rows else 0.0,
        speed: units * rows[-1]["examples"] / rows[-1]["seconds"] if rows else 0.0,
    }
    of_modality = report_text if run.learner.objective.modality == "text" else _report_images
    return of_modality(run, state, summary, rows)


def _report_images(run, state, summary, rows):
    config, objective = run.config, run.learner.objective
    probes = [] if objective.takes_labels else _probes(run, state)
    tested = []
    if objective.takes_labels:
        tested = accuracies(run.learner, state, run.test_source, on_corrupt=config.data.on_corrupt)
    summary = {**summary, "probes": probes}
    if tested:
        summary["accuracy"] = tested
    images, _ = evaluation_images(
        run.test_source, config.model.image_size, limit=10, on_corrupt=config.data.on_corrupt
    )
    # What the blocks make of an image where they make one; else what the objective sees.
    draw = pictures.reconstruction if objective.reconstructs else pictures.seen
    picture = draw(run.learner, state, images, run.key("figure"))
    if not run.is_first_process:
        return summary
    folder = run.workdir / "figures"
    folder.mkdir(exist_ok=True)
    name = "reconstruction.png" if objective.reconstructs else "views.png"
    write_bytes_atomic(folder / name, picture)
    write_bytes_atomic(folder / "losses.png", figures.losses(rows, config.strategy))
    write_json_atomic(run.workdir / "summary.json", summary)
    title = f"accuracy on {config.data.source} [{config.data.test_split}]"
    if probes:
        render_table(
            title,
            ["features", "kNN", "linear probe"],
            [[row["features"], row["knn"], row["linear"]] for row in probes],
        )
        tests = min(len(run.test_source), config.probe.test_examples)
        for line in verdict(
            probes, tests, config, epochs=_epochs(run), images=len(run.train_source)
        ):
            run.print(line)
    if tested:
        render_table(
            title, ["classifier", "top 1"], [[row["features"], row["top_1"]] for row in tested]
        )
    run.print(f"figures     {folder}/{name}, losses.png")
    return summary


def _epochs(run):
    """Returns how often a run sees each image."""
    return run.steps * run.config.batch_size / len(run.train_source)


def _probes(run, state):
    """Returns the probes' rows; none where the data has no labels."""
    config, placement = run.config, run.placement
    data, probe = config.data, config.probe
    found = []
    for source, split, limit in (
        (run.train_source, data.train_split, probe.train_examples),
        (run.test_source, data.test_split, probe.test_examples),
    ):
        if not source.labelled:
            run.print(
                f"no probes: {data.source} [{split}] has no labels; pretraining does not need them"
            )
            return []
        found.append(
            evaluation_images(
                source, config.model.image_size, limit=limit, on_corrupt=data.on_corrupt
            )
        )
    train, test = found
    untrained = placement.init_in(placement.shardings, run.key("init"))
    classes = int(max(train[1].max(), test[1].max())) + 1
    return probe_blocks(
        run.learner,
        state,
        placement.readable(untrained),
        train,
        test,
        classes=classes,
        pool=probe.pool,
    )


def _count(params):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
