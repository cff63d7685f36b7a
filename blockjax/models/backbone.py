"""A trained encoder without what trained it: hyperparameters, and pure functions from images to features."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from blockjax.models.encoder import Encoder
from blockjax.models.heads import Readout, over_cells
from blockjax.models.layers import layer_norm
from blockjax.sharding.memory_spaces import to_device

PyTree = Any

CALL_READOUTS = ("mean", "cls", "patches")
FEATURE_READOUTS = ("grid", "mean", "cls", "own")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """An encoder that is read at several depths.

    Its parameters are a dict: "stem"; "layers", every leaf [K, layers per block, ...]; and "heads", what the blocks own
    for their losses, every leaf with a leading axis of K, or of 1 where only the last depth has a head. A head has the
    LayerNorm "norm" that stands between the last layer and the loss, or a "readout" that begins with it.

    Attributes:
      vit: the encoder.
      blocks: depths at which it is read (K).
      readout: the module of the heads' "readout", or None where they have a "norm" only.
    """

    vit: Encoder
    blocks: int
    readout: Readout | None = None

    def __call__(self, params: PyTree, images: jax.Array, readout: str = "mean") -> jax.Array:
        """Returns features of whole images at the last depth, float32, after the LayerNorm of its head.

        Args:
          params: see above.
          images: [..., H, W, 3], uint8 or float in [0, 1].
          readout: "mean" of the patches' tokens or "cls", [..., D]; "patches", [..., rows, columns, D].

        Raises:
          ValueError: an unknown readout, images of another size, or no head at the last depth.
        """
        if readout not in CALL_READOUTS:
            raise ValueError(f"readout {readout!r} is unknown; there is {', '.join(CALL_READOUTS)}")
        tokens = self.vit.stem(params["stem"], self.vit.inputs(images))
        merged = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), params["layers"])
        tokens = self.vit.layers(merged, tokens)
        norm = jax.tree.map(lambda leaf: leaf[-1], head_norm(params["heads"]))
        tokens = self.normed(norm, tokens)
        if readout == "cls":
            return tokens[..., 0, :]
        patches = tokens[..., 1:, :]
        if readout == "mean":
            return patches.mean(axis=-2)
        return patches.reshape(*patches.shape[:-2], *self.vit.grid, -1)

    def read(
        self,
        params: PyTree,
        inputs: PyTree,
        at_depth: Callable[[jax.Array], PyTree],
        at_head: Callable[[PyTree, jax.Array], PyTree] | None = None,
    ) -> tuple[PyTree, PyTree]:
        """Reads the tokens that leave each depth. Each depth's tokens are dropped before the next ones are made.

        Args:
          params: see above; layers may live in host memory.
          inputs: the stem's.
          at_depth: a pure function of the tokens [B, T, D].
          at_head: a pure function of a head and the tokens, for each depth that has one.

        Returns:
          What `at_depth` gives, leaves [K, ...], and what `at_head` gives, leaves [K or 1, ...] (None without it).
        """
        heads = params["heads"] if at_head is not None else None
        rows = len(jax.tree.leaves(heads)[0]) if at_head is not None else 0

        def one(tokens, row):
            layers, head = row
            tokens = self.vit.layers(to_device(layers), tokens)
            of_head = at_head(to_device(head), tokens) if head is not None else None
            return tokens, (at_depth(tokens), of_head)

        tokens = self.vit.stem(params["stem"], inputs)
        scanned = (params["layers"], heads if rows == self.blocks else None)
        tokens, (read, of_heads) = jax.lax.scan(one, tokens, scanned)
        if 0 < rows < self.blocks:
            head = to_device(jax.tree.map(lambda leaf: leaf[0], heads))
            of_heads = jax.tree.map(lambda leaf: leaf[None], at_head(head, tokens))
        return read, of_heads

    def attention(self, params: PyTree, images_BHWC: jax.Array) -> jax.Array:
        """Returns how the CLS token attends to the patches in each depth's last layer, [K, B, H, rows, columns]
        float32.

        The weights of a head, those of CLS itself left out, add up to 1.
        """
        vit = self.vit

        def one(tokens, layers):
            layers = to_device(layers)
            last = jax.tree.map(lambda leaf: leaf[-1:], layers)
            if len(jax.tree.leaves(layers)[0]) > 1:
                tokens = vit.layers(jax.tree.map(lambda leaf: leaf[:-1], layers), tokens)
            found = _cls_attention(vit, jax.tree.map(lambda leaf: leaf[0], last), tokens)
            return vit.layers(last, tokens), found.reshape(*found.shape[:2], *vit.grid)

        tokens = vit.stem(params["stem"], self.vit.inputs(images_BHWC))
        return jax.lax.scan(one, tokens, params["layers"])[1]

    def pooled(self, tokens_BTD: jax.Array, readout: str, pool: int = 1) -> jax.Array:
        """Returns features without a head, [B, F] float32.

        Tokens are normalised one by one first. "cls" is the CLS token, "mean" the mean of the patches' tokens, and
        "grid" their means over the cells of a pool x pool grid: a mean over all of them hides where things are.
        """
        tokens = _normalized(tokens_BTD.astype(jnp.float32))
        if readout == "cls":
            return tokens[:, 0]
        pool = pool if readout == "grid" else 1
        return over_cells(tokens[:, 1:], self.vit.grid, pool).reshape(len(tokens), -1)

    def own(self, head: PyTree, tokens_BTD: jax.Array) -> jax.Array:
        """Returns what a head makes of whole images before it comes to its task, [B, F] float32.

        That is its readout; or, where it has none, the mean of the patches' tokens after its LayerNorm. A BatchNorm
        uses this batch's statistics, or those in the head's "statistics", see `calibrated`.
        """
        if self.readout is None:
            return self.normed(head["norm"], tokens_BTD)[:, 1:].mean(axis=1)
        variables = {"params": head["readout"], "statistics": head.get("statistics", {})}
        return self.readout.apply(variables, tokens_BTD)

    def calibrated(self, params: PyTree, images_BHWC: jax.Array) -> PyTree:
        """Returns the parameters with these images' statistics for every BatchNorm in a readout.

        So what `own` makes of an image no longer depends on the others of its batch.
        """
        if self.readout is None or self.readout.kind != "cbe_gap":
            return params

        def at_head(head, tokens):
            variables = {"params": head["readout"]}
            return self.readout.apply(variables, tokens, mutable=["statistics"])[1]["statistics"]

        inputs = self.vit.inputs(images_BHWC)
        _, statistics = self.read(params, inputs, lambda tokens: (), at_head)
        return {**params, "heads": {**params["heads"], "statistics": statistics}}

    def normed(self, norm: PyTree, tokens_BTD: jax.Array) -> jax.Array:
        """Returns tokens after a LayerNorm with these parameters ("scale", "bias"), float32."""
        return layer_norm(jnp.float32, epsilon=self.vit.norm_epsilon).apply(
            {"params": norm}, tokens_BTD
        )


def head_norm(head: PyTree) -> PyTree | None:
    """Returns the parameters of the LayerNorm with which a head begins; None if it has none."""
    return head.get("readout", head).get("norm")


def _cls_attention(vit, layer, tokens_BTD):
    normed = layer_norm(jnp.float32, epsilon=vit.norm_epsilon).apply(
        {"params": layer["norm_1"]}, tokens_BTD
    )

    def project(name, tokens):
        part = layer["attention"][name]
        out = tokens @ part["kernel"] + part["bias"][None, None]
        return out.reshape(*out.shape[:2], vit.heads, -1)

    query, key = project("query", normed[:, :1]), project("key", normed[:, 1:])
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key)[:, :, 0] / jnp.sqrt(query.shape[-1])
    return jax.nn.softmax(logits, axis=-1)


def _normalized(tokens):
    mean = tokens.mean(axis=-1, keepdims=True)
    return (tokens - mean) / jnp.sqrt(tokens.var(axis=-1, keepdims=True) + 1e-6)
