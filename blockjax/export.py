"""Writes an encoder to a folder, in the names and shapes of another library or in our own, with a model card.

    python -m blockjax.export --workdir runs/quickstart --blocks 3 --format huggingface --output exported

What is written opens again with `blockjax.load`, with the library named, and as `--config.backbone` of a run. A model
of text goes to transformers as a Llama, where it was trained as one; in our own names `blockjax.load` and
`blockjax.sample` open it.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from absl import logging

from blockjax import __version__
from blockjax import config as config_lib
from blockjax.checks import given_path
from blockjax.models.patches import CHANNEL_MEAN, CHANNEL_STD
from blockjax.report.command import begin, check_devices
from blockjax.weights import Weights, to_tensors
from blockjax.weights.files import write_tensors
from blockjax.weights.llama import check_llama, llama_config, llama_tensors
from blockjax.weights.loading import SAVED_FIELDS, Run, open_any
from blockjax.weights.own import OWN_FORMAT, as_tensors
from blockjax.weights.text import TOKENIZER, TextWeights, text_config
from blockjax.workdir.files import write_json_atomic, writing

FORMATS = ("huggingface", "timm", "mae", "safetensors")
TEXT_FORMATS = ("huggingface", "safetensors")


def main() -> None:
    """Reads the flags, and exports."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--workdir",
        required=True,
        help="a run's workdir, or a folder or file of weights to convert",
    )
    add("--blocks", type=int, help="export the first so many blocks of the run (default: all)")
    add("--heads", type=int, help="number of attention heads, for weights that do not say it")
    add("--format", required=True, choices=FORMATS, help="safetensors: this package's own names")
    add("--output", required=True, help="a folder that does not exist yet")
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    begin()
    check_devices()
    try:
        export(
            arguments.workdir,
            arguments.format,
            arguments.output,
            arguments.blocks,
            arguments.heads,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")


def export(
    workdir: str | os.PathLike,
    form: str,
    output: str | os.PathLike,
    blocks: int | None = None,
    heads: int | None = None,
) -> Path:
    """Writes weights, the config files that a library reads beside them, and README.md.

    Args:
      workdir: of a run; or weights of another library, to convert.
      form: one of `FORMATS`. "huggingface" is a ViTModel; with MAE's own decoder a ViTMAEForPreTraining; of text a
        LlamaForCausalLM. "mae" has the decoder too, if there is one.
      output: the folder; it appears when it is complete.
      blocks: the first so many of a run; default all.
      heads: number of attention heads, for weights that do not say it.

    Returns:
      The folder.

    Raises:
      ValueError: there is nothing to export, the format is unknown or not for this model, or the folder exists.
    """
    if form not in FORMATS:
        raise ValueError(f"--format {form!r} is unknown; it may be one of {', '.join(FORMATS)}")
    workdir, output = given_path("--workdir", workdir), given_path("--output", output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists; name a folder that does not")
    weights, run = open_any(workdir, blocks, heads)
    if isinstance(weights, TextWeights):
        depth, write = weights.model.encoder.depth, _write_text
        _check_text(form, weights, workdir)
    else:
        depth, write = weights.vit.depth, _write_images
    unfinished = output.with_name(f".{output.name}-{os.getpid()}.unfinished")
    try:
        with writing("--output", output):
            unfinished.mkdir(parents=True)
            tensors = write(unfinished, form, weights, run, workdir)
            if output.exists():
                output.rmdir()
            unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    size = sum(tensor.size for tensor in tensors.values())
    print(f"{output}: {depth} layers, {len(tensors)} tensors, {size:,} numbers", flush=True)
    return output


def _write_images(folder, form, weights, run, workdir):
    """Writes an encoder of images into a folder, and returns its tensors."""
    is_own = form == "safetensors"
    tensors = as_tensors(weights.params) if is_own else to_tensors(weights, form)
    write_tensors(folder / "model.safetensors", tensors)
    for name, content in _config_files(form, weights, run).items():
        write_json_atomic(folder / name, content)
    (folder / "README.md").write_text(_card(form, weights, run, workdir))
    return tensors


def _check_text(form, weights, workdir):
    if form not in TEXT_FORMATS:
        raise ValueError(
            f"--format {form} is for images, and {workdir} holds a model of text; it may be one of "
            f"{', '.join(TEXT_FORMATS)}"
        )
    if form == "huggingface":
        check_llama(weights, workdir)
    if weights.tokenizer is not None and not weights.tokenizer.is_file():
        raise ValueError(
            f"data.tokenizer of {workdir} is {weights.tokenizer}, and there is no such file here; put it back, "
            "as the weights need it"
        )


def _write_text(folder, form, weights, run, workdir):
    """Writes a model of text into a folder, with the file of its tokenizer, and returns its tensors."""
    is_own = form == "safetensors"
    tensors = as_tensors(weights.params) if is_own else llama_tensors(weights)
    write_tensors(folder / "model.safetensors", tensors)
    config = text_config(weights) if is_own else llama_config(weights)
    write_json_atomic(folder / "config.json", config)
    if weights.tokenizer is not None:
        shutil.copyfile(weights.tokenizer, folder / TOKENIZER)
    (folder / "README.md").write_text(_text_card(form, weights, run, workdir))
    return tensors


def _config_files(form: str, weights: Weights, run: Run | None) -> dict[str, Any]:
    vit, decoder = weights.vit, weights.decoder
    if form == "huggingface":
        config = {
            "architectures": ["ViTModel"],
            "model_type": "vit",
            "hidden_size": vit.width,
            "num_hidden_layers": vit.depth,
            "num_attention_heads": vit.heads,
            "intermediate_size": int(vit.width * vit.mlp_ratio),
            "hidden_act": "gelu",
            "layer_norm_eps": vit.norm_epsilon,
            "image_size": vit.image_size,
            "patch_size": vit.patch_size,
            "num_channels": 3,
            "qkv_bias": True,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
        if decoder is not None:
            config |= {
                "architectures": ["ViTMAEForPreTraining"],
                "model_type": "vit_mae",
                "decoder_hidden_size": decoder.width,
                "decoder_num_hidden_layers": decoder.depth,
                "decoder_num_attention_heads": decoder.heads,
                "decoder_intermediate_size": 4 * decoder.width,
                "norm_pix_loss": True if run is None else bool(run.config.loss.normalize_pixels),
                "mask_ratio": 0.75 if run is None else run.config.mask.ratio,
            }
        return {"config.json": config, "preprocessor_config.json": _preprocessing(vit)}
    if form == "timm":
        side = vit.image_size
        arguments = {
            "img_size": side,
            "patch_size": vit.patch_size,
            "embed_dim": vit.width,
            "depth": vit.depth,
            "num_heads": vit.heads,
            "mlp_ratio": vit.mlp_ratio,
        }
        pretrained = {
            "input_size": [3, side, side],
            "mean": _decimals(CHANNEL_MEAN),
            "std": _decimals(CHANNEL_STD),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        return {
            "config.json": {
                "architecture": "vit_base_patch16_224",  # the class; `model_args` say the sizes
                "num_classes": 0,
                "num_features": vit.width,
                "model_args": arguments,
                "pretrained_cfg": pretrained,
            }
        }
    said = {"format": OWN_FORMAT} if form == "safetensors" else {"num_attention_heads": vit.heads}
    if form == "mae" and decoder is not None:
        said["decoder_num_attention_heads"] = decoder.heads
    fields = {field: getattr(vit, field) for field in SAVED_FIELDS}
    return {"config.json": {**said, "layer_norm_eps": vit.norm_epsilon, "vit": fields}}


def _preprocessing(vit):
    size = {"height": vit.image_size, "width": vit.image_size}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _decimals(CHANNEL_MEAN),
        "image_std": _decimals(CHANNEL_STD),
    }


def _decimals(values):
    return [round(float(value), 6) for value in values]


_USE = {
    "huggingface": 'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("FOLDER")',
    "timm": 'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True)',
    "mae": "from safetensors.torch import load_file\n\n"
    'model.load_state_dict(load_file("FOLDER/model.safetensors"), strict=False)',
    "safetensors": 'import blockjax\n\nfeatures, params = blockjax.load("FOLDER")\nfeatures(params, images)',
}
_LIBRARY = {"huggingface": "transformers", "timm": "timm"}


def _card(form, weights, run, workdir) -> str:
    """Returns the model card: what it is, how to use it, how it was trained and what it reached."""
    vit = weights.vit
    lines = [
        *_head(form, "vision, self-supervised", "image-feature-extraction"),
        f"# Vision Transformer, {vit.depth} layers of width {vit.width}",
        "",
        f"{vit.heads} heads, patches of {vit.patch_size} pixels, images of {vit.image_size} x {vit.image_size} pixels; "
        + ("learned" if vit.learned_positions else "fixed sine and cosine")
        + f" positions. Written by blockjax {__version__}. Pixels in [0, 1] are normalised with mean "
        + f"{_decimals(CHANNEL_MEAN)} and standard deviation {_decimals(CHANNEL_STD)}.",
        *_code(_USE[form]),
    ]
    if run is None:
        return _converted(lines, workdir)
    kept = vit.depth * run.backbone.blocks // run.backbone.vit.depth
    return _trained(lines, run, kept, "images", _probe_lines(run, kept))


_TEXT_USE = {
    "huggingface": "import torch\nfrom transformers import AutoModelForCausalLM\n\n"
    'model = AutoModelForCausalLM.from_pretrained("FOLDER")\n'
    "new = model.generate(torch.tensor([[SEPARATOR, *ids]]), max_new_tokens=20)",
    "safetensors": 'import blockjax\nimport numpy as np\n\nmodel, params = blockjax.load("FOLDER")\n'
    "logits = model(params, np.array([[SEPARATOR, *ids]]))",
}


def _text_card(form, weights, run, workdir) -> str:
    """Returns the card of a model of text."""
    model, encoder = weights.model, weights.model.encoder
    tokens = "bytes of UTF-8" if weights.tokenizer is None else f"those of {TOKENIZER}"
    lines = [
        *_head(form, "text, block-wise", "text-generation" if encoder.causal else "fill-mask"),
        f"# Language model, {encoder.depth} layers of width {encoder.width}",
        "",
        f"{encoder.heads} heads, sequences of at most {encoder.context} tokens, {encoder.positions} positions. Written "
        f"by blockjax {__version__}. Token ids are {tokens}; {model.separator} stands before every document"
        + ("" if encoder.causal else f", {model.mask} for a masked token")
        + ".",
        *_code(_TEXT_USE[form].replace("SEPARATOR", str(model.separator))),
    ]
    if run is None:
        return _converted(lines, workdir)
    return _trained(lines, run, model.blocks, "sequences", _bits_lines(run, model.blocks))


def _head(form, tags, pipeline):
    library = _LIBRARY.get(form, "blockjax")
    lines = [f"library_name: {library}", f"tags: [{tags}, blockjax]", f"pipeline_tag: {pipeline}"]
    return ["---", *lines, "---", ""]


def _code(code):
    return ["", "```python", code, "```", ""]


def _converted(lines, workdir):
    return "\n".join([*lines, f"Converted from `{Path(workdir).name}`.", ""])


def _trained(lines, run, kept, examples, results):
    config = run.config
    there = run.backbone.blocks
    part = "" if kept == there else f", of which these are the first {kept}"
    kind = "gradient-isolated blocks" if run.learner.losses > 1 else "depths, trained end to end"
    lines += [
        "## Training",
        "",
        f"Objective `{config.objective}` on `{config.data.source}`, {run.step:,} steps of {config.batch_size} "
        f"{examples}, in {there} {kind}{part}.",
        "",
        *results,
        *("## Config", "", "```json"),
    ]
    return "\n".join([*lines, json.dumps(config_lib.to_json(config), indent=1), "```", ""])


def _probe_lines(run, kept):
    """Returns the probes of the run's summary up to the exported block, as a table; none if there are none."""
    wanted = {"pixels", "untrained", *(f"block_{k}" for k in range(1, kept + 1))}

    def line(row):
        name = row["features"]
        return f"| {name} | {row['knn']:.3f} | {row['linear']:.3f} |" if name in wanted else None

    header = ["| features | kNN | linear probe |", "|---|---|---|"]
    lines = _summary_lines(run, "probes", line)
    return _table("Accuracy of probes on frozen features:", header, lines)


def _bits_lines(run, kept):
    """Returns the bits that the run's summary has of blocks up to the exported one, as a table."""
    unit = "byte" if run.learner.objective.causal else "token"
    wanted = {f"block_{k}" for k in range(1, kept + 1)}

    def line(row):
        name, bits = row["features"], row[f"bits_per_{unit}"]
        return f"| {name} | {bits:.3f} | {row['perplexity']:.2f} |" if name in wanted else None

    header = [f"| block | bits per {unit} | perplexity of a token |", "|---|---|---|"]
    return _table("Held-out text:", header, _summary_lines(run, "blocks", line))


def _summary_lines(run, name, line):
    """Returns what `line` makes of the rows of a list in the run's summary, without None; [] if they are unreadable."""
    path = run.workdir / "summary.json"
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text()).get(name, [])
        return [text for row in rows if (text := line(row)) is not None]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the weights do without
        logging.warning("%s cannot be read: the card has no table", path)
        return []


def _table(title, header, rows):
    return [title, "", *header, *rows, ""] if rows else []


if __name__ == "__main__":
    main()
