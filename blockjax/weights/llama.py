"""A model of text in the names and shapes of Llama in transformers (LlamaForCausalLM)."""

import os
from typing import Any

import jax
import numpy as np

from blockjax.models.position import ROTARY_BASE
from blockjax.weights.files import UnusableWeights
from blockjax.weights.text import TextWeights

# What a Llama is, by field of the encoder, and how a run's config says it.
_LLAMA = {
    "causal": (True, "objective=next_token"),
    "positions": ("rotary", "model.positions=rotary"),
    "norm": ("rms_norm", "model.norm=rms_norm"),
    "mlp": ("swiglu", "model.mlp=swiglu"),
    "bias": (False, "model.bias=False"),
}
# Names of a layer's tensors, and where they are in our tree. All matrices stand there the other way round.
_LAYER = {
    "input_layernorm": ("norm_1", "scale"),
    "self_attn.q_proj": ("attention", "query", "kernel"),
    "self_attn.k_proj": ("attention", "key", "kernel"),
    "self_attn.v_proj": ("attention", "value", "kernel"),
    "self_attn.o_proj": ("attention", "out", "kernel"),
    "post_attention_layernorm": ("norm_2", "scale"),
    "mlp.gate_proj": ("mlp", "gate", "kernel"),
    "mlp.up_proj": ("mlp", "up", "kernel"),
    "mlp.down_proj": ("mlp", "down", "kernel"),
}


def check_llama(weights: TextWeights, source: str | os.PathLike) -> None:
    """Checks that a model computes what a Llama does.

    Raises:
      UnusableWeights: it does not; names the fields to train with.
    """
    encoder = weights.model.encoder
    differing = [said for name, (is_so, said) in _LLAMA.items() if getattr(encoder, name) != is_so]
    if differing:
        raise UnusableWeights(
            f"{source} is not a Llama, the one model of text that --format huggingface writes; train with "
            f"{' '.join(f'--config.{said}' for said in differing)}, or give --format safetensors"
        )


def llama_tensors(weights: TextWeights) -> dict[str, np.ndarray]:
    """Returns the tensors of a LlamaForCausalLM: all layers, and the head of the last block."""
    model, params = weights.model, weights.params
    layers = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), params["layers"])
    head = jax.tree.map(lambda leaf: leaf[-1], params["heads"])
    tensors = {"model.embed_tokens.weight": params["stem"]["embedding"]}
    for i in range(model.encoder.depth):
        for name, path in _LAYER.items():
            leaf = layers
            for part in path:
                leaf = leaf[part]
            tensors[f"model.layers.{i}.{name}.weight"] = leaf[i].T
    tensors["model.norm.weight"] = head["norm"]["scale"]
    if not model.tied:
        tensors["lm_head.weight"] = head["readout"]["kernel"].T
    return {name: np.asarray(tensor, np.float32) for name, tensor in tensors.items()}


def llama_config(weights: TextWeights) -> dict[str, Any]:
    """Returns the config.json of a LlamaForCausalLM."""
    model, encoder = weights.model, weights.model.encoder
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": encoder.vocabulary,
        "hidden_size": encoder.width,
        "intermediate_size": int(encoder.width * encoder.mlp_ratio),
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.heads,
        "num_key_value_heads": encoder.heads,
        "max_position_embeddings": encoder.context,
        "rms_norm_eps": encoder.norm_epsilon,
        "rope_theta": ROTARY_BASE,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": model.tied,
        "bos_token_id": model.separator,
        "eos_token_id": model.separator,
        "torch_dtype": "float32",
    }
