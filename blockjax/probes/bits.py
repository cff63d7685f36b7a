"""How many bits each block's head needs for held-out text."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from blockjax.data.sources.text import TextSource
from blockjax.learner.learner import Learner
from blockjax.probes.features import put_examples
from blockjax.sharding.memory_spaces import to_device
from blockjax.sharding.mesh import replicated
from blockjax.strategies import TrainState

_TOKENS = 2**14  # of a forward pass


def bits_of_blocks(
    learner: Learner,
    state: TrainState,
    source: TextSource,
    rng: jax.Array,
    *,
    limit: int | None = None,
    on_sequences: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Reads text with every depth that has a head. Each sequence stands alone: its first tokens have little to go by.

    Args:
      learner: that of a run on text.
      state: trained.
      source: held-out text, all of it or its first `limit` sequences.
      rng: for what an objective draws, such as which tokens are masked.
      limit: no more than so many sequences.
      on_sequences: called with the number of sequences read so far.

    Returns:
      A list of {"features": "block_k", "bits_per_token", "perplexity" (of a token)} and, where every token is
      predicted, "bits_per_byte" of UTF-8; end to end it is one row, of the last block.
    """
    mesh = state.step.sharding.mesh
    count = min(len(source), limit or len(source))
    rows = min(count, max(1, _TOKENS // learner.vit.context))
    params, total, predicted = learner.backbone_params(state), 0.0, 0
    for start in range(0, count, rows):
        tokens_BT = source.tokens[start : min(start + rows, count)].astype(np.int32)
        sums, tokens = _sums(
            learner,
            mesh,
            params,
            put_examples(tokens_BT, mesh, rows),
            len(tokens_BT),
            jax.random.fold_in(rng, start),
        )
        total, predicted = total + np.asarray(sums, np.float64), predicted + int(tokens)
        on_sequences(start + len(tokens_BT))
    first = learner.depths - len(total) + 1
    found = []
    for k, nats in enumerate(total, start=first):
        row = {
            "features": f"block_{k}",
            "bits_per_token": float(nats / predicted / math.log(2)),
            "perplexity": float(math.exp(min(nats / predicted, 700.0))),
        }
        if learner.objective.causal:
            length = int(source.lengths[:count].sum(dtype=np.int64))
            row["bits_per_byte"] = float(nats / math.log(2) / length)
        found.append(row)
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sums(learner: Learner, mesh, params, tokens_BT, real, key):
    """Returns each depth's loss in nats in the first `real` sequences, [K or 1], and of how many tokens."""
    objective, backbone = learner.objective, learner.backbone
    inputs, targets = objective.prepare(key, {"tokens": tokens_BT})
    embedding_VD = to_device(params["stem"]["embedding"])

    def at_head(head, tokens_BTD):
        losses_BM = objective.token_losses(head, tokens_BTD, targets, embedding_VD)
        counts_B1 = jnp.arange(len(losses_BM))[:, None] < real
        return jnp.where(counts_B1, losses_BM, 0.0).sum()

    _, sums = backbone.read(params, inputs, lambda tokens: (), at_head)
    return replicated((sums, real * targets["tokens"].shape[1]), mesh)
