"""What every block learned: probes of frozen features, beside raw pixels and an untrained encoder.

    python -m blockjax.evaluate --workdir runs/quickstart

The workdir is that of a run, or a folder or file of weights (then with --data). All depths are read in one pass over
the images, on all devices; features that are too large for memory are kept in files meanwhile. Writes evaluation.json
and evaluation.png.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from blockjax.checks import INT32, Bound, given_path
from blockjax.data.decode import CorruptImage
from blockjax.data.evaluation import evaluation_batches, evaluation_images
from blockjax.data.sources import KINDS, open_source
from blockjax.models.backbone import FEATURE_READOUTS, Backbone, head_norm
from blockjax.probes import collapse
from blockjax.probes import probe as probe_lib
from blockjax.probes.features import BATCH, Features, read_features
from blockjax.report import figures
from blockjax.report.command import begin, check_devices
from blockjax.report.progress import Progress
from blockjax.report.table import render_table
from blockjax.sharding.mesh import make_mesh
from blockjax.weights.loading import Run, check_heads, is_run, open_run, open_weights
from blockjax.workdir.files import check_writable, write_bytes_atomic, write_json_atomic, writing
from blockjax.workdir.metrics import read_metrics

PyTree = Any

_CALIBRATION = 1024  # images whose statistics the BatchNorm of readouts gets
_MONITORED = 2048  # images whose features' rank is measured


def main() -> None:
    """Reads the flags, and evaluates."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workdir", required=True, help="a run's workdir, or a folder or file of weights")
    add("--data", help=f"{', '.join(KINDS)} (default: what the run was trained on)")
    add("--data_dir", help="folder of TFDS (default: the run's)")
    add("--train_split", help="what probes learn from (default: the run's)")
    add("--test_split", help="what accuracy is measured on (default: the run's)")
    add("--heads", type=int, help="number of attention heads, for weights that do not say it")
    add("--blocks", default="all", help="such as 1,4 (default: %(default)s)")
    add(
        "--probes",
        default="knn,linear,few_shot",
        help=f"of {', '.join(probe_lib.PROBES)} (default: %(default)s)",
    )
    add(
        "--readouts", default="all", help=f"of {', '.join(FEATURE_READOUTS)} (default: %(default)s)"
    )
    add("--pool", type=int, help="side of the grid of the readout grid (default: the run's)")
    add("--train_examples", type=int, help="at most so many (default: all)")
    add("--test_examples", type=int, help="at most so many (default: all)")
    add("--output", help="folder for evaluation.json and evaluation.png (default: the workdir)")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    begin()
    check_devices()
    try:
        evaluate(**vars(arguments))
    except (ValueError, CorruptImage) as error:
        sys.exit(f"error: {error}")
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(
            f"error: out of memory ({' '.join(str(error).split())[:200]}). Try --readouts mean, a smaller --pool, or "
            "--probes knn, which needs the least"
        )


def evaluate(
    workdir: str,
    *,
    data: str | None = None,
    data_dir: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    heads: int | None = None,
    blocks: str = "all",
    probes: str = "knn,linear,few_shot",
    readouts: str = "all",
    pool: int | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
    output: str | None = None,
) -> dict[str, Any]:
    """Probes an encoder at every depth; arguments are the command's flags.

    Returns:
      What evaluation.json gets: {"workdir", "data", "step", "pool", "train_examples", "test_examples", "probes",
      "monitors"}. A row of "probes" is {"encoder": pixels, untrained or trained; "block", "readout"; accuracies, see
      `blockjax.probes.probe`}; one of "monitors" is {"block", "effective_rank", "feature_std", "cosine"}, and where
      the run logged losses "loss" and "gain", by how much the loss is less than that of the block before.

    Raises:
      ValueError: an argument that cannot be used, or data without labels.
    """
    limits = (train_examples, test_examples)
    for flag, value in zip(("--train_examples", "--test_examples"), limits, strict=True):
        if value is not None:
            Bound(1, INT32).check(flag, value)
    path = given_path("--workdir", workdir)
    folder = given_path("--output", (path if path.is_dir() else ".") if output is None else output)
    subject = _Subject.of(path, heads)
    names = _chosen("--probes", probes, probe_lib.PROBES)
    at = _depths(blocks, subject.backbone.blocks)
    known = FEATURE_READOUTS
    if head_norm(subject.params["heads"]) is None:  # a classifier's head begins with a mean
        known = tuple(name for name in FEATURE_READOUTS if name != "own")
    kinds = _chosen("--readouts", ",".join(known) if readouts == "all" else readouts, known)
    settings = subject.settings
    spec = settings.get("source") if data is None else data
    if spec is None:
        raise ValueError("--data is missing: weights do not say on which images to probe them")
    own_data = spec == settings.get("source")
    splits = [
        train_split or (settings["train_split"] if own_data else "train"),
        test_split or (settings["test_split"] if own_data else "test"),
    ]
    sources = [open_source(spec, split, data_dir or settings.get("dir")) for split in splits]
    for source, split in zip(sources, splits, strict=True):
        if not source.labelled:
            raise ValueError(f"{spec} [{split}] has no labels, which probes need; give --data")
    check_writable("--output", folder)
    pool = settings.get("pool", 1) if pool is None else pool
    grid = subject.backbone.vit.grid[0]
    if pool < 1 or grid % pool:
        raise ValueError(f"--pool {pool} does not divide the {grid} x {grid} grid of patches")

    print(f"encoder     {subject.description}\ndata        {sources[0].description}", flush=True)
    mesh, params = subject.mesh, subject.params
    size = subject.backbone.vit.image_size
    if "own" in kinds:
        images, _ = evaluation_images(sources[0], size, limit=_CALIBRATION)
        calibrate = jax.jit(subject.backbone.calibrated)
        params = calibrate(params, images[: len(images) // mesh.size * mesh.size])

    def read(name, params, kinds):
        return [
            _read(
                f"{name}, {split}",
                subject.backbone,
                params,
                source,
                limit,
                readouts=kinds,
                depths=at,
                pool=pool,
                mesh=mesh,
                folder=folder,
            )
            for source, split, limit in zip(sources, splits, limits, strict=True)
        ]

    train, test = read("trained", params, kinds)
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    rows = [
        {"encoder": "pixels", "block": None, "readout": "pixels"}
        | _probe(names, train, test, classes, lambda found: found.pixels)
    ]
    encoders = {"untrained": read("untrained", subject.untrained, [k for k in kinds if k != "own"])}
    encoders["trained"] = [train, test]
    total = sum(len(of_depth) for pair in encoders.values() for of_depth in pair[0].arrays.values())
    with Progress(total, unit="probe") as progress:
        for encoder, pair in encoders.items():
            for readout in pair[0].arrays:
                for depth in pair[0].arrays[readout]:
                    array = functools.partial(_array, readout, depth)
                    accuracies = _probe(names, *pair, classes, array)
                    rows.append(
                        {"encoder": encoder, "block": depth, "readout": readout} | accuracies
                    )
                    progress.update(len(rows) - 1, [])
    result = {
        "workdir": str(workdir),
        "data": spec,
        "step": subject.step,
        "pool": pool,
        "train_examples": len(train.labels),
        "test_examples": len(test.labels),
        "probes": rows,
        "monitors": _monitors(test, kinds, subject.losses),
    }
    with writing("--output", folder):
        write_json_atomic(folder / "evaluation.json", result)
        write_bytes_atomic(folder / "evaluation.png", figures.evaluation(rows))
    _show(result, f"accuracy on {spec} [{splits[1]}]")
    print(f"written     {folder}/evaluation.json, evaluation.png", flush=True)
    return result


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is evaluated: a backbone with trained and untrained parameters, and what its run says about data."""

    backbone: Backbone
    params: PyTree
    untrained: PyTree
    mesh: Mesh
    settings: dict[str, Any]
    step: int | None
    losses: list[float]
    description: str

    @classmethod
    def of(cls, path: Path, heads: int | None) -> "_Subject":
        if not is_run(path):
            return cls._of_weights(path, heads)
        run = open_run(path)
        run.check_images()
        check_heads(run.backbone.vit, heads, path)
        return cls._of_run(run)

    @classmethod
    def _of_run(cls, run: Run) -> "_Subject":
        config = run.config
        try:
            rows = read_metrics(run.workdir / "metrics.jsonl")
        except ValueError as error:  # the losses stand beside the probes, which do without
            logging.warning("no losses: %s", error)
            rows = []
        last = next((row for row in reversed(rows) if row["step"] <= run.step), {})
        losses = [value for name, value in last.items() if name.endswith("/loss")]
        kind = "blocks" if run.learner.losses > 1 else "depths"
        return cls(
            backbone=run.backbone,
            params=run.params,
            untrained=run.untrained,
            mesh=run.state.step.sharding.mesh,
            settings={**config.data.to_dict(), "pool": config.probe.pool},
            step=run.step,
            losses=losses,
            description=f"{config.objective}, {config.strategy}, step {run.step}; {config.model.depth} layers of width "
            f"{config.model.width}, {config.blocks} {kind}",
        )

    @classmethod
    def _of_weights(cls, path: Path, heads: int | None) -> "_Subject":
        weights = open_weights(path, heads=heads)
        vit = weights.vit
        mesh = make_mesh((jax.device_count(), 1, 1))
        everywhere = jax.NamedSharding(mesh, jax.P())

        def placed(params, norm):
            layers = jax.tree.map(lambda leaf: leaf[:, None], params["layers"])
            heads = {"norm": jax.tree.map(lambda leaf: leaf[None], norm)}
            whole = {"stem": params["stem"], "layers": layers, "heads": heads}
            return jax.device_put(whole, everywhere)

        stem_key, layers_key = jax.random.split(jax.random.key(0))
        untrained = {
            "stem": vit.init_stem(stem_key),
            "layers": jax.tree.map(lambda leaf: leaf[0], vit.init_layers(layers_key, 1)),
        }
        return cls(
            backbone=Backbone(vit, vit.depth),
            params=placed(weights.params, weights.params["norm"]),
            untrained=placed(untrained, weights.params["norm"]),
            mesh=mesh,
            settings={},
            step=None,
            losses=[],
            description=f"{path}; {vit.depth} layers of width {vit.width}, read after each",
        )


def _read(title, backbone, params, source, limit, **options) -> Features:
    batches = evaluation_batches(source, backbone.vit.image_size, BATCH, limit=limit)
    total = min(len(source), limit or len(source))
    print(f"features    {title}", flush=True)
    with Progress(total, unit="image") as progress:
        return read_features(
            backbone,
            params,
            batches,
            total,
            on_images=lambda done: progress.update(done, []),
            **options,
        )


def _probe(names, train, test, classes, array: Callable[[Features], np.ndarray]):
    return probe_lib.probe(names, (array(train), train.labels), (array(test), test.labels), classes)


def _array(readout, depth, features):
    return features.arrays[readout][depth]


def _monitors(features, readouts, losses):
    """Signs of collapse in the test images' features, block by block, and what each block's loss gained."""
    readout = next(kind for kind in ("mean", "grid", "cls", "own") if kind in readouts)
    rows = []
    for depth, array in features.arrays[readout].items():
        found = jax.device_get(jax.jit(collapse.spread)(np.asarray(array[:_MONITORED])))
        row = {"block": depth, **{name: float(value) for name, value in found.items()}}
        if len(losses) >= depth and len(losses) > 1:
            row["loss"] = losses[depth - 1]
            row["gain"] = losses[depth - 2] - losses[depth - 1] if depth > 1 else None
        rows.append(row)
    return rows


def _show(result, title):
    rows = result["probes"]
    keys = [key for key in rows[0] if key not in ("encoder", "block", "readout")]
    keys = [key for key in keys if not key.endswith("_std")]
    shown = []
    for row in rows:
        name = row["encoder"] if row["block"] is None else f"block {row['block']}"
        if row["encoder"] == "untrained":
            name += ", untrained"
        shown.append([name, row["readout"], *(row[key] for key in keys)])
    columns = [key.replace("_", " ") for key in keys]
    render_table(title, ["features", "readout", *columns], shown)
    monitors = result["monitors"]
    if monitors:
        keys = [key for key in monitors[0] if key != "block"]
        render_table(
            "features of the test images, mean readout",
            ["block", *(key.replace("_", " ") for key in keys)],
            [[f"block {row['block']}", *(row[key] for key in keys)] for row in monitors],
        )


def _chosen(flag, text, known) -> tuple[str, ...]:
    names = tuple(text.split(","))
    for name in names:
        if name not in known:
            raise ValueError(f"{flag}: {name!r} is unknown; it may be some of {','.join(known)}")
    return names


def _depths(text: str, there: int) -> tuple[int, ...]:
    if text == "all":
        return tuple(range(1, there + 1))
    try:
        depths = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ValueError(
            f"--blocks {text!r} should be numbers separated by commas, or all"
        ) from None
    if not 1 <= depths[0] <= depths[-1] <= there:
        raise ValueError(f"--blocks {text}: there are blocks 1 to {there}")
    return depths


if __name__ == "__main__":
    main()
