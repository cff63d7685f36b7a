"""Reconstructions show what each block's head makes of all that it reads."""

import itertools

import jax
import numpy as np
import pytest

from blockjax.probes import pictures
from tests.tiny import images, tiny_learner


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"mask.ratio": 0.25, "mask.schedule": "linear:0.75"}])
def test_heads_that_attend_to_earlier_blocks_do_so_in_pictures_too(fields, monkeypatch):
    monkeypatch.setattr(
        pictures, "grid", lambda rows: {name: np.asarray(r) for name, r in rows.items()}
    )
    learner = tiny_learner(**{"cross_block.blocks": 2, **fields})
    state = jax.jit(learner.init)(jax.random.key(0))

    def drawn(gate):
        link = state.blocks.params["link"]["cross_block"]
        link = {"cross_block": {**link, "gate": link["gate"] * gate}}
        params = {**state.blocks.params, "link": link}
        changed = state.replace(blocks=state.blocks.replace(params=params))
        return pictures.reconstruction(learner, changed, images(2), jax.random.key(1))

    plain, gated = drawn(1.0), drawn(10.0)
    assert plain.keys() == {"image", "visible", *(f"block {k}" for k in (1, 2, 3, 4))}
    differs = {name: not np.array_equal(plain[name], gated[name]) for name in plain}
    # Block 1 has nothing before it.
    assert [differs[f"block {k}"] for k in (1, 2, 3, 4)] == [False, True, True, True]


@pytest.mark.slow
def test_a_shared_head_draws_for_every_block(monkeypatch):
    monkeypatch.setattr(pictures, "grid", lambda rows: rows)
    learner = tiny_learner(**{"head.shared": True})
    state = jax.jit(learner.init)(jax.random.key(0))
    found = pictures.reconstruction(learner, state, images(2), jax.random.key(1))
    blocks = [np.asarray(found[f"block {k}"]) for k in (1, 2, 3, 4)]
    assert all(np.abs(a - b).max() > 0 for a, b in itertools.pairwise(blocks))
