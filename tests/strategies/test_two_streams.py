"""Two modalities in one stream: patches and tokens, whose blocks learn which image belongs to which text (CLIP)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from blockjax.data.batch import ArraySpec, BatchSpec
from blockjax.models.text import TextEncoder
from blockjax.models.vit import ViT
from blockjax.strategies import (
    Block,
    blockwise,
    end_to_end,
    init_state,
    staying,
    streamed,
)

BLOCKS, PAIRS = 2, 8
VIT = ViT(image_size=8, patch_size=4, width=16, depth=BLOCKS, heads=2)
TEXT = TextEncoder(vocabulary=12, context=6, width=16, depth=BLOCKS, heads=2)
BATCH = BatchSpec(
    (("image", ArraySpec((8, 8, 3), "uint8", 256)), ("tokens", ArraySpec((6,), "int32", 12)))
)


def stem(params, inputs, rng):
    del rng
    return {
        "patches": VIT.stem(params["image"], inputs["image"]),
        "tokens": TEXT.stem(params["text"], inputs["text"]),
    }


def forward(params, stream, rng):
    del rng
    return {
        "patches": VIT.layers(params["image"], stream["patches"]),
        "tokens": TEXT.layers(params["text"], stream["tokens"]),
    }


def loss(params, stream, targets, rng):
    """CLIP's (arXiv 2103.00020): cross entropy over the pairs of a batch, in both directions."""
    del targets, rng
    of_image = stream["patches"].mean(axis=1) @ params["head"]["image"]
    of_text = stream["tokens"][:, -1] @ params["head"]["text"]
    unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (of_image, of_text)]
    logits = unit[0] @ unit[1].T / 0.1
    pairs = jnp.arange(len(logits))
    both = [
        optax.softmax_cross_entropy_with_integer_labels(part, pairs).mean()
        for part in (logits, logits.T)
    ]
    return sum(both) / 2, {"accuracy": (logits.argmax(axis=1) == pairs).mean()}


def prepare(rng, batch):
    del rng
    batch = BATCH.shaped(batch)
    inputs = {"image": VIT.inputs(batch["image"]), "text": TEXT.inputs(batch["tokens"])}
    return inputs, {}


def start(blocks=BLOCKS):
    keys = jax.random.split(jax.random.key(0), 4)
    heads = jax.random.normal(keys[2], (2, blocks, 16, 8)) / 4
    params = {
        "image": VIT.init_layers(keys[0], blocks),
        "text": TEXT.init_layers(keys[1], blocks),
        "head": {"image": heads[0], "text": heads[1]},
    }
    stems = {"image": VIT.init_stem(keys[3]), "text": TEXT.init_stem(keys[3])}
    return init_state(optax.adam(3e-3), params, stems)


BLOCK = Block(forward=forward, loss=loss, optimizer=optax.adam(3e-3))
PARTS = {"stem": stem, "prepare": prepare}


def batches(count):
    return [{k: jnp.asarray(v) for k, v in BATCH.random(PAIRS, 0).items()}] * count


def train(step, state, steps=4):
    step, losses = jax.jit(step), []
    for batch in batches(steps):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(metrics["loss"])
    return np.stack(losses), state, metrics


def test_blocks_of_two_towers_learn_which_image_belongs_to_which_text():
    losses, state, metrics = train(blockwise([BLOCK] * BLOCKS, **PARTS), start(), steps=40)
    assert losses.shape == (40, BLOCKS)
    assert (losses[0] > 1.0).all() and (losses[-1] < 0.5 * losses[0]).all()
    assert (metrics["accuracy"] == 1.0).all()
    for before, after in zip(
        jax.tree.leaves((start().stem.params, start().blocks.params)),
        jax.tree.leaves((state.stem.params, state.blocks.params)),
        strict=True,
    ):
        if before.size > 16:  # the towers' matrices; biases of keys have no gradient
            assert (np.asarray(before) != np.asarray(after)).any()


def test_no_gradient_crosses_from_block_to_block_in_either_tower():
    frozen = Block(forward=forward, loss=loss, optimizer=optax.sgd(0.0))
    step = blockwise([frozen] * BLOCKS, **PARTS)

    def losses(params):
        state = init_state(optax.sgd(0.0), params, start().stem.params)
        return step(state, batches(1)[0], jax.random.key(1))[1]["loss"]

    jacobian = jax.jit(jax.jacrev(losses))(start().blocks.params)
    for tower in ("image", "text", "head"):
        for of_loss in range(BLOCKS):
            for block in range(BLOCKS):
                found = [
                    np.asarray(leaf[of_loss, block]) for leaf in jax.tree.leaves(jacobian[tower])
                ]
                assert any(leaf.any() for leaf in found) == (of_loss == block), (tower, block)


@pytest.mark.slow
def test_every_driver_takes_two_towers():
    expected, _, _ = train(blockwise([BLOCK] * BLOCKS, **PARTS), start())
    other, _, _ = train(streamed([BLOCK] * BLOCKS, **PARTS), start())
    np.testing.assert_allclose(other, expected, rtol=1e-5)
    stacked = {"batches": BATCH.stacked(batches(4)), "count": jnp.int32(4)}
    step = jax.jit(staying([BLOCK] * BLOCKS, **PARTS))
    _, metrics = step(start(), stacked, jax.random.key(1))
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    whole, _, _ = train(end_to_end(BLOCK, **PARTS), start(blocks=1))
    assert whole.shape == (4, 1) and whole[-1, 0] < whole[0, 0]
