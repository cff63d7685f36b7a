"""Configs and models of text that are small enough to compile in seconds."""

import jax
import numpy as np

from blockjax import config as config_lib
from blockjax.learner.build import make_learner
from blockjax.learner.placement import Placement
from blockjax.models.language import LanguageModel
from blockjax.models.text import TextEncoder
from blockjax.objectives.text.next_token import NextToken
from blockjax.sharding.mesh import make_mesh
from blockjax.weights.loading import Run

STEPS = 2


def tiny_text_config(**overrides):
    """Returns default_config() with a tiny model of bytes, and any field set."""
    config = config_lib.default_config()
    config.objective, config.blocks = "next_token", 2
    config.steps, config.batch_size, config.mesh.data = STEPS, 8, 1
    config.model.width, config.model.depth, config.model.heads = 16, 4, 2
    config.model.context = 24
    config.data.source = "text:stdlib"
    config.optimizer.base_learning_rate, config.optimizer.warmup_steps = 0.03, 0
    for field, value in overrides.items():
        config_lib.set_field(config, field, value)
    return config


def tiny_text_run(**overrides):
    """Returns a run with random parameters, as `open_run` gives one; no folder is behind it."""
    config = config_lib.resolve(tiny_text_config(**overrides), devices=1, platform="cpu")
    config_lib.fill_lengths(config, STEPS)
    learner = make_learner(config, STEPS)
    placement = Placement(learner, make_mesh((1, 1, 1), jax.devices()[:1]))
    state = placement.init_in(placement.shardings, jax.random.key(0))
    return Run("runs/none", config, learner, placement.readable(state), 0)


def made_model(heads=2, shared=False, tied=False, blocks=2, **fields):
    """Returns a language model of four layers, with parameters that are random throughout and far from zero."""
    sizes = {"vocabulary": 40, "context": 16, "width": 16, "depth": 4, "heads": 2, "mlp_ratio": 3.0}
    encoder = TextEncoder(**sizes | fields)
    model = LanguageModel(encoder, blocks, heads, shared, tied)
    objective = NextToken(encoder.width, encoder.vocabulary, norm=encoder.norm, tied=tied)
    stem_rng, layers_rng, heads_rng = jax.random.split(jax.random.key(0), 3)
    params = {
        "stem": encoder.init_stem(stem_rng),
        "layers": encoder.init_layers(layers_rng, blocks),
        "heads": jax.vmap(objective.init_head)(jax.random.split(heads_rng, heads)),
    }
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda leaf: np.asarray(leaf) + 0.3 * rng.normal(size=leaf.shape).astype(np.float32), params
    )
