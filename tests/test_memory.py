"""The promise in bytes: block-wise scratch memory does not grow with depth. Held by the compilers' own figures."""

import argparse
import importlib.util

import jax
import jax.numpy as jnp
import optax
import pytest

from blockjax import memory
from blockjax.memory import MemoryProfile, profile, profile_compiled, tpu_devices
from blockjax.models.vit import ViT
from blockjax.sharding import make_mesh
from blockjax.strategies import Block, blockwise, end_to_end, init_state
from tests.tiny import tiny_config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)


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


def test_rows_of_the_table(monkeypatch):
    """Layers per block stay the config's; the total counts shared buffers once."""
    seen = []

    def fake(config, target):
        seen.append((config.strategy, config.model.depth, config.blocks, config.remat))
        seen[-1] += (config.model.unroll, target)
        return MemoryProfile(*(figure * memory.MIB for figure in (10, 8, 7, 5)))

    monkeypatch.setattr(memory, "profile", fake)
    strategies = "end_to_end+unroll,blockwise+remat+unroll"
    arguments = argparse.Namespace(depths="4,8", strategies=strategies, target="here")
    rows = memory._rows(tiny_config(blocks=2), arguments)
    assert seen == [
        ("end_to_end", 4, 2, "none", 4, "here"),
        ("end_to_end", 8, 4, "none", 8, "here"),
        ("blockwise", 4, 2, "layer", 2, "here"),
        ("blockwise", 8, 4, "layer", 2, "here"),
    ]
    assert rows[3][:6] == ["blockwise+remat+unroll", 8, 4, 10.0, 5.0, 16.0]


def tpu_temp(strategy, layers, remat="none"):
    """Scratch bytes on a TPU v5e: transformer layers of width 256, a linear head, one layer a block."""
    vit = ViT(32, 4, width=256, depth=layers, heads=4, dtype=jnp.bfloat16, remat=remat)

    def loss(params, tokens, targets, rng):
        pixels = tokens @ params["head"].astype(tokens.dtype)
        return jnp.mean(jnp.square(pixels.astype(jnp.float32) - targets)), {}

    block = Block(lambda p, tokens, rng: vit.layers(p["layers"], tokens), loss, optax.sgd(1e-2))
    rows = 1 if strategy == "end_to_end" else layers

    def init(key):
        params = {"layers": vit.init_layers(key, rows), "head": jnp.zeros((rows, 256, 48))}
        return init_state(block.optimizer, params)

    mesh = make_mesh((1, 1, 1), tpu_devices("v5e:2x2")[:1])
    on_chip = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    step = end_to_end(block) if rows == 1 else blockwise([block] * rows)
    step = jax.jit(step, donate_argnums=0, in_shardings=on_chip, out_shardings=on_chip)
    batch = (
        jax.ShapeDtypeStruct((64, 64, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((64, 64, 48), jnp.float32),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    lowered = step.lower(jax.eval_shape(init, key), batch, key)
    return profile_compiled(lowered.compile()).temp


@needs_libtpu
@pytest.mark.slow
def test_compiled_for_tpu_blockwise_does_not_grow_with_depth():
    at_12, at_24, at_48 = (tpu_temp("blockwise", layers) for layers in (12, 24, 48))
    assert max(at_12, at_24, at_48) < 1.02 * min(at_12, at_24, at_48)
    assert tpu_temp("end_to_end", 24) > 5 * at_24
    assert tpu_temp("end_to_end", 24, "layer") > at_24


@needs_libtpu
def test_unknown_topology():
    with pytest.raises(ValueError, match="does not know the topology 'v99:2x2'"):
        tpu_devices("v99:2x2")


def test_missing_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs libtpu.*pip install 'blockjax\[tpu\]'"):
        tpu_devices("v5e:2x2")
