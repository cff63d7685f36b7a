"""Noise between blocks (block-wise Barlow Twins, arXiv 2302.01647)."""

import dataclasses

import jax
import jax.numpy as jnp

from blockjax.strategies import Block


def with_noise(block: Block, scale: float) -> Block:
    """Returns a block that adds noise to the tokens that leave it, for its local loss and for the next block.

    Args:
      block: its stream is a dict with "tokens"; other parts stay as they are.
      scale: of the Gaussian noise, as a share of the tokens' standard deviation; 0.25 is the paper's best setting, and
        0 returns the block itself.
    """
    if not scale:
        return block

    def forward(params, stream, rng):
        out = block.forward(params, stream, rng)
        tokens = out["tokens"]
        noise = jax.random.normal(rng, tokens.shape, tokens.dtype)
        spread = jax.lax.stop_gradient(jnp.std(tokens.astype(jnp.float32)))
        return {**out, "tokens": tokens + (scale * spread).astype(tokens.dtype) * noise}

    return dataclasses.replace(block, forward=forward)
