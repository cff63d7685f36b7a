"""What every encoder has in common: layers of one kind, which run in an XLA loop over stacked parameters."""

import abc
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from blockjax.models.layers import MLPS, Layer

PyTree = Any


class Encoder(abc.ABC):
    """An encoder's pure functions. Subclasses are frozen dataclasses of hyperparameters, with a stem of their own.

    Attributes:
      width: of tokens (D).
      depth: in layers (L).
      remat: "none", "layer" (`jax.checkpoint` around each layer), "nested" (around each of about √L groups as well) or
        "offload" (around each layer, whose input waits in host memory).
      unroll: how many layers one turn of the loop over layers holds.
      zero_residuals: whether the last matrices of attention and MLP start at zero, as in Fixup (arXiv 1901.09321):
        every layer starts as the identity.
    """

    width: int
    depth: int
    remat: str
    unroll: int
    zero_residuals: bool

    @abc.abstractmethod
    def _layer(self) -> Layer:
        """Returns the module that every layer is."""

    @abc.abstractmethod
    def init_stem(self, rng: jax.Array) -> PyTree:
        """Returns the stem's parameters, float32."""

    @abc.abstractmethod
    def inputs(self, examples: jax.Array) -> dict[str, jax.Array]:
        """Returns the stem's inputs of whole examples."""

    @abc.abstractmethod
    def stem(self, params: PyTree, inputs: dict[str, jax.Array]) -> jax.Array:
        """Returns tokens [B, ..., T, D], of parameters from `init_stem`."""

    def init_layers(self, rng: jax.Array, blocks: int) -> PyTree:
        """Returns all layers' parameters, float32, each leaf with leading axes [blocks, layers per block].

        A layer's parameters depend on its index in the encoder only, so every cut starts from the same encoder.
        """
        init = jax.vmap(lambda block: self.init_block(rng, block, blocks))
        return init(jnp.arange(blocks))

    def init_block(self, rng: jax.Array, block: jax.Array, blocks: int) -> PyTree:
        """Returns the parameters of one of so many blocks (from 0), leaves [layers per block, ...]."""
        tokens = jnp.zeros((1, 1, self.width))
        layers = self.depth // blocks
        keys = jax.vmap(lambda i: jax.random.fold_in(rng, block * layers + i))(jnp.arange(layers))
        params = jax.vmap(lambda key: self._layer().init(key, tokens)["params"])(keys)
        if self.zero_residuals:
            for part, last in (("attention", "out"), ("mlp", MLPS[self._layer().mlp][1])):
                params[part][last]["kernel"] = jnp.zeros_like(params[part][last]["kernel"])
        return params

    def layers(
        self,
        params: PyTree,
        tokens: jax.Array,
        rng: jax.Array | None = None,
        drop_rates_L: jax.Array | None = None,
    ) -> jax.Array:
        """Runs the layers whose parameters are stacked along the leading axis of `params`.

        Args:
          params: leaves [L, ...].
          tokens: [B, ..., T, D].
          rng: a key for the branches that are dropped; None: none is.
          drop_rates_L: with which probability each layer leaves out a branch for an image; what stays is scaled up
            (stochastic depth, arXiv 1603.09382, for each image as in timm).
        """
        layer = self._layer()
        tokens_BTD = tokens.reshape(-1, *tokens.shape[-2:])
        scales_L2B = None
        if rng is not None:
            kept_L = 1.0 - drop_rates_L[:, None, None]
            shape = (len(drop_rates_L), 2, len(tokens_BTD))
            scales_L2B = jax.random.bernoulli(rng, kept_L, shape) / kept_L

        def one(tokens, row):
            layer_params, scale_2B = row
            return layer.apply({"params": layer_params}, tokens, scale_2B), None

        depth = len(jax.tree.leaves(params)[0])
        policy = None
        if self.remat == "offload":
            one, policy = _offloading(one)
        if self.remat != "none":
            # A loop keeps its forward and its backward pass apart. One that turns once is no loop to XLA, which would
            # find the same computation in both and keep its results.
            one = jax.checkpoint(one, prevent_cse=depth == self.unroll, policy=policy)
        rows, unroll = (params, scales_L2B), self.unroll
        if self.remat == "nested":
            of_group = one

            def one(tokens, rows):
                return jax.lax.scan(of_group, tokens, rows, unroll=self.unroll)[0], None

            groups = _groups(depth, self.unroll)
            rows, unroll = jax.tree.map(lambda leaf: _cut(leaf, groups), rows), 1
            one = jax.checkpoint(one, prevent_cse=groups == 1)
        return jax.lax.scan(one, tokens_BTD, rows, unroll=unroll)[0].reshape(tokens.shape)


def _offloading(layer):
    """Returns a layer whose input has a name, and the policy that keeps it in host memory for the backward pass."""

    def named(tokens, row):
        return layer(checkpoint_name(tokens, "layer_input"), row)

    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["layer_input"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return named, policy


def _groups(depth, unroll):
    """Returns into how many equal groups layers are cut: about as many as a group has layers, in whole turns."""
    turns = depth // unroll
    fitting = [groups for groups in range(1, turns + 1) if turns % groups == 0]
    return min(fitting, key=lambda groups: groups + turns // groups)


def _cut(leaf, groups):
    return leaf.reshape(groups, -1, *leaf.shape[1:])


def regroup(layers: PyTree, blocks: int, *, stacked: int) -> PyTree:
    """Cuts stacked layers anew: leaves of `stacked` leading layer axes to leaves [blocks, layers per block, ...]."""
    return jax.tree.map(lambda leaf: leaf.reshape((blocks, -1, *leaf.shape[stacked:])), layers)
