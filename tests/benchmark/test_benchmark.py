"""`python -m blockjax.benchmark`: its tables hold what was measured."""

import re

import pytest

from blockjax.benchmark import __main__, input, probes, steps
from blockjax.benchmark.estimates import agreement, estimates
from blockjax.benchmark.photos import made_jpegs
from blockjax.data import turbo
from blockjax.data.decode import image_shape
from tests.tiny import tiny_config


def rows(text):
    """Returns the numbers of each row of the table, by its first column."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split("[│|]", line)]
        if len(cells) > 3:
            found[cells[1]] = cells[2:-1]
    return found


@pytest.mark.slow
def test_step_times_are_ratios_to_the_first(capsys):
    steps.step(tiny_config(**{"mesh.data": -1}), 2, ["blockwise", "end_to_end"])
    table = rows(capsys.readouterr().out)
    (first, one, _), (second, ratio, _) = table["blockwise"], table["end_to_end"]
    assert float(one) == 1.0
    # The shown milliseconds are rounded.
    assert float(ratio) == pytest.approx(int(second) / int(first), rel=1.5 / int(first) + 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["simclr", "beit"])  # with views, and with something fitted
def test_what_preparation_takes_of_a_step(objective, capsys):
    config = tiny_config(
        objective=objective, **{"mesh.data": -1, "mask.ratio": None, "tokenizer.codes": 6}
    )
    steps.preparation(config, 2)
    ((made, (whole, share)),) = [
        item for item in rows(capsys.readouterr().out).items() if item[0][0].isdigit()
    ]
    assert float(share.rstrip("%")) == pytest.approx(100 * float(made) / float(whole), rel=0.1)


@pytest.mark.slow
def test_the_pipeline_beside_the_step(capsys):
    steps.pipeline(tiny_config(**{"mesh.data": -1}), 1)
    ((made, (taken, ratio)),) = [
        item for item in rows(capsys.readouterr().out).items() if item[0].isdigit()
    ]
    assert float(ratio) == pytest.approx(int(made) / int(taken), rel=0.05)


@pytest.mark.slow
def test_the_input_path(capsys, monkeypatch):
    before = turbo.INSTALLED
    monkeypatch.setattr(input, "cpu_count", lambda: 0)
    input.input_path(1, 32, height=96, width=128)
    printed = capsys.readouterr().out
    assert before == turbo.INSTALLED
    assert re.search(r"JPEGs of 128 x 96 and \d+ kB", printed)
    numbers = [
        [float(x) for x in re.findall(r"[\d.]+", line.split("│")[3] + " " + line.split("│")[4])]
        for line in printed.splitlines()
        if line.count("│") == 5
    ]
    ways = 1 + turbo.INSTALLED
    assert len(numbers) == 3 * ways
    for i in range(0, len(numbers), ways):
        assert numbers[i][1] == 1.0
        for rate, ratio in numbers[i : i + ways]:
            assert ratio == pytest.approx(rate / numbers[i][0], rel=0.02)
    assert re.search(r"│ +0 │ +\d+ │ 1\.000 │", printed)  # workers beside none


def test_made_jpegs_are_alike():
    files = list(made_jpegs(4, 375, 500, seed=3))
    assert files == list(made_jpegs(4, 375, 500, seed=3)) != list(made_jpegs(4, 375, 500, seed=4))
    assert {image_shape(file) for file in files} == {(375, 500)}
    # About four bits a pixel, as photos have that cameras compressed.
    assert all(60_000 < len(file) < 140_000 for file in files)


@pytest.mark.slow
def test_what_the_loss_moves(capsys):
    __main__.kernel(["local"], ["patch6"], ["bfloat16, uint8"])
    printed = capsys.readouterr().out
    for part in ("loss", "gradient", "head"):
        for implementation in ("xla", "xla, rows first", "pallas"):  # on a CPU all are XLA
            assert f"local: patch6, bfloat16, uint8, {part}, {implementation}\n" in printed
    table = [line for line in printed.splitlines() if re.match("[│|] patch6", line)]
    assert len(table) == 9
    least = 512 * 27 * 108 * 3 / 1e6  # predictions in bfloat16 and targets
    cells = [cell.strip() for cell in re.split("[│|]", table[0])]
    moved, ratio = [float(cell) for cell in cells if re.fullmatch(r"[\d.]+", cell)][:2]
    assert moved / least == pytest.approx(ratio, rel=0.02)


def test_unknown_shapes_and_targets_are_named():
    for target, shape, message in (("local", "b17", "'b17' is unknown"), ("h99", "b16", "'h99'")):
        with pytest.raises(ValueError, match=message):
            __main__.kernel([target], [shape], ["bfloat16, uint8"])


def test_bad_arguments_are_one_sentence(monkeypatch):
    for arguments, message in (
        (["--config", "nowhere.py"], "nowhere.py: there is no such file"),
        (["--strategies", "blockwise+rematt"], "option 'rematt' is unknown"),
    ):
        monkeypatch.setattr("sys.argv", ["benchmark", "step", *arguments])
        with pytest.raises(SystemExit, match=message):
            __main__.main()


@pytest.mark.slow
def test_probes_beside_scikit_learn(capsys):
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    probes.probes(1000, 16, tests=500, classes=4)
    table = rows(capsys.readouterr().out)
    names = [name for name in table if name.startswith(("kNN", "linear"))]
    assert len(names) == 6
    for name in names:
        ours, theirs, *_, ratio = map(float, table[name])
        assert ours == pytest.approx(theirs, abs=0.02) and 0.3 < ours < 1.0
        assert ratio > 0


def test_agreement_of_estimates():
    found = agreement([1.0, 2.0, 4.0], [3.0, 6.0, 12.0])
    assert (found.rank, found.factor, found.error) == (1.0, pytest.approx(3.0), pytest.approx(0.0))
    found = agreement([1.0, 2.0], [8.0, 4.0])  # 8 and 2 times as long; 4 in the mean
    assert (found.rank, found.factor) == (pytest.approx(-1.0), pytest.approx(4.0))
    assert found.error == pytest.approx((0.5 + 1.0) / 2)


@pytest.mark.slow
def test_estimates_beside_times(capsys, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.tiny import tiny_config\ndef get_config():\n    return tiny_config(**{'mesh.data': -1})\n"
    )
    estimates([str(config)], ["end_to_end", "blockwise"], 2)
    out = capsys.readouterr().out
    assert "GFLOP/s" in out
    agreed = rows(out.replace(str(config), "tiny"))
    assert {"tiny", "all"} <= {*agreed}
    for line in out.splitlines():
        if line.startswith(f"{config}, "):
            _, _, estimated, measured, *_ = line.split(", ")
            assert 0 < float(estimated) < float(measured)
