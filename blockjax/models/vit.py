"""The Vision Transformer as pure functions: the stem, and the layers of `encoder.py`.

Axis letters, here and in all array names: B images, N patches of an image, T tokens (visible patches and CLS),
D width, P values of a patch, H heads, L layers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from blockjax.models.encoder import Encoder
from blockjax.models.layers import XAVIER, Layer
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
        tokens = nn.Dense(self.width, dtype=self.dtype, kernel_init=XAVIER, name="embed")(
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
class ViT(Encoder):
    """The hyperparameters of an encoder of images, and its pure functions; see `Encoder`.

    `mask_token`, `freeze_embedding` and `learned_positions` are those of `Stem`.
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
