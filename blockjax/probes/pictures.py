"""Pictures of what the blocks make of images."""

import jax
import numpy as np

from blockjax.learner.learner import Learner
from blockjax.report.figures import grid
from blockjax.sharding.memory_spaces import to_device
from blockjax.sharding.mesh import replicated
from blockjax.strategies.state import TrainState, read_row


def reconstruction(
    learner: Learner, state: TrainState, images_BHWC: np.ndarray, rng: jax.Array
) -> bytes:
    """Draws a grid: an image per column; rows are the image, what is visible, and each block's reconstruction.

    Visible patches are shown as they are in every reconstruction.

    Args:
      learner: the run's functions.
      state: a trained state.
      images_BHWC: a few images, uint8.
      rng: a key for the masks.

    Returns:
      A PNG.
    """
    objective, mesh = learner.objective, getattr(state.step.sharding, "mesh", None)

    @jax.jit
    def draw(state, images):
        inputs, targets = objective.prepare(rng, {"image": images})
        stream = objective.stem(learner.vit, state.stem.params, inputs)
        feeding = [technique for technique in learner.techniques if technique.feeds_heads]
        for technique in feeding:
            stream |= technique.first(state.stem.params, inputs, stream)
        rows = [objective.visible_picture(images, targets)]
        if learner.losses == 1:

            def one(stream, params):
                return objective.forward(learner.vit, to_device(params), stream, rng), None

            stream, _ = jax.lax.scan(one, stream, state.blocks.params)
            head = jax.tree.map(lambda leaf: leaf[-1], learner.backbone_params(state)["heads"])
            rows.append(objective.picture(head, stream["tokens"], images, targets))
            return replicated(rows, mesh)
        for k in range(learner.rows):
            params = to_device(read_row(state.blocks.params, k))
            if (cut := objective.cut(k)) is not None:
                stream = cut(stream)
            stream = objective.forward(learner.vit, params, stream, rng)
            tokens = stream["tokens"]
            for technique in feeding:
                tokens = technique.read(params, stream)
                stream |= technique.sent(stream)
            head = state.head.params if learner.shares_head else params["head"]
            rows.append(objective.picture(head, tokens, images, targets))
        return replicated(rows, mesh)

    rows = [images_BHWC / 255.0, *jax.device_get(draw(state, images_BHWC))]
    blocks = (
        [f"block {k}" for k in range(1, learner.losses + 1)]
        if learner.losses > 1
        else ["end to end"]
    )
    return grid(dict(zip(["image", "visible", *blocks], rows, strict=True)))


def seen(learner: Learner, state: TrainState, images_BHWC: np.ndarray, rng: jax.Array) -> bytes:
    """Draws what the objective makes of images: an image per column; rows are the image and its views.

    Args and result are those of `reconstruction`.
    """
    mesh = getattr(state.step.sharding, "mesh", None)

    @jax.jit
    def draw(fitted, images):
        known = () if fitted is None else (fitted,)
        return replicated(learner.objective.seen(rng, images, *known), mesh)

    rows = jax.device_get(draw(state.fitted, images_BHWC))
    return grid({"image": images_BHWC / 255.0, **rows})
