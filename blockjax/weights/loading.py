"""Opens what was trained: the workdir of a run, a folder that was exported, or another library's weights."""

import contextlib
import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging

from blockjax import config as config_lib
from blockjax.learner.build import make_learner
from blockjax.learner.learner import Learner, run_key
from blockjax.learner.placement import Placement
from blockjax.models.backbone import Backbone, head_norm
from blockjax.models.decoders import SelfAttentionDecoder
from blockjax.models.encoder import Encoder
from blockjax.models.language import LanguageModel
from blockjax.models.vit import ViT
from blockjax.sharding.mesh import make_mesh
from blockjax.strategies.state import TrainState
from blockjax.weights import UnusableWeights, Weights, from_tensors, read_tensors
from blockjax.weights.own import OWN_FORMAT, as_params
from blockjax.weights.text import TextWeights, run_text_weights, saved_text_weights
from blockjax.workdir.checkpoint import Checkpoints

PyTree = Any
# The fields of ViT that a file says; the others are how it is run.
SAVED_FIELDS = (
    *("image_size", "patch_size", "width", "depth", "heads", "mlp_ratio", "learned_positions"),
    "norm_epsilon",
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run as it stands in its workdir.

    Attributes:
      workdir: its folder.
      config: as it was resolved; strategy and mesh are those by which it is read here.
      learner: its functions.
      state: that of its newest checkpoint.
      step: of that checkpoint.
    """

    workdir: Path
    config: ml_collections.ConfigDict
    learner: Learner
    state: TrainState
    step: int

    @property
    def backbone(self) -> Backbone:
        """The encoder, read after each of its blocks."""
        return self.learner.backbone

    @property
    def params(self) -> PyTree:
        """The parameters that `backbone` takes."""
        return self.learner.backbone_params(self.state)

    @property
    def is_text(self) -> bool:
        """Whether it learned from text."""
        return self.learner.objective.modality == "text"

    def check_images(self) -> None:
        """Raises ValueError where it learned from text."""
        if self.is_text:
            raise _not_images(self.workdir, f"was trained on text, by {self.config.objective}")

    @functools.cached_property
    def untrained(self) -> PyTree:
        """The parameters that `backbone` takes, as they were before the first step."""
        placement = Placement(self.learner, self.state.step.sharding.mesh)
        state = placement.init_in(placement.shardings, run_key(self.config.seed, "init"))
        return self.learner.backbone_params(placement.readable(state))

    def weights(self, blocks: int | None = None) -> Weights:
        """Returns the encoder that ends with block `blocks`, with its decoder if that is MAE's own; on the host.

        The LayerNorm at its end is that with which the block's head begins. End to end only the last depth has a head:
        the others' LayerNorm neither scales nor shifts.

        Raises:
          ValueError: there is no such block, or the run learned from text.
        """
        self.check_images()
        backbone, params = self.backbone, self.params
        blocks = _checked_blocks(blocks, backbone.blocks, f"the run in {self.workdir}")
        vit = dataclasses.replace(
            backbone.vit,
            depth=backbone.vit.depth // backbone.blocks * blocks,
            mask_token=False,
            freeze_embedding=False,
            remat="none",
            unroll=1,
        )
        layers = jax.tree.map(
            lambda leaf: np.asarray(leaf[:blocks]).reshape(vit.depth, *leaf.shape[2:]),
            params["layers"],
        )
        stem = jax.tree.map(np.asarray, params["stem"])
        stem.pop("mask_token", None)
        rows = len(jax.tree.leaves(params["heads"])[0])
        head, decoder = {}, None
        if rows == backbone.blocks or blocks == backbone.blocks:
            row = blocks - 1 if rows == backbone.blocks else 0
            head = jax.tree.map(lambda leaf: np.asarray(leaf)[row], params["heads"])
            decoder = self.learner.objective.decoder
        norm = head_norm(head) or _plain_norm(vit.width)
        if not isinstance(decoder, SelfAttentionDecoder):
            return Weights(vit, {"stem": stem, "layers": layers, "norm": norm})
        own = {name: value for name, value in head.items() if name != "norm"}
        decoder = dataclasses.replace(decoder, remat="none")
        return Weights(vit, {"stem": stem, "layers": layers, "norm": norm}, decoder, own)

    def text_weights(self, blocks: int | None = None) -> TextWeights:
        """Returns the model of text that ends with block `blocks`, with the heads of its blocks; on the host.

        Raises:
          ValueError: there is no such block, it has no head, or the run learned from images.
        """
        if not self.is_text:
            raise _not_text(self.workdir, f"was trained on images, by {self.config.objective}")
        weights = run_text_weights(self.learner, self.state, self.config.data.tokenizer)
        return weights.first(blocks)


def open_run(workdir: str | os.PathLike) -> Run:
    """Opens the newest checkpoint of a run, on all devices of this machine.

    Raises:
      ValueError: the folder holds no run, or none that can be read.
    """
    workdir = Path(workdir)
    path = workdir / "config.json"
    if not path.is_file():
        raise ValueError(
            f"--workdir {workdir} holds no run: there is no config.json; give the folder that training wrote"
        )
    config = config_lib.read_saved(path)
    # The checkpoint is the same; only reading is done here, and what was streamed may need it.
    if config.strategy == "pipelined":
        config.strategy = "blockwise"
    config.pipeline.batches = 1  # nothing trains here; old runs have 8, whatever their strategy
    devices = jax.device_count()
    config.mesh.data, config.mesh.fsdp, config.mesh.block = devices, 1, 1
    learner = make_learner(config, max(1, config.steps or 1))
    placement = Placement(learner, make_mesh((devices, 1, 1)))
    with contextlib.closing(
        Checkpoints(workdir / "checkpoints", keep=config.checkpoint.keep)
    ) as checkpoints:
        restored = checkpoints.restore_newest(placement.abstract_state)
    if restored is None:
        raise ValueError(f"--workdir {workdir} has no checkpoint yet; train first")
    step, state, _ = restored
    return Run(workdir, config, learner, placement.readable(state), step)


def is_run(path: str | os.PathLike) -> bool:
    """Whether a path is the workdir of a run (and not a folder or a file of weights)."""
    return any((Path(path) / name).exists() for name in ("checkpoints", "metrics.jsonl"))


def open_weights(
    path: str | os.PathLike, blocks: int | None = None, heads: int | None = None
) -> Weights:
    """Opens an encoder of images: the first blocks of a run, an exported folder, or weights of another library.

    Args:
      path: a workdir; a folder with weights; or a file of them.
      blocks: how many of a run's blocks; default all. Weights are one piece and taken whole.
      heads: of the encoder's attention, for weights that do not say it; default: 64 channels a head, and a warning.

    Raises:
      ValueError: there is nothing of the kind, it cannot be used, or it says another number of heads.
    """
    weights, _ = open_any(path, blocks, heads)
    if isinstance(weights, TextWeights):
        raise _not_images(path, "holds a model of text")
    return weights


def open_text_weights(path: str | os.PathLike, blocks: int | None = None) -> TextWeights:
    """Opens a model of text: the first blocks of a run, or of what was exported with --format safetensors.

    Raises:
      ValueError: there is nothing of the kind, or it cannot be used.
    """
    weights, run = open_any(path, blocks)
    if isinstance(weights, Weights):
        by = (
            f"was trained on images, by {run.config.objective}" if run else "holds no model of text"
        )
        raise _not_text(path, by)
    return weights


def open_any(
    path: str | os.PathLike, blocks: int | None = None, heads: int | None = None
) -> tuple[Weights | TextWeights, Run | None]:
    """Opens what `open_weights` or `open_text_weights` would; and the run, where it is one."""
    path = Path(path)
    if is_run(path):
        run = open_run(path)
        check_heads(run.learner.vit, heads, path)
        return run.text_weights(blocks) if run.is_text else run.weights(blocks), run
    said = _said_beside(path)
    is_own = said.get("format") == OWN_FORMAT
    if is_own and "text" in said:
        weights = saved_text_weights(read_tensors(path), said, path).first(blocks)
        check_heads(weights.model.encoder, heads, path)
        return weights, None
    if blocks is not None:
        raise ValueError(f"{path} is a single encoder, not a run: it has no blocks to choose from")
    tensors = read_tensors(path)
    if is_own:
        weights = _from_own(tensors, said, path)
    else:
        options = _options(said)
        weights = from_tensors(tensors, source=str(path), **{"heads": heads, **options})
        if heads is None and "heads" not in options:
            logging.warning(
                "%s does not say how many heads its attention has: %d are assumed, of 64 channels each. If that is "
                "wrong, so are all features: say how many (heads=, --heads or --config.model.heads)",
                path,
                weights.vit.heads,
            )
    check_heads(weights.vit, heads, path)
    return weights, None


def check_heads(vit: Encoder, heads: int | None, source: str | os.PathLike) -> None:
    """Raises ValueError where somebody asks for another number of heads than an encoder has."""
    if heads not in (None, vit.heads):
        raise UnusableWeights(
            f"{source} has {vit.heads} heads, and not {heads}; leave heads out (heads=, --heads or model.heads), or "
            f"set it to {vit.heads}"
        )


def load(
    path: str | os.PathLike, blocks: int | None = None, *, heads: int | None = None
) -> tuple[Backbone | LanguageModel, PyTree]:
    """Opens an encoder for use.

    `features, params = blockjax.load("runs/quickstart", blocks=3)`, and then `features(params, images)`; of text
    `model, params = blockjax.load("runs/text", blocks=3)`, and then `model(params, tokens)` for logits.

    Args:
      path: the workdir of a run, a folder or a file of weights.
      blocks: how many of a run's blocks, or of an exported model of text; default all.
      heads: number of attention heads, for weights that do not say it: no tensor tells, and with a wrong number all
        features are wrong. Default: 64 channels a head, as in all ViTs of the papers but ViT-H, and a warning.

    Returns:
      `features`, a pure function `features(params, images, readout="mean")`, see `Backbone.__call__`, or of text
      `model`, see `LanguageModel.__call__`; and `params`.

    Raises:
      ValueError: there is nothing of the kind, it cannot be used, or it says another number of heads.
    """
    weights, _ = open_any(path, blocks, heads)
    params = jax.tree.map(jax.numpy.asarray, weights.params)
    if isinstance(weights, TextWeights):
        return weights.model, params
    norm, layers = jax.tree.map(lambda leaf: leaf[None], (params["norm"], params["layers"]))
    return Backbone(weights.vit, 1), {
        "stem": params["stem"],
        "layers": layers,
        "heads": {"norm": norm},
    }


def _from_own(tensors, said, path):
    try:
        vit = _vit(said)
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableWeights(
            f"{path}: config.json does not describe an encoder: {error}"
        ) from error
    shapes = {
        "stem": jax.eval_shape(vit.init_stem, jax.random.key(0)),
        "layers": jax.eval_shape(lambda key: vit.init_block(key, 0, 1), jax.random.key(0)),
        "norm": jax.eval_shape(lambda: _plain_norm(vit.width)),
    }
    return Weights(vit, as_params(tensors, shapes, path))


def _vit(said):
    """Returns the encoder that a config.json of ours describes, as far as there can be one."""
    fields = said["vit"]
    if missing := [name for name in SAVED_FIELDS if fields[name] is None]:
        raise ValueError(f"it lacks {', '.join(missing)}")
    config = config_lib.default_config()
    for name in SAVED_FIELDS:
        config_lib.set_field(config, f"model.{name}", fields[name])
    config_lib.check_fields(config)
    config_lib.check_encoder(config)
    return ViT(**{name: config.model[name] for name in SAVED_FIELDS})


def _not_images(path, what):
    return ValueError(
        f"{path} {what}; this is for encoders of images: give a run of mae or another objective of images, or weights"
    )


def _not_text(path, what):
    return ValueError(
        f"{path} {what}; this is for models of text: give a run of next_token or masked_token, or what was exported of "
        "one with --format safetensors"
    )


def _said_beside(path):
    """Returns config.json and preprocessor_config.json beside weights, as far as there are such files."""
    folder = path if path.is_dir() else path.parent
    said = {}
    for name in ("config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            try:
                found = json.loads((folder / name).read_text())
            except ValueError as error:
                raise UnusableWeights(f"{folder / name} cannot be read: {error}") from error
            if not isinstance(found, dict):
                raise UnusableWeights(
                    f"{folder / name} cannot be read: it is a {type(found).__name__}, not an object of fields"
                )
            said |= found
    return said


def _options(said):
    """Returns what the config files of transformers and timm say that tensors do not."""
    pretrained = said.get("pretrained_cfg", {})
    arguments = said.get("model_args", {})
    options = {
        "heads": said.get("num_attention_heads", arguments.get("num_heads")),
        "decoder_heads": said.get("decoder_num_attention_heads"),
        "norm_epsilon": said.get("layer_norm_eps"),
        "channel_mean": said.get("image_mean", pretrained.get("mean")),
        "channel_std": said.get("image_std", pretrained.get("std")),
    }
    return {name: value for name, value in options.items() if value is not None}


def _checked_blocks(blocks, there, what):
    blocks = there if blocks is None else blocks
    if not 1 <= blocks <= there:
        raise ValueError(f"{blocks} blocks: {what} has {there}; give 1 to {there}")
    return blocks


def _plain_norm(width):
    return {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
