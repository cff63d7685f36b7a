"""What a config describes, put together: encoder, objective and optimizer as a train step and its first state."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from blockjax.models.decoders import DECODERS
from blockjax.models.vit import ViT, regroup
from blockjax.objectives import OBJECTIVES
from blockjax.objectives.masking import visible_counts
from blockjax.optimizer import learning_rate_schedule, make_optimizer
from blockjax.sharding import batch_sharding, state_shardings
from blockjax.state import TrainState, init_state
from blockjax.strategies import Block, blockwise, end_to_end

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Learner:
    """A run's pure functions.

    Attributes:
      vit: the encoder.
      objective: the pretext task.
      rows: gradient-isolated blocks: K, or 1 when the strategy is `end_to_end`.
      readouts: depths at which features are read, K under every strategy.
      optimizer: of each block.
      schedule: step -> learning rate.
      train_step: `(state, batch, rng) -> (state, metrics)`.
    """

    vit: ViT
    objective: Any
    rows: int
    readouts: int
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    train_step: Any

    def init(self, rng: jax.Array) -> TrainState:
        """Returns the state before the first step. The encoder's start does not depend on the strategy."""
        stem = self.vit.init_stem(jax.random.fold_in(rng, 0))
        layers = self.vit.init_layers(jax.random.fold_in(rng, 1), self.rows)
        head_keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(rng, 2)))(
            jnp.arange(self.rows)
        )
        heads = jax.vmap(self.objective.init_head)(head_keys)
        return init_state(self.optimizer, {"layers": layers, "head": heads}, stem)

    def abstract_state(self) -> TrainState:
        """Returns the state's shapes and dtypes without making it."""
        return jax.eval_shape(self.init, jax.random.key(0))

    def init_for(self, compiled: jax.stages.Compiled, rng: jax.Array) -> TrainState:
        """Returns the first state, born where and how a compiled step wants it; the same numbers on every mesh."""
        return jax.jit(self.init, out_shardings=state_formats(compiled))(rng)

    def trace(self, mesh: Mesh, batch_size: int) -> jax.stages.Traced:
        """Traces the train step for a mesh, on shapes only; the state is donated and keeps its sharding.

        `trace(...).lower().compile()` is what a run calls in each step, on a state in the formats that the compiled
        step asks for (see `state_formats`).
        """
        state = self.abstract_state()
        shardings = state_shardings(state, mesh)
        replicated = NamedSharding(mesh, PartitionSpec())
        side = self.vit.image_size
        batch = {
            "image": jax.ShapeDtypeStruct(
                (batch_size, side, side, 3), jnp.uint8, sharding=batch_sharding(mesh)
            )
        }
        # XLA chooses the layout of the state: with the default one it may copy whole stacks into another and back.
        formats = jax.tree.map(lambda sharding: Format(Layout.AUTO, sharding), shardings)
        step = jax.jit(
            self.train_step,
            donate_argnums=0,
            in_shardings=(formats, batch_sharding(mesh), replicated),
            out_shardings=(formats, replicated),
        )
        key = jax.eval_shape(lambda: jax.random.key(0))
        return step.trace(state, batch, key)

    def streams(self, state: TrainState, inputs: PyTree) -> list[jax.Array]:
        """Returns the tokens that leave each of the K read-out depths, [B, T, D] each, for the stem's inputs."""
        layers = regroup(state.blocks.params["layers"], self.readouts, stacked=2)
        tokens = self.vit.stem(state.stem.params, inputs)
        streams = []
        for k in range(self.readouts):
            tokens = self.vit.layers(jax.tree.map(lambda leaf, k=k: leaf[k], layers), tokens)
            streams.append(tokens)
        return streams


def state_formats(compiled: jax.stages.Compiled) -> TrainState:
    """Returns the sharding and the layout in which a compiled step takes each array of the state."""
    return compiled.input_formats[0][0]


def make_learner(config: ml_collections.ConfigDict, steps: int) -> Learner:
    """Puts a resolved config (see `blockjax.config.resolve`) together for a run of `steps` steps."""
    model, decoder = config.model, config.decoder
    dtype = jnp.dtype(config.dtype)
    vit = ViT(
        image_size=model.image_size,
        patch_size=model.patch_size,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        dtype=dtype,
        remat=config.remat,
        unroll=model.unroll,
    )
    rows = 1 if config.strategy == "end_to_end" else config.blocks
    objective = OBJECTIVES[config.objective](
        patch_size=model.patch_size,
        grid=vit.grid,
        width=model.width,
        visible=visible_counts(config.mask.ratio, config.mask.schedule, vit.patches, rows),
        decoder=DECODERS[decoder.kind](
            width=decoder.width,
            depth=decoder.depth,
            heads=decoder.heads,
            grid=vit.grid,
            patch_values=model.patch_size**2 * 3,
            dtype=dtype,
            remat=config.remat,
        ),
        fraction=decoder.fraction,
        normalize_pixels=config.loss.normalize_pixels,
        implementation=config.loss.implementation,
    )
    schedule = learning_rate_schedule(
        config.optimizer.base_learning_rate,
        config.batch_size,
        config.optimizer.warmup_steps,
        steps,
    )
    optimizer = make_optimizer(
        schedule,
        weight_decay=config.optimizer.weight_decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
    )
    block = Block(
        forward=lambda params, tokens, rng: vit.layers(params["layers"], tokens),
        loss=lambda params, tokens, targets, rng: objective.loss(
            params["head"], tokens, targets, rng
        ),
        optimizer=optimizer,
        clip=config.optimizer.clip or None,
        microbatches=config.microbatches,
    )

    def stem(params, inputs, rng):
        del rng
        return vit.stem(params, inputs)

    if config.strategy == "end_to_end":
        train_step = end_to_end(block, stem=stem, prepare=objective.prepare)
    else:
        blocks = [block]
        for k in range(1, rows):
            enter = objective.enter(k)
            # Blocks that see the same tokens stay one object, and so one compiled loop.
            blocks.append(dataclasses.replace(blocks[-1], enter=enter) if enter else blocks[-1])
        train_step = blockwise(blocks, stem=stem, prepare=objective.prepare)
    return Learner(vit, objective, rows, config.blocks, optimizer, schedule, train_step)
