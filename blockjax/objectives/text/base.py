"""What objectives of text have in common: a normalisation and a readout for each block, and a loss over tokens."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections

from blockjax.checks import Bound, divisors
from blockjax.models.layers import norm_layer
from blockjax.models.text import TextEncoder
from blockjax.objectives.objective import Objective
from blockjax.objectives.text.cross_entropy import cross_entropy

PyTree = Any


@dataclasses.dataclass(frozen=True)
class TextObjective(Objective):
    """Predicts tokens from the tokens that leave a block.

    A head is a normalisation "norm" and a "readout" [D, V]. With `tied` it is the "norm" alone, and the stem's
    embedding is the readout: it goes from block to block beside the tokens, so block 1 and the stem train it, and later
    blocks read it behind their stopped gradients.

    Attributes:
      width: the encoder's (D).
      vocabulary: token ids are from 0 to this, exclusive (V); the last two are the separator of documents and the mask.
      norm: of `blockjax.models.layers.NORMS`.
      norm_epsilon: the encoder's.
      dtype: of activations.
      tied: whether the embedding is the readout.
      chunk: tokens of each sequence whose logits are made at a time; None: see `cross_entropy`.
    """

    width: int
    vocabulary: int
    norm: str = "layer_norm"
    norm_epsilon: float = 1e-6
    dtype: Any = jnp.float32
    tied: bool = False
    chunk: int | None = None

    modality: ClassVar[str] = "text"
    causal: ClassVar[bool]
    bounds: ClassVar[dict[str, Bound]] = {
        "model.context": Bound(2, 2**20),
        "model.vocabulary": Bound(3, 2**24),
        "loss.chunk": Bound(1, 2**20),
    }

    @classmethod
    def from_config(
        cls, config: ml_collections.ConfigDict, vit: TextEncoder, blocks: int
    ) -> "TextObjective":
        """Returns the objective that a resolved config describes."""
        del blocks
        return cls(
            width=vit.width,
            vocabulary=vit.vocabulary,
            norm=vit.norm,
            norm_epsilon=vit.norm_epsilon,
            dtype=vit.dtype,
            tied=config.model.tied,
            chunk=config.loss.chunk,
            **cls._own(config),
        )

    @classmethod
    def _own(cls, config):
        del config
        return {}

    @classmethod
    def check(cls, config: ml_collections.ConfigDict) -> None:
        """Raises ValueError for settings that cannot work."""
        predicted, chunk = cls.predicted_tokens(config), config.loss.chunk
        if chunk is not None and predicted % chunk:
            raise ValueError(
                f"loss.chunk={chunk} does not divide the {predicted} tokens of a sequence that are predicted; it may "
                f"be one of {divisors(predicted)}"
            )
        if config.model.tied:
            _check_tied(config)

    @classmethod
    def predicted_tokens(cls, config: ml_collections.ConfigDict) -> int:
        """Returns of how many tokens of a sequence a block's loss is the mean."""
        return config.model.context

    @property
    def separator(self) -> int:
        """The token in front of each document."""
        return self.vocabulary - 2

    @property
    def mask(self) -> int:
        """The token that stands for masked ones."""
        return self.vocabulary - 1

    def _norm(self):
        return norm_layer(self.norm, self.dtype, epsilon=self.norm_epsilon)

    def init_head(self, rng: jax.Array) -> PyTree:
        """Returns one block's own head parameters, float32."""
        head = {"norm": self._norm().init(rng, jnp.zeros((1, self.width)))["params"]}
        if not self.tied:
            kernel = 0.02 * jax.random.normal(rng, (self.width, self.vocabulary))
            head["readout"] = {"kernel": kernel}
        return head

    def stem(self, vit: TextEncoder, params: PyTree, inputs: PyTree) -> PyTree:
        stream = {"tokens": vit.stem(params, inputs)}
        return {**stream, "embedding": params["embedding"]} if self.tied else stream

    def local_loss(
        self, params: PyTree, stream: PyTree, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        del rng
        losses = self.token_losses(
            params["head"], stream["tokens"], targets, stream.get("embedding")
        )
        return losses.mean(), {}

    def loss(
        self, head: PyTree, tokens: jax.Array, targets: PyTree, rng: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the mean loss in nats, where the readout is the head's own."""
        del rng
        return self.token_losses(head, tokens, targets).mean(), {}

    def token_losses(
        self,
        head: PyTree,
        tokens_BTD: jax.Array,
        targets: PyTree,
        embedding_VD: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the loss of each predicted token in nats, float32 [B, M].

        Args:
          head: a block's own parameters.
          tokens_BTD: as they leave the block.
          targets: from `prepare`.
          embedding_VD: the stem's, where the readout is `tied` to it.
        """
        features_BMD = self.normed(head, self._predicting(tokens_BTD, targets))
        readout_DV = self.readout(head, embedding_VD)
        return cross_entropy(features_BMD, readout_DV, targets["tokens"], self.chunk)

    def normed(self, head: PyTree, tokens: jax.Array) -> jax.Array:
        """Returns tokens [..., D] after a head's normalisation."""
        return self._norm().apply({"params": head["norm"]}, tokens)

    def readout(self, head: PyTree, embedding_VD: jax.Array | None = None) -> jax.Array:
        """Returns what makes logits of normalised tokens, [D, V]; arguments as in `token_losses`."""
        return embedding_VD.T if self.tied else head["readout"]["kernel"]

    def _predicting(self, tokens_BTD, targets):
        """Returns those tokens of a block from which targets are predicted."""
        del targets
        return tokens_BTD

    def seen(self, rng: jax.Array, images_BHWC: jax.Array) -> dict[str, jax.Array]:
        """Raises TypeError: text is no picture."""
        raise TypeError(f"{type(self).__name__} sees text, no images")


def _check_tied(config):
    """Checks whether the embedding, which has no batch axis, can go from block to block in the stream."""
    whole = config.strategy == "end_to_end"
    reasons = {
        f"strategy={config.strategy} splits every array of a stream by the batch": config.strategy
        in ("pipelined", "streamed_end_to_end"),
        f"pipeline.batches={config.pipeline.batches} keeps a stream for each batch": not whole
        and (config.pipeline.batches or 1) > 1,
        f"microbatches={config.microbatches} splits every array of a stream": not whole
        and config.microbatches > 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"model.tied=True: the embedding goes from block to block beside the tokens, and {reason}; set "
                "model.tied=False, or leave that out"
            )


def bits(nats: float) -> float:
    """Returns nats in bits."""
    return nats / math.log(2.0)
