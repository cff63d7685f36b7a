"""Texts of a run's blocks: by the command, from Python, and where there can be none."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from blockjax.evaluate import evaluate
from blockjax.export import export
from blockjax.reconstruct import reconstruct
from blockjax.sample import main, sample
from blockjax.training.run import Training
from blockjax.weights.loading import Run, open_run, open_text_weights
from tests.data.sources.test_text import words
from tests.tiny import tiny_learner
from tests.tiny_text import tiny_text_config, tiny_text_run

CONTEXT, SEPARATOR, MASK = 24, 256, 257


def likeliest(run, prompt, blocks, count):
    """Returns the likeliest bytes, by passes over the whole text through the run's own functions."""
    learner, params = run.learner, run.params
    objective, backbone = learner.objective, learner.backbone

    def at_head(head, tokens_BTD):
        features = objective.normed(head, tokens_BTD)
        return features @ objective.readout(head, params["stem"]["embedding"])[None]

    @jax.jit
    def logits_of(params, tokens_BT):
        return backbone.read(params, {"tokens": tokens_BT}, lambda tokens: (), at_head)[1]

    tokens = [SEPARATOR, *prompt.encode()]
    for _ in range(count):
        padded = np.zeros((1, CONTEXT), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = logits_of(params, padded)
        logits_V = logits[blocks - 1 if len(logits) > 1 else 0, 0, len(tokens) - 1]
        tokens.append(int(logits_V[:MASK].argmax()))
    return bytes(tokens[1 + len(prompt) :]).decode(errors="replace")


@pytest.mark.parametrize(
    ("fields", "blocks"),
    [
        ({}, (1, 2)),
        ({"model.positions": "learned", "model.tied": True}, (1,)),
        ({"head.shared": True}, (1, 2)),
        ({"strategy": "streamed"}, (1, 2)),
        ({"strategy": "end_to_end"}, (2,)),
        ({"strategy": "streamed_end_to_end"}, (2,)),
    ],
    ids=lambda value: str(value),
)
def test_texts_are_those_of_whole_passes(fields, blocks):
    run = tiny_text_run(**fields)
    if fields.get("strategy", "").startswith("streamed"):
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(run.state.blocks.params)}
        assert kinds == {"pinned_host"}
    for depth in blocks:
        found = sample(run, "ab", blocks=depth, tokens=9, temperature=0)
        assert found == [likeliest(run, "ab", depth, 9)]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run that was stopped, on a text that is learned at once."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("abc" * 1000)
    config = tiny_text_config(**{"data.source": f"text:{folder / 'a.txt'}", "steps": 120})
    config.mesh.data, config.optimizer.base_learning_rate = -1, 0.6
    Training(config, folder / "run").run()
    return folder / "run"


@pytest.mark.slow
def test_a_run_continues_what_it_learned(workdir, tmp_path):
    text = ("abc" * 10)[4:]
    options = {"tokens": 20, "temperature": 0}
    assert sample(workdir, "abca", **options) == [text[:20]]
    assert sample(workdir, "abca", **options, blocks=1) == [text[:20]]
    assert sample(open_run(workdir), "abcab", tokens=2, temperature=0) == ["ca"]
    assert sample(workdir, "ab", temperature=0) == [("abc" * 10)[2:CONTEXT]]  # as many as fit
    exported = export(workdir, "safetensors", tmp_path / "out")
    assert sample(exported, "abca", **options, blocks=1) == [text[:20]]
    card = (exported / "README.md").read_text()
    assert "120 steps of 8 sequences, in 2 gradient-isolated blocks." in card
    assert "| block_2 | 0." in card and "model(params, np.array([[256, *ids]]))" in card
    card = (export(workdir, "safetensors", tmp_path / "one", blocks=1) / "README.md").read_text()
    assert "| block_1 | 0." in card and "| block_2 |" not in card and "the first 1." in card
    for refuses in (evaluate, reconstruct):
        with pytest.raises(
            ValueError, match=r"run was trained on text, by next_token; this is for"
        ):
            refuses(workdir)


@pytest.mark.slow
def test_the_command(workdir, capsys, monkeypatch):
    def said(*flags):
        monkeypatch.setattr(sys, "argv", ["sample", "--workdir", str(workdir), *flags])
        main()
        return capsys.readouterr().out

    greedy = ("--prompt", "abca", "--tokens", "5", "--temperature", "0")
    assert said(*greedy) == "bcabc\n"
    assert said(*greedy, "--blocks", "1,2") == "block 1:\nbcabc\n\nblock 2:\nbcabc\n\n"
    assert said(*greedy, "--samples", "2") == "sample 1:\nbcabc\n\nsample 2:\nbcabc\n\n"
    one, two = (said("--temperature", "3", "--seed", seed) for seed in "12")
    assert one != two and one == said("--temperature", "3", "--seed", "1")
    assert said("--temperature", "3", "--seed", "1", "--top_k", "2") != one
    for flags, message in (
        (("--blocks", "1,x"), "--blocks '1,x' should be numbers separated by commas"),
        (("--blocks", "0"), "0 blocks: the model has 2; give 1 to 2"),
        (("--tokens", "25"), "0 tokens, which with 25 new ones are more than the 24 .* 24, or"),
    ):
        with pytest.raises(SystemExit, match=f"error: .*{message}"):
            said(*flags)


def test_help_names_every_flag():
    command = [sys.executable, "-m", "blockjax.sample", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for flag in (
        "workdir",
        "blocks",
        "prompt",
        "tokens",
        "temperature",
        "top_k",
        "samples",
        "seed",
    ):
        assert f"--{flag}" in said


def test_seeds_and_samples():
    run = tiny_text_run()
    weights = run.text_weights()
    four = sample(weights, "x", samples=4, seed=3)
    assert len(set(four)) == 4
    assert sample(weights, "x", samples=2, seed=3) == four[:2]
    assert sample(weights, "x", samples=4, seed=4) != four
    assert len(set(sample(weights, "x", samples=3, temperature=0))) == 1
    assert sample(weights, "x", top_k=1, seed=1) == sample(weights, "x", temperature=0)


def test_words_of_a_file(tmp_path):
    """The file's own spelling, and what is missing or another one."""
    path = words(tmp_path / "words.json")
    run = tiny_text_run(**{"data.tokenizer": str(path)})
    (text,) = sample(run, "a bé", tokens=6, temperature=4.0, seed=1)
    assert text.startswith(" ")  # it follows a word
    assert set(text.split()) <= {"a", "bé", "[UNK]"}
    path.write_text(
        path.read_text().replace('"bé": 2', '"bé": 2, "c": 3').replace('"bé":2', '"bé":2,"c":3')
    )
    with pytest.raises(ValueError, match=r"knows 5 tokens, and there are 6 .*words\.json"):
        sample(run, "a")
    path.unlink()
    with pytest.raises(ValueError, match=r"words\.json, which does not exist"):
        sample(run, "a")


def test_what_cannot_be_continued(tmp_path):
    run = tiny_text_run()
    for options, message in (
        (
            {"prompt": "x" * 20, "tokens": 5},
            r"has 20 tokens, .* 24 of the context .* --tokens 4, or a shorter",
        ),
        ({"prompt": "é" * 12}, "has 24 tokens, .* give a shorter one"),
        ({"blocks": 3}, "3 blocks: the model has 2; give 1 to 2"),
        ({"tokens": 0}, "--tokens must be at least 1, not 0"),
        ({"temperature": -1.0}, "--temperature must be from 0 to 100, not -1"),
        ({"top_k": 258}, "--top_k must be from 1 to 257, not 258|at most 257"),
        ({"samples": 0}, "--samples must be at least 1"),
        ({"seed": -1}, "--seed must be at least 0"),
        ({"prompt": "a\udcff"}, "--prompt holds bytes that are not UTF-8"),
    ):
        with pytest.raises(ValueError, match=message):
            sample(run, **options)
    assert len(sample(run, "x" * 20, tokens=4, temperature=0)) == 1
    with pytest.raises(
        ValueError, match=r"was trained by masked_token, .* sample is for next_token"
    ):
        sample(tiny_text_run(objective="masked_token"), "x")
    with pytest.raises(ValueError, match="1 blocks: the model was trained end to end"):
        sample(tiny_text_run(strategy="end_to_end"), "x", blocks=1)
    learner = tiny_learner()
    state = jax.jit(learner.init)(jax.random.key(0))
    config = tiny_text_config(objective="mae")
    with pytest.raises(
        ValueError, match=r"runs/images was trained on images, by mae; .* next_token"
    ):
        sample(Run("runs/images", config, learner, state, 0), "x")
    with pytest.raises(ValueError, match="there is no such file or folder"):
        open_text_weights(tmp_path / "nothing")
