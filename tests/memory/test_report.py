"""Tables of memory profiles."""

from blockjax.memory import MIB
from blockjax.memory.report import _growth, report


def test_growth_for_each_layer_more():
    lines = [
        {"strategy_name": name, "depth": depth, "temp_bytes": temp, "total_device_bytes": total}
        for name, depth, temp, total in (
            ("end_to_end", 24, 36 * MIB, 60 * MIB),
            ("end_to_end", 12, 12 * MIB, 24 * MIB),
            ("blockwise", 12, 5 * MIB, 8 * MIB),
            ("blockwise", 24, 5 * MIB, 20 * MIB),
        )
    ]
    lines.append({"strategy_name": "blockwise", "depth": 48, "error": "crashed"})
    assert _growth(lines) == [
        ["end_to_end", "12 to 24", "2.000", "3.000"],
        ["blockwise", "12 to 24", "0.000", "1.000"],
    ]
    assert not _growth(lines[:1])


def test_a_target_with_errors_only_has_no_table(capsys):
    lines = [
        {"config": "a.py", "target": "v5e", "strategy_name": "blockwise", "depth": 4, "error": "no libtpu"},
        {"config": "a.py", "target": "h100", "strategy_name": "blockwise", "depth": 4, "blocks": 4, "batch": 8,
         "refused": "too much", "fits": False, "total_device_bytes": 3 * MIB},
    ]  # fmt: skip
    report(lines)
    out = capsys.readouterr().out
    assert "a.py, v5e" not in out and "blockwise, v5e: error: no libtpu" in out
    assert "a.py, h100" in out and "3.0" in out and "no" in out


def test_estimates_are_per_batch_and_say_what_is_missing(capsys):
    base = {
        "config": "a.py", "depth": 4, "blocks": 4, "batch": 8, "fits": True, "temp_bytes": MIB,
        "total_device_bytes": MIB, "compile_seconds": 1.0,
    }  # fmt: skip
    known = {
        "target": "v5e", "strategy_name": "streamed", "flops": 4e9, "batches": 4, "host_link_bytes": MIB,
        "estimated_seconds": 0.0123, "estimated_seconds_in_turn": 0.0246, "estimated_limit": "host link",
        "measured_seconds": 0.0492,
    }  # fmt: skip
    first = {**known, "strategy_name": "blockwise", "flops": 1e9, "batches": 1}
    unknown = {
        **known,
        "target": "tpu7x",
        "estimated_seconds": None,
        "estimated_seconds_in_turn": None,
    }
    report([{**base, **line} for line in (first, known, unknown)], measure=True)
    out = capsys.readouterr().out
    (row,) = (line for line in out.splitlines() if "streamed" in line and "12.3" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert {"12.3", "24.6", "host link", "49.2", "4.000", "1.000"} <= {*cells}
    assert cells[cells.index("yes") - 1] == "1.000"  # FLOPs of a batch, beside the first's
    assert "streamed, tpu7x: no estimate of the time" in out and "v6e" in out
