"""Every config field with its default, and every check that can be made before anything is compiled."""

import difflib
import json
import math
from typing import Any

import ml_collections
from ml_collections import config_dict

from blockjax.kernels.masked_reconstruction import IMPLEMENTATIONS
from blockjax.models.decoders import DECODERS
from blockjax.models.heads import READOUTS
from blockjax.models.vit import PRESETS
from blockjax.objectives import TASKS
from blockjax.sharding import mesh_shape

STRATEGIES = ("blockwise", "end_to_end", "streamed", "pipelined")
# They compute the same numbers, so a run may go on under another one.
_EQUAL_STRATEGIES = ("blockwise", "streamed", "pipelined")
REMATS = ("none", "layer")
DTYPES = ("auto", "float32", "bfloat16")

# A resumed run may differ in these: they do not touch what is computed.
_MAY_CHANGE = ("checkpoint", "log", "probe", "data.dir", "mesh", "pipeline")


def default_config() -> ml_collections.ConfigDict:
    """Returns the config that every file in configs/ starts from: MAE's recipe (arXiv 2111.06377), in four blocks."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    # Length of the run: exactly one of the two.
    config.steps = config_dict.placeholder(int)
    config.epochs = config_dict.placeholder(float)
    config.batch_size = 256  # images per step, over all devices
    config.dtype = (
        "auto"  # of activations: bfloat16 on TPU and GPU, float32 on CPU; parameters are float32
    )
    # end_to_end: one loss at the end; streamed: block states in host memory; pipelined: blocks over mesh.block devices
    config.strategy = "blockwise"
    config.blocks = (
        4  # must divide the depth; under end_to_end only the depths at which features are read
    )
    config.remat = "none"  # layer: recompute activations layer by layer in the backward pass
    config.microbatches = 1  # parts of the batch that run one after another: less memory, more time
    # mae, beit, rotation, jigsaw, context, simclr, moco, byol, barlow_twins, vicreg; classification. What is open below
    # and differs between objectives is filled in by the one that is chosen.
    config.objective = "mae"
    config.noise = 0.0  # added to what leaves a block, as part of its standard deviation

    # Where the encoder comes from: a workdir, a folder that was exported or a file of weights; default: random numbers.
    config.backbone = config_dict.placeholder(str)
    config.depth_blocks = config_dict.placeholder(int)  # the first so many blocks of that run
    config.from_scratch = False  # random numbers all the same, in an encoder of the same size
    # Of classification: the last so many blocks learn, 0 for heads only; default: all.
    config.tune_blocks = config_dict.placeholder(int)

    config.model = model = ml_collections.ConfigDict()
    model.preset = "ti"  # ti, s, b, l, h; the fields below override it
    model.image_size = 32
    model.patch_size = 4
    model.width = config_dict.placeholder(int)
    model.depth = config_dict.placeholder(int)
    model.heads = config_dict.placeholder(int)
    model.mlp_ratio = 4.0
    model.unroll = 1  # layers per turn of the loop over layers
    model.freeze_embedding = False  # keep the patch embedding as it starts, as MoCo v3 does
    model.learned_positions = False  # positions are parameters, which start as the fixed ones
    model.norm_epsilon = 1e-6  # of every LayerNorm in the encoder

    config.mask = ml_collections.ConfigDict()
    config.mask.ratio = config_dict.placeholder(
        float
    )  # default: 0.75 for mae, BEiT's share for beit
    config.mask.schedule = (
        "constant"  # linear:0.9 (ratio of the last block), or a ratio for each block
    )

    config.decoder = decoder = ml_collections.ConfigDict()
    decoder.kind = "cross_attention"  # or self_attention, MAE's own
    decoder.depth = 1
    decoder.width = 192
    decoder.heads = config_dict.placeholder(int)  # default: 32 channels a head, as in MAE
    decoder.fraction = 1 / 3  # part of the masked patches that is decoded each step

    config.loss = ml_collections.ConfigDict()
    config.loss.normalize_pixels = True  # each target patch to zero mean and unit variance
    # Of mae: xla, pallas (the platform's kernel), and more in blockjax.kernels.masked_reconstruction; default: what was
    # measured to be best.
    config.loss.implementation = config_dict.placeholder(str)
    config.loss.temperature = config_dict.placeholder(float)  # of simclr and moco
    config.loss.off_diagonal = config_dict.placeholder(float)  # of barlow_twins: λ

    config.head = ml_collections.ConfigDict()  # of objectives that look at whole images or tiles
    config.head.readout = config_dict.placeholder(str)  # cbe_gap, gap, cls
    config.head.expansion = config_dict.placeholder(int)  # width of the readout cbe_gap
    config.head.hidden = config_dict.placeholder(int)  # width of hidden layers
    config.head.width = config_dict.placeholder(int)  # of a projector's output, or of a tile's part

    config.views = ml_collections.ConfigDict()
    config.views.recipe = config_dict.placeholder(str)  # augmentations of two-view objectives

    config.momentum = momentum = ml_collections.ConfigDict()  # of moco and byol
    momentum.decay = config_dict.placeholder(float)  # of the average at the first step
    momentum.steps = config_dict.placeholder(int)  # until it is 1; default: the run's
    momentum.queue = 0  # keys in the queue of moco; 0 is MoCo v3, which has none

    config.tiles = tiles = ml_collections.ConfigDict()  # of jigsaw and context
    tiles.image_size = config_dict.placeholder(int)  # to which images are resized first
    tiles.crop = config_dict.placeholder(int)  # side of the random crop that is cut in 3 x 3 cells
    tiles.size = config_dict.placeholder(int)  # side of a tile, cut at random from its cell
    tiles.gray = 0.66  # share of images that lose their colours
    tiles.permutations = 1000  # classes of jigsaw
    tiles.permutation_set = "pgl"  # or greedy_mean, the historical one
    tiles.per_image = 8  # permutations of an image in a step

    config.tokenizer = tokenizer = ml_collections.ConfigDict()  # of beit
    tokenizer.kind = "kmeans"  # kmeans_norm, exemplar
    tokenizer.codes = config_dict.placeholder(int)
    tokenizer.examples = 5000  # at most so many training images to fit it to

    config.classifier = classifier = ml_collections.ConfigDict()  # of classification
    classifier.classes = config_dict.placeholder(int)  # default: those of the data
    classifier.drop_path = 0.0  # rises to this with the layers; under blockwise the same in all
    classifier.label_smoothing = 0.0
    classifier.mixup = 0.0  # alpha; 0: none
    classifier.cutmix = 0.0
    classifier.erase = 0.0  # share of images

    config.data = data = ml_collections.ConfigDict()
    data.source = "embedded"  # tfds:NAME, folder:PATH, arrays:FILE.npz
    data.dir = config_dict.placeholder(
        str
    )  # of TFDS; default $TFDS_DATA_DIR or ~/tensorflow_datasets
    data.train_split = "train"
    data.test_split = "test"
    data.fraction = 1.0  # of each class's training images
    data.flip = True
    data.crop_scale = (0.2, 1.0)  # area of the random resized crop; (1.0, 1.0) is no crop
    data.shift = 0  # largest random shift in pixels
    data.workers = 0  # decoding processes; 0: threads
    data.on_corrupt = "skip"  # or error

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.base_learning_rate = 1.5e-4  # for 256 images; scaled with the batch size
    optimizer.warmup_steps = config_dict.placeholder(
        int
    )  # default: 5 % of the steps, MAE's 40 of 800 epochs
    optimizer.weight_decay = 0.05
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.layer_decay = 1.0  # of the learning rate, from layer to layer towards the input
    optimizer.clip = 0.0  # largest gradient norm of a block; 0: no clipping

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # devices over which images are split; -1: the rest
    config.mesh.fsdp = 1  # devices over which images and states are split
    config.mesh.block = 1  # stages over which `pipelined` spreads the blocks

    config.pipeline = ml_collections.ConfigDict()
    # Batches from filling to draining the pipeline; default 8 for each stage. All wait on the device.
    config.pipeline.batches = config_dict.placeholder(int)

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every = config_dict.placeholder(int)  # steps; default: a tenth of the run
    config.checkpoint.keep = 2

    config.log = ml_collections.ConfigDict()
    config.log.every = 10  # steps
    # Steps between looks at how features of different images differ, each at the next step that is logged; 0: never.
    config.log.monitor_every = 100

    config.probe = probe = ml_collections.ConfigDict()
    probe.train_examples = 20_000  # at most so many images to learn a probe from
    probe.test_examples = 10_000
    probe.pool = 2  # a feature is the block's tokens averaged over a pool x pool grid
    return config


def resolve(
    config: ml_collections.ConfigDict, *, devices: int, platform: str
) -> ml_collections.ConfigDict:
    """Returns a copy of the config with every default filled in that does not depend on the data.

    Args:
      config: as a config file returns it, with the command line's changes.
      devices: number of devices of all processes.
      platform: "cpu", "gpu" or "tpu"; decides what dtype "auto" is.

    Raises:
      ValueError: a field that does not exist, or values that do not fit together; names them and what would fit.
    """
    _check_keys(config, default_config())
    config = config.copy_and_resolve_references()
    config.unlock()
    _one_of("strategy", config.strategy, STRATEGIES)
    _one_of("remat", config.remat, REMATS)
    _one_of("dtype", config.dtype, DTYPES)
    _one_of("objective", config.objective, TASKS)
    _one_of("decoder.kind", config.decoder.kind, DECODERS)
    if config.loss.implementation is not None:
        _one_of("loss.implementation", config.loss.implementation, IMPLEMENTATIONS)
    _one_of("data.on_corrupt", config.data.on_corrupt, ("skip", "error"))
    config.model.preset = _preset(config)

    if (config.steps is None) == (config.epochs is None):
        raise ValueError(
            f"give exactly one of steps and epochs; got steps={config.steps}, epochs={config.epochs}"
        )
    if config.dtype == "auto":
        config.dtype = "float32" if platform == "cpu" else "bfloat16"
    for field, value in zip(("width", "depth", "heads"), PRESETS[config.model.preset], strict=True):
        if config.model[field] is None:
            config.model[field] = value
    objective = TASKS[config.objective]
    for field, value in objective.defaults(config).items():
        group, _, name = field.rpartition(".")
        if config[group][name] is None:
            config[group][name] = value
    if config.decoder.heads is None:
        config.decoder.heads = max(1, config.decoder.width // 32)
    _check_numbers(config)
    _check_model(config)
    _check_decoder(config)
    _check_objective(config, objective)
    objective.check(config)
    _check_devices(config, devices)
    if config.pipeline.batches is None:
        config.pipeline.batches = 8 * mesh_shape(config.mesh, devices)[2]
    return config


def depth(config: ml_collections.ConfigDict) -> int:
    """Returns the number of layers of a config as a config file returns it.

    Raises:
      ValueError: the preset is unknown, or fields are missing that a backbone would give.
    """
    preset = _preset(config)
    return PRESETS[preset][1] if config.model.depth is None else config.model.depth


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
    _one_of("model.preset", preset, PRESETS)
    return preset


def total_steps(config: ml_collections.ConfigDict, examples: int) -> int:
    """Returns the run's length in steps, for a training set of `examples` images.

    Raises:
      ValueError: the batch is larger than the data set.
    """
    if config.batch_size > examples:
        raise ValueError(
            f"batch_size {config.batch_size} is larger than the training set: {config.data.source} "
            f"[{config.data.train_split}] has {examples} images; set batch_size to at most that"
        )
    if config.steps is not None:
        return config.steps
    return max(1, round(config.epochs * examples / config.batch_size))


def fill_lengths(config: ml_collections.ConfigDict, steps: int) -> None:
    """Fills in the lengths that follow from the number of steps: warm-up, momentum's and checkpoint interval.

    Raises:
      ValueError: the warm-up is as long as the run or longer.
    """
    if config.optimizer.warmup_steps is None:
        config.optimizer.warmup_steps = steps // 20
    if not 0 <= config.optimizer.warmup_steps < max(1, steps):
        raise ValueError(
            f"optimizer.warmup_steps {config.optimizer.warmup_steps} must be shorter than the run of {steps} steps"
        )
    if config.momentum.steps is None and config.momentum.decay is not None:
        config.momentum.steps = steps
    if config.checkpoint.every is None:
        config.checkpoint.every = max(1, steps // 10)


def frugal_changes(config: ml_collections.ConfigDict, devices: int) -> list[dict[str, Any]]:
    """Lists changes of a resolved config that lower its memory on so many devices, gentle ones first.

    Recomputing changes nothing but time, microbatches next to nothing; then blocks of one layer, and at last the batch.
    """
    found, changes = [], {}
    data, fsdp, _ = mesh_shape(config.mesh, devices)
    parts = data * fsdp
    if config.remat == "none":
        changes = {"remat": "layer"}
        found.append(changes)
    for microbatches in (4, 16) if TASKS[config.objective].means_over_images else ():
        if microbatches > config.microbatches and config.batch_size % (microbatches * parts) == 0:
            changes = {**changes, "microbatches": microbatches}
            found.append(changes)
    if config.strategy == "end_to_end":
        changes = {**changes, "strategy": "blockwise", "blocks": config.model.depth}
        found.append(changes)
    elif config.blocks < config.model.depth:
        changes = {**changes, "blocks": config.model.depth}
        found.append(changes)
    if config.strategy in ("end_to_end", "blockwise") and config.mask.schedule == "constant":
        changes = {**changes, "strategy": "streamed"}
        found.append(changes)
    for share in (4, 16):
        smaller = config.batch_size // (share * parts) * parts
        if smaller:
            microbatches = changes.get("microbatches", config.microbatches)
            fitting = math.gcd(microbatches, smaller // parts)
            found.append({**changes, "microbatches": fitting, "batch_size": smaller})
    return found


def set_field(config: ml_collections.ConfigDict, field: str, value: Any) -> None:
    """Sets a field given as a path, "model.depth".

    Raises:
      ValueError: there is no such field.
    """
    *groups, name = field.split(".")
    for group in groups:
        config = config.get(group)
        if not isinstance(config, ml_collections.ConfigDict):
            raise ValueError(f"--config.{field}: there is no group {group!r}")
    if name not in config:
        raise ValueError(f"--config.{field}: there is no such field; there is {', '.join(config)}")
    with config.ignore_type():
        config[name] = value


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the config as JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def from_json(saved: dict[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config that `to_json` gave; fields that are younger than it have their defaults.

    Raises:
      ValueError: a field that does not exist.
    """
    config = default_config()
    for field, value in _flatten(saved).items():
        set_field(config, field, tuple(value) if isinstance(value, list) else value)
    return config


def differences(saved: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lists the fields in which two configs (from `to_json`) describe different runs, "field: saved -> new" each."""
    # A field that is younger than the saved run had its default's effect.
    saved = {**_flatten(to_json(default_config())), **_flatten(saved)}
    new = _flatten(new)
    if saved["strategy"] in _EQUAL_STRATEGIES and new["strategy"] in _EQUAL_STRATEGIES:
        saved["strategy"] = new["strategy"]
    return [
        f"{key}: {saved.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted({*saved, *new})
        if saved.get(key) != new.get(key)
        and not any(key == free or key.startswith(free + ".") for free in _MAY_CHANGE)
    ]


def parse_argument(argument: str | None, **defaults):
    """Reads "name=value,name=value" into a dict, each value of the type of its default.

    Args:
      argument: what stands behind the colon in `--config file.py:...`.
      **defaults: the names that may be given, and their values where they are not.

    Raises:
      ValueError: an unknown name, or a value that cannot be read; says what would fit.
    """
    values = dict(defaults)
    for part in (argument or "").split(","):
        if not part:
            continue
        name, equals, text = part.partition("=")
        if name not in defaults or not equals:
            known = ", ".join(f"{key}={value}" for key, value in defaults.items())
            raise ValueError(
                f"config argument {part!r} is unknown; arguments and their defaults: {known}"
            )
        kind = type(defaults[name])
        try:
            values[name] = kind(text)
        except ValueError as error:
            raise ValueError(
                f"config argument {name}={text!r} is not a number of type {kind.__name__}"
            ) from error
    return values


def _check_keys(config, defaults, prefix=""):
    for key in config:
        if key not in defaults:
            near = difflib.get_close_matches(key, list(defaults), n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there is {', '.join(defaults)}"
            raise ValueError(f"config has no field {prefix}{key}; {hint}")
        if isinstance(defaults[key], ml_collections.ConfigDict):
            if not isinstance(config[key], ml_collections.ConfigDict):
                raise ValueError(
                    f"config field {prefix}{key} is a group of fields, not {config[key]!r}"
                )
            _check_keys(config[key], defaults[key], f"{prefix}{key}.")
    if missing := [key for key in defaults if key not in config]:
        raise ValueError(
            f"config lacks {', '.join(prefix + key for key in missing)}; start from blockjax.config.default_config()"
        )


def _check_numbers(config):
    at_least_one = {
        "batch_size": config.batch_size,
        "blocks": config.blocks,
        "microbatches": config.microbatches,
        "model.image_size": config.model.image_size,
        "model.patch_size": config.model.patch_size,
        "model.width": config.model.width,
        "model.depth": config.model.depth,
        "model.heads": config.model.heads,
        "model.unroll": config.model.unroll,
        "decoder.depth": config.decoder.depth,
        "decoder.width": config.decoder.width,
        "decoder.heads": config.decoder.heads,
        "checkpoint.keep": config.checkpoint.keep,
        "log.every": config.log.every,
        "probe.train_examples": config.probe.train_examples,
        "probe.test_examples": config.probe.test_examples,
        "probe.pool": config.probe.pool,
    }
    for group, name in (
        ("head", "expansion"),
        ("head", "hidden"),
        ("head", "width"),
        ("momentum", "steps"),
        ("tiles", "per_image"),
        ("tokenizer", "examples"),
    ):
        if config[group][name] is not None:
            at_least_one[f"{group}.{name}"] = config[group][name]
    if config.steps is not None:
        at_least_one["steps"] = config.steps
    if config.pipeline.batches is not None:
        at_least_one["pipeline.batches"] = config.pipeline.batches
    if config.checkpoint.every is not None:
        at_least_one["checkpoint.every"] = config.checkpoint.every
    for name, value in at_least_one.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if config.epochs is not None and config.epochs <= 0:
        raise ValueError(f"epochs must be above 0, not {config.epochs:g}")
    at_least_zero = {
        "seed": config.seed,
        "log.monitor_every": config.log.monitor_every,
        "noise": config.noise,
        "momentum.queue": config.momentum.queue,
        "data.workers": config.data.workers,
        "data.shift": config.data.shift,
        "optimizer.clip": config.optimizer.clip,
        "optimizer.weight_decay": config.optimizer.weight_decay,
        "optimizer.base_learning_rate": config.optimizer.base_learning_rate,
    }
    for name, value in at_least_zero.items():
        if value < 0:
            raise ValueError(f"{name} must not be negative, not {value}")
    if not 0 < config.decoder.fraction <= 1:
        raise ValueError(
            f"decoder.fraction must be above 0 and at most 1, not {config.decoder.fraction:g}"
        )
    if config.loss.temperature is not None and config.loss.temperature <= 0:
        raise ValueError(f"loss.temperature must be above 0, not {config.loss.temperature:g}")
    if config.momentum.decay is not None and not 0 <= config.momentum.decay <= 1:
        raise ValueError(f"momentum.decay must be from 0 to 1, not {config.momentum.decay:g}")
    for name, value in (
        ("data.fraction", config.data.fraction),
        ("optimizer.layer_decay", config.optimizer.layer_decay),
    ):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, not {value:g}")
    if config.tune_blocks is not None and config.objective != "classification":
        raise ValueError(
            f"tune_blocks={config.tune_blocks} is of objective=classification, not of {config.objective}"
        )
    if not 0 <= config.tiles.gray <= 1:
        raise ValueError(f"tiles.gray is a probability, from 0 to 1, not {config.tiles.gray:g}")
    scale = tuple(config.data.crop_scale)
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"data.crop_scale must be two areas with 0 < low <= high <= 1, not {scale}"
        )


def _check_model(config):
    model = config.model
    if model.image_size % model.patch_size:
        raise ValueError(
            f"model.patch_size {model.patch_size} does not divide model.image_size {model.image_size}; "
            f"patch sizes that do: {_divisors(model.image_size)}"
        )
    if model.width % model.heads:
        raise ValueError(
            f"model.width {model.width} is not divisible by model.heads {model.heads}; "
            f"numbers of heads that fit: {_divisors(model.width)}"
        )
    if model.width % 4:
        raise ValueError(
            f"model.width must be divisible by 4 (2-D sin-cos positions), not {model.width}"
        )
    if model.depth % config.blocks:
        raise ValueError(
            f"blocks {config.blocks} does not divide the depth of {model.depth} layers; "
            f"numbers of blocks that do: {_divisors(model.depth)}"
        )
    layers = model.depth if config.strategy == "end_to_end" else model.depth // config.blocks
    if layers % model.unroll:
        raise ValueError(
            f"model.unroll {model.unroll} does not divide the {layers} layers of a block; "
            f"it may be one of {_divisors(layers)}"
        )
    grid = model.image_size // model.patch_size
    if grid % config.probe.pool:
        raise ValueError(
            f"probe.pool {config.probe.pool} does not divide the {grid} x {grid} grid of patches; "
            f"it may be one of {_divisors(grid)}"
        )
    if config.strategy == "end_to_end" and config.mask.schedule != "constant":
        raise ValueError(
            f"mask.schedule {config.mask.schedule!r} drops tokens between blocks, and end_to_end has one block; "
            "set mask.schedule=constant or strategy=blockwise"
        )
    if config.strategy in ("streamed", "pipelined") and config.mask.schedule != "constant":
        raise ValueError(
            f"mask.schedule {config.mask.schedule!r} drops tokens between blocks, and {config.strategy} runs "
            "all blocks in one loop, on streams of one shape; set mask.schedule=constant or strategy=blockwise"
        )


def _check_objective(config, objective):
    if config.head.readout is not None:
        _one_of("head.readout", config.head.readout, READOUTS)
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


def _check_decoder(config):
    decoder = config.decoder
    if decoder.width % decoder.heads or decoder.width % 4:
        raise ValueError(
            f"decoder.width {decoder.width} must be divisible by 4 (2-D sin-cos positions) and by decoder.heads "
            f"{decoder.heads}; numbers of heads that fit: {_divisors(decoder.width)}"
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
            f"numbers of stages that do: {_divisors(config.blocks)}"
        )
    parts = data * fsdp * config.microbatches
    if config.batch_size % parts:
        near = max(parts, config.batch_size // parts * parts)
        cut = f" and {config.microbatches} microbatches" if config.microbatches > 1 else ""
        raise ValueError(
            f"batch_size {config.batch_size} does not divide over {data * fsdp} devices "
            f"(mesh.data {data} x mesh.fsdp {fsdp}){cut}; {near} would"
        )


def _one_of(name, value, known):
    if value not in known:
        near = difflib.get_close_matches(str(value), [str(k) for k in known], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{name} {value!r} is unknown; {hint}it may be one of {', '.join(map(str, known))}"
        )


def _divisors(number):
    return ", ".join(str(i) for i in range(1, number + 1) if number % i == 0)


def _flatten(tree, prefix=""):
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
