"""The encoder that a run starts from."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from blockjax.checks import given_path
from blockjax.config.modality import check_modality
from blockjax.models.position import resized_positions, sincos_2d
from blockjax.models.vit import PRESETS, ViT
from blockjax.weights import UnusableWeights, Weights
from blockjax.weights.loading import is_run, open_weights

PyTree = Any


def start_of(
    config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, Weights | None]:
    """Opens the encoder that a run is to start from, `config.backbone`.

    Returns:
      The config with the model's sizes filled in where they are open, and `blocks`; and the weights, or None where the
      run starts from random numbers. With another image size than theirs the config's positions are learned ones, as in
      MAE's fine-tuning: fixed ones would be those of the new grid, most of them unlike any that the weights know.

    Raises:
      ValueError: the weights cannot be used, or are of another size than the config says; names the first tensor that
        differs and both shapes.
    """
    if config.backbone is None:
        if config.depth_blocks is not None or config.from_scratch or config.grow:
            raise ValueError(
                "depth_blocks, grow and from_scratch say what to do with a backbone; set backbone to a workdir or "
                "weights"
            )
        if config.model.preset is None:
            raise ValueError(
                "backbone is missing: set --config.backbone to a workdir or weights; or model.preset, "
                "model.image_size, model.patch_size and blocks to train from random numbers"
            )
        return config, None
    check_modality(config)
    config = config.copy_and_resolve_references()
    config.unlock()
    model = config.model
    heads = model.heads or PRESETS.get(model.preset, (None,))[-1]
    path = given_path("backbone", config.backbone)
    weights = open_weights(path, config.depth_blocks, heads)
    vit = weights.vit
    fields = ["image_size", "patch_size"]
    if model.preset is None:  # else it says what is open
        model.preset, model.mlp_ratio = "ti", vit.mlp_ratio
        fields += ["width", "depth", "heads"]
    with config.ignore_type():
        for field in fields:
            if model[field] is None:
                model[field] = getattr(vit, field)
        if config.blocks is None:
            config.blocks = _blocks_of(path, config.depth_blocks, vit.depth)
    model.norm_epsilon = vit.norm_epsilon
    model.learned_positions = model.learned_positions or vit.learned_positions
    if not config.from_scratch and model.image_size != vit.image_size:
        model.learned_positions = True
    if config.from_scratch:
        return config, None
    return config, weights


def fitted_params(
    weights: Weights, vit: ViT, source: str, grown_from: PyTree | None = None
) -> PyTree:
    """Returns an encoder's "stem" and "layers" for a run's encoder, with positions of its image size.

    Args:
      weights: of a backbone.
      vit: the run's encoder.
      source: where the weights are from, for errors.
      grown_from: layers, leaves [depth, ...], of which those above the backbone's follow on them; None: it must have
        as many as the run's encoder.

    Raises:
      UnusableWeights: another width, depth or patch size; names the first tensor that differs and both shapes.
    """
    params = {name: dict(weights.params[name]) for name in ("stem", "layers")}
    if grown_from is not None:
        if weights.vit.depth >= vit.depth:
            raise UnusableWeights(
                f"backbone {source}: it has {weights.vit.depth} layers, and with grow=True the config's encoder must "
                f"have more than that, not {vit.depth}; set model.depth, or a smaller depth_blocks, or grow=False"
            )
        params["layers"] = jax.tree.map(_grown, params["layers"], jax.device_get(grown_from))
    if vit.learned_positions:
        params["stem"]["positions"] = _resized_positions(weights, vit)
    expected = {
        "stem": jax.eval_shape(vit.init_stem, jax.random.key(0)),
        "layers": jax.eval_shape(lambda key: vit.init_block(key, 0, 1), jax.random.key(0)),
    }
    expected["stem"] = {name: expected["stem"][name] for name in params["stem"]}
    flat, _ = jax.tree_util.tree_flatten_with_path(expected)
    for (path, leaf), found in zip(flat, jax.tree.leaves(params), strict=True):
        if leaf.shape != found.shape:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UnusableWeights(
                f"backbone {source}: {name} has shape {found.shape}, and the config's encoder (width {vit.width}, "
                f"depth {vit.depth}, patches of {vit.patch_size} pixels) asks for {leaf.shape}; set the model's sizes "
                f"to those of the weights: width {weights.vit.width}, depth {weights.vit.depth}, patch_size "
                f"{weights.vit.patch_size}, or depth_blocks to as many blocks as the config has layers for; grow=True "
                "puts new layers above fewer"
            )
    return params


def _resized_positions(weights, vit):
    """Positions for the run's grid: those between the ones that the weights know."""
    old, width = weights.vit, weights.vit.width
    table = weights.params["stem"].get("positions")
    if table is None:
        table = sincos_2d(*old.grid, width)
    if old.grid == vit.grid:
        return np.asarray(table)
    return resized_positions(table, old.grid, vit.grid)


def _grown(kept_L, drawn_L):
    """Returns one array of all layers, or what does not fit as it is, for the check of shapes to name."""
    if kept_L.shape[1:] != drawn_L.shape[1:]:
        return kept_L
    return np.concatenate([kept_L, drawn_L[len(kept_L) :]])


def _blocks_of(path, depth_blocks, depth):
    """How many blocks an encoder is cut into: those that it was trained in; a layer is one where nobody knows."""
    if not is_run(path):
        return depth
    saved = json.loads((Path(path) / "config.json").read_text())
    return depth_blocks or saved["blocks"]
