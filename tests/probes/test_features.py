"""Features of images: which places and which images they speak of, and that none is lost on the way."""

import jax
import numpy as np
import pytest

from blockjax.probes import features as features_lib
from blockjax.probes.features import array_features, pixels, read_features
from blockjax.sharding.mesh import make_mesh
from tests.tiny import images, tiny_learner

PIXEL_SIDE = features_lib._PIXEL_SIDE  # before tests/conftest.py makes it small


def opened(**overrides):
    learner = tiny_learner(**overrides)
    state = jax.jit(learner.init)(jax.random.key(0))
    return learner.backbone, learner.backbone_params(state)


def test_features_of_every_block_are_pooled_over_the_grid():
    backbone, params = opened()
    features = array_features(backbone, params, images(7), pool=2)
    assert [f.shape for f in features] == [(7, 4 * 32)] * 4
    assert not np.allclose(features[0], features[1])
    # An image's features do not depend on what else is in the batch (there is padding inside).
    alone = array_features(backbone, params, images(7)[3:4], pool=2)
    np.testing.assert_allclose(alone[2][0], features[2][3], atol=1e-5)
    # Cells are places: a change in the patch of row 2, column 4 reaches the upper right cell most of all in block 1.
    changed = images(7)
    changed[:, 8:16, 24:] = 255 - changed[:, 8:16, 24:]
    moved = array_features(backbone, params, changed, pool=2)[0] - features[0]
    by_cell = np.abs(moved).reshape(7, 4, 32).sum(axis=(0, 2))
    assert by_cell.argmax() == 1


def test_features_do_not_depend_on_the_strategy():
    a = array_features(*opened(), images(3), 2)
    b = array_features(*opened(strategy="end_to_end"), images(3), 2)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


def batches(all_images, labels, sizes):
    start = 0
    for size in sizes:
        yield all_images[start : start + size], labels[start : start + size]
        start += size


@pytest.mark.parametrize("mapped", [False, True])
def test_features_come_in_the_order_of_the_images(monkeypatch, tmp_path, mapped):
    """Batches of any size, some images fewer than announced; in memory or in files that nobody sees."""
    if mapped:
        monkeypatch.setattr(features_lib, "_MEMORY_BYTES", 0)
    backbone, params = opened()
    batch, labels, seen = images(9), np.arange(9), []
    found = read_features(
        backbone,
        params,
        batches(batch, labels, (4, 3, 2)),
        12,
        readouts=("own", "grid", "mean", "cls"),
        depths=(2, 4),
        pool=2,
        folder=tmp_path,
        on_images=seen.append,
    )
    assert seen == [4, 7, 9]
    np.testing.assert_array_equal(found.labels, labels)
    np.testing.assert_allclose(found.pixels, pixels(batch), rtol=1e-6)
    assert list(found.arrays) == ["own", "grid", "mean", "cls"]
    whole = array_features(backbone, params, batch, 2)
    for depth in (2, 4):
        np.testing.assert_allclose(found.arrays["grid"][depth], whole[depth - 1], atol=1e-5)
        assert list(found.arrays["mean"]) == [2, 4]
        mean = found.arrays["grid"][depth].reshape(9, 4, 32).mean(axis=1)
        np.testing.assert_allclose(found.arrays["mean"][depth], mean, atol=1e-5)
    assert isinstance(found.arrays["cls"][2].base, np.memmap) == mapped
    assert not list(tmp_path.iterdir())


def test_a_single_head_is_that_of_the_last_depth():
    backbone, params = opened(strategy="end_to_end")
    found = read_features(
        backbone, params, batches(images(3), np.arange(3), (3,)), 3, readouts=("own",)
    )
    assert list(found.arrays["own"]) == [4]
    norm = jax.tree.map(lambda leaf: leaf[0], params["heads"]["norm"])
    layers = jax.tree.map(lambda leaf: leaf.reshape(4, *leaf.shape[2:]), params["layers"])
    vit = backbone.vit
    tokens = vit.layers(layers, vit.stem(params["stem"], backbone.vit.inputs(images(3))))
    expected = backbone.normed(norm, tokens)[:, 1:].mean(axis=1)
    np.testing.assert_allclose(found.arrays["own"][4], expected, atol=1e-5)


def test_all_devices_of_a_mesh_read():
    backbone, params = opened()
    mesh = make_mesh((4, 1, 1))
    placed = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    alone, shared = (
        array_features(backbone, p, images(11), 2, m) for p, m in ((params, None), (placed, mesh))
    )
    for a, b in zip(alone, shared, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_pixels_are_averaged_down(monkeypatch):
    monkeypatch.setattr(features_lib, "_PIXEL_SIDE", PIXEL_SIDE)
    small = images(2)
    np.testing.assert_allclose(pixels(small), small.reshape(2, -1) / 255.0, rtol=1e-6)
    large = small.repeat(2, axis=1).repeat(2, axis=2)
    large[:, ::2, ::2] = 0
    np.testing.assert_allclose(pixels(large), 0.75 * pixels(small), rtol=1e-5)
