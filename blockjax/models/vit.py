"""The Vision Transformer as pure functions: a stem, and layers that run in an XLA loop over stacked parameters.

Axis letters, here and in all array names: B images, N patches of an image, T tokens (visible patches and CLS),
D width, P values of a patch, H heads, L layers.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from blockjax.models.attention import attention
from blockjax.models.patches import patchify, standardize, standardize_unit
from blockjax.models.position import sincos_2d

PyTree = Any

# (width, depth, heads) of the ViT papers: arXiv 2010.11929 (B, L, H) and 2012.12877 (Ti, S).
PRESETS = {
    "ti": (192, 12, 3),
    "s": (384, 12, 6),
    "b": (768, 12, 12),
    "l": (1024, 24, 16),
    "h": (1280, 32, 16),
}

# Xavier-uniform over query, key and value as one [D, 3 D] matrix, as in MAE: variance 2 / (D + 3 D).
_QKV_INIT = nn.initializers.variance_scaling(0.5, "fan_in", "uniform")
_XAVIER = nn.initializers.xavier_uniform()


class Attention(nn.Module):
    """Multi-head attention from query tokens to context tokens; softmax in float32.

    Kernels are [D, D] matrices: arrays with a small head axis would be padded, and copied into another layout, on TPU.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, queries_BQD: jax.Array, context_BTD: jax.Array) -> jax.Array:
        width = queries_BQD.shape[-1]

        def project(name, tokens):
            out = nn.Dense(width, dtype=self.dtype, kernel_init=_QKV_INIT, name=name)(tokens)
            return out.reshape(*out.shape[:2], self.heads, width // self.heads)

        mixed_BQHd = attention(
            project("query", queries_BQD),
            project("key", context_BTD),
            project("value", context_BTD),
        )
        mixed_BQD = mixed_BQHd.reshape(*mixed_BQHd.shape[:2], width)
        return nn.Dense(width, dtype=self.dtype, kernel_init=_XAVIER, name="out")(mixed_BQD)


class Mlp(nn.Module):
    """Two dense layers with the exact GELU between them."""

    ratio: float
    dtype: Any

    @nn.compact
    def __call__(self, tokens_BTD: jax.Array) -> jax.Array:
        width = tokens_BTD.shape[-1]
        hidden = nn.Dense(int(width * self.ratio), dtype=self.dtype, kernel_init=_XAVIER)(
            tokens_BTD
        )
        return nn.Dense(width, dtype=self.dtype, kernel_init=_XAVIER)(gelu(hidden))


def gelu(x: jax.Array) -> jax.Array:
    """Returns x · Φ(x), the exact GELU (arXiv 1606.08415).

    On CPU, where XLA writes every intermediate to memory, the backward pass keeps x only; and `erf` costs less than the
    `erfc` that Flax takes.
    """
    exact = functools.partial(nn.gelu, approximate=False)
    return jax.lax.platform_dependent(x, cpu=_frugal_gelu, default=exact)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _frugal_gelu(x):
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)


def layer_norm(dtype: Any, name: str | None = None, epsilon: float = 1e-6) -> nn.LayerNorm:
    """Returns the LayerNorm used everywhere; statistics in float32."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, name=name)


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    heads: int
    mlp_ratio: float
    dtype: Any
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(self, tokens_BTD: jax.Array, scale_2B: jax.Array | None = None) -> jax.Array:
        """Runs the layer; `scale_2B` multiplies what its attention and its MLP add, image by image."""

        def scaled(branch_BTD, index):
            if scale_2B is None:
                return branch_BTD
            return branch_BTD * scale_2B[index][:, None, None].astype(branch_BTD.dtype)

        normed = layer_norm(self.dtype, "norm_1", self.norm_epsilon)(tokens_BTD)
        mixed = Attention(self.heads, self.dtype, name="attention")(normed, normed)
        tokens_BTD = tokens_BTD + scaled(mixed, 0)
        normed = layer_norm(self.dtype, "norm_2", self.norm_epsilon)(tokens_BTD)
        return tokens_BTD + scaled(Mlp(self.mlp_ratio, self.dtype, name="mlp")(normed), 1)


class Stem(nn.Module):
    """Patch embedding with fixed positions, and a CLS token in front.

    With `mask_token` it owns a token that stands for the embeddings of masked patches. With `freeze_embedding` the
    patch embedding gets no gradient (MoCo v3, arXiv 2104.02057: spikes of the gradient start there). With
    `learned_positions` the positions are parameters, which start as the fixed ones.
    """

    width: int
    rows: int
    columns: int
    dtype: Any
    mask_token: bool = False
    freeze_embedding: bool = False
    learned_positions: bool = False

    @nn.compact
    def __call__(
        self, patches_BNP: jax.Array, positions_BN: jax.Array, masked_BN: jax.Array | None = None
    ) -> jax.Array:
        tokens = nn.Dense(self.width, dtype=self.dtype, kernel_init=_XAVIER, name="embed")(
            patches_BNP
        )
        if self.freeze_embedding:
            tokens = jax.lax.stop_gradient(tokens)
        if self.mask_token:
            token = self.param("mask_token", nn.initializers.normal(0.02), (1, 1, self.width))
            if masked_BN is not None:
                tokens = jnp.where(masked_BN[..., None], token.astype(self.dtype), tokens)
        table_ND = sincos_2d(self.rows, self.columns, self.width)
        if self.learned_positions:
            table_ND = self.param("positions", lambda _: jnp.asarray(table_ND))
        tokens = tokens + jnp.asarray(table_ND, self.dtype)[positions_BN]
        cls = self.param("cls", nn.initializers.normal(0.02), (1, 1, self.width))
        cls = jnp.broadcast_to(cls.astype(self.dtype), (tokens.shape[0], 1, self.width))
        return jnp.concatenate([cls, tokens], axis=1)


@dataclasses.dataclass(frozen=True)
class ViT:
    """The hyperparameters of an encoder, and its pure functions.

    `remat` is "none", "layer" (`jax.checkpoint` around each layer), "nested" (around each of about √L groups as well)
    or "offload" (around each layer, whose input waits in host memory); `unroll` is how many layers one turn of the
    loop over layers holds; `mask_token`, `freeze_embedding` and `learned_positions` are those of `Stem`. With
    `zero_residuals` the last matrices of attention and MLP start at zero, as in Fixup (arXiv 1901.09321): every layer
    starts as the identity.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    remat: str = "none"
    unroll: int = 1
    mask_token: bool = False
    freeze_embedding: bool = False
    learned_positions: bool = False
    norm_epsilon: float = 1e-6
    zero_residuals: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = self.image_size // self.patch_size
        return side, side

    @property
    def patches(self) -> int:
        """Patches of an image (N)."""
        return self.grid[0] * self.grid[1]

    def _stem(self):
        return Stem(
            self.width,
            *self.grid,
            self.dtype,
            self.mask_token,
            self.freeze_embedding,
            self.learned_positions,
        )

    def _layer(self):
        return Layer(self.heads, self.mlp_ratio, self.dtype, self.norm_epsilon)

    def init_stem(self, rng: jax.Array) -> PyTree:
        """Returns the stem's parameters, float32."""
        patches = jnp.zeros((1, 1, self.patch_size**2 * 3))
        return self._stem().init(rng, patches, jnp.zeros((1, 1), jnp.int32))["params"]

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
            for part, last in (("attention", "out"), ("mlp", "Dense_1")):
                params[part][last]["kernel"] = jnp.zeros_like(params[part][last]["kernel"])
        return params

    def inputs(self, images: jax.Array) -> dict[str, jax.Array]:
        """Returns the stem's inputs of whole images, [..., H, W, 3], uint8 or float in [0, 1].

        Raises:
          ValueError: images of another size than the encoder's.
        """
        side = self.image_size
        if images.shape[-3:] != (side, side, 3):
            raise ValueError(
                f"images of shape {images.shape}: this encoder takes [..., {side}, {side}, 3]; resize them first"
            )
        flat = images.reshape(-1, *images.shape[-3:])
        patches = patchify(flat, self.patch_size)
        is_uint8 = images.dtype == jnp.uint8
        patches = (
            standardize(patches) if is_uint8 else standardize_unit(patches.astype(jnp.float32))
        )
        patches = patches.reshape(*images.shape[:-3], *patches.shape[1:])
        positions = jnp.broadcast_to(jnp.arange(self.patches), patches.shape[:-1])
        return {"patches": patches, "positions": positions}

    def stem(self, params: PyTree, inputs: dict[str, jax.Array]) -> jax.Array:
        """Embeds patches.

        Args:
          params: from `init_stem`.
          inputs: {"patches": [B, ..., N, P] float, "positions": [B, ..., N] int}, and "masked": [B, ..., N] bool where
            a mask token stands for some patches; "..." are views, rotations or tiles of an image.

        Returns:
          Tokens [B, ..., 1 + N, D].
        """
        leading = inputs["positions"].shape[:-1]
        flat = {
            name: array.reshape(-1, *array.shape[len(leading) :]) for name, array in inputs.items()
        }
        tokens = self._stem().apply(
            {"params": params}, flat["patches"], flat["positions"], flat.get("masked")
        )
        return tokens.reshape(*leading, *tokens.shape[1:])

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
