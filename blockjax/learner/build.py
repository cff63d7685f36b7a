"""What a config describes, put together: encoder, objective and optimizer as a learner."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections

from blockjax.data.batch import image_batch
from blockjax.learner.learner import Learner
from blockjax.learner.optimizer import layer_rates, learning_rate_schedule, make_optimizer, scaled
from blockjax.models.vit import ViT
from blockjax.objectives import TASKS
from blockjax.sharding.rules import split_as_parameters
from blockjax.strategies import DRIVERS, Block, end_to_end, host_loop
from blockjax.techniques.noise import with_noise


def make_learner(config: ml_collections.ConfigDict, steps: int) -> Learner:
    """Puts a resolved config (see `blockjax.config.resolve`) together for a run of `steps` steps."""
    model, task = config.model, TASKS[config.objective]
    vit = ViT(
        image_size=model.image_size,
        patch_size=model.patch_size,
        width=model.width,
        depth=model.depth,
        heads=model.heads,
        mlp_ratio=model.mlp_ratio,
        dtype=jnp.dtype(config.dtype),
        remat=config.remat,
        unroll=model.unroll,
        mask_token=task.mask_token,
        freeze_embedding=model.freeze_embedding,
        learned_positions=model.learned_positions,
        norm_epsilon=model.norm_epsilon,
    )
    stretched = task.stretched_size(model.image_size)
    rows = 1 if config.strategy == "end_to_end" else config.blocks
    objective = task.from_config(config, vit, rows)
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
        freeze_embedding=model.freeze_embedding,
    )

    rates = None
    frozen = 0
    if config.tune_blocks is not None:
        frozen = (config.blocks - config.tune_blocks) * (model.depth // config.blocks)
    if frozen or config.optimizer.layer_decay != 1.0:
        stem_rate, of_layers = layer_rates(model.depth, config.optimizer.layer_decay, frozen)
        rates = (stem_rate, tuple(of_layers))

    def forward(params, stream, rng):
        # The first use of the key stays with the noise between blocks.
        rng = jax.random.fold_in(rng, 1)
        return objective.forward(vit, split_as_parameters(params), stream, rng)

    def local_loss(params, stream, targets, rng):
        return objective.local_loss(split_as_parameters(params), stream, targets, rng)

    def stem(params, inputs, rng):
        del rng
        return objective.stem(vit, split_as_parameters(params), inputs)

    block = Block(
        forward=forward,
        loss=local_loss,
        optimizer=scaled(optimizer) if rates else optimizer,
        clip=config.optimizer.clip or None,
        microbatches=config.microbatches,
        begin=objective.begin,
        finish=objective.finish,
    )
    blocks = [with_noise(block, config.noise)]
    for k in range(1, rows):
        cut = objective.cut(k)
        # Blocks that see the same tokens stay one object, and so one compiled loop.
        blocks.append(dataclasses.replace(blocks[-1], cut=cut) if cut else blocks[-1])
    parts = {"stem": stem, "prepare": objective.prepare}
    if config.strategy == "end_to_end":
        train_step = end_to_end(*blocks, **parts)
    else:
        train_step = DRIVERS[config.strategy](blocks, **parts)
    return Learner(
        vit=vit,
        objective=objective,
        batch=image_batch(
            stretched or model.image_size,
            config.classifier.classes if objective.takes_labels else None,
            stretched=stretched is not None,
        ),
        rows=rows,
        depths=config.blocks,
        optimizer=optimizer,
        schedule=schedule,
        train_step=train_step,
        loop=host_loop(blocks, **parts) if config.strategy == "streamed" else None,
        batches=config.pipeline.batches if config.strategy == "pipelined" else None,
        rates=rates,
    )
