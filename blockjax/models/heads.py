"""What stands between a block's tokens and a loss that looks at whole images: readouts and projectors.

Axis letters as in `vit.py`; "..." are leading axes, images first. Batch statistics are those of the global batch,
however it is split over devices: they are plain means under `jit`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from blockjax.models.layers import layer_norm

READOUTS = ("cbe_gap", "gap", "cls")
_XAVIER = nn.initializers.xavier_uniform()


class BatchNorm(nn.Module):
    """Normalises each feature over all other axes, with the statistics of this batch only.

    Pretext heads are thrown away after training, so no running statistics are kept (`flax.linen.BatchNorm` needs a
    place for them). Who wants to use a head on its own gives the collection "statistics", or makes it mutable to get
    those of a batch. Variance is biased, centred and float32: the difference of two means of squares, Flax's default,
    loses most digits where the mean is large.
    """

    use_scale: bool = True
    use_bias: bool = True
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        axes = tuple(range(x.ndim - 1))
        if self.has_variable("statistics", "mean"):
            x = x - self.get_variable("statistics", "mean")
            variance = self.get_variable("statistics", "variance")
        else:
            mean = x.mean(axis=axes, keepdims=True)
            x = x - mean
            variance = jnp.square(x).mean(axis=axes, keepdims=True)
            if self.is_mutable_collection("statistics") and not self.is_initializing():
                self.put_variable("statistics", "mean", mean)
                self.put_variable("statistics", "variance", variance)
        x = x * jax.lax.rsqrt(variance + self.epsilon)
        one_per_feature = (*(1 for _ in axes), x.shape[-1])
        if self.use_scale:
            scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
            x = x * scale.reshape(one_per_feature)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
            x = x + bias.reshape(one_per_feature)
        return x


def over_cells(patches_BTD: jax.Array, grid: tuple[int, int], pool: int) -> jax.Array:
    """Returns the means of an image's patches over the cells of a pool x pool grid, [B, pool², D].

    Args:
      patches_BTD: tokens of the patches, row by row.
      grid: rows and columns of patches; `pool` divides both.
      pool: cells a side; 1 is the mean of all.
    """
    (rows, columns), width = grid, patches_BTD.shape[-1]
    cells = patches_BTD.reshape(-1, pool, rows // pool, pool, columns // pool, width)
    return cells.mean(axis=(2, 4)).reshape(-1, pool * pool, width)


class Readout(nn.Module):
    """One vector per image from a block's tokens, CLS first: [..., T, D] to [..., F] float32.

    `gap` is the mean of the patch tokens and `cls` the CLS token, both after a LayerNorm (F = D). `cbe_gap` widens
    every patch token first and averages then (F = expansion): dense without bias, BatchNorm, ReLU; the form for tokens
    of the 1x1-convolution readout in block-wise Barlow Twins (arXiv 2302.01647).
    """

    kind: str
    expansion: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        tokens = layer_norm(self.dtype, "norm")(tokens)
        if self.kind == "cls":
            return tokens[..., 0, :].astype(jnp.float32)
        tokens = tokens[..., 1:, :]
        if self.kind == "cbe_gap":
            wide = nn.Dense(
                self.expansion, use_bias=False, dtype=self.dtype, kernel_init=_XAVIER, name="expand"
            )
            tokens = nn.relu(BatchNorm(name="expand_norm")(wide(tokens)))
        return tokens.astype(jnp.float32).mean(axis=-2)


class Projector(nn.Module):
    """Dense layers with BatchNorm and ReLU between them, [..., F] to [..., widths[-1]], in float32.

    Without BatchNorm it is dense layers with ReLU between them, and all have a bias.

    Attributes:
      widths: of all layers, the last one's output included.
      hidden_bias: whether dense layers before the last have a bias (the last has none).
      hidden_norm: whether BatchNorm stands before each ReLU.
      last_norm: "none", "plain" (BatchNorm without scale and offset) or "scale" (with scale, no offset) at the end.
    """

    widths: tuple[int, ...]
    hidden_bias: bool = False
    hidden_norm: bool = True
    last_norm: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        *hidden, last = self.widths
        plain = not self.hidden_norm
        for i, width in enumerate(hidden):
            bias = self.hidden_bias or plain
            x = nn.Dense(width, use_bias=bias, kernel_init=_XAVIER, name=f"dense_{i}")(x)
            x = nn.relu(x if plain else BatchNorm(name=f"norm_{i}")(x))
        x = nn.Dense(last, use_bias=plain, kernel_init=_XAVIER, name="dense_out")(x)
        if self.last_norm != "none":
            x = BatchNorm(use_scale=self.last_norm == "scale", use_bias=False, name="norm_out")(x)
        return x


def l2_normalize(x: jax.Array) -> jax.Array:
    """Scales vectors (last axis) to length 1, in float32; a zero vector stays zero and has a finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))
