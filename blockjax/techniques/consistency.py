"""Consistency of neighbouring blocks: what a block makes must follow from what the block below made."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from blockjax.models.heads import l2_normalize
from blockjax.strategies import Block
from blockjax.techniques.technique import Technique, also_coupled, also_leaving

PyTree = Any


class Predictor(nn.Module):
    """Tokens of the block below to tokens of this one, [..., D] to [..., D]: two dense layers, half as wide between."""

    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        width = tokens.shape[-1]
        hidden = nn.LayerNorm(dtype=self.dtype, name="norm")(tokens)
        hidden = nn.gelu(nn.Dense(width // 2, dtype=self.dtype, name="down")(hidden))
        return nn.Dense(width, dtype=self.dtype, name="up")(hidden)


@dataclasses.dataclass(frozen=True)
class Prediction(Technique):
    """Adds weight · mean over tokens of 1 - cos(p(sg h_below), h), h the tokens that leave the block, p a `Predictor`.

    The gradient reaches the predictor and the block, and stops at the block below. A distance to the incoming tokens
    themselves would ask every block for the identity; the predictor lets it move on, but in a way that can be foretold.

    Attributes:
      weight: of the term.
      width: the encoder's (D).
      dtype: of the predictor's dense layers.
    """

    weight: float
    width: int
    dtype: Any = jnp.float32

    def init_link(self, rng: jax.Array) -> PyTree:
        return {
            "consistency": Predictor(self.dtype).init(rng, jnp.zeros((1, self.width)))["params"]
        }

    def apply(self, block: Block) -> Block:
        def couple(params, before, after, targets, rng):
            del targets, rng
            link = {"params": params["link"]["consistency"]}
            predicted = Predictor(self.dtype).apply(link, before["tokens"])
            distance = 1.0 - cosine(predicted, after["tokens"]).mean()
            return self.weight * distance, {"consistency": distance}

        return also_coupled(block, couple)


@dataclasses.dataclass(frozen=True)
class Agreement(Technique):
    """Successive gradient reconciliation (arXiv 2406.05222): local gradients at a boundary should agree.

    Adds weight · mean over images of 1 - cos(∂L/∂h, sg ∂L_below/∂h), h the tokens at the boundary, L and L_below the
    local losses of the blocks above and below it. (The paper has the squared distance, without a published weight; the
    cosine leaves lengths alone, which differ from objective to objective.) The gradient of a gradient costs about a
    second forward and backward pass; it reaches this block's parameters only, and block 1 has no boundary.

    Attributes:
      weight: of the term.
    """

    weight: float

    def first(self, params: PyTree, inputs: PyTree, stream: PyTree) -> dict[str, PyTree]:
        del params, inputs
        return {"gradient": jnp.zeros(stream["tokens"].shape, jnp.float32)}

    def apply(self, block: Block) -> Block:
        def couple(params, before, after, targets, rng):
            del after
            forward_rng, loss_rng = jax.random.split(rng)

            def local(tokens):
                stream = block.forward(params, {**before, "tokens": tokens}, forward_rng)
                return block.loss(params, stream, targets, loss_rng)[0]

            own = _by_image(jax.grad(local)(before["tokens"]))
            below = _by_image(before["gradient"])
            has_boundary = jnp.sum(below**2) > 0
            distance = jnp.where(has_boundary, 1.0 - cosine(own, below).mean(), 0.0)
            return self.weight * distance, {"disagreement": distance}

        def leave(params, stream, targets, rng):
            def local(tokens):
                return block.loss(params, {**stream, "tokens": tokens}, targets, rng)[0]

            return {"gradient": jax.grad(local)(stream["tokens"]).astype(jnp.float32)}

        return also_leaving(also_coupled(block, couple), leave)


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the cosine of vectors along the last axis, float32; 0 where one of them is zero."""
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    return jnp.sum(l2_normalize(a) * l2_normalize(b), axis=-1)


def _by_image(tokens):
    # Scaled: the gradient of a mean over very many images is tiny, and still has a direction.
    flat = tokens.reshape(len(tokens), -1).astype(jnp.float32)
    largest = jax.lax.stop_gradient(jnp.abs(flat).max(axis=-1, keepdims=True))
    return flat / jnp.where(largest > 0, largest, 1.0)
