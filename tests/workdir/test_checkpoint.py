"""Checkpoints: round trips, donation, retention, every kind of damage, and death while saving."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from flax import struct
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from blockjax.workdir import checkpoint
from blockjax.workdir.checkpoint import Checkpoints


@struct.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    key: jax.Array
    nothing: None = None


def make_mesh(devices: int) -> jax.sharding.Mesh:
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


@functools.cache
def state_maker(devices: int, width: int, memory_kind: str | None):
    mesh = make_mesh(devices)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.adamw(1e-3), {"kernel": True, "bias": False, "empty": {}}),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
    )

    def create(step):
        key = jax.random.fold_in(jax.random.key(0), step)
        kernel = jax.random.normal(key, (8, width))
        params = {"kernel": kernel, "bias": jnp.ones((3,), jnp.bfloat16), "empty": {}}
        return State(step, params, tx.init(params), key)

    shardings = jax.tree.map(
        lambda leaf: NamedSharding(
            mesh,
            P("data") if leaf.ndim == 2 else P(),
            memory_kind=memory_kind if leaf.ndim == 2 else None,
        ),
        jax.eval_shape(create, jnp.int32(0)),
    )
    return jax.jit(create, out_shardings=shardings)


def make_state(step: int, devices=4, width=256, memory_kind=None) -> State:
    """A state with optax's odd nodes (EmptyState, MaskedNode, None), bf16, a typed key, shards."""
    return state_maker(devices, width, memory_kind)(jnp.int32(step))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def to_numpy(tree):
    def leaf(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.array(jax.random.key_data(x) if is_key else x)

    return jax.tree.map(leaf, tree)


def assert_bit_equal(tree, expected):
    tree, expected = to_numpy(tree), to_numpy(expected)
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert got.dtype == want.dtype
        assert got.tobytes() == want.tobytes()


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    yield checkpoints
    checkpoints.close()


@pytest.fixture(scope="session")
def two_saved(tmp_path_factory):
    """A folder with whole checkpoints of steps 1 and 2, to be copied."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(directory, keep=2)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), {"next_index": step * 10})
    checkpoints.close()
    return directory


@pytest.fixture
def warnings_logged(monkeypatch):
    messages = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: messages.append(message % args))
    return messages


def test_nothing_saved_restores_none(checkpoints):
    assert checkpoints.steps() == []
    assert checkpoints.restore_newest(abstract(make_state(0))) is None


def test_round_trip_keeps_bits_structure_and_data_state(checkpoints):
    state = make_state(3)
    checkpoints.save(3, state, {"next_index": 30, "workers": ["a", None]})
    step, restored, data_state = checkpoints.restore_newest(abstract(state))
    assert (step, data_state) == (3, {"next_index": 30, "workers": ["a", None]})
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert_bit_equal(restored, state)


@pytest.mark.parametrize(
    ("devices", "memory_kind"), [(1, None), (2, None), (4, "pinned_host"), (2, "pinned_host")]
)
def test_restores_onto_other_shardings(checkpoints, devices, memory_kind):
    saved = make_state(3, devices=4)
    checkpoints.save(3, saved, {})
    target = abstract(make_state(0, devices=devices, memory_kind=memory_kind))
    _, restored, _ = checkpoints.restore_newest(target)
    assert_bit_equal(restored, saved)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert got.sharding.is_equivalent_to(want.sharding, got.ndim)
        assert got.sharding.memory_kind == want.sharding.memory_kind
    assert len(restored.params["kernel"].sharding.device_set) == devices


def test_state_may_be_donated_right_after_save(checkpoints, monkeypatch):
    state = make_state(1, width=1 << 18)
    expected = to_numpy(state)
    shardings = jax.tree.map(lambda x: x.sharding, state)

    def wipe(state):
        params = jax.tree.map(lambda x: x * 0 - 7, state.params)
        opt_state = jax.tree.map(lambda x: x * 0 - 7, state.opt_state)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    step = jax.jit(wipe, donate_argnums=0, out_shardings=shardings).lower(state).compile()
    target = abstract(state)
    stepped = threading.Event()
    size_and_crc = checkpoint._size_and_crc
    monkeypatch.setattr(
        checkpoint, "_size_and_crc", lambda path: stepped.wait(30) and size_and_crc(path)
    )
    checkpoints.save(1, state, {})
    new = step(state)
    new = step(new)
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    jax.block_until_ready(new)
    assert checkpoints.steps() == []  # saving went on in the background
    stepped.set()
    _, restored, _ = checkpoints.restore_newest(target)
    assert_bit_equal(restored, expected)


def test_saving_a_step_again_changes_nothing(checkpoints):
    first = make_state(1)
    checkpoints.save(1, first, {"next_index": 1})
    checkpoints.save(1, make_state(2), {"next_index": 2})
    step, restored, data_state = checkpoints.restore_newest(abstract(first))
    assert (step, data_state) == (1, {"next_index": 1})
    assert_bit_equal(restored, first)


def test_keeps_the_newest(checkpoints, tmp_path):
    for step in (5, 10, 100, 101):
        checkpoints.save(step, make_state(step), {})
    checkpoints.wait()
    assert checkpoints.steps() == [100, 101]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000100", "00000101"]
    with pytest.raises(ValueError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_data_state_is_a_snapshot_and_must_be_json(checkpoints):
    data_state = {"next_index": 1}
    checkpoints.save(1, make_state(1), data_state)
    data_state["next_index"] = 2
    assert checkpoints.restore_newest(abstract(make_state(0)))[2] == {"next_index": 1}
    with pytest.raises(TypeError):
        checkpoints.save(2, make_state(2), {"position": object()})


def damage_cases(directory):
    newest = directory / "00000002"
    for path in sorted(newest.rglob("*")):
        if path.is_file():
            name = path.relative_to(newest).as_posix()
            yield name, "delete"
            if path.stat().st_size:
                yield name, "truncate"
                yield name, "flip"


def apply_damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)


def test_damage_of_every_file_is_found(two_saved, tmp_path, monkeypatch):
    """Only the search is run for each file; the next test restores."""
    cases = list(damage_cases(two_saved))
    assert len(cases) > 25
    for name, how in cases:
        directory = tmp_path / "checkpoints"
        shutil.copytree(two_saved, directory)
        apply_damage(directory / "00000002" / name, how)
        assert checkpoint._find_damage(directory / "00000001") is None
        assert checkpoint._find_damage(directory / "00000002") is not None, (name, how)
        shutil.rmtree(directory)


def largest_file(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize("how", ["delete", "truncate", "flip"])
def test_falls_back_from_a_damaged_checkpoint(two_saved, tmp_path, warnings_logged, how):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_saved, directory)
    apply_damage(largest_file(directory / "00000002"), how)
    checkpoints = Checkpoints(directory, keep=2)
    target = abstract(make_state(0))

    step, restored, data_state = checkpoints.restore_newest(target)
    assert (step, data_state) == (1, {"next_index": 10})
    assert_bit_equal(restored, make_state(1))
    assert len(warnings_logged) == 1
    assert "step 2 is damaged" in warnings_logged[0]
    assert "using step 1 instead" in warnings_logged[0]
    reason = {
        "delete": "No such file",
        "truncate": "bytes instead of",
        "flip": "contents other than",
    }
    assert reason[how] in warnings_logged[0]
    assert checkpoints.steps() == [1]
    assert (tmp_path / "checkpoints_damaged" / "00000002").is_dir()

    # The step can be saved again, and be damaged again.
    checkpoints.save(2, make_state(2), {"next_index": 20})
    assert checkpoints.restore_newest(target)[0] == 2
    apply_damage(largest_file(directory / "00000002"), how)
    assert checkpoints.restore_newest(target)[0] == 1
    assert (tmp_path / "checkpoints_damaged" / "00000002_2").is_dir()
    checkpoints.close()


def test_all_damaged_is_an_error_and_stays_one(two_saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_saved, directory)
    for step in ("00000001", "00000002"):
        (directory / step / "metadata.json").unlink()
    checkpoints = Checkpoints(directory, keep=2)
    for _ in range(2):  # a restarted run must not start from scratch in silence
        with pytest.raises(ValueError, match="choose another workdir, or delete") as error:
            checkpoints.restore_newest(abstract(make_state(0)))
        assert str(directory) in str(error.value)
    assert checkpoints.steps() == [1, 2]


def test_other_shapes_and_leaves_are_named(two_saved, warnings_logged):
    checkpoints = Checkpoints(two_saved, keep=2)
    with pytest.raises(ValueError, match=r"\.params\['kernel'\] is \(8, 256\).*\(8, 128\)"):
        checkpoints.restore_newest(abstract(make_state(0, width=128)))
    target = abstract(make_state(0))
    fewer = target.replace(params={"kernel": target.params["kernel"], "empty": {}})
    with pytest.raises(ValueError, match=r"\['bias'\] is \(3,\) bfloat16 .* absent in the config"):
        checkpoints.restore_newest(fewer)
    bias = target.params["bias"]
    more = target.replace(params=target.params | {"scale": bias})
    with pytest.raises(ValueError, match=r"\['scale'\] is absent in the checkpoint and \(3,\)"):
        checkpoints.restore_newest(more)
    retyped = jax.ShapeDtypeStruct(bias.shape, jnp.float32, sharding=bias.sharding)
    with pytest.raises(ValueError, match=r"\['bias'\] is \(3,\) bfloat16 .* \(3,\) float32"):
        checkpoints.restore_newest(target.replace(params=target.params | {"bias": retyped}))
    assert checkpoints.steps() == [1, 2]
    assert not warnings_logged


def test_errors_of_the_background_surface_once(checkpoints, monkeypatch):
    def fail(path):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_size_and_crc", fail)
        checkpoints.save(1, make_state(1), {})
        with pytest.raises(OSError, match="disk full"):
            checkpoints.wait()
    assert checkpoints.steps() == []
    assert checkpoints.restore_newest(abstract(make_state(0))) is None
    checkpoints.save(1, make_state(1), {})
    checkpoints.wait()
    assert checkpoints.steps() == [1]


def test_half_written_checkpoints_do_not_count(two_saved, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(two_saved, directory)
    (directory / "00000002").rename(directory / "00000002.unfinished")
    checkpoints = Checkpoints(directory, keep=2)
    assert checkpoints.steps() == [1]
    checkpoints.save(3, make_state(3), {})
    checkpoints.close()
    assert sorted(path.name for path in directory.iterdir()) == ["00000001", "00000003"]


def test_orbax_stays_quiet(checkpoints, caplog):
    level = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    try:
        checkpoints.save(1, make_state(1), {})
        checkpoints.restore_newest(abstract(make_state(1)))
        logging.info("from this package")
    finally:
        logging.set_verbosity(level)
    assert [record.getMessage() for record in caplog.records] == ["from this package"]


SAVES_FOREVER = """
import sys, itertools
import jax, jax.numpy as jnp
from blockjax.workdir.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], keep=2)
for step in itertools.count(1):
    checkpoints.save(step, {"a": jnp.full((4, 1 << 20), step, jnp.float32)}, {"next": step})
    print(step, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
def test_killed_while_saving(tmp_path, delay, warnings_logged):
    child = subprocess.Popen(
        [sys.executable, "-c", SAVES_FOREVER, str(tmp_path / "checkpoints")],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in child.stdout:
        started = int(line)
        if started == 4:
            break
    time.sleep(delay)
    os.kill(child.pid, signal.SIGKILL)
    started = int(([str(started), *child.stdout.read().split()])[-1])
    child.wait()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    sharding = NamedSharding(make_mesh(4), P("data"))
    target = {"a": jax.ShapeDtypeStruct((4, 1 << 20), jnp.float32, sharding=sharding)}
    step, state, data_state = checkpoints.restore_newest(target)
    # A save starts only when the one before is whole.
    assert step in (started - 1, started, started + 1)
    assert data_state == {"next": step}
    assert (np.asarray(state["a"]) == step).all()
    assert not warnings_logged
    checkpoints.save(step + 1, state, {})
    checkpoints.close()
    assert checkpoints.steps()[-1] == step + 1


FAILS_WHILE_SAVING = """
import contextlib, sys
import jax.numpy as jnp
from blockjax.workdir.checkpoint import Checkpoints
with contextlib.closing(Checkpoints(sys.argv[1], keep=2)) as checkpoints:
    checkpoints.save(1, {"a": jnp.ones((8, 1 << 20))}, {})
    raise RuntimeError("training failed")
"""


@pytest.mark.slow
def test_a_failing_run_ends_and_keeps_its_last_save(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", FAILS_WHILE_SAVING, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert child.stderr.rstrip().endswith("RuntimeError: training failed")
    assert Checkpoints(tmp_path, keep=2).steps() == [1]
