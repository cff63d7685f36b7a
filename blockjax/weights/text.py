"""A model of text that was trained: out of a run, and in files of this package's own names."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from blockjax import config as config_lib
from blockjax.data.tokens import Tokens, load_tokens
from blockjax.learner.learner import Learner
from blockjax.models.encoder import regroup
from blockjax.models.language import LanguageModel
from blockjax.models.text import TextEncoder
from blockjax.objectives.text.next_token import NextToken
from blockjax.strategies.state import TrainState
from blockjax.weights.files import UnusableWeights
from blockjax.weights.own import OWN_FORMAT, as_params

PyTree = Any

# The fields of TextEncoder that a file says, beside `causal`; the others are how it is run.
_SAVED_FIELDS = (
    *("vocabulary", "context", "width", "depth", "heads", "mlp_ratio"),
    *("positions", "norm", "mlp", "bias", "norm_epsilon"),
)
TOKENIZER = "tokenizer.json"  # what a tokenizer's file is called beside weights


@dataclasses.dataclass(frozen=True)
class TextWeights:
    """A model of text with its parameters, on the host.

    Attributes:
      model: the model.
      params: see `LanguageModel`.
      tokenizer: the file of its tokens; None: bytes.
    """

    model: LanguageModel
    params: PyTree
    tokenizer: Path | None = None

    def first(self, blocks: int | None) -> "TextWeights":
        """Returns what ends with block `blocks`; None: all. See `LanguageModel.first`."""
        there = self.model.blocks
        model, params = self.model.first(self.params, there if blocks is None else blocks)
        return dataclasses.replace(self, model=model, params=params)

    def tokens(self) -> Tokens:
        """Returns the tokens that it reads.

        Raises:
          ValueError: their file cannot be read, or has others than those of the model.
        """
        tokens, vocabulary = load_tokens(self.tokenizer), self.model.encoder.vocabulary
        if tokens.vocabulary != vocabulary:
            raise ValueError(
                f"the model knows {vocabulary} tokens, and there are {tokens.vocabulary} with separator and mask "
                f"({self.tokenizer or tokens.name}); restore the file that it was trained with"
            )
        return tokens


def run_text_weights(
    learner: Learner, state: TrainState, tokenizer: str | os.PathLike | None
) -> TextWeights:
    """Returns what a run on text trained, all blocks.

    Args:
      learner: the run's.
      state: trained; its parameters may live in host memory.
      tokenizer: `data.tokenizer` of the run.
    """
    if learner.shares_head:
        heads = jax.tree.map(lambda leaf: np.asarray(leaf)[None], state.head.params)
    else:
        heads = jax.tree.map(np.asarray, state.blocks.params["head"])
    params = {
        "stem": jax.tree.map(np.asarray, state.stem.params),
        "layers": jax.tree.map(np.asarray, state.blocks.params["layers"]),
        "heads": heads,
    }
    params["layers"] = regroup(params["layers"], learner.depths, stacked=2)
    model = LanguageModel(
        encoder=dataclasses.replace(learner.vit, remat="none", unroll=1),
        blocks=learner.depths,
        heads=len(jax.tree.leaves(heads)[0]),
        shared=learner.shares_head and learner.losses == learner.depths,
        tied=learner.objective.tied,
    )
    return TextWeights(model, params, None if tokenizer is None else Path(tokenizer))


def text_config(weights: TextWeights) -> dict[str, Any]:
    """Returns what config.json says beside the tensors; `saved_text_weights` reads it."""
    model = weights.model
    fields = {field: getattr(model.encoder, field) for field in (*_SAVED_FIELDS, "causal")}
    return {
        "format": OWN_FORMAT,
        "text": fields,
        **{name: getattr(model, name) for name in ("blocks", "heads", "shared", "tied")},
        "tokenizer": None if weights.tokenizer is None else TOKENIZER,
    }


def saved_text_weights(
    tensors: dict[str, np.ndarray], said: dict[str, Any], path: Path
) -> TextWeights:
    """Returns a model of text from tensors by our own names and what config.json says beside them.

    Raises:
      UnusableWeights: they are not of that kind, or do not fit together.
    """
    try:
        model, tokenizer = _model(said), said["tokenizer"]
    except (KeyError, TypeError, ValueError) as error:
        raise UnusableWeights(
            f"{path}: config.json does not describe a model of text: {error}"
        ) from error
    encoder = model.encoder
    objective = NextToken(encoder.width, encoder.vocabulary, norm=encoder.norm, tied=model.tied)

    def made(rng):
        heads = jax.vmap(objective.init_head)(jax.random.split(rng, model.heads))
        layers = encoder.init_layers(rng, model.blocks)
        return {"stem": encoder.init_stem(rng), "layers": layers, "heads": heads}

    params = as_params(tensors, jax.eval_shape(made, jax.random.key(0)), path)
    folder = path if path.is_dir() else path.parent
    return TextWeights(model, params, None if tokenizer is None else folder / tokenizer)


def _model(said):
    """Returns the model that a config.json of ours describes, as far as there can be one."""
    fields, causal = said["text"], bool(said["text"]["causal"])
    config = config_lib.default_config()
    config.objective = "next_token" if causal else "masked_token"
    for name in _SAVED_FIELDS:
        if fields[name] is None:
            raise ValueError(f"it lacks {name}")
        config_lib.set_field(config, f"model.{name}", fields[name])
    config_lib.check_fields(config)
    config_lib.check_encoder(config)
    encoder = TextEncoder(**{name: config.model[name] for name in _SAVED_FIELDS}, causal=causal)
    blocks, heads = int(said["blocks"]), int(said["heads"])
    if blocks < 1 or encoder.depth % blocks or heads not in (1, blocks):
        raise ValueError(f"{encoder.depth} layers in {blocks} blocks with {heads} heads")
    return LanguageModel(encoder, blocks, heads, bool(said["shared"]), bool(said["tied"]))
