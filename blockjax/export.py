"""Writes an encoder to a folder, in the names and shapes of another library or in our own, with a model card.

    python -m blockjax.export --workdir runs/quickstart --blocks 3 --format huggingface --output exported

What is written opens again with `blockjax.load`, with the library named, and as `--config.backbone` of a run.
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
from blockjax.weights.loading import (
    OWN_FORMAT,
    SAVED_FIELDS,
    Run,
    check_heads,
    is_run,
    open_run,
    open_weights,
    own_tensors,
)
from blockjax.workdir.files import write_json_atomic, writing

FORMATS = ("huggingface", "timm", "mae", "safetensors")


def main() -> None:
    """Reads the flags, and exports."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workdir", required=True, help="of a run; or a folder or file of weights, to convert")
    add("--blocks", type=int, help="the first so many blocks of the run (default: all)")
    add("--heads", type=int, help="of the attention, for weights that do not say it")
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
      form: one of `FORMATS`. "huggingface" is a ViTModel; with MAE's own decoder a ViTMAEForPreTraining. "mae" has the
        decoder too, if there is one.
      output: the folder; it appears when it is complete.
      blocks: the first so many of a run; default all.
      heads: of the attention, for weights that do not say it.

    Returns:
      The folder.

    Raises:
      ValueError: there is nothing to export, the format is unknown, or the folder exists.
    """
    if form not in FORMATS:
        raise ValueError(f"--format {form!r} is unknown; it may be one of {', '.join(FORMATS)}")
    workdir, output = given_path("--workdir", workdir), given_path("--output", output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists; name a folder that does not")
    run = open_run(workdir) if is_run(workdir) else None
    if run is None:
        weights = open_weights(workdir, blocks, heads)
    else:
        check_heads(run.backbone.vit, heads, workdir)
        weights = run.weights(blocks)
    unfinished = output.with_name(f".{output.name}-{os.getpid()}.unfinished")
    try:
        with writing("--output", output):
            unfinished.mkdir(parents=True)
            tensors = own_tensors(weights) if form == "safetensors" else to_tensors(weights, form)
            write_tensors(unfinished / "model.safetensors", tensors)
            for name, content in _config_files(form, weights, run).items():
                write_json_atomic(unfinished / name, content)
            card = _card(form, weights, run, workdir, blocks)
            (unfinished / "README.md").write_text(card)
            if output.exists():
                output.rmdir()
            unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    size = sum(tensor.size for tensor in tensors.values())
    print(
        f"{output}: {weights.vit.depth} layers, {len(tensors)} tensors, {size:,} numbers",
        flush=True,
    )
    return output


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


def _card(form, weights, run, workdir, blocks) -> str:
    """Returns the model card: what it is, how to use it, how it was trained and what it reached."""
    vit = weights.vit
    lines = [
        "---",
        f"library_name: {_LIBRARY.get(form, 'blockjax')}",
        "tags: [vision, self-supervised, blockjax]",
        "pipeline_tag: image-feature-extraction",
        "---",
        "",
        f"# Vision Transformer, {vit.depth} layers of width {vit.width}",
        "",
        f"{vit.heads} heads, patches of {vit.patch_size} pixels, images of {vit.image_size} x {vit.image_size} pixels; "
        + ("learned" if vit.learned_positions else "fixed sine and cosine")
        + f" positions. Written by blockjax {__version__}. Pixels in [0, 1] are normalised with mean "
        + f"{_decimals(CHANNEL_MEAN)} and standard deviation {_decimals(CHANNEL_STD)}.",
        "",
        "```python",
        _USE[form],
        "```",
        "",
    ]
    if run is None:
        return "\n".join([*lines, f"Converted from `{Path(workdir).name}`.", ""])
    config = run.config
    there = run.backbone.blocks
    kept = there if blocks is None else blocks
    part = "" if kept == there else f", of which these are the first {kept}"
    kind = "gradient-isolated blocks" if run.learner.losses > 1 else "depths, trained end to end"
    lines += [
        "## Training",
        "",
        f"Objective `{config.objective}` on `{config.data.source}`, {run.step:,} steps of {config.batch_size} images, "
        f"in {there} {kind}{part}.",
        "",
    ]
    lines += [*_probe_lines(run, kept), "## Config", "", "```json"]
    return "\n".join([*lines, json.dumps(config_lib.to_json(config), indent=1), "```", ""])


def _probe_lines(run, kept):
    """Returns the probes of the run's summary up to the exported block, as a table; none if there are none."""
    path = run.workdir / "summary.json"
    if not path.is_file():
        return []
    wanted = {"pixels", "untrained", *(f"block_{k}" for k in range(1, kept + 1))}
    try:
        rows = [
            f"| {row['features']} | {row['knn']:.3f} | {row['linear']:.3f} |"
            for row in json.loads(path.read_text()).get("probes", [])
            if row["features"] in wanted
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # the weights do without
        logging.warning("%s cannot be read: the card has no probes", path)
        return []
    if not rows:
        return []
    return [
        "Accuracy of probes on frozen features:",
        "",
        "| features | kNN | linear probe |",
        "|---|---|---|",
        *rows,
        "",
    ]


if __name__ == "__main__":
    main()
