"""Fills in what a config leaves open, and checks all that can be checked before anything is compiled."""

import ml_collections

from blockjax.checks import divisors, factors, one_of
from blockjax.config.bounds import check_numbers
from blockjax.config.coupling import check_coupling, check_stay, differing_blocks
from blockjax.config.defaults import DTYPES, OPTIMIZERS, REMATS, STRATEGIES
from blockjax.config.fields import check_fields
from blockjax.config.modality import (
    check_modality,
    check_text_model,
    check_widths,
    fill_text,
    is_text,
    presets,
)
from blockjax.extensions import chosen
from blockjax.kernels.masked_reconstruction import IMPLEMENTATIONS
from blockjax.models.decoders import find_decoder
from blockjax.models.heads import READOUTS
from blockjax.objectives import find_task
from blockjax.sharding.mesh import mesh_shape
from blockjax.strategies import END_TO_END
from blockjax.techniques import own_techniques

# Values of a table of positions, 1 GiB: more are no images but slips, which would be killed before anything is checked.
_POSITIONS = 2**28


def resolve(
    config: ml_collections.ConfigDict,
    *,
    devices: int,
    platform: str,
    multiplies_bfloat16: bool = True,
) -> ml_collections.ConfigDict:
    """Returns a copy of the config with every default filled in that does not depend on the data.

    Args:
      config: as a config file returns it, with the command line's changes.
      devices: number of devices of all processes.
      platform: "cpu", "gpu" or "tpu"; decides what dtype "auto" is.
      multiplies_bfloat16: whether the devices do; if not, "auto" is float32.

    Raises:
      ValueError: a field that does not exist, or values that do not fit together; names them and what would fit.

    Examples:
      >>> from blockjax.config import default_config
      >>> config = default_config()
      >>> config.steps, config.blocks = 100, 5
      >>> resolve(config, devices=1, platform="cpu")
      Traceback (most recent call last):
      ...
      ValueError: blocks 5 does not divide the depth of 12 layers; numbers of blocks that do: 1, 2, 3, 4, 6, 12
      >>> config.blocks = 6
      >>> resolve(config, devices=1, platform="tpu").dtype
      'bfloat16'
    """
    check_fields(config)
    config = config.copy_and_resolve_references()
    config.unlock()
    chosen("strategy", config.strategy, dict.fromkeys(STRATEGIES))
    one_of("remat", config.remat, REMATS)
    one_of("dtype", config.dtype, DTYPES)
    one_of("optimizer.name", config.optimizer.name, OPTIMIZERS)
    objective = find_task(config.objective)
    find_decoder(config.decoder.kind)
    own_techniques(config)
    if config.loss.implementation is not None:
        one_of("loss.implementation", config.loss.implementation, IMPLEMENTATIONS)
    one_of("data.on_corrupt", config.data.on_corrupt, ("skip", "error"))
    check_modality(config)
    config.model.preset = _preset(config)

    if (config.steps is None) == (config.epochs is None):
        raise ValueError(
            f"give exactly one of steps and epochs; got steps={config.steps}, epochs={config.epochs}"
        )
    if config.dtype == "auto":
        is_half = multiplies_bfloat16 and platform != "cpu"
        config.dtype = "bfloat16" if is_half else "float32"
    sizes = presets(config)[config.model.preset]
    for field, value in zip(("width", "depth", "heads"), sizes, strict=True):
        if config.model[field] is None:
            config.model[field] = value
    if is_text(config):
        fill_text(config)
    check_numbers(config)  # as far as they are given: what is open follows from them
    for field, value in objective.defaults(config).items():
        group, _, name = field.rpartition(".")
        if config[group][name] is None:
            config[group][name] = value
    if config.decoder.heads is None and not is_text(config):
        config.decoder.heads = max(1, config.decoder.width // 32)
    check_sizes(config)
    _check_data(config)
    _check_objective(config, objective)
    objective.check(config)
    check_coupling(config)
    if config.optimizer.block_rates is not None:
        factors("optimizer.block_rates", config.optimizer.block_rates, config.blocks)
    _check_devices(config, devices)
    if config.remat == "offload" and platform == "cpu" and devices > 1:
        raise ValueError(
            f"remat=offload on {devices} CPU devices ends in a crash of XLA's CPU backend; set remat=layer, or use one "
            "device"
        )
    if config.pipeline.batches is None:
        stages = mesh_shape(config.mesh, devices)[2]
        config.pipeline.batches = 8 * stages if config.strategy == "pipelined" else 1
    check_stay(config)
    if config.optimizer.in_host_memory and config.strategy != "end_to_end":
        raise ValueError(
            f"optimizer.in_host_memory=True: strategy={config.strategy} keeps all states there or none; set "
            "optimizer.in_host_memory=False with strategy=streamed, or strategy=end_to_end"
        )
    if config.strategy == "streamed_end_to_end":
        _check_layer_by_layer(config, objective)
    return config


def check_sizes(config: ml_collections.ConfigDict) -> None:
    """Checks every number of a config, and whether those of its model fit together; defaults are filled in.

    Raises:
      ValueError: they do not; says what would fit.
    """
    check_encoder(config)
    _check_layers(config)
    if not is_text(config):
        _check_pools(config)
        _check_decoder(config)


def check_encoder(config: ml_collections.ConfigDict) -> None:
    """Checks every number of a config, and whether those of its encoder fit together; its sizes are filled in.

    Raises:
      ValueError: they do not; says what would fit.
    """
    check_numbers(config)
    if is_text(config):
        check_text_model(config.model)
    else:
        _check_model(config.model)


def depth(config: ml_collections.ConfigDict) -> int:
    """Returns the number of layers of a config as a config file returns it.

    Raises:
      ValueError: the preset is unknown, or fields are missing that a backbone would give.
    """
    preset = _preset(config)
    return presets(config)[preset][1] if config.model.depth is None else config.model.depth


def layers_at_once(config: ml_collections.ConfigDict, depth: int) -> int:
    """Returns how many of an encoder's layers one block's loop runs."""
    if config.strategy == "streamed_end_to_end":
        return 1
    return depth // (1 if config.strategy == "end_to_end" else config.blocks)


def _preset(config):
    fields = {
        f"model.{name}": config.model[name] for name in ("preset", "image_size", "patch_size")
    }
    fields["blocks"] = config.blocks
    missing = [name for name, value in fields.items() if value is None]
    if missing:
        raise ValueError(
            f"{', '.join(missing)} missing: only training opens a backbone and takes them from it; set them here"
        )
    preset = str(config.model.preset).lower()
    one_of("model.preset", preset, presets(config))
    return preset


def total_steps(config: ml_collections.ConfigDict, examples: int) -> int:
    """Returns the run's length in steps, for a training set of `examples` images.

    Raises:
      ValueError: the batch is larger than the data set.
    """
    if config.batch_size > examples:
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the training set: {config.data.source} "
            f"[{config.data.train_split}] has {examples} examples; set batch_size to at most that"
        )
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * examples / config.batch_size))


def fill_lengths(config: ml_collections.ConfigDict, steps: int) -> None:
    """Fills in the lengths that follow from the number of steps: warm-up, momentum's and checkpoint interval.

    A warm-up that is given as a share becomes steps, so that a filled-in config says one thing only; steps that
    are given count before the share that a recipe has.

    Raises:
      ValueError: the warm-up is as long as the run or longer.
    """
    optimizer = config.optimizer
    if optimizer.warmup_steps is None:
        share = optimizer.warmup_share
        optimizer.warmup_steps = steps // 20 if share is None else round(share * steps)
    optimizer.warmup_share = None
    if not 0 <= config.optimizer.warmup_steps < max(1, steps):
        raise ValueError(
            f"optimizer.warmup_steps {config.optimizer.warmup_steps} must be shorter than the run of {steps} steps"
        )
    if config.schedule == "sequential" and steps < config.blocks:
        raise ValueError(
            f"schedule=sequential gives each of blocks={config.blocks} its part of {steps} steps; set steps to at "
            f"least {config.blocks}"
        )
    constant = config.objective == "moco" and config.momentum.queue
    if config.momentum.steps is None and config.momentum.decay is not None and not constant:
        config.momentum.steps = steps
    if config.checkpoint.every is None:
        config.checkpoint.every = max(1, steps // 10)


def _check_data(config):
    scale = tuple(config.data.crop_scale)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"data.crop_scale must be two areas with 0 < low <= high <= 1, not {scale}"
        )
    if config.data.shift >= config.model.image_size:
        raise ValueError(
            f"data.shift {config.data.shift} moves images of {config.model.image_size} pixels out of view; it "
            f"must be below model.image_size"
        )
    tuned, is_labelled = config.tune_blocks, config.objective == "classification"
    if tuned is not None and not is_labelled and config.backbone is None:
        raise ValueError(
            f"tune_blocks={tuned} freezes blocks, and without a backbone those hold random numbers; set backbone, or "
            "leave tune_blocks out"
        )
    if tuned is not None and not 0 <= tuned <= config.blocks:
        raise ValueError(
            f"tune_blocks {tuned}: the encoder has {config.blocks} blocks; give 0 (heads only) to {config.blocks}"
        )


def _check_model(model):
    tokens = (model.image_size // model.patch_size) ** 2
    if tokens * model.width > _POSITIONS:
        raise ValueError(
            f"model.image_size {model.image_size} with patches of {model.patch_size} pixels makes {tokens:,} patches: "
            f"positions of width {model.width} alone need {4 * tokens * model.width / 2**30:,.0f} GiB; set a smaller "
            "model.image_size, or a larger model.patch_size"
        )
    if model.image_size % model.patch_size:
        raise ValueError(
            f"model.patch_size {model.patch_size} does not divide model.image_size {model.image_size}; "
            f"patch sizes that do: {divisors(model.image_size)}"
        )
    check_widths(model)
    if model.width % 4:
        raise ValueError(
            f"model.width must be divisible by 4 (2-D sin-cos positions), not {model.width}"
        )


def _check_layers(config):
    model = config.model
    if model.depth % config.blocks:
        raise ValueError(
            f"blocks {config.blocks} does not divide the depth of {model.depth} layers; "
            f"numbers of blocks that do: {divisors(model.depth)}"
        )
    layers = layers_at_once(config, model.depth)
    if layers % model.unroll:
        raise ValueError(
            f"model.unroll {model.unroll} does not divide the {layers} layers of a block; "
            f"it may be one of {divisors(layers)}"
        )
    if config.strategy in END_TO_END and config.mask.schedule != "constant":
        raise ValueError(
            f"mask.schedule {config.mask.schedule!r} drops tokens between blocks, and {config.strategy} has one block; "
            "set mask.schedule=constant or strategy=blockwise"
        )
    differs = differing_blocks(config)
    if config.strategy not in ("blockwise", *END_TO_END) and differs:
        raise ValueError(
            f"strategy={config.strategy} runs all blocks in one loop, and {differs}, or set strategy=blockwise"
        )
    if config.decoder.block_fractions is not None and config.objective != "mae":
        raise ValueError(
            f"decoder.block_fractions={config.decoder.block_fractions} are parts of the masked patches that mae "
            f"decodes, and objective={config.objective} has none; leave it out"
        )


def _check_pools(config):
    grid = config.model.image_size // config.model.patch_size
    for name, pool in (
        ("probe.pool", config.probe.pool),
        ("classifier.pool", config.classifier.pool),
    ):
        if grid % pool:
            raise ValueError(
                f"{name} {pool} does not divide the {grid} x {grid} grid of patches; it may be one of {divisors(grid)}"
            )


def _check_objective(config, objective):
    if config.head.readout is not None:
        one_of("head.readout", config.head.readout, READOUTS)
    if config.objective != "mae" and config.mask.schedule != "constant":
        raise ValueError(
            f"mask.schedule {config.mask.schedule!r} drops tokens that objective {config.objective} needs; set "
            "mask.schedule=constant or objective=mae"
        )
    if config.microbatches > 1 and not objective.means_over_images:
        raise ValueError(
            f"microbatches={config.microbatches}: the loss of {config.objective} compares the images of a batch, or "
            "uses their statistics, so parts of a batch give another loss than the whole; set microbatches=1, and "
            "remat=layer, strategy=streamed or mesh.data for less memory"
        )


def _check_layer_by_layer(config, objective):
    """Checks what layers that train one by one, in the last backward pass, cannot do."""
    given = "strategy=streamed_end_to_end"
    if config.optimizer.clip:
        raise ValueError(
            f"optimizer.clip={config.optimizer.clip:g}: {given} updates a layer before the gradients of those below "
            "are made, so the norm of all of them is not known; set optimizer.clip=0, or strategy=end_to_end"
        )
    if config.techniques:
        raise ValueError(
            f"techniques={config.techniques} changes blocks, and {given} trains layers; leave it out, or set "
            "strategy=end_to_end"
        )
    if config.noise:
        raise ValueError(
            f"noise={config.noise:g} is added between blocks, and {given} has one only; set noise=0"
        )
    if objective.begin is not None or objective.finish is not None:
        raise ValueError(
            f"{given}: objective={config.objective} keeps an average of layers and head together; set "
            "strategy=end_to_end, or streamed"
        )
    if config.objective == "classification" and (
        config.classifier.drop_path or config.tune_blocks is not None
    ):
        field = "classifier.drop_path" if config.classifier.drop_path else "tune_blocks"
        raise ValueError(
            f"{field}={config.classifier.drop_path or config.tune_blocks:g} differs from layer to layer, and {given} "
            f"runs one program for all; leave {field} out, or set strategy=end_to_end"
        )


def _check_decoder(config):
    decoder = config.decoder
    if decoder.width % decoder.heads or decoder.width % 4:
        raise ValueError(
            f"decoder.width {decoder.width} must be divisible by 4 (2-D sin-cos positions) and by decoder.heads "
            f"{decoder.heads}; numbers of heads that fit: {divisors(decoder.width)}"
        )


def _check_devices(config, devices):
    data, fsdp, block = mesh_shape(config.mesh, devices)
    if block > 1 and config.strategy != "pipelined":
        raise ValueError(
            f"mesh.block={block} spreads blocks over devices, which strategy {config.strategy!r} does not do; "
            "set strategy=pipelined, or mesh.block=1 and use mesh.data or mesh.fsdp"
        )
    if config.blocks % block:
        raise ValueError(
            f"blocks {config.blocks} does not divide over mesh.block={block} stages; "
            f"numbers of stages that do: {divisors(config.blocks)}"
        )
    parts = data * fsdp * config.microbatches
    if config.batch_size % parts:
        near = max(parts, config.batch_size // parts * parts)
        cut = f" and {config.microbatches} microbatches" if config.microbatches > 1 else ""
        raise ValueError(
            f"batch_size {config.batch_size} does not divide over {data * fsdp} devices "
            f"(mesh.data {data} x mesh.fsdp {fsdp}){cut}; {near} would"
        )
