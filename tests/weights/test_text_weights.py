"""Models of text that travel: exported in our own names and as a Llama, they give the same logits."""

import json

import jax
import numpy as np
import pytest

import blockjax
from blockjax.export import TEXT_FORMATS, export
from blockjax.weights import UnusableWeights
from blockjax.weights.files import write_tensors
from blockjax.weights.llama import llama_config, llama_tensors
from blockjax.weights.loading import open_text_weights, open_weights
from blockjax.weights.own import as_tensors
from blockjax.weights.text import TextWeights, text_config
from blockjax.workdir.files import write_json_atomic
from tests.data.sources.test_text import words
from tests.tiny_text import made_model, tiny_text_run

LLAMA = {"norm": "rms_norm", "mlp": "swiglu", "bias": False}
IDS = np.random.default_rng(1).integers(0, 40, (3, 16))


def written(folder, tokenizer=None, **fields):
    """Writes a model in our own format, as export does; returns it with its parameters."""
    model, params = made_model(**fields)
    weights = TextWeights(model, params, tokenizer)
    folder.mkdir()
    write_tensors(folder / "model.safetensors", as_tensors(params))
    write_json_atomic(folder / "config.json", text_config(weights))
    return model, params


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"positions": "learned", "tied": True, "norm_epsilon": 1e-3},
        {"heads": 1, "shared": True, **LLAMA},
        {"causal": False},
    ],
    ids=str,
)
def test_own_format_comes_back(tmp_path, fields):
    """With the head of each kept depth."""
    model, params = written(tmp_path / "own", **fields)
    back, loaded = blockjax.load(tmp_path / "own")
    assert back == model
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for blocks in (1, 2):
        cut, expected_params = model.first(params, blocks)
        found, found_params = blockjax.load(tmp_path / "own", blocks=blocks)
        assert found == cut and found.encoder.depth == 2 * blocks
        np.testing.assert_allclose(found(found_params, IDS), cut(expected_params, IDS), atol=1e-5)
    shallow = export(tmp_path / "own", "safetensors", tmp_path / "cut", blocks=1)
    first = model.first(params, 1)
    again, again_params = blockjax.load(shallow)
    assert again == first[0]
    np.testing.assert_allclose(again(again_params, IDS), first[0](first[1], IDS), atol=1e-5)
    with pytest.raises(ValueError, match="2 blocks: the model has 1"):
        blockjax.load(shallow, blocks=2)


@pytest.mark.parametrize("strategy", ["blockwise", "streamed", "end_to_end"])
def test_weights_of_a_run(strategy):
    """Are those that its own functions read."""
    run = tiny_text_run(strategy=strategy, remat="layer")
    weights = run.text_weights()
    objective, backbone, params = run.learner.objective, run.backbone, run.params

    def at_head(head, tokens_BTD):
        features = objective.normed(head, tokens_BTD)
        return features @ objective.readout(head)[None]

    _, expected = backbone.read(params, {"tokens": IDS[:1]}, lambda tokens: (), at_head)
    for blocks, logits in zip((1, 2)[-len(expected) :], expected, strict=True):
        cut = weights.first(blocks)
        np.testing.assert_allclose(cut.model(cut.params, IDS[:1]), logits, atol=1e-5)
        assert cut.model.encoder.remat == "none"


def test_config_that_does_not_fit(tmp_path):
    written(tmp_path / "own")
    path = tmp_path / "own" / "config.json"
    said = json.loads(path.read_text())
    for change, message in (
        ({"text": {**said["text"], "width": 32}}, r"tensor [a-z._0-9]+ is of shape .* asks for"),
        (
            {"text": {**said["text"], "mlp": "relu"}},
            "does not describe a model of text: model.mlp 'relu'",
        ),
        ({"text": {"causal": True}}, "does not describe a model of text: 'vocabulary'"),
        ({"blocks": 3}, "4 layers in 3 blocks with 2 heads"),
        ({"tied": True}, r"tensors that belong to no encoder: heads\.readout\.kernel"),
    ):
        path.write_text(json.dumps({**said, **change}))
        with pytest.raises(UnusableWeights, match=message):
            blockjax.load(tmp_path / "own")


def test_images_and_text_do_not_mix(tmp_path):
    written(tmp_path / "own")
    with pytest.raises(
        ValueError, match="own holds a model of text; this is for encoders of images"
    ):
        open_weights(tmp_path / "own")
    for form in ("timm", "mae"):
        with pytest.raises(
            ValueError, match=f"--format {form} is for images, .* {', '.join(TEXT_FORMATS)}"
        ):
            export(tmp_path / "own", form, tmp_path / "out")
    run = tiny_text_run()
    with pytest.raises(
        ValueError, match=r"was trained on text, by next_token; .* give a run of mae"
    ):
        run.weights()


def test_what_is_no_llama(tmp_path):
    """Says with which fields it would have been one."""
    written(tmp_path / "none", positions="learned")
    fields = "positions=rotary --config.model.norm=rms_norm --config.model.mlp=swiglu --config.model.bias=False,"
    with pytest.raises(
        ValueError, match=f"none is not a Llama, .* train with --config.model.{fields} or"
    ):
        export(tmp_path / "none", "huggingface", tmp_path / "out")
    written(tmp_path / "masked", **LLAMA, causal=False)
    with pytest.raises(
        ValueError, match=r"train with --config.objective=next_token, or give --format"
    ):
        export(tmp_path / "masked", "huggingface", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_goes_along(tmp_path):
    path = words(tmp_path / "words.json")
    written(tmp_path / "own", **LLAMA, vocabulary=5)
    said = json.loads((tmp_path / "own" / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(
        json.dumps({**said, "tokenizer": "tokenizer.json"})
    )
    with pytest.raises(ValueError, match=r"own/tokenizer\.json, and there is no such file"):
        export(tmp_path / "own", "safetensors", tmp_path / "out")
    path.rename(tmp_path / "own" / "tokenizer.json")
    definition = (tmp_path / "own" / "tokenizer.json").read_bytes()
    for form in TEXT_FORMATS:
        folder = export(tmp_path / "own", form, tmp_path / form)
        assert (folder / "tokenizer.json").read_bytes() == definition
    assert open_text_weights(tmp_path / "safetensors").tokens().separator == 3


def transformers():
    pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")
    return pytest.importorskip("transformers", reason="needs transformers")


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_llama_of_transformers(tmp_path, tied, blocks):
    library = transformers()
    import torch

    fields = {"tied": tied, "norm_epsilon": 1e-3, "heads": 1 if tied else 2, "shared": tied}
    model, params = written(tmp_path / "own", **LLAMA, **fields)
    export(tmp_path / "own", "huggingface", tmp_path / "llama", blocks=blocks)
    theirs, report = library.AutoModelForCausalLM.from_pretrained(
        tmp_path / "llama", output_loading_info=True
    )
    assert not any(report.values()), report
    assert type(theirs).__name__ == "LlamaForCausalLM" and theirs.dtype == torch.float32
    config = theirs.config
    assert (config.bos_token_id, config.eos_token_id) == (38, 38)
    assert (config.max_position_embeddings, config.num_hidden_layers) == (16, 2 * blocks)
    assert config.tie_word_embeddings == tied
    model, params = model.first(params, blocks)
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(IDS)).logits.numpy()
    found = np.asarray(model(params, IDS))
    assert np.abs(found - expected).max() < 1e-4 and found.std() > 0.5


@pytest.mark.slow
def test_a_llama_writes_what_we_do(tmp_path):
    """Greedily, by the library's own cache."""
    library = transformers()
    import torch

    from tests.models.test_generate import PROMPT, drawn

    model, params = made_model(**LLAMA)
    weights = TextWeights(model, params)
    folder = tmp_path / "llama"
    folder.mkdir()
    write_tensors(folder / "model.safetensors", llama_tensors(weights))
    write_json_atomic(folder / "config.json", llama_config(weights))
    theirs = library.LlamaForCausalLM.from_pretrained(folder).eval()
    new = theirs.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False)
    ours = drawn(model, params, most=8)[0, :8].tolist()
    end = ours.index(model.separator)  # where both stop
    assert new[0, len(PROMPT) :].tolist() == ours[: end + 1] and end > 2
