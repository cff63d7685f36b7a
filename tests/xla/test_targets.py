"""Names of targets."""

import importlib.util
import types

import jax
import pytest
from jax.experimental import topologies

from blockjax.xla.targets import GIB, local_limit, multiplies_bfloat16, parse_target

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)


@pytest.mark.parametrize(
    ("name", "kind", "model", "layout"),
    [
        ("local", "local", "", ""),
        ("h100", "gpu", "h100", ""),
        ("A100-40:8", "gpu", "a100-40", "8"),
        ("v5e", "tpu", "v5e", ""),
        ("v5e:4x4", "tpu", "v5e", "4x4"),
        ("v5p:2x2x1", "tpu", "v5p", "2x2x1"),
    ],
)
def test_names(name, kind, model, layout):
    target = parse_target(name)
    assert (target.kind, target.model, target.layout) == (kind, model, layout)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h1000", r"'h1000' is unknown; it may be local, a GPU \(.*h100.*\) or a TPU \(.*v5e"),
        ("h100:2x2", "number of GPUs"),
        ("h100:", "number of GPUs"),
        ("h100:0", "number of GPUs"),
        ("v5e:4", "in 2 dimensions, as in v5e:2x2"),
        ("v5p:2x2", "in 3 dimensions, as in v5p:2x2x1"),
        ("v5e:1x1", "smallest slice is v5e:2x2; v5e alone is one chip"),
    ],
)
def test_bad_names_say_what_there_is(name, message):
    with pytest.raises(ValueError, match=message):
        parse_target(name)


def test_limits_are_what_jax_hands_out():
    assert parse_target("v5e").limit == 16 * GIB
    assert parse_target("h100").limit == pytest.approx(0.75 * 79.1 * GIB, rel=0.01)
    assert parse_target("local").limit is None
    assert local_limit(jax.devices()[0]) > GIB


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e", r"needs libtpu, which is not installed.*pip install 'jax\[tpu\]'"),
        ("h100", r"needs jax_plugins.xla_cuda13 or jax_plugins.xla_cuda12.*'jax\[cuda13\]'"),
    ],
)
def test_missing_packages_are_named(monkeypatch, name, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=message):
        parse_target(name).devices()


@pytest.mark.parametrize("module", ["jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"])
def test_gpus_are_described_to_the_compiler(monkeypatch, module):
    asked = {}

    def describe(**description):
        asked.update(description)
        return types.SimpleNamespace(devices=["a device"])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == module or None)
    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    assert parse_target("a100:8").devices() == ["a device"]
    assert (asked["platform"], asked["topology"]) == ("cuda", "1x1x8")
    for text in ('"NVIDIA A100-SXM4-80GB"', "{ major: 8 minor: 0 }", "core_count: 108"):
        assert text in asked["target_config"]
    parse_target("h100").devices()
    assert asked["topology"] == "1x1x1"


@needs_libtpu
def test_a_layout_that_libtpu_does_not_know(monkeypatch):
    for name, value in parse_target("v5e").environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="does not know the target 'v5e:3x3'"):
        parse_target("v5e:3x3").devices()
    assert len(parse_target("v5e:4x4").devices()) == 16
    assert len(parse_target("v5e").devices()) == 1


@pytest.mark.parametrize(
    ("capability", "multiplies"),
    [("7.0", False), ("7.5", False), ("8.0", True), ("10.0", True), ("gfx90a", True), (None, True)],
)
def test_gpus_before_ampere_do_not_multiply_bfloat16(capability, multiplies):
    device = types.SimpleNamespace(compute_capability=capability)
    assert multiplies_bfloat16(device) == multiplies
    assert multiplies_bfloat16(jax.devices()[0])
