"""A whole run on text: what it reports, that it resumes exactly, and which configs it refuses."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

from blockjax.compare import compare, row_of
from blockjax.config.files import load_config
from blockjax.data.sources.text import open_text
from blockjax.data.text_baselines import bits_per_byte_of_compressors
from blockjax.probes.bits import bits_of_blocks
from blockjax.report import figures
from blockjax.report.comparison import table
from blockjax.training.run import Training
from blockjax.training.text import _verdict
from blockjax.workdir.checkpoint import Checkpoints
from blockjax.workdir.metrics import read_metrics
from tests.objectives.text.test_text_objectives import text_config

STEPS = 12
TIMES = ("seconds", "tokens_per_second", "data/wait_share")
CONFIGS = Path(__file__).parent.parent.parent / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty files of few words, the first with a letter of two bytes."""
    path = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for number in range(20):
        words = rng.choice(["block", "by", "block", "déjà", "vu"], 60)
        (path / f"{number}.txt").write_text(" ".join(words) + "\n", "utf-8")
    return path


def config_of(folder, **overrides):
    fields = {
        "steps": STEPS,
        "data.source": f"text:{folder}",
        "model.vocabulary": None,
        "checkpoint.every": 4,
        "log.every": 1,
        "optimizer.warmup_steps": 2,
        "mesh.data": -1,
    }
    return text_config(**{**fields, **overrides})


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, Training(config_of(folder), workdir).run()


def comparable(workdir):
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def final_state(config, workdir):
    run = Training(config, workdir)
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep=9)) as checkpoints:
        _, state, _ = checkpoints.restore_newest(run.abstract_state)
    return run, state


@pytest.mark.slow
def test_what_a_run_reports(finished, folder):
    workdir, summary = finished
    assert json.loads((workdir / "summary.json").read_text()) == summary
    rows = read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    speed = summary["tokens_per_second"] * summary["seconds"]
    np.testing.assert_allclose(speed, STEPS * 8 * 12)
    took = rows[5]["seconds"] - rows[4]["seconds"]
    np.testing.assert_allclose(rows[5]["tokens_per_second"] * took, 8 * 12, rtol=1e-5)
    assert rows[-1]["block_1/loss"] < rows[0]["block_1/loss"] - 0.3
    assert list(summary["bits_per_byte"]) == ["block_1", "block_2"]
    assert all(0.5 < bits < 8.5 for bits in summary["bits_per_byte"].values())
    train, test = (
        open_text(f"text:{folder}", split, context=12).text_bytes() for split in ("train", "test")
    )
    assert summary["baselines"] == bits_per_byte_of_compressors(train, test)
    for name in ("bits_per_byte", "losses"):
        assert (workdir / "figures" / f"{name}.png").stat().st_size > 5000
    again = Training(config_of(folder), workdir)
    assert row_of(again)["bits_per_byte"] == summary["bits_per_byte"]


@pytest.mark.slow
def test_bits_are_those_of_every_byte_of_the_held_out_text(finished, folder):
    """Counted by hand, sequence by sequence."""
    workdir, summary = finished
    run, state = final_state(config_of(folder), workdir)
    learner, source = run.learner, run.test_source
    params = jax.device_get(learner.backbone_params(state))
    for k in range(2):
        nats = 0.0
        for sequence in source.tokens.astype(np.int32):
            inputs, _ = learner.objective.prepare(None, {"tokens": sequence[None]})
            stream = learner.vit.stem(params["stem"], inputs)
            for block in range(k + 1):
                layers = jax.tree.map(lambda leaf, block=block: leaf[block], params["layers"])
                stream = learner.vit.layers(layers, stream)
            head = jax.tree.map(lambda leaf, k=k: leaf[k], params["heads"])
            logits = learner.objective.normed(head, stream)[0] @ head["readout"]["kernel"]
            nats -= float(jax.nn.log_softmax(logits)[np.arange(12), sequence].sum())
        letters = int((source.tokens < 256).sum())
        found = summary["bits_per_byte"][f"block_{k + 1}"]
        np.testing.assert_allclose(found, nats / math.log(2) / letters, rtol=1e-5)


@pytest.mark.slow
def test_the_last_batch_of_held_out_text_is_filled_up_and_not_counted(
    finished, folder, monkeypatch
):
    workdir, summary = finished
    run, state = final_state(config_of(folder), workdir)
    monkeypatch.setattr("blockjax.probes.bits._TOKENS", 10 * 12)
    assert len(run.test_source) % 10
    rows = bits_of_blocks(run.learner, state, run.test_source, jax.random.key(0))
    for row in rows:
        expected = summary["bits_per_byte"][row["features"]]
        np.testing.assert_allclose(row["bits_per_byte"], expected, rtol=1e-5)
    found = []
    for tokens in (10 * 12, 13 * 12):  # of 13 sequences, in two batches and in one
        monkeypatch.setattr("blockjax.probes.bits._TOKENS", tokens)
        few = bits_of_blocks(run.learner, state, run.test_source, jax.random.key(0), limit=13)
        found.append(few[0]["bits_per_byte"])
    np.testing.assert_allclose(*found, rtol=1e-5)
    assert found[0] != rows[0]["bits_per_byte"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields, blocks",
    [
        ({"strategy": "end_to_end"}, ["block_2"]),
        ({"strategy": "streamed_end_to_end"}, ["block_2"]),
        ({"model.tied": True}, ["block_1", "block_2"]),
        (
            {"head.shared": True, "head.trained_by": "last", "head.refresh": 5},
            ["block_1", "block_2"],
        ),
        ({"strategy": "streamed", "mesh.data": 2, "mesh.fsdp": 4}, ["block_1", "block_2"]),
        ({"strategy": "pipelined", "mesh.block": 2, "mesh.data": 4}, ["block_1", "block_2"]),
    ],
    ids=str,
)
def test_every_kind_of_run_has_bits_per_byte(fields, blocks, folder, tmp_path):
    summary = Training(config_of(folder, **fields), tmp_path / "run").run()
    assert list(summary["bits_per_byte"]) == blocks
    assert all(0.5 < bits < 8.5 for bits in summary["bits_per_byte"].values())


@pytest.mark.slow
def test_masked_tokens_are_reported_for_themselves(folder, tmp_path):
    summary = Training(config_of(folder, objective="masked_token"), tmp_path / "run").run()
    assert "bits_per_byte" not in summary and "baselines" not in summary
    for row in summary["blocks"]:
        np.testing.assert_allclose(row["perplexity"], 2 ** row["bits_per_token"], rtol=1e-5)
        assert 1.0 < row["bits_per_token"] < 8.2


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(finished, folder, tmp_path):
    whole, _ = finished
    workdir = tmp_path / "killed"
    script = (
        "import sys, jax\n"
        "jax.config.update('jax_num_cpu_devices', 8)\n"
        "from tests.training.test_text_run import config_of\n"
        "from blockjax.training.run import Training\n"
        f"Training(config_of({str(folder)!r}), {str(workdir)!r}).run()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=CONFIGS.parent)
    try:
        deadline = time.monotonic() + 300
        while not any(workdir.glob("checkpoints/[0-9]*")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    if (workdir / "summary.json").exists():
        os.unlink(workdir / "summary.json")  # it was too quick; the state is compared all the same
    summary = Training(config_of(folder), workdir).run()
    assert comparable(workdir) == comparable(whole)
    (_, state), (_, expected) = (final_state(config_of(folder), path) for path in (workdir, whole))
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(expected))
    assert summary["bits_per_byte"] == finished[1]["bits_per_byte"]


def test_a_run_that_learned_little_says_so():
    config = text_config()
    summary = {"bits_per_byte": {"block_1": 2.5, "block_2": 2.2}, "steps": 10}
    assert _verdict({**summary, "baselines": {"gzip": 2.3}}, config) == []
    (line,) = _verdict({**summary, "baselines": {"gzip": 2.1}}, config)
    assert "2.200 against 2.100" in line and "--config.steps=40" in line


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"mask.schedule": "linear:0.9"}, r"mask.schedule='linear:0.9' is for images"),
        ({"model.patch_size": 8}, r"model.patch_size=8 is for images, and objective=next_token"),
        ({"decoder.width": 64}, r"decoder.width=64 is for images.* set it back to 192"),
        (
            {"objective": "mae"},
            r"model.context=12 is for text, and objective=mae learns from images",
        ),
        ({"data.source": "embedded"}, r"data.source='embedded' has images"),
        ({"backbone": "runs/x"}, r"backbone='runs/x': runs on text start from random numbers"),
        ({"model.positions": "sincos"}, r"model.positions 'sincos'"),
        ({"model.norm": "batch"}, r"model.norm"),
        ({"model.heads": 3}, r"not divisible by model.heads 3; .*1, 2, 4, 8, 16"),
        ({"model.width": 18, "model.heads": 6}, r"rotary rotates pairs.* gives 3 each"),
        ({"loss.chunk": 5}, r"loss.chunk=5 does not divide the 12 tokens.*1, 2, 3, 4, 6, 12"),
        ({"objective": "masked_token", "loss.chunk": 12}, r"the 2 tokens of a sequence that are"),
        ({"cross_block.blocks": 1}, r"cross_block.blocks=1: heads would attend to .*later tokens"),
        ({"distillation.weight": 0.5}, r"objective=next_token predicts none"),
        ({"model.tied": True, "microbatches": 2}, r"model.tied=True.*microbatches=2"),
        ({"model.tied": True, "pipeline.batches": 2}, r"model.tied=True.*pipeline.batches=2"),
        ({"model.tied": True, "strategy": "streamed_end_to_end"}, r"model.tied=True.*strategy="),
        ({"head.trained_by": "last"}, r"set head.shared=True"),
        ({"head.shared": True, "head.refresh": 2}, r"set head.trained_by=last"),
        ({"model.context": 1}, r"model.context"),
        ({"model.vocabulary": 300}, r"model.vocabulary=300, but there are 258 tokens.*leave"),
        ({"model.context": 10**5}, r"model.context"),
        ({"batch_size": 10**6}, r"batch_size 1000000 is larger than the training set"),
    ],
    ids=str,
)
def test_bad_configs_are_refused_before_anything_is_compiled(fields, message, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        Training(config_of(folder, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_config_has_small_and_real_sizes():
    small = load_config(f"{CONFIGS / 'text.py'}")
    assert small.data.source == "text:stdlib" and small.objective == "next_token"
    large = load_config(f"{CONFIGS / 'text.py'}:model=gpt2-medium,batch=16,blocks=24")
    assert (large.model.preset, large.model.context, large.blocks) == ("gpt2-medium", 1024, 24)
    with pytest.raises(ValueError, match="gpt2-medium"):
        load_config(f"{CONFIGS / 'text.py'}:modle=gpt2-medium")


def test_runs_stand_side_by_side_by_bits_per_byte():
    shared = {"config": "text", "steps": 5, "batch_size": 8, "seconds": 1.0, "first": [5.0]}
    shared |= {"last": [2.0], "chance": None, "rank": None, "probes": [], "fields": {}}
    rows = [
        {**shared, "strategy": strategy, "seed": seed, "bits_per_byte": bits}
        for seed in (0, 1)
        for strategy, bits in (
            ("blockwise", {"block_1": 2.5 + seed, "block_2": 2.25}),
            ("end_to_end", {"block_2": 2.125}),
        )
    ]
    text = table(rows)
    assert "| bits per byte | least |" in text and "kNN" not in text
    assert "| 3.500 2.250 | 2.250 |" in text
    assert "Bits per byte, mean over seeds (least to greatest):" in text
    assert "| 3.000 (2.500 to 3.500) | 2.250 (2.250 to 2.250) | 2.250 (2.250 to 2.250) |" in text
    assert "| 2 | - | 2.125 (2.125 to 2.125) | 2.125 (2.125 to 2.125) |" in text
    assert figures.text_comparison(rows)[:4] == b"\x89PNG"


def test_text_is_not_fine_tuned_for_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "run", lambda self: pytest.fail("trained"))
    with pytest.raises(ValueError, match="text learns from text; leave it out"):
        compare(
            [str(CONFIGS / "text.py")],
            ["blockwise"],
            [0],
            tmp_path / "out",
            finetune=str(CONFIGS / "finetune.py"),
        )
