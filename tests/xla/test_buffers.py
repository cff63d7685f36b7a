"""Reading XLA's buffer assignment: a dump written by hand, and one by the CPU compiler."""

import pytest

from blockjax.xla.buffers import (
    Value,
    _alive,
    _read_operations,
    _uncovered,
    argument_origin,
    operation_origin,
    read_breakdown,
)

STEM = "module_0001.jit_train_step.cpu_after_optimizations"

# 1000 bytes of arguments; in the scratch, a and b are alive together (700 bytes), c takes a's place later.
ASSIGNMENT = """BufferAssignment:
allocation 0: size 1000, parameter 0, shape |f32[250]| at ShapeIndex {}, maybe-live-out:
 value: <1 p @0> (size=1000,offset=0): f32[250]{0}
allocation 1: size 9999, color 1, preallocated-temp:
 value: <2 fast @1> (size=9999,offset=0): f32[9]{0}
allocation 2: size 800, preallocated-temp:
 value: <3 a @0> (size=400,offset=0): f32[100]{0}
 value: <4 b{0} @0> (size=300,offset=500): f32[75]{0}
 value: <5 c @0> (size=400,offset=0): f32[100]{0}
 value: <6 part @0> (size=100,offset=600): f32[25]{0}
 value: <7 loop{1} (phi) @0> (size=400,offset=0): f32[100]{0}
 value: <8 d @0> (size=90,offset=405): f32[22]{0}
allocation 3: size 50, maybe-live-out:
 value: <9 e @0> (size=50,offset=0): f32[12]{0}

Used values:
"""
LIVE = """  BufferLiveRange:
    p{}:0-9
    a{}:1-3
    b{0}:2-4
    part{}:2-3
    c{}:6-7
    loop{1}:1-2
    d{}:6-6
    e{}:5-9
"""
PROGRAM = """
  %p = f32[250]{0} parameter(0), metadata={op_name="state.blocks.params[\\'layers\\'][\\'mlp\\']"}
  %a = f32[100]{0} add(%p, %p), metadata={op_name="jit(train_step)/block_1/transpose(jvp(forward))/Layer/mlp/add"}
  ROOT %b = (f32[75]{0}) fusion(%a), calls=%x, metadata={op_name="jit(train_step)/block_1/optimizer/mul" id=3}
"""


@pytest.fixture
def dump(tmp_path):
    (tmp_path / f"{STEM}-buffer-assignment.txt").write_text(ASSIGNMENT)
    (tmp_path / f"{STEM}-live-range.txt").write_text(LIVE)
    (tmp_path / f"{STEM}.txt").write_text(PROGRAM)
    return tmp_path


def test_the_peak_and_who_fills_it(dump):
    found = read_breakdown(dump)
    assert found.size == 1850  # the chip's fast memory is not device memory
    parts = {part.origin: part.size for part in found.parts}
    assert parts == {
        "blocks / parameters / layers": 1000,
        "block_1 / forward / Layer / mlp / add (backward)": 400,
        "block_1 / optimizer / mul": 300,  # the part inside it counts once
        "outputs": 50,
        "": 100,
    }
    assert [part.size for part in found.parts] == sorted(parts.values(), reverse=True)
    assert found.named == pytest.approx(1750 / 1850)


def test_the_timeline_rises_and_falls(dump):
    timeline = dict(read_breakdown(dump).timeline)
    assert timeline[1] == 1450
    assert timeline[4] == 1350  # a and part are gone
    assert timeline[5] == 1050
    assert timeline[6] == 1540


def test_bytes_that_several_values_share_count_once():
    intervals = []
    assert _uncovered(intervals, 10, 20) == 10
    assert _uncovered(intervals, 30, 40) == 10
    assert _uncovered(intervals, 15, 35) == 10  # between the two
    assert intervals == [(10, 40)]
    assert _uncovered(intervals, 5, 45) == 10
    assert _uncovered(intervals, 12, 30) == 0
    assert intervals == [(5, 45)]


def value(name, operation, start, end, is_phi=False):
    return Value(name, operation, "f32[1]", 0, 4, start, end, is_phi)


@pytest.mark.parametrize(
    ("values", "best"),
    [
        # Bytes that only pass through a nameless loop are told by the one who made them.
        ([value("loop", "", 3, 9, True), value("maker", "add", 1, 2)], "maker"),
        ([value("phi", "while", 5, 5, True), value("real", "add", 4, 5)], "real"),
        ([value("early", "add", 1, 5), value("late", "mul", 4, 5)], "late"),
    ],
)
def test_a_name_for_bytes_that_pass_from_value_to_value(values, best):
    ((found, size),) = _alive([(0, v) for v in values], 5)
    assert (found.name, size) == (best, 4)


def test_a_backend_without_a_dump(tmp_path):
    with pytest.raises(FileNotFoundError, match="no buffer assignment"):
        read_breakdown(tmp_path)


def test_copies_are_named_by_what_they_copy():
    program = """
  %a.1 = f32[8]{0} add(%p, %p), metadata={op_name="jit(train_step)/block_1/add"}
  %view = f32[4,2]{0,1:T(8,128)S(1)} bitcast(%a.1)
  %copy-start.1 = (f32[4,2]{0,1}, f32[4,2]{0,1:S(1)}, u32[]{:S(2)}) copy-start(%view)
  ROOT %taken = f32[2]{0} get-tuple-element(%tuple.3), index=1
  %sum = f32[8]{0} custom-call(%a.1, %p)
  %own = f32[8]{0} copy(%a.1), metadata={op_name="jit(train_step)/block_2/copy"}
"""
    assert _read_operations(program) == {
        "a.1": "jit(train_step)/block_1/add",
        "view": "jit(train_step)/block_1/add",
        "copy-start.1": "jit(train_step)/block_1/add",
        "own": "jit(train_step)/block_2/copy",
    }


def test_origins():
    assert argument_origin("state.stem.opt_state[0].mu['cls']") == "stem / optimizer state"
    assert argument_origin("batch['image']") == "batch / image"
    assert argument_origin("") == "arguments"
    path = "jit(train_step)/blocks_2_to_4/while/body/closed_call/jvp(local_loss)/mlp_0/dot_general"
    assert operation_origin(path) == "blocks_2_to_4 / local_loss / mlp_0 / dot_general"
    assert operation_origin("jit(train_step)/Layer/Layer/mlp") == "Layer / mlp"
    assert operation_origin("") == ""
