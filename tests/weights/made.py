"""Random weights of an encoder with MLPs of an unusual size, and what compares them."""

import jax
import jax.numpy as jnp
import numpy as np

from blockjax.models.decoders import SelfAttentionDecoder
from blockjax.models.vit import ViT
from blockjax.weights import Weights


def made_weights(decoder=None, learned_positions=False):
    """Returns weights of three layers, width 48, four heads, 32 pixels; with a decoder of these fields."""
    vit = ViT(32, 8, 48, 3, 4, mlp_ratio=2.0, learned_positions=learned_positions)
    keys = jax.random.split(jax.random.key(0), 4)
    layers = jax.tree.map(lambda leaf: leaf[0], vit.init_layers(keys[1], 1))
    norm = {"scale": jnp.ones(48), "bias": jnp.zeros(48)}
    params = {"stem": vit.init_stem(keys[0]), "layers": layers, "norm": norm}
    of_decoder = None
    if decoder is not None:
        decoder = SelfAttentionDecoder(
            **decoder, grid=vit.grid, patch_values=192, dtype=jnp.float32
        )
        position = jnp.zeros((1, 1), jnp.int32)
        of_decoder = decoder.init(keys[2], jnp.zeros((1, 2, 48)), position, position)["params"]
        of_decoder.pop("norm")
    leaves, treedef = jax.tree.flatten((params, of_decoder))
    rng = np.random.default_rng(0)
    leaves = [leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    params, of_decoder = jax.tree.unflatten(treedef, leaves)
    return Weights(vit, params, decoder, of_decoder)
