"""The nearest config that needs less memory."""

import math
from collections.abc import Callable
from typing import Any

import ml_collections
from jax.sharding import Mesh

from blockjax.config.fields import set_field
from blockjax.learner.build import make_learner
from blockjax.learner.placement import Placement
from blockjax.memory.profiles import MIB, DoesNotFit, compile_step
from blockjax.objectives import find_task
from blockjax.sharding.mesh import mesh_shape
from blockjax.strategies import END_TO_END


def frugal_changes(config: ml_collections.ConfigDict, devices: int) -> list[dict[str, Any]]:
    """Lists changes of a resolved config that lower its memory on so many devices, gentle ones first.

    Recomputing changes nothing but time, microbatches next to nothing; then blocks of one layer, and at last the batch.
    """
    found, changes = [], {}
    data, fsdp, _ = mesh_shape(config.mesh, devices)
    parts = data * fsdp
    if config.remat == "none":
        changes = {"remat": "layer"}
        found.append(changes)
    for microbatches in (4, 16):
        if (
            microbatches > config.microbatches
            and config.batch_size % (microbatches * parts) == 0
            and find_task(config.objective).takes_microbatches(config)
        ):
            changes = {**changes, "microbatches": microbatches}
            found.append(changes)
    if config.strategy in END_TO_END:
        changes = {**changes, "strategy": "blockwise", "blocks": config.model.depth}
        if config.optimizer.in_host_memory:  # of end_to_end only
            changes["optimizer.in_host_memory"] = False
        found.append(changes)
    elif config.blocks < config.model.depth:
        changes = {**changes, "blocks": config.model.depth}
        found.append(changes)
    if config.strategy in ("end_to_end", "blockwise") and config.mask.schedule == "constant":
        changes = {**changes, "strategy": "streamed"}
        found.append(changes)
    for share in (4, 16):
        smaller = config.batch_size // (share * parts) * parts
        if smaller:
            microbatches = changes.get("microbatches", config.microbatches)
            fitting = math.gcd(microbatches, smaller // parts)
            found.append({**changes, "microbatches": fitting, "batch_size": smaller})
    return found


def what_fits(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    steps: int,
    limit: int | None,
    say: Callable[[str], None] = lambda text: None,
) -> str:
    """Names the nearest config whose step fits; compiles one after another, which takes a while.

    Args:
      config: resolved; its step does not fit.
      mesh: of the run.
      steps: of the run.
      limit: bytes that a device can hand out; None where nobody knows, and the compiler decides.
      say: is told what does not fit either.
    """
    for changes in frugal_changes(config, mesh.size):
        changed = config.copy_and_resolve_references()
        for field, value in changes.items():
            set_field(changed, field, value)
        text = " ".join(f"--config.{field}={value}" for field, value in changes.items())
        placement = Placement(make_learner(changed, steps), mesh)
        try:
            _, memory = compile_step(placement, changed.batch_size, limit)
        except DoesNotFit:
            memory = None
        if memory is not None and memory.fits is not False:
            return f"{text} needs {memory.total / MIB:,.0f} MiB"
        say(f"{text}: does not fit either")
    return "no config near this one fits: try a smaller model or more devices"
