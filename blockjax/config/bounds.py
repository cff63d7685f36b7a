"""The bounds of every number in a config; an objective checks the fields of its own."""

import ml_collections

from blockjax.checks import INT32, UINT32, Bound, check_bounds
from blockjax.config import coupling
from blockjax.objectives import TASKS, find_task

_COUNT = Bound(1, INT32)
_SHARE = Bound(0, 1)
_POSITIVE_SHARE = Bound(0, 1, above=True)
_BELOW_ONE = Bound(0, 1, below=True)
_SIZE = Bound(1, 2**16)  # sides in pixels, widths, layers

BOUNDS = {
    "seed": Bound(0, UINT32),  # what is above would be cut to 32 bits by jax.random.key
    "steps": _COUNT,
    "epochs": Bound(0, 1e9, above=True),
    "batch_size": _COUNT,
    "blocks": _SIZE,
    "microbatches": _COUNT,
    "noise": Bound(0, 1e3),
    "depth_blocks": _SIZE,
    "tune_blocks": Bound(0, 2**16),
    "model.image_size": _SIZE,
    "model.patch_size": _SIZE,
    "model.width": _SIZE,
    "model.depth": _SIZE,
    "model.heads": _SIZE,
    "model.mlp_ratio": Bound(0, 1e3, above=True),
    "model.unroll": _SIZE,
    "head.refresh": Bound(1, INT32),
    "model.norm_epsilon": Bound(0, 1, above=True),
    "mask.ratio": _SHARE,
    "decoder.depth": _SIZE,
    "decoder.width": _SIZE,
    "decoder.heads": _SIZE,
    "decoder.fraction": _POSITIVE_SHARE,
    "data.fraction": _POSITIVE_SHARE,
    "data.shift": Bound(0, 2**16),
    "data.workers": Bound(0, 4096),
    "optimizer.base_learning_rate": Bound(0),
    "optimizer.warmup_steps": Bound(0, INT32),
    "optimizer.warmup_share": _BELOW_ONE,
    "optimizer.weight_decay": Bound(0, 1e6),
    "optimizer.b1": _BELOW_ONE,
    "optimizer.b2": _BELOW_ONE,
    "optimizer.layer_decay": _POSITIVE_SHARE,
    "optimizer.clip": Bound(0, 1e9),
    "mesh.data": Bound(-1, INT32),
    "mesh.fsdp": Bound(-1, INT32),
    "mesh.block": Bound(-1, INT32),
    "pipeline.batches": _COUNT,
    "checkpoint.every": _COUNT,
    "checkpoint.keep": _COUNT,
    "log.every": _COUNT,
    "log.monitor_every": Bound(0, INT32),
    "probe.train_examples": _COUNT,
    "probe.test_examples": _COUNT,
    "probe.pool": _SIZE,
}


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Checks every number of a config in which the defaults are filled in.

    Raises:
      ValueError: one is out of bounds, NaN or infinite; names the field and what it may be.
    """
    bounds = BOUNDS | coupling.BOUNDS
    for task in (*TASKS.values(), find_task(config.objective)):
        bounds |= task.bounds
    check_bounds({field: _value(config, field) for field in bounds}, bounds)


def _value(config, field):
    for name in field.split("."):
        config = config[name]
    return config
