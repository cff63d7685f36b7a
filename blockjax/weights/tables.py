"""How the tensors of other libraries are called and shaped."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from blockjax.models.decoders import SelfAttentionDecoder
from blockjax.models.vit import ViT


@dataclasses.dataclass(frozen=True)
class Format:
    """Names of another library. Those of layers are prefixes and what follows them; qkv is one tensor or three.

    Attributes:
      embed, cls, positions, norm: of the encoder's other tensors.
      layers: prefix of layer {}.
      layer: what follows the prefix: norm_1, query, key, value (or qkv), out, norm_2, up, down.
      decoder: the same for a decoder: layers, embed, positions, mask_token, norm, pixels; {} if it has none.
    """

    embed: str
    cls: str
    positions: str
    norm: str
    layers: str
    layer: dict[str, str]
    decoder: dict[str, str]


_TIMM = Format(
    embed="patch_embed.proj",
    cls="cls_token",
    positions="pos_embed",
    norm="norm",
    layers="blocks.{}.",
    layer={
        "norm_1": "norm1",
        "qkv": "attn.qkv",
        "out": "attn.proj",
        "norm_2": "norm2",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
    },
    decoder={
        "layers": "decoder_blocks.{}.",
        "embed": "decoder_embed",
        "positions": "decoder_pos_embed",
        "mask_token": "mask_token",
        "norm": "decoder_norm",
        "pixels": "decoder_pred",
    },
)
FORMATS = {
    "huggingface": Format(
        embed="embeddings.patch_embeddings.projection",
        cls="embeddings.cls_token",
        positions="embeddings.position_embeddings",
        norm="layernorm",
        layers="encoder.layer.{}.",
        layer={
            "norm_1": "layernorm_before",
            "query": "attention.attention.query",
            "key": "attention.attention.key",
            "value": "attention.attention.value",
            "out": "attention.output.dense",
            "norm_2": "layernorm_after",
            "up": "intermediate.dense",
            "down": "output.dense",
        },
        decoder={
            "layers": "decoder.decoder_layers.{}.",
            "embed": "decoder.decoder_embed",
            "positions": "decoder.decoder_pos_embed",
            "mask_token": "decoder.mask_token",
            "norm": "decoder.decoder_norm",
            "pixels": "decoder.decoder_pred",
        },
    ),
    "timm": _TIMM,
    "mae": _TIMM,
}
# What belongs to a task and not to the encoder.
IGNORED = re.compile(r"(pooler|classifier|head|fc_norm|lm_head)\b.*")
# Newer and older names of transformers, to those of the table.
HUGGINGFACE_NAMES = (
    (r"^vit\.", ""),
    (r"^layers\.", "encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """One of another library's tensors: its name and shape, where it is in our tree, and how it is laid out."""

    name: str
    shape: tuple[int, ...]
    path: tuple[Any, ...]
    layout: str


def format_tensors(
    names: Format, vit: ViT, decoder: SelfAttentionDecoder | None
) -> Iterator[_Tensor]:
    """Yields the tensors of an encoder, and of a decoder if there is one, by a format's names and shapes."""
    width, side, values = vit.width, vit.patch_size, vit.patch_size**2 * 3
    positions = (1, 1 + vit.patches, width)
    yield _Tensor(names.cls, (1, 1, width), ("stem", "cls"), "same")
    yield _Tensor(names.positions, positions, ("stem", "positions"), "positions")
    yield _Tensor(
        f"{names.embed}.weight", (width, 3, side, side), ("stem", "embed", "kernel"), "conv"
    )
    yield _Tensor(f"{names.embed}.bias", (width,), ("stem", "embed", "bias"), "same")
    for i in range(vit.depth):
        prefix = names.layers.format(i)
        yield from _layer(names.layer, prefix, ("layers", i), width, int(width * vit.mlp_ratio))
    yield from _norm(names.norm, ("norm",), width)
    if decoder is None:
        return
    of, inner = names.decoder, decoder.width
    yield _Tensor(of["mask_token"], (1, 1, inner), ("decoder", "mask_token"), "same")
    yield _Tensor(
        of["positions"], (1, 1 + vit.patches, inner), ("decoder", "positions"), "positions"
    )
    yield from _dense(of["embed"], ("decoder", "embed"), width, inner)
    for i in range(decoder.depth):
        path = ("decoder", f"layer_{i}")
        yield from _layer(names.layer, of["layers"].format(i), path, inner, 4 * inner)
    yield from _norm(of["norm"], ("decoder", "out_norm"), inner)
    yield from _dense(of["pixels"], ("decoder", "pixels"), inner, values)


def _layer(names, prefix, path, width, hidden):
    yield from _norm(prefix + names["norm_1"], (*path, "norm_1"), width)
    attention = (*path, "attention")
    if "qkv" in names:
        yield _Tensor(f"{prefix}{names['qkv']}.weight", (3 * width, width), attention, "qkv_kernel")
        yield _Tensor(f"{prefix}{names['qkv']}.bias", (3 * width,), attention, "qkv_bias")
    else:
        for part in QKV:
            yield from _dense(prefix + names[part], (*attention, part), width, width)
    yield from _dense(prefix + names["out"], (*attention, "out"), width, width)
    yield from _norm(prefix + names["norm_2"], (*path, "norm_2"), width)
    yield from _dense(prefix + names["up"], (*path, "mlp", "Dense_0"), width, hidden)
    yield from _dense(prefix + names["down"], (*path, "mlp", "Dense_1"), hidden, width)


QKV = ("query", "key", "value")


def _norm(name, path, width):
    yield _Tensor(f"{name}.weight", (width,), (*path, "scale"), "same")
    yield _Tensor(f"{name}.bias", (width,), (*path, "bias"), "same")


def _dense(name, path, inputs, outputs):
    yield _Tensor(f"{name}.weight", (outputs, inputs), (*path, "kernel"), "transposed")
    yield _Tensor(f"{name}.bias", (outputs,), (*path, "bias"), "same")
