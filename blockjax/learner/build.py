"""What a config describes, put together: encoder, objective and optimizer as a learner."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_collections

from blockjax.checks import factors
from blockjax.data.batch import image_batch, text_batch
from blockjax.learner.learner import Learner
from blockjax.learner.optimizer import (
    Rates,
    from_host,
    layer_rates,
    learning_rate_schedule,
    make_optimizer,
    scaled,
)
from blockjax.learner.programs import programs
from blockjax.models.text import TextEncoder
from blockjax.models.vit import ViT
from blockjax.objectives import find_task
from blockjax.sharding.rules import split_as_parameters
from blockjax.strategies import END_TO_END, Block, host_loop
from blockjax.techniques import make_techniques, with_noise


def make_learner(config: ml_collections.ConfigDict, steps: int) -> Learner:
    """Puts a resolved config (see `blockjax.config.resolve`) together for a run of `steps` steps."""
    model, task = config.model, find_task(config.objective)
    vit = _encoder(config, task)
    losses = 1 if config.strategy in END_TO_END else config.blocks
    rows = model.depth if config.strategy == "streamed_end_to_end" else losses
    objective = task.from_config(config, vit, losses)
    # Under a sequential schedule each block has its part of the steps, and of the warm-up.
    stages = config.blocks if config.schedule == "sequential" else 1
    schedule = learning_rate_schedule(
        config.optimizer.base_learning_rate,
        config.batch_size,
        config.optimizer.warmup_steps // stages,
        -(-steps // stages),
    )
    stays = config.strategy != "pipelined" and config.pipeline.batches > 1
    split = functools.partial(split_as_parameters, axes=() if stays else ("fsdp",))
    optimizer = make_optimizer(
        schedule,
        name=config.optimizer.name,
        weight_decay=config.optimizer.weight_decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        freeze_embedding=model.freeze_embedding,
        split=split,
    )

    if config.optimizer.in_host_memory:
        optimizer = from_host(optimizer)
    spec = _batch(config, objective)
    rates = _rates(config, rows, losses)
    by_last = config.head.shared and config.head.trained_by == "last"

    def forward(params, stream, rng):
        # The first use of the key stays with the noise between blocks.
        rng = jax.random.fold_in(rng, 1)
        return objective.forward(vit, split(params), stream, rng)

    techniques = make_techniques(config, vit, objective, steps)

    def stem(params, inputs, rng):
        del rng
        params = split(params)
        own = {name: part for name, part in inputs.items() if name != "techniques"}
        stream = objective.stem(vit, params, own)
        parts = [t.first(params, inputs["techniques"], stream) for t in techniques]
        return _merged(stream, *parts)

    def prepare(rng, batch, *fitted):
        batch = spec.shaped(batch)
        inputs, targets = objective.prepare(rng, batch, *fitted)
        if techniques:
            inputs = {**inputs, "techniques": _merged(*[t.inputs(batch) for t in techniques])}
        return inputs, targets

    def sweep(state, inputs):
        return _merged(*[t.targets(state, inputs["techniques"]) for t in techniques])

    def made(own):
        def local_loss(params, stream, targets, rng):
            return own.local_loss(split(params), stream, targets, rng)

        block = Block(
            forward=forward,
            loss=local_loss,
            optimizer=scaled(optimizer) if rates else optimizer,
            clip=config.optimizer.clip or None,
            microbatches=config.microbatches,
            refresh=config.head.refresh if by_last else None,
            begin=own.begin,
            finish=own.finish,
        )
        block = with_noise(block, config.noise)
        for technique in make_techniques(config, vit, own, steps):
            block = technique.apply(block)
        return block

    blocks = [made(objective.of_block(0))]
    for k in range(1, losses):
        # Blocks that see the same tokens and learn alike stay one object, and so one compiled loop.
        own, cut, block = objective.of_block(k), objective.cut(k), blocks[-1]
        if own != objective.of_block(k - 1):
            block = made(own)
        blocks.append(dataclasses.replace(block, cut=_of_visible(cut)) if cut else block)
    parts = {"stem": stem, "prepare": prepare}
    if sweeping := [type(t).__name__ for t in techniques if t.sweeps]:
        if stays or config.strategy == "pipelined":
            raise ValueError(
                f"{sweeping[0]} looks at all blocks before their updates, and strategy={config.strategy} with "
                f"pipeline.batches={config.pipeline.batches} has them at different batches; set strategy=blockwise and "
                "pipeline.batches=1"
            )
        parts["sweep"] = sweep
    return Learner(
        vit=vit,
        objective=objective,
        batch=spec,
        rows=rows,
        losses=losses,
        depths=config.blocks,
        optimizer=optimizer,
        schedule=schedule,
        **programs(config, blocks, parts, steps),
        in_host_memory=config.strategy in ("streamed", "streamed_end_to_end"),
        host_states=config.optimizer.in_host_memory,
        loop=host_loop(blocks, stem=stem, prepare=prepare)
        if config.strategy == "streamed"
        else None,
        unlooped=_unlooped(config),
        batches=config.pipeline.batches if stays or config.strategy == "pipelined" else None,
        rates=rates,
        techniques=techniques,
        shares_head=config.head.shared or rows != losses,
        copies_head=by_last and config.head.refresh > 1,
    )


def _encoder(config, task):
    model = config.model
    common = {
        "width": model.width,
        "depth": model.depth,
        "heads": model.heads,
        "mlp_ratio": model.mlp_ratio,
        "dtype": jnp.dtype(config.dtype),
        "remat": config.remat,
        "unroll": model.unroll,
        "norm_epsilon": model.norm_epsilon,
        "zero_residuals": model.zero_residuals,
    }
    if task.modality == "text":
        return TextEncoder(
            vocabulary=model.vocabulary,
            context=model.context,
            causal=task.causal,
            positions=model.positions,
            norm=model.norm,
            mlp=model.mlp,
            bias=model.bias,
            **common,
        )
    return ViT(
        image_size=model.image_size,
        patch_size=model.patch_size,
        mask_token=task.mask_token,
        freeze_embedding=model.freeze_embedding,
        learned_positions=model.learned_positions,
        **common,
    )


def _batch(config, objective):
    model = config.model
    if objective.modality == "text":
        return text_batch(model.context, model.vocabulary)
    stretched = objective.stretched_size(model.image_size)
    return image_batch(
        stretched or model.image_size,
        config.classifier.classes if objective.takes_labels else None,
        stretched=stretched is not None,
    )


def _unlooped(config):
    """Returns what a `HostLoop` cannot do: it knows one update of each block, with a head of its own."""
    chosen = {
        "strategy=streamed_end_to_end": config.strategy == "streamed_end_to_end",
        "optimizer.in_host_memory=True": config.optimizer.in_host_memory,
        f"hybrid.every={config.hybrid.every}": config.hybrid.every,
        f"hybrid.share={config.hybrid.share}": config.hybrid.share,
        f"overlap.window={config.overlap.window}": config.overlap.window > 1,
        "overlap.alternate=True": config.overlap.alternate,
        "schedule=sequential": config.schedule == "sequential",
        "head.shared=True": config.head.shared,
        f"pipeline.batches={config.pipeline.batches}": config.pipeline.batches > 1,
        "distillation.teacher=top": config.distillation.weight
        and config.distillation.teacher == "top",
    }
    return tuple(text for text, is_chosen in chosen.items() if is_chosen)


def _rates(config, rows, losses):
    depth = config.model.depth
    frozen = 0
    if config.tune_blocks is not None:
        frozen = (config.blocks - config.tune_blocks) * (depth // config.blocks)
    of_blocks = (1.0,) * rows
    if config.optimizer.block_rates is not None and losses == config.blocks:
        of_blocks = factors("optimizer.block_rates", config.optimizer.block_rates, rows)
    if not frozen and config.optimizer.layer_decay == 1.0 and set(of_blocks) == {1.0}:
        return None
    stem, of_layers = layer_rates(depth, config.optimizer.layer_decay, frozen)
    of_layers = [rate * of_blocks[i * rows // depth] for i, rate in enumerate(of_layers)]
    return Rates(stem * of_blocks[0], tuple(of_layers), of_blocks)


def _merged(*parts):
    merged = {}
    for part in parts:
        merged |= part
    return merged


def _of_visible(cut):
    """Returns a function that cuts every part of a stream but the teacher's, who sees the whole image."""

    def visible_cut(stream):
        whole = {name: part for name, part in stream.items() if name == "teacher"}
        return {**cut({name: part for name, part in stream.items() if name != "teacher"}), **whole}

    return visible_cut
