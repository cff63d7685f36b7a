"""How libraries name and shape the tensors of a Vision Transformer, and the way to this package's and back.

A format is a table: for each of our arrays the other library's name, and how the two are laid out. "huggingface" is
that of `transformers` (ViTModel; with a decoder ViTMAEForPreTraining), "timm" that of timm's VisionTransformer, and
"mae" that of facebookresearch/mae, which is timm's with a decoder.
"""

import dataclasses
import difflib
import math
import re
from typing import Any

import jax
import numpy as np

from blockjax.models.decoders import SelfAttentionDecoder
from blockjax.models.patches import CHANNEL_MEAN, CHANNEL_STD
from blockjax.models.position import sincos_2d
from blockjax.models.vit import ViT
from blockjax.weights.files import UnusableWeights
from blockjax.weights.tables import FORMATS, HUGGINGFACE_NAMES, IGNORED, QKV, format_tensors

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Weights:
    """An encoder's parameters and what they belong to.

    Attributes:
      vit: the encoder.
      params: {"stem", "layers": leaves [depth, ...], "norm": the LayerNorm after the last layer}.
      decoder: MAE's decoder, or None.
      decoder_params: its parameters (without "norm", which is the encoder's), or None.
    """

    vit: ViT
    params: PyTree
    decoder: SelfAttentionDecoder | None = None
    decoder_params: PyTree | None = None


def to_tensors(weights: Weights, form: str) -> dict[str, np.ndarray]:
    """Returns weights as another library names and shapes them.

    Args:
      weights: an encoder, and with a decoder that as well.
      form: a name in `FORMATS`; in "timm" there is no decoder.
    """
    decoder = None if form == "timm" else weights.decoder
    depth = weights.vit.depth
    tree = dict(jax.tree.map(np.asarray, weights.params))
    tree["layers"] = {
        i: jax.tree.map(lambda leaf, i=i: leaf[i], tree["layers"]) for i in range(depth)
    }
    if decoder is not None:
        tree["decoder"] = jax.tree.map(np.asarray, weights.decoder_params)
    grid = weights.vit.grid
    tensors = {}
    for tensor in format_tensors(FORMATS[form], weights.vit, decoder):
        value = _find(tree, tensor.path[:-1] if tensor.layout == "positions" else tensor.path)
        if tensor.layout == "positions":
            table = value.get("positions")
            if table is None:
                table = sincos_2d(*grid, tensor.shape[-1])
            value = np.concatenate([np.zeros_like(table[:1]), table])[None]  # CLS has no position
        elif tensor.layout == "transposed":
            value = value.T
        elif tensor.layout == "conv":
            side = weights.vit.patch_size
            value = value.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
        elif tensor.layout == "qkv_kernel":
            value = np.concatenate([value[part]["kernel"].T for part in QKV])
        elif tensor.layout == "qkv_bias":
            value = np.concatenate([value[part]["bias"] for part in QKV])
        assert value.shape == tensor.shape, tensor
        tensors[tensor.name] = value
    has_decoder = decoder is not None
    if form == "huggingface" and has_decoder:
        own = tuple(name for name in tensors if name.startswith("decoder."))
        tensors = {name if name in own else f"vit.{name}": value for name, value in tensors.items()}
    return tensors


def from_tensors(
    tensors: dict[str, np.ndarray],
    *,
    source: str,
    heads: int | None = None,
    decoder_heads: int | None = None,
    norm_epsilon: float = 1e-6,
    channel_mean: Any = CHANNEL_MEAN,
    channel_std: Any = CHANNEL_STD,
) -> Weights:
    """Returns weights that another library wrote; which one, and how large the encoder is, the tensors tell.

    Positions other than the fixed ones of `sincos_2d` become the stem's "positions".

    Args:
      tensors: by name.
      source: what to call them in messages.
      heads: of the encoder's attention, which no tensor tells; default: 64 channels a head, as in all ViTs of the
        papers but H.
      decoder_heads: of the decoder's; default: 32 channels a head, as in MAE.
      norm_epsilon: of every LayerNorm; transformers has 1e-12 by default.
      channel_mean: of pixels in [0, 1], [3], with which the weights were trained. The embedding is rewritten for the
        ones that are used here.
      channel_std: the same.

    Raises:
      UnusableWeights: no known names; or a tensor is missing, too many, or of another shape than the others ask for.
    """
    names, tensors = _recognized(tensors, source)
    vit = _encoder_of(names, tensors, source, heads, norm_epsilon)
    has_decoder = names.decoder["mask_token"] in tensors and (
        f"{names.decoder['embed']}.weight" in tensors
    )
    decoder = _decoder_of(names, tensors, source, vit, decoder_heads) if has_decoder else None
    tree = {"layers": {}}
    known = set()
    for tensor in format_tensors(names, vit, decoder):
        value = _take(tensors, tensor, source)
        known.add(tensor.name)
        _put(tree, tensor, value, vit)
    if unknown := sorted(set(tensors) - known - {n for n in tensors if IGNORED.fullmatch(n)}):
        raise UnusableWeights(
            f"{source} has tensors that belong to no ViT of this kind: {unknown[0]} {tensors[unknown[0]].shape}"
            + (f" and {len(unknown) - 1} more" if len(unknown) > 1 else "")
        )
    table = tree["stem"].pop("positions")
    tree["stem"]["cls"] = tree["stem"]["cls"] + table[:, :1]
    if not _is_fixed(table, vit.grid):
        tree["stem"]["positions"] = table[0, 1:]
        vit = dataclasses.replace(vit, learned_positions=True)
    of_decoder = tree.pop("decoder", None)
    if of_decoder is not None:
        table = of_decoder.pop("positions")
        if np.any(table[:, 0]):
            raise UnusableWeights(
                f"{source}: {names.decoder['positions']} gives the CLS token a position, which MAE's decoder does not"
            )
        if not _is_fixed(table, vit.grid):
            of_decoder["positions"] = table[0, 1:]
            decoder = dataclasses.replace(decoder, learned_positions=True)
    _rescale(tree["stem"]["embed"], np.asarray(channel_mean), np.asarray(channel_std))
    layers = [tree["layers"][i] for i in range(vit.depth)]
    tree["layers"] = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
    return Weights(vit, tree, decoder, of_decoder)


def _recognized(tensors, source):
    """Returns the format, and the tensors by the names of its table."""
    renamed = {}
    for name, value in tensors.items():
        name = re.sub(r"^(module\.|encoder\.(?=blocks\.)|model\.)", "", name)
        renamed[name] = value
    if FORMATS["timm"].cls in renamed:
        return FORMATS["timm"], renamed
    table = FORMATS["huggingface"]
    for pattern, to in HUGGINGFACE_NAMES:
        renamed = {re.sub(pattern, to, name): value for name, value in renamed.items()}
    if table.cls in renamed:
        return table, renamed
    some = ", ".join(list(tensors)[:3]) or "none at all"
    raise UnusableWeights(
        f"{source} has neither {FORMATS['timm'].cls} (timm, MAE) nor {table.cls} (Hugging Face), so it is not a ViT "
        f"with a CLS token; its tensors are named {some} ..."
    )


def _encoder_of(names, tensors, source, heads, norm_epsilon):
    embed, table = f"{names.embed}.weight", names.positions
    for name, axes in ((embed, 4), (table, 3)):
        if name not in tensors:
            raise UnusableWeights(f"{source} lacks the tensor {name}{_near(name, tensors)}")
        if tensors[name].ndim != axes:
            raise UnusableWeights(
                f"{source}: {name} has shape {tensors[name].shape}, not {axes} axes"
            )
    width, channels, side, other = tensors[embed].shape
    if channels != 3 or side != other:
        raise UnusableWeights(
            f"{source}: {embed} has shape {tensors[embed].shape}; it should be (width, 3, patch, patch)"
        )
    patches = tensors[table].shape[1] - 1
    rows = math.isqrt(max(patches, 0))
    if rows * rows != patches or not patches:
        raise UnusableWeights(
            f"{source}: {table} has shape {tensors[table].shape}: {patches} patches, CLS aside, are no square grid"
        )
    prefix = re.escape(names.layers).replace(r"\{\}", r"(\d+)")
    layers = {int(m[1]) for name in tensors if (m := re.match(prefix, name))}
    if not layers or layers != set(range(len(layers))):
        raise UnusableWeights(
            f"{source} has the layers {sorted(layers)} ({names.layers.format('N')}...), not 0, 1, 2 ..."
        )
    up = tensors.get(f"{names.layers.format(0)}{names.layer['up']}.weight")
    ratio = 4.0 if up is None or up.ndim != 2 else up.shape[0] / width
    heads = heads or max(1, width // 64)
    if heads < 1 or width % heads:
        raise UnusableWeights(
            f"{source}: width {width} is not divisible by {heads} heads; say how many (heads=, --heads or "
            "--config.model.heads)"
        )
    return ViT(
        image_size=rows * side,
        patch_size=side,
        width=width,
        depth=len(layers),
        heads=heads,
        mlp_ratio=ratio,
        norm_epsilon=norm_epsilon,
    )


def _decoder_of(names, tensors, source, vit, heads):
    embed = tensors[f"{names.decoder['embed']}.weight"]
    prefix = re.escape(names.decoder["layers"]).replace(r"\{\}", r"(\d+)")
    layers = {int(m[1]) for name in tensors if (m := re.match(prefix, name))}
    width = embed.shape[0]
    heads = heads or max(1, width // 32)
    if width % heads or width % 4:
        raise UnusableWeights(
            f"{source}: the decoder's width {width} is not divisible by {heads} heads and by 4"
        )
    return SelfAttentionDecoder(
        width=width,
        depth=len(layers),
        heads=heads,
        grid=vit.grid,
        patch_values=vit.patch_size**2 * 3,
        dtype=np.float32,
        norm_epsilon=vit.norm_epsilon,
    )


def _take(tensors, tensor, source):
    value = tensors.get(tensor.name)
    if value is None:
        raise UnusableWeights(
            f"{source} lacks the tensor {tensor.name}{_near(tensor.name, tensors)}"
        )
    if value.shape != tensor.shape:
        raise UnusableWeights(
            f"{source}: tensor {tensor.name} has shape {value.shape}, where the others ask for {tensor.shape}"
        )
    return value


def _near(name, tensors):
    near = difflib.get_close_matches(name, tensors, n=1, cutoff=0.8)
    return f"; the nearest name is {near[0]}" if near else ""


def _put(tree, tensor, value, vit):
    layout = tensor.layout
    if layout.startswith("qkv"):
        node = _node(tree, tensor.path)
        for part, third in zip(QKV, np.split(value, 3), strict=True):
            leaf = "kernel" if layout == "qkv_kernel" else "bias"
            node.setdefault(part, {})[leaf] = third.T
        return
    if layout == "transposed":
        value = value.T
    elif layout == "conv":
        value = value.transpose(2, 3, 1, 0).reshape(-1, vit.width)
    _node(tree, tensor.path[:-1])[tensor.path[-1]] = value


def _node(tree, path):
    for part in path:
        tree = tree.setdefault(part, {})
    return tree


def _find(tree, path):
    for part in path:
        tree = tree[part]
    return tree


def _is_fixed(table, grid):
    return np.allclose(table[0, 1:], sincos_2d(*grid, table.shape[-1]), atol=1e-5)


def _rescale(embed, mean, std):
    """Rewrites an embedding of pixels (x - mean) / std for pixels in the scale that is used here; exact."""
    values = len(embed["kernel"]) // 3
    slope = np.tile(CHANNEL_STD / std, values)[:, None]
    offset = np.tile((CHANNEL_MEAN - mean) / std, values)
    embed["bias"] = (embed["bias"] + offset @ embed["kernel"]).astype(np.float32)
    embed["kernel"] = (embed["kernel"] * slope).astype(np.float32)
