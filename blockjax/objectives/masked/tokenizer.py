"""Patches as words: weight-free tokenizers, fitted once before training and then frozen.

BEiT (arXiv 2106.08254) predicts the tokens of DALL-E's discrete autoencoder, whose weights would have to be fetched.
Here the vocabulary is a set of centroids of patches instead, as in CCViT (arXiv 2303.04664) and ClusterMIM (arXiv
2407.09087), and a patch's token is the index of its nearest centroid. It needs no weights, and fits in seconds.

Axis letters: N patches, P values of a patch, V codes (centroids).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from blockjax.kernels.masked_reconstruction import normalize_patches

KINDS = ("kmeans", "exemplar", "kmeans_norm")

# CCViT's number of passes over all patches.
_ITERATIONS = 20
# Below this relative gain the passes end early.
_TOLERANCE = 1e-4
# Patches per code among which the first centroids are looked for: their number times V is what that costs.
_CANDIDATES = 20
# Float32 scores (patches times codes) that exist at a time: 16 MiB.
_SCORES = 2**22
_HIGHEST = jax.lax.Precision.HIGHEST

# What a useful vocabulary needs on patches that it was not fitted on.
MIN_PERPLEXITY = 0.1  # times the codes
MAX_TOP_SHARE = 0.15


def fit(rng: jax.Array, patches_NP: np.ndarray, codes: int, kind: str = "kmeans") -> np.ndarray:
    """Makes a vocabulary of patches.

    `kmeans` minimises the mean squared distance of patches to their nearest centroid: greedy k-means++ (Arthur and
    Vassilvitskii 2007) on a random part chooses the first centroids, and up to 20 Lloyd iterations over all patches
    improve them; a code without patches moves to a patch drawn in proportion to its squared distance from its own
    centroid. `kmeans_norm` does that on patches which are normalised one by one, as MAE's targets are: texture and
    no brightness. `exemplar` takes random patches, all different, as they are.

    Every kind is a function of its arguments, on one device type. Memory beside the patches is bounded.

    Args:
      rng: a key.
      patches_NP: float32, standardised (`patches.standardize`).
      codes: size of the vocabulary (V).
      kind: one of `KINDS`.

    Returns:
      Centroids, float32 [V, P]: in the scale of the patches, or of normalised patches for `kmeans_norm`.

    Raises:
      ValueError: the kind is unknown, or there are fewer different patches than codes.
    """
    if kind not in KINDS:
        raise ValueError(f"tokenizer.kind {kind!r} is unknown; it may be one of {KINDS}")
    patches_NP = np.asarray(_seen(jnp.asarray(patches_NP, jnp.float32), kind))
    order_rng, first_rng, lloyd_rng = jax.random.split(rng, 3)
    order_N = np.asarray(jax.random.permutation(order_rng, len(patches_NP)))
    wanted = codes if kind == "exemplar" else _CANDIDATES * codes
    candidates_SP = _different(patches_NP, order_N, codes, wanted)
    if kind == "exemplar":
        return candidates_SP[:codes]
    # As many tries per centroid as in scikit-learn's k-means++.
    tries = 2 + int(math.log(codes))
    centroids_VP = _first_centroids(first_rng, candidates_SP, codes=codes, tries=tries)
    return np.asarray(_lloyd(lloyd_rng, patches_NP, centroids_VP))


@functools.partial(jax.jit, static_argnames="kind")
def tokenize(centroids_VP: jax.Array, patches: jax.Array, kind: str = "kmeans") -> jax.Array:
    """Returns the index of each patch's nearest centroid, int32: [..., N, P] to [..., N].

    In float32 throughout, as argmax(x · c − |c|² / 2), which is where |x − c|² is smallest; of equal ones the first.

    Args:
      centroids_VP: from `fit`.
      patches: standardised; axes before N may be split over devices, N is gone through in parts if it is large.
      kind: of the centroids.
    """
    codes = len(centroids_VP)
    patches = jnp.moveaxis(_seen(patches.astype(jnp.float32), kind), -2, 0)

    def nearest(patches):
        return _scores(centroids_VP, patches).argmax(axis=-1).astype(jnp.int32)

    at_once = max(1, _SCORES // (codes * math.prod(patches.shape[1:-1])))
    whole = at_once >= len(patches)
    tokens = nearest(patches) if whole else jax.lax.map(nearest, patches, batch_size=at_once)
    return jnp.moveaxis(tokens, 0, -1)


def reconstruct(
    centroids_VP: jax.Array, tokens: jax.Array, patches: jax.Array, kind: str
) -> jax.Array:
    """Returns what tokens say about patches: the centroids in the patches' place and scale, [..., N, P].

    Args:
      centroids_VP: from `fit`.
      tokens: from `tokenize`, [..., N].
      patches: the patches themselves, [..., N, P]; `kmeans_norm` takes their means and spreads.
      kind: of the centroids.
    """
    decoded = jnp.asarray(centroids_VP)[tokens]
    if kind == "kmeans_norm":
        _, mean, std = normalize_patches(patches)
        decoded = decoded * std + mean
    return decoded


def token_statistics(tokens: np.ndarray, codes: int) -> dict[str, float]:
    """Returns how evenly codes are used: {"perplexity", "top_share", "used", "entropy"}.

    `entropy` is that of the codes' frequencies, in nats: the loss of a model that knows these and sees nothing.
    `perplexity` is its exponential, `top_share` the part of the tokens that is the most frequent code, `used` the
    part of the codes that occurs.
    """
    counts_V = np.bincount(np.asarray(tokens).ravel(), minlength=codes)
    shares = counts_V[counts_V > 0] / counts_V.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    return {
        "perplexity": math.exp(entropy),
        "top_share": float(shares.max()),
        "used": len(shares) / codes,
        "entropy": entropy,
    }


def check_tokenizer(statistics: dict[str, float], codes: int) -> None:
    """Refuses a vocabulary that leaves little to predict.

    Args:
      statistics: from `token_statistics`, on patches that the tokenizer was not fitted on.
      codes: size of the vocabulary.

    Raises:
      ValueError: the perplexity is below a tenth of the codes, or one code has more than 15 % of the patches (with
        fewer than 27 codes: more than four times its even share).
    """
    least, most = MIN_PERPLEXITY * codes, max(MAX_TOP_SHARE, 4 / codes)
    perplexity, top = statistics["perplexity"], statistics["top_share"]
    if top > most:
        raise ValueError(
            f"one of the tokenizer's {codes} codes has {top:.1%} of the patches of images that it was not fitted on; "
            f"more than {most:.1%} leaves too little to predict. Many patches are nearly the same: set "
            "tokenizer.kind=exemplar, which gives common patches more codes, a larger model.patch_size, with fewer "
            "flat patches, or objective=mae; if only the images it was fitted on are so, a larger tokenizer.examples"
        )
    if perplexity < least:
        raise ValueError(
            f"the tokenizer's {codes} codes have a perplexity of {perplexity:.4g} on images that it was not fitted on, "
            f"and a tenth of them, {least:g}, is needed: set a smaller tokenizer.codes, a larger tokenizer.examples, "
            "or another tokenizer.kind (exemplar gives common patches more codes)"
        )


def _seen(patches, kind):
    """Returns patches as the tokenizer of this kind sees them."""
    return normalize_patches(patches)[0] if kind == "kmeans_norm" else patches


def _scores(centroids_VP, patches):
    products = jnp.einsum("...p,vp->...v", patches, centroids_VP, precision=_HIGHEST)
    offsets_V = jnp.square(centroids_VP).sum(axis=1) / 2
    return products - offsets_V.reshape((1,) * (patches.ndim - 1) + (-1,))


def _different(patches_NP, order_N, least, wanted):
    """Returns different patches in random order: of the first `wanted` in `order_N`, or of more if `least` need it."""
    row = np.dtype((np.void, patches_NP.shape[1] * patches_NP.itemsize))
    taken = wanted
    while True:
        # Minus zero equals zero, but its bytes do not.
        some = np.ascontiguousarray(patches_NP[order_N[:taken]]) + np.float32(0)
        _, first = np.unique(some.view(row), return_index=True)
        if len(first) >= least:
            return some[np.sort(first)]
        if taken >= len(order_N):
            raise ValueError(
                f"{len(order_N)} patches, of which {len(first)} are different, cannot make {least} codes; set a "
                "smaller tokenizer.codes or a larger tokenizer.examples"
            )
        taken *= 4


@functools.partial(jax.jit, static_argnames=("codes", "tries"))
def _first_centroids(rng, candidates_SP, *, codes, tries):
    """Greedy k-means++: of some candidates, drawn by their squared distance from the centroids so far, the best."""
    squares_S = jnp.square(candidates_SP).sum(axis=1)

    def distances(indices_T):
        chosen_TP = candidates_SP[indices_T]
        products_TS = jnp.einsum("tp,sp->ts", chosen_TP, candidates_SP, precision=_HIGHEST)
        return jnp.maximum(squares_S[indices_T][:, None] + squares_S[None] - 2 * products_TS, 0.0)

    def add(i, carry):
        indices_V, nearest_S = carry
        total_S = jnp.cumsum(nearest_S)
        places = jax.random.uniform(jax.random.fold_in(rng, i), (tries,)) * total_S[-1]
        drawn_T = jnp.searchsorted(total_S, places, side="right")
        drawn_T = jnp.minimum(drawn_T, len(total_S) - 1)
        nearest_TS = jnp.minimum(distances(drawn_T), nearest_S[None])
        best = nearest_TS.sum(axis=1).argmin()
        return indices_V.at[i].set(drawn_T[best].astype(jnp.int32)), nearest_TS[best]

    # The candidates are in random order.
    start = jnp.zeros(codes, jnp.int32), distances(jnp.zeros(1, jnp.int32))[0]
    indices_V, _ = jax.lax.fori_loop(1, codes, add, start)
    return candidates_SP[indices_V]


def _lloyd(rng, patches_NP, centroids_VP):
    count, values = patches_NP.shape
    part = min(count, max(1, _SCORES // 2 // len(centroids_VP)))
    padding = -count % part
    weights_KC = np.pad(np.ones(count, np.float32), (0, padding)).reshape(-1, part)
    patches_KCP = np.pad(patches_NP, ((0, padding), (0, 0))).reshape(-1, part, values)
    patches_KCP, weights_KC = jax.device_put((patches_KCP, weights_KC))
    before = math.inf
    for i in range(_ITERATIONS):
        centroids_VP, error, empty = _iterate(
            jax.random.fold_in(rng, i), centroids_VP, patches_KCP, weights_KC
        )
        error, empty = float(error) / count, int(empty)
        logging.log_every_n_seconds(
            logging.INFO,
            "tokenizer: iteration %d of %d, mean squared distance %.4g",
            10,
            i + 1,
            _ITERATIONS,
            error,
        )
        if not empty and error > (1 - _TOLERANCE) * before:
            break
        before = error
    return centroids_VP


@jax.jit
def _iterate(rng, centroids_VP, patches_KCP, weights_KC):
    """Returns better centroids, and for the old ones the summed squared distance and how many had no patch."""
    codes, values = centroids_VP.shape

    def assign(total, part):
        patches_CP, weights_C = part
        scores_CV = _scores(centroids_VP, patches_CP)
        distances_C = jnp.square(patches_CP).sum(axis=1) - 2 * scores_CV.max(axis=1)
        # The last column counts.
        rows_CQ = jnp.concatenate([patches_CP, jnp.ones_like(patches_CP[:, :1])], axis=1)
        sums_VQ = _sum_by_token(rows_CQ * weights_C[:, None], scores_CV.argmax(axis=1), codes)
        return total + sums_VQ, jnp.maximum(distances_C, 0.0) * weights_C

    zeros = jnp.zeros((codes, values + 1))
    sums_VQ, distances_KC = jax.lax.scan(assign, zeros, (patches_KCP, weights_KC))
    counts_V = sums_VQ[:, -1]
    centroids_VP = sums_VQ[:, :-1] / jnp.maximum(counts_V, 1.0)[:, None]
    empty_V = counts_V == 0

    def reseed(centroids_VP):
        # The largest of log weight + Gumbel noise: draws in proportion to the weights, without replacement.
        weights_N = jnp.log(distances_KC.reshape(-1))
        drawn_V = jax.lax.top_k(weights_N + jax.random.gumbel(rng, weights_N.shape), codes)[1]
        seeds_VP = patches_KCP.reshape(-1, values)[drawn_V]
        return jnp.where(empty_V[:, None], seeds_VP, centroids_VP)

    centroids_VP = jax.lax.cond(empty_V.any(), reseed, lambda same: same, centroids_VP)
    return centroids_VP, distances_KC.sum(), empty_V.sum()


def _sum_by_token(rows_CQ, tokens_C, codes):
    """Sums rows that have the same token, [V, Q]."""
    # Scattered additions are fast on a CPU; elsewhere they are slow or come in any order, and the sums would differ.
    return jax.lax.platform_dependent(
        rows_CQ, tokens_C, cpu=lambda *a: _scatter(*a, codes), default=lambda *a: _matmul(*a, codes)
    )


def _scatter(rows_CQ, tokens_C, codes):
    return jax.ops.segment_sum(rows_CQ, tokens_C, codes)


def _matmul(rows_CQ, tokens_C, codes):
    return jnp.dot(jax.nn.one_hot(tokens_C, codes).T, rows_CQ, precision=_HIGHEST)
