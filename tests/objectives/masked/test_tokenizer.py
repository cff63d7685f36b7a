"""Patch tokenizers: that they cluster, that they name the nearest centroid, and that bad ones are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.objectives.masked import tokenizer


def blobs(seed=0, *, clusters=16, count=400, values=12, spread=0.05, distance=10.0):
    """Patches around well separated centres, of very different numbers, and the cluster of each."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(clusters, values))
    centers *= distance / np.linalg.norm(centers, axis=1, keepdims=True)
    # Cluster k has a share of about 2 k / clusters², and at least one patch.
    members = np.sqrt(np.arange(1, count + 1) / count) * clusters
    members = rng.permutation(np.ceil(members).astype(int) - 1)
    noise = spread * rng.normal(size=(count, values))
    return (centers[members] + noise).astype(np.float32), members, centers


def nearest_in_float64(centroids, patches):
    differences = patches[:, None].astype(np.float64) - centroids[None]
    return np.square(differences).sum(axis=-1).argmin(axis=1)


def test_kmeans_finds_separated_clusters():
    """Random first centroids would put several into the large clusters, and Lloyd never gets them out."""
    for seed in range(3):
        patches, members, _ = blobs(seed)
        centroids = tokenizer.fit(jax.random.key(seed), patches, 16, "kmeans")
        tokens = np.asarray(tokenizer.tokenize(centroids, patches))
        pairs = np.unique(np.stack([tokens, members]), axis=1)
        assert pairs.shape[1] == 16  # one code for each cluster
        for token, cluster in pairs.T:
            mean = patches[members == cluster].mean(axis=0, dtype=np.float64)
            np.testing.assert_allclose(centroids[token], mean, atol=1e-5)


def test_kmeans_ends_at_the_means_and_uses_every_code(monkeypatch):
    """With patches in four parts, the last one filled up: its zeros must not count."""
    monkeypatch.setattr(tokenizer, "_SCORES", 2 * 16 * 128)
    patches = np.random.default_rng(0).normal(3.0, 1.0, size=(400, 12)).astype(np.float32)
    centroids = tokenizer.fit(jax.random.key(0), patches, 16, "kmeans")
    tokens = nearest_in_float64(centroids, patches)
    assert set(tokens) == set(range(16))
    means = np.stack([patches[tokens == k].mean(axis=0) for k in range(16)])
    assert np.abs(means - centroids).max() < 0.05
    exemplars = tokenizer.fit(jax.random.key(0), patches, 16, "exemplar")

    def error(centroids):
        return np.square(patches - centroids[nearest_in_float64(centroids, patches)]).sum()

    assert error(centroids) < 0.75 * error(exemplars)


@pytest.mark.parametrize("kind", tokenizer.KINDS)
def test_a_fit_follows_from_its_key(kind):
    patches = np.random.default_rng(0).normal(size=(400, 12)).astype(np.float32)
    first, again, other = (
        tokenizer.fit(jax.random.key(seed), patches, 16, kind) for seed in (1, 1, 2)
    )
    assert first.shape == (16, 12) and first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


@pytest.mark.parametrize("shape", [(700, 48), (3, 50, 48), (2, 3, 17, 48)])
@pytest.mark.parametrize("scores", [2**22, 1500])
def test_tokens_are_the_nearest_centroids(shape, scores, monkeypatch):
    """Also where patches go through in several parts, the last one smaller."""
    monkeypatch.setattr(tokenizer, "_SCORES", scores)
    tokenizer.tokenize.clear_cache()
    rng = np.random.default_rng(0)
    patches = rng.normal(0.3, 1.0, size=shape).astype(np.float32)
    # Of different lengths: without |c|² / 2 the longest would win.
    centroids = (rng.normal(size=(33, 48)) * rng.uniform(0.2, 2.0, (33, 1))).astype(np.float32)
    tokens = tokenizer.tokenize(centroids, patches)
    assert tokens.shape == shape[:-1] and tokens.dtype == jnp.int32
    expected = nearest_in_float64(centroids, patches.reshape(-1, 48))
    np.testing.assert_array_equal(np.asarray(tokens).ravel(), expected)
    tokenizer.tokenize.clear_cache()


def test_an_empty_code_moves_to_patches_that_are_served_badly():
    """One of the two centroids far away has no patch; nothing else would ever bring it back."""
    patches, _, centers = blobs(clusters=3, values=6)
    far = np.full((1, 6), 1000.0)
    start = np.concatenate([centers[:2], far]).astype(np.float32)
    pieces = jnp.asarray(patches)[None], jnp.ones((1, len(patches)))
    moved, _, empty = tokenizer._iterate(jax.random.key(0), start, *pieces)
    assert int(empty) == 1
    gap = np.linalg.norm(moved[2] - centers[2])
    assert gap < 0.5  # the third cluster is 10 away from its centroid, the others' patches 0.1
    lost = np.concatenate([centers[:1], far, far + 1]).astype(np.float32)
    moved, _, empty = tokenizer._iterate(jax.random.key(0), lost, *pieces)
    assert int(empty) == 2
    assert not np.array_equal(moved[1], moved[2])  # each gets a patch of its own


def test_both_ways_to_add_up_agree():
    """One runs on CPUs only, the other on accelerators only."""
    rows = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float32)
    tokens = np.random.default_rng(1).integers(0, 8, 200)  # code 8 of 9 gets nothing
    expected = np.stack([rows[tokens == k].sum(axis=0, dtype=np.float64) for k in range(9)])
    for add in (tokenizer._scatter, tokenizer._matmul):
        np.testing.assert_allclose(add(jnp.asarray(rows), tokens, 9), expected, atol=1e-5)


def test_exemplars_are_different_patches():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(60, 12)).astype(np.float32)
    patches = np.concatenate([np.zeros((4000, 12), np.float32), -np.zeros((9, 12)), patches])
    centroids = tokenizer.fit(jax.random.key(0), patches, 50, "exemplar")
    rows = {tuple(row) for row in patches.tolist()}
    assert all(tuple(row) in rows for row in centroids.tolist())
    assert len(np.unique(centroids, axis=0)) == 50
    for kind in ("exemplar", "kmeans"):
        with pytest.raises(ValueError, match=r"4069 patches, of which 61 are different.*62 codes"):
            tokenizer.fit(jax.random.key(0), patches, 62, kind)


def test_normalised_tokens_do_not_see_brightness_and_contrast():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(400, 12)).astype(np.float32)
    centroids = tokenizer.fit(jax.random.key(0), patches, 16, "kmeans_norm")
    changed = (0.1 * patches + rng.normal(size=(400, 1))).astype(np.float32)
    tokens = np.asarray(tokenizer.tokenize(centroids, patches, "kmeans_norm"))
    np.testing.assert_array_equal(
        tokens, np.asarray(tokenizer.tokenize(centroids, changed, "kmeans_norm"))
    )
    raw = np.asarray(tokenizer.tokenize(centroids, changed, "kmeans"))
    assert np.mean(tokens != raw) > 0.05
    # Decoded, a patch has its own brightness and contrast again.
    decoded = np.asarray(tokenizer.reconstruct(centroids, tokens, changed, "kmeans_norm"))
    assert np.square(decoded - changed).mean() < 0.9 * changed.var(axis=1).mean()
    np.testing.assert_array_equal(
        tokenizer.reconstruct(centroids, tokens, changed, "kmeans"), centroids[tokens]
    )


def test_statistics():
    found = tokenizer.token_statistics(np.array([[0, 0], [1, 3]]), 5)
    entropy = 0.5 * np.log(2) + 0.5 * np.log(4)
    assert found["entropy"] == pytest.approx(entropy)
    assert found["perplexity"] == pytest.approx(np.exp(entropy))
    assert found["top_share"] == 0.5 and found["used"] == 0.6
    even = tokenizer.token_statistics(np.arange(512), 512)
    assert even["perplexity"] == pytest.approx(512) and even["top_share"] == 1 / 512


def test_uneven_codes_are_refused():
    def check(tokens, codes=512):
        tokenizer.check_tokenizer(tokenizer.token_statistics(np.asarray(tokens), codes), codes)

    check(np.arange(52))  # perplexity 52 of 512
    with pytest.raises(ValueError, match=r"perplexity of 51 .* 51.2, is needed.*tokenizer.codes"):
        check(np.arange(51))
    rest = np.arange(1, 86)
    check(np.r_[np.zeros(15, int), rest])  # 15 %
    with pytest.raises(ValueError, match=r"one of .* 512 codes has 15.8%.*tokenizer.kind"):
        check(np.r_[np.zeros(16, int), rest])
    check([0, 0, 1], codes=2)  # few codes cannot all be rare


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match=r"tokenizer.kind 'vae' is unknown.*kmeans_norm"):
        tokenizer.fit(jax.random.key(0), np.zeros((4, 3), np.float32), 2, "vae")
