"""The encoder alone: what its features are made of, and where they can be computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import images, tiny_learner


def opened(**overrides):
    learner = tiny_learner(**overrides)
    state = jax.jit(learner.init)(jax.random.key(0))
    return learner.backbone, learner.backbone_params(state)


def test_features_of_one_image_and_of_many():
    backbone, params = opened()
    batch = images(3)
    mean = backbone(params, batch)
    assert mean.shape == (3, 32) and mean.dtype == jnp.float32
    dense = backbone(params, batch, "patches")
    assert dense.shape == (3, 4, 4, 32)
    np.testing.assert_allclose(dense.mean(axis=(1, 2)), mean, atol=1e-5)
    assert not np.allclose(backbone(params, batch, "cls"), mean, atol=1e-2)
    np.testing.assert_allclose(backbone(params, batch[1]), mean[1], atol=1e-5)
    np.testing.assert_allclose(jax.vmap(lambda x: backbone(params, x))(batch), mean, atol=1e-5)
    np.testing.assert_allclose(jax.jit(backbone)(params, batch), mean, atol=1e-5)
    np.testing.assert_allclose(backbone(params, batch / 255.0), mean, atol=1e-5)
    two = backbone(params, np.stack([batch, batch]))
    np.testing.assert_allclose(two[1], mean, atol=1e-5)


def test_the_heads_norm_comes_last():
    backbone, params = opened()
    batch = images(2)
    plain = backbone(params, batch, "patches")
    norm = params["heads"]["norm"]
    changed = {**params, "heads": {"norm": {**norm, "scale": norm["scale"].at[-1].set(3.0)}}}
    np.testing.assert_allclose(backbone(changed, batch, "patches"), 3.0 * plain, atol=1e-5)
    other = {**params, "heads": {"norm": {**norm, "scale": norm["scale"].at[0].set(3.0)}}}
    np.testing.assert_array_equal(backbone(other, batch, "patches"), plain)


def test_wrong_images_and_readouts():
    backbone, params = opened()
    with pytest.raises(ValueError, match=r"this encoder takes \[..., 32, 32, 3\]; resize them"):
        backbone(params, images(2)[:, :16])
    with pytest.raises(ValueError, match="readout 'max' is unknown; there is mean, cls, patches"):
        backbone(params, images(2), "max")


def test_depths_are_read_one_after_another():
    backbone, params = opened()
    inputs = backbone.vit.inputs(images(2))
    tokens = backbone.vit.stem(params["stem"], inputs)
    found, of_heads = backbone.read(
        params,
        inputs,
        lambda t: t.mean(axis=(1, 2)),
        lambda head, t: t.sum() + head["norm"]["scale"].sum(),
    )
    for k in range(4):
        layers = jax.tree.map(lambda leaf, k=k: leaf[k], params["layers"])
        tokens = backbone.vit.layers(layers, tokens)
        np.testing.assert_allclose(found[k], tokens.mean(axis=(1, 2)), atol=1e-5)
        np.testing.assert_allclose(of_heads[k], tokens.sum() + 32, rtol=1e-4)


@pytest.mark.parametrize("objective", ["simclr", "rotation", "jigsaw", "byol"])
def test_own_readout_of_an_objective(objective):
    """It is the module of the objective's head, and with calibration an image's features are its own."""
    fields = {"objective": objective, "mask.ratio": None, "batch_size": 32}
    if objective != "rotation":
        fields["model.image_size"] = 48 if objective == "jigsaw" else 32
    backbone, params = opened(**fields)
    side = backbone.vit.image_size
    batch = jnp.asarray(images(6, side=side))
    params = backbone.calibrated(params, batch)
    is_wide = backbone.readout.kind == "cbe_gap"
    assert ("statistics" in params["heads"]) == is_wide

    def own(batch):
        return backbone.read(params, backbone.vit.inputs(batch), lambda t: (), backbone.own)[1]

    whole = own(batch)
    width = backbone.readout.expansion if is_wide else 32
    assert whole.shape == (4, 6, width)
    np.testing.assert_allclose(own(batch[2:3])[:, 0], whole[:, 2], atol=1e-4)
    tokens = backbone.vit.stem(params["stem"], backbone.vit.inputs(batch))
    first = jax.tree.map(lambda leaf: leaf[0], params["layers"])
    head = jax.tree.map(lambda leaf: leaf[0], params["heads"]["readout"])
    expected = backbone.readout.apply({"params": head}, backbone.vit.layers(first, tokens))
    np.testing.assert_allclose(whole[0], expected, atol=1e-4)


def test_learned_positions_are_used():
    learner = tiny_learner()
    vit = learner.vit
    import dataclasses

    learned = dataclasses.replace(vit, learned_positions=True)
    stem = learned.init_stem(jax.random.key(0))
    inputs = vit.inputs(images(2))
    fixed = {name: value for name, value in stem.items() if name != "positions"}
    np.testing.assert_allclose(learned.stem(stem, inputs), vit.stem(fixed, inputs), atol=1e-6)
    moved = {**stem, "positions": stem["positions"] + 1.0}
    np.testing.assert_allclose(
        learned.stem(moved, inputs)[:, 1:], vit.stem(fixed, inputs)[:, 1:] + 1.0, atol=1e-5
    )
