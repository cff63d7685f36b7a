"""The promise in bytes: block-wise scratch memory does not grow with depth. Held by the compilers' own figures."""

import importlib.util

import jax
import pytest

from blockjax.memory import profile, tpu_devices
from tests.tiny import tiny_config


def temp(target, strategy, depth, remat="none", **overrides):
    """Scratch bytes of a small step with three layers per block."""
    fields = {
        "strategy": strategy,
        "remat": remat,
        "model.depth": depth,
        "blocks": depth // 3,
        "batch_size": 64,
        "model.patch_size": 4,
        "mask.ratio": 0.75,
        "decoder.fraction": 1 / 3,
    }
    return profile(tiny_config(**{**fields, **overrides}), target).temp


def test_on_cpu_blockwise_is_far_below_end_to_end(monkeypatch):
    """A weaker form: the CPU compiler keeps some bytes for every layer."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    blockwise = temp("local", "blockwise", 24)
    assert blockwise < temp("local", "end_to_end", 24) / 3
    assert temp("local", "blockwise", 24, "layer") < blockwise


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)
def test_compiled_for_tpu_blockwise_does_not_grow_with_depth():
    target = "v5e:2x2"
    at_12, at_24, at_48 = (temp(target, "blockwise", depth) for depth in (12, 24, 48))
    assert max(at_12, at_24, at_48) < 1.02 * min(at_12, at_24, at_48)
    assert temp(target, "end_to_end", 24) > 5 * at_24
    assert temp(target, "end_to_end", 24, "layer") > at_24


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)
def test_unknown_topology():
    with pytest.raises(ValueError, match="does not know the topology 'v99:2x2'"):
        tpu_devices("v99:2x2")


def test_missing_libtpu(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs libtpu.*pip install 'blockjax\[tpu\]'"):
        tpu_devices("v5e:2x2")
