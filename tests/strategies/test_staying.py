"""Blocks that stay for several batches: the numbers of one batch after another, and what crosses link and network."""

import chex
import jax
import numpy as np
import pytest

from blockjax.learner.placement import Placement
from blockjax.memory.profiles import compile_step
from blockjax.objectives import OBJECTIVES
from blockjax.sharding.mesh import make_mesh
from tests.objectives.test_local_losses import learner_of, train, trained_on_one_device

TWO = {"model.depth": 2, "blocks": 2}
BATCHES = 7
MORE = {"moco": {"momentum.queue": 16}}


def alone(name):
    return trained_on_one_device(name, **TWO, **MORE.get(name, {}), steps=BATCHES)


def check(name, shape=(1, 1, 1), rtol=1e-5, **fields):
    losses, state = alone(name)
    learner = learner_of(name, **TWO, **MORE.get(name, {}), **fields)
    got, other = train(learner, shape, BATCHES)
    np.testing.assert_allclose(got, losses, rtol=rtol)
    assert int(other.step) == BATCHES
    for part in ("stem", "blocks"):
        own, expected = getattr(other, part).extra, getattr(state, part).extra
        chex.assert_trees_all_close(jax.device_get(own), jax.device_get(expected), atol=2e-3)
    kernels = [
        run.blocks.params["layers"]["mlp"]["Dense_0"]["kernel"] for run in (other, state)
    ]  # biases may have no gradient but rounding's, of which Adam makes large steps
    np.testing.assert_allclose(*map(jax.device_get, kernels), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name):
    """Averages, queues and batch statistics are each block's own, so they find the same batches in the same order."""
    check(
        name, strategy="streamed", **{"pipeline.batches": 4}
    )  # of which the last three make a group


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, shape, fields",
    [
        ("mae", (1, 1, 1), {"pipeline.batches": 7}),
        ("mae", (1, 1, 1), {"pipeline.batches": 5, "microbatches": 2, "remat": "layer"}),
        ("moco", (1, 1, 1), {"pipeline.batches": 4}),
        ("mae", (1, 4, 1), {"pipeline.batches": 4}),
        ("byol", (2, 2, 1), {"pipeline.batches": 4}),
        ("simclr", (2, 2, 1), {"pipeline.batches": 4, "strategy": "streamed"}),
    ],
)
def test_under_other_options(name, shape, fields):
    check(name, shape, rtol=2e-4, **fields)


@pytest.mark.slow
def test_parameters_are_gathered_once_for_all_batches():
    """With `fsdp`: states are gathered once however many batches there are, gradients are summed for each."""
    gathered, summed = [], []
    for batches in (2, 4):
        learner = learner_of("mae", **TWO, **{"model.width": 128, "pipeline.batches": batches})
        placement = Placement(learner, make_mesh((1, 4, 1), jax.devices()[:4]))
        sizes = compile_step(placement, 8)[1].collective_bytes
        gathered.append(sizes["all-gather"])
        summed.append(sizes["all-reduce"])
    assert gathered[0] == gathered[1]
    assert summed[1] == pytest.approx(2 * summed[0], rel=0.01)


@pytest.mark.slow
def test_a_state_crosses_the_host_link_once_for_all_batches():
    """Both ways, whole: what each batch moves falls as 1 / M."""
    moved = {}
    for batches in (1, 2, 5):
        fields = {"strategy": "streamed", "pipeline.batches": batches}
        placement = Placement(learner_of("mae", **TWO, **fields), make_mesh((1, 1, 1)))
        moved[batches] = compile_step(placement, 8)[1].host_link
    state = placement.learner.abstract_state().blocks
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert moved[1] == pytest.approx(2 * whole, rel=0.01)  # counts stay on the device
    assert [moved[m] * m for m in (2, 5)] == pytest.approx([moved[1]] * 2, rel=1e-3)
    alone = Placement(learner_of("mae", **TWO), make_mesh((1, 1, 1)))
    assert compile_step(alone, 8)[1].host_link == 0
    fields = {"strategy": "end_to_end", "remat": "offload"}
    offloaded = Placement(learner_of("mae", **TWO, **fields), make_mesh((1, 1, 1)))
    inputs = 2 * 8 * 5 * 32 * 4  # of two layers, for 8 images of 5 tokens of width 32
    assert compile_step(offloaded, 8)[1].host_link == 2 * inputs


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["blockwise", "streamed"])
def test_streams_may_wait_in_host_memory(strategy):
    """The same numbers; each stream crosses both ways for every block but the one that the last leaves behind."""
    fields = {"strategy": strategy, "pipeline.batches": 4}
    check("mae", **fields, **{"pipeline.host_streams": True})
    moved = []
    for host_streams in (False, True):
        more = {"pipeline.host_streams": host_streams}
        placement = Placement(learner_of("mae", **TWO, **fields, **more), make_mesh((1, 1, 1)))
        moved.append(compile_step(placement, 8)[1].host_link)
    stream = 8 * 5 * 32 * 4  # 8 images of 5 tokens of width 32
    # Each batch's comes and goes with both blocks, and the first were zeros that went there.
    assert moved[1] - moved[0] == (2 * 2 + 1) * stream
