"""Signs of collapse: how far the features of different images lie apart, block by block, while training goes on."""

import functools

import jax
import jax.numpy as jnp

from blockjax.learner.learner import Learner
from blockjax.models.heads import l2_normalize
from blockjax.objectives.resample import crop_and_resize
from blockjax.sharding.mesh import replicated
from blockjax.strategies.state import TrainState

# Features of so many images; a rank above their number cannot be seen.
IMAGES = 256
# Below these, features of different images are next to alike (facebookresearch/rankme and SimSiam, arXiv 2011.10566,
# have full rank and 1 as the healthy values).
LEAST_STD, LEAST_RANK = 0.05, 2.0


def spread(features_BD: jax.Array) -> dict[str, jax.Array]:
    """Returns how features differ from image to image.

    `feature_std`: of features scaled to length 1, the standard deviation over images, mean over dimensions, times √D:
    near 1 where all directions are used, 0 for a constant (SimSiam, arXiv 2011.10566). `effective_rank`: RankMe (arXiv
    2210.02885), the exponential of the entropy of the singular values; not centred, so that a constant has rank 1.
    `cosine`: of the features of two images, on average; 1 for a constant.
    """
    features = features_BD.astype(jnp.float32)
    count, width = features.shape
    unit = l2_normalize(features)
    singular = jnp.linalg.svd(features, compute_uv=False)
    share = singular / singular.sum() + 1e-7
    return {
        "feature_std": jnp.std(unit, axis=0).mean() * jnp.sqrt(width),
        "effective_rank": jnp.exp(-(share * jnp.log(share)).sum()),
        "cosine": (jnp.square(unit.sum(axis=0)).sum() - count) / (count * (count - 1)),
    }


@functools.partial(jax.jit, static_argnums=(0, 1))
def monitor(learner: Learner, mesh, state: TrainState, images_BHWC: jax.Array) -> dict:
    """Returns `spread` of every block's features, the mean of its normalised tokens, for up to 256 whole images.

    Args:
      learner: the run's functions.
      mesh: over whose devices the state and the images are split.
      state: that of the run.
      images_BHWC: uint8, square; of another size than the encoder's they are resized.

    Returns:
      {name: [K]}.
    """
    backbone, params = learner.backbone, learner.backbone_params(state)
    images_BHWC = images_BHWC[:IMAGES]
    count, side, size = *images_BHWC.shape[:2], learner.vit.image_size
    if side != size:  # views are cut from larger ones
        zero_B, side_B = jnp.zeros(count), jnp.full(count, float(side))
        images_BHWC = crop_and_resize(images_BHWC, zero_B, zero_B, side_B, side_B, size) / 255.0
    inputs = backbone.vit.inputs(images_BHWC)
    found, _ = backbone.read(params, inputs, lambda tokens: spread(backbone.pooled(tokens, "mean")))
    return replicated(found, mesh)


def symptoms(metrics: dict[str, float]) -> list[str]:
    """Says what is wrong with the features of a block, of what `monitor` measured."""
    if metrics["feature_std"] < LEAST_STD or metrics["effective_rank"] < LEAST_RANK:
        return [
            f"features of different images are nearly alike (feature_std {metrics['feature_std']:.3f} of 1, effective "
            f"rank {metrics['effective_rank']:.1f}): collapsed; lower optimizer.base_learning_rate, or lengthen "
            "optimizer.warmup_steps"
        ]
    return []
