"""The promise in bytes: block-wise scratch memory does not grow with depth. Held by the compilers' own figures."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import optax
import pytest

from blockjax.learner.placement import Placement
from blockjax.memory import MIB, profile, profile_compiled
from blockjax.memory.profiles import compile_step
from blockjax.models.vit import ViT
from blockjax.sharding.mesh import make_mesh
from blockjax.strategies import Block, blockwise, end_to_end, init_state
from blockjax.xla.targets import parse_target
from tests.tiny import tiny_config, tiny_learner

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)


@pytest.mark.slow
def test_on_cpu_blockwise_is_far_below_end_to_end(monkeypatch):
    """A weaker form, of the whole step: the CPU compiler keeps some bytes for every layer."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)

    def temp(strategy, remat="none"):
        fields = {
            "strategy": strategy,
            "remat": remat,
            "model.depth": 24,
            "blocks": 8,
            "batch_size": 64,
            "model.patch_size": 4,
            "mask.ratio": 0.75,
            "decoder.fraction": 1 / 3,
        }
        return profile(tiny_config(**fields)).temp

    at_once = temp("blockwise")
    assert at_once < temp("end_to_end") / 3
    assert temp("blockwise", "layer") < at_once


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{"blocks": 2}, {"blocks": 4, "mask.schedule": "linear:0.9"}],
    ids=["two_blocks", "a_loop_for_each"],
)
def test_blocks_that_share_no_loop_run_one_after_another(fields, monkeypatch):
    """XLA takes a loop of one turn apart, and would run its forward pass before the last block's update."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)

    def temp(strategy, **changes):
        common = {"model.depth": 16, "batch_size": 64, "model.patch_size": 4, "mask.ratio": 0.5}
        common |= {"decoder.width": 16, "decoder.heads": 2, "decoder.fraction": 0.25}
        return profile(tiny_config(**common | {"strategy": strategy} | changes)).temp

    assert temp("blockwise", **fields) < 0.62 * temp("end_to_end", blocks=2)


def test_classes_have_to_be_said():
    config = tiny_config(**{"objective": "classification", "mask.ratio": None, "mesh.data": -1})
    with pytest.raises(ValueError, match=r"classifier\.classes is missing: no data is opened"):
        profile(config)


def test_parts_of_the_arguments():
    found = profile(tiny_config(**{"mesh.data": -1}))
    learner = tiny_learner()
    state = learner.abstract_state()

    def bytes_of(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    assert found.parameters == bytes_of([state.stem.params, state.blocks.params])
    # Every device has an eighth of all moments of matrices, and all of the small ones.
    moments = [state.stem.opt_state, state.blocks.opt_state]
    of_matrices = [leaf for leaf in jax.tree.leaves(moments) if leaf.ndim > 1 and leaf.size > 4096]
    assert found.optimizer <= bytes_of(moments) - bytes_of(of_matrices) * 7 / 8
    assert found.batch == 8 * 32 * 32 * 3 // 8
    assert found.devices == 8
    # Gradients are summed over the devices and updates gathered, and no activations.
    assert found.collective_bytes["all-reduce"] >= found.parameters
    gathered = found.collective_bytes["all-gather"]
    assert 0.9 * found.parameters < gathered <= found.parameters
    assert {*found.collectives} == {"all-reduce", "all-gather"}
    assert found.total == found.argument + found.output - found.alias + found.temp
    assert found.fits
    assert not dataclasses.replace(found, limit=found.total - 1).fits
    # What is donated is not held twice.
    assert found.alias > 0.98 * (found.parameters + found.optimizer)
    assert f"{found.total / MIB:,.1f} MiB" in str(found)
    assert f"{found.total / MIB:,.1f}" in found._repr_html_()


def test_states_on_the_host_are_not_on_the_device():
    found = profile(tiny_config(**{"mesh.data": -1, "strategy": "streamed"}))
    state = tiny_learner(strategy="streamed").abstract_state()
    stem, moments = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (state.stem.params, state.stem.opt_state)
    )
    counts = state.blocks.opt_state[0].count.size * 4
    assert found.parameters == stem
    # The stem's moments are split over the eight devices, where they are large.
    assert moments / 8 <= found.optimizer <= moments + 3 * counts


def test_streamed_states_are_updated_in_place():
    fields = {"strategy": "streamed", "model.width": 256, "mesh.data": 1}
    learner = tiny_learner(**fields)
    row = learner.abstract_row()
    states, params = (
        4 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(of))
        for of in (row, row.params)
    )
    if importlib.util.find_spec("libtpu") is not None:
        found = profile(tiny_config(**fields), target="v5e")
        assert states < found.host < 1.5 * states  # with padding
    # On CPU, whose compiler copies them, the copy counts as scratch; the rest is one block's gradients, mostly.
    placement = Placement(learner, make_mesh((1, 1, 1), jax.devices()[:1]))
    assert compile_step(placement, 8)[1].temp - states < 2.2 * params / 4


@pytest.mark.slow
def test_microbatches_need_less():
    fields = {"batch_size": 512, "mesh.data": -1, "strategy": "end_to_end"}
    whole = profile(tiny_config(**fields))
    cut = profile(tiny_config(**fields, microbatches=4))
    assert cut.temp < whole.temp / 2
    assert cut.flops == pytest.approx(whole.flops)


def tpu_temp(strategy, layers, remat="none"):
    """Scratch bytes on a TPU v5e: transformer layers of width 128, a linear head, one layer a block."""
    vit = ViT(32, 4, width=128, depth=layers, heads=2, dtype=jnp.bfloat16, remat=remat)

    def loss(params, tokens, targets, rng):
        pixels = tokens @ params["head"].astype(tokens.dtype)
        return jnp.mean(jnp.square(pixels.astype(jnp.float32) - targets)), {}

    block = Block(lambda p, tokens, rng: vit.layers(p["layers"], tokens), loss, optax.sgd(1e-2))
    rows = 1 if strategy == "end_to_end" else layers

    def init(key):
        params = {"layers": vit.init_layers(key, rows), "head": jnp.zeros((rows, 128, 48))}
        return init_state(block.optimizer, params)

    mesh = make_mesh((1, 1, 1), parse_target("v5e").devices())
    on_chip = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = end_to_end(block) if rows == 1 else blockwise([block] * rows)
    step = jax.jit(step, donate_argnums=0, in_shardings=on_chip, out_shardings=on_chip)
    batch = (
        jax.ShapeDtypeStruct((64, 16, 128), jnp.bfloat16),
        jax.ShapeDtypeStruct((64, 16, 48), jnp.float32),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = step.lower(jax.eval_shape(init, key), batch, key)
    return profile_compiled(lowered.compile()).temp


@needs_libtpu
@pytest.mark.slow
def test_compiled_for_tpu_blockwise_does_not_grow_with_depth(monkeypatch):
    for name, value in parse_target("v5e").environment().items():
        monkeypatch.setenv(name, value)
    at_12, at_48 = (tpu_temp("blockwise", layers) for layers in (12, 48))
    assert max(at_12, at_48) < 1.02 * min(at_12, at_48)
    assert tpu_temp("end_to_end", 24) > 5 * at_48
    assert tpu_temp("end_to_end", 24, "layer") > at_48


@needs_libtpu
def test_a_state_is_described_for_devices_that_are_not_there(monkeypatch):
    for name, value in parse_target("v5e").environment().items():
        monkeypatch.setenv(name, value)
    learner = tiny_learner()
    with jax.set_mesh(make_mesh((1, 1, 1), parse_target("v5e").devices())):
        state = learner.abstract_state()  # no key, nor anything else, can be made there
    assert state.step.dtype == jnp.int32
