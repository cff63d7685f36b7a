"""Every config field with its default. Comments are the descriptions in docs/reference/configuration.md."""

import ml_collections
from ml_collections import config_dict

STRATEGIES = ("blockwise", "end_to_end", "streamed", "streamed_end_to_end", "pipelined")
REMATS = ("none", "layer", "nested", "offload")
DTYPES = ("auto", "float32", "bfloat16")
OPTIMIZERS = ("adamw", "adafactor", "lamb", "lars", "lion", "muon", "sgd")


def default_config() -> ml_collections.ConfigDict:
    """Returns the config that every file in configs/ starts from: MAE's recipe (arXiv 2111.06377), in four blocks."""
    config = ml_collections.ConfigDict()
    # Of everything that is drawn at random: weights, masks, views and the order of examples.
    config.seed = 0
    # Length of the run in steps. Give exactly one of steps and epochs.
    config.steps = config_dict.placeholder(int)
    # Length of the run in passes over the training set.
    config.epochs = config_dict.placeholder(float)
    # Examples per step, over all devices.
    config.batch_size = 256
    # Of activations; `auto` is bfloat16 on TPU and on GPUs from Ampere on, else float32. Parameters are always float32.
    config.dtype = "auto"
    # How the blocks are driven. end_to_end: one loss at the end. streamed: block states in host memory.
    # streamed_end_to_end: one loss, and layers' states and inputs in host memory. pipelined: blocks over mesh.block
    # devices.
    config.strategy = "blockwise"
    # Number of blocks (K), which must divide the depth. Under end_to_end only the depths at which features are read.
    config.blocks = 4
    # What the backward pass computes again to save memory. layer: activations, layer by layer. nested: also the inputs
    # of layers, in groups of about √L. offload: as `layer`, with the inputs of layers in host memory.
    config.remat = "none"
    # Parts of the batch that run one after another: less memory, more time.
    config.microbatches = 1
    # The local loss of every block. It fills in the fields below that are open and differ between objectives.
    config.objective = "mae"
    # Gaussian noise, added to the tokens that leave a block, as a share of their standard deviation.
    config.noise = 0.0

    # A term beside the local loss that ties neighbouring blocks together.
    config.consistency = ml_collections.ConfigDict()
    # Weight of the term beside the local loss; 0: off.
    config.consistency.weight = 0.0
    # predictor: the tokens of a block can be predicted from those of the block below. agreement: local gradients agree
    # at a boundary (SGR), for about twice the time.
    config.consistency.kind = "predictor"
    # Heads that also predict another block's features.
    config.distillation = ml_collections.ConfigDict()
    # Weight of predicting another block's features, against 1 - weight for the local loss; 0: off.
    config.distillation.weight = 0.0
    # ladder: the block below, on the whole image. top: the last block.
    config.distillation.teacher = "ladder"
    # Share of the steps in which the weight rises from 0.
    config.distillation.ramp = 0.1
    # Decay of the average of parameters with which the teacher works. 0: parameters one step old. Default: the
    # parameters themselves.
    config.distillation.decay = config_dict.placeholder(float)
    # Heads that attend to the tokens of earlier blocks.
    config.cross_block = ml_collections.ConfigDict()
    # Number of earlier blocks to which every head attends; 0: off.
    config.cross_block.blocks = 0
    # Whether these are the latest blocks before it or the first of the encoder.
    config.cross_block.which = "latest"
    # Steps in which gradients cross all boundaries.
    config.hybrid = ml_collections.ConfigDict()
    # One in so many steps crosses; 0: none does.
    config.hybrid.every = 0
    # Share of the run, at its end, in which all steps cross.
    config.hybrid.share = 0.0
    # Whether the last block's loss is backpropagated through all blocks, or every block's.
    config.hybrid.losses = "last"
    # Local losses that reach across a boundary.
    config.overlap = ml_collections.ConfigDict()
    # Blocks that a local loss trains; 2: its own and the one below.
    config.overlap.window = 1
    # In every other step boundaries lie in the middle of blocks.
    config.overlap.alternate = False
    # sequential: one block after the other, each for its part of the steps, on frozen blocks below.
    config.schedule = "simultaneous"
    # Techniques of your own, module:Name separated by commas; objective, strategy, decoder.kind and data.source take
    # one, too.
    config.techniques = config_dict.placeholder(str)

    # Where the encoder comes from: a workdir, an exported folder or a file of weights. Default: random numbers.
    config.backbone = config_dict.placeholder(str)
    # How many of that run's blocks are taken, from the first. Default: all.
    config.depth_blocks = config_dict.placeholder(int)
    # The model is deeper than the backbone, and the layers above it start from random numbers.
    config.grow = False
    # Random numbers all the same, in an encoder of the backbone's size: the baseline.
    config.from_scratch = False
    # How many of the last blocks learn; 0: heads only. Default: all.
    config.tune_blocks = config_dict.placeholder(int)

    # The encoder.
    config.model = model = ml_collections.ConfigDict()
    # A size by name. The fields model.width, model.depth and model.heads override it.
    model.preset = "ti"
    # Side of the images in pixels.
    model.image_size = 32
    # Side of a patch in pixels, which must divide the image's.
    model.patch_size = 4
    # Width of the tokens. Default: the preset's.
    model.width = config_dict.placeholder(int)
    # Number of layers. Default: the preset's.
    model.depth = config_dict.placeholder(int)
    # Heads of the attention, which must divide the width. Default: the preset's.
    model.heads = config_dict.placeholder(int)
    # Width of the MLP's hidden layer, as a multiple of the model's width.
    model.mlp_ratio = 4.0
    # Layers per turn of the loop over layers; more compile longer, and may run faster.
    model.unroll = 1
    # The patch embedding stays as it starts, as in MoCo v3.
    model.freeze_embedding = False
    # Positions are parameters, which start as the fixed sin-cos ones. Positions are also learned where image_size is
    # not the backbone's.
    model.learned_positions = False
    # Epsilon of every LayerNorm in the encoder.
    model.norm_epsilon = 1e-6
    # Every layer starts as the identity.
    model.zero_residuals = False
    # Tokens of a sequence. Default: 256.
    model.context = config_dict.placeholder(int)
    # Number of different tokens. Default: the tokenizer's.
    model.vocabulary = config_dict.placeholder(int)
    # Rotary positions, or learned ones.
    model.positions = "rotary"
    # LayerNorm, or RMSNorm as in Llama.
    model.norm = "layer_norm"
    # An MLP with GELU, or with SwiGLU as in Llama.
    model.mlp = "gelu"
    # Dense layers have a bias.
    model.bias = True
    # The embedding is also the readout of every block.
    model.tied = False

    # What is hidden from the encoder.
    config.mask = ml_collections.ConfigDict()
    # Share of the patches or tokens that is masked. Default: 0.75 for `mae`, BEiT's share for `beit`, BERT's 0.15 for
    # masked_token.
    config.mask.ratio = config_dict.placeholder(float)
    # `constant`; linear:0.9, which rises to this ratio in the last block; or a ratio for each block, with commas.
    config.mask.schedule = "constant"

    # The heads of `mae`.
    config.decoder = decoder = ml_collections.ConfigDict()
    # cross_attention: masked positions attend to visible tokens. self_attention: MAE's own decoder.
    decoder.kind = "cross_attention"
    # Layers of each decoder.
    decoder.depth = 1
    # Width of each decoder.
    decoder.width = 192
    # Heads of the decoder's attention. Default: 32 channels a head, as in MAE.
    decoder.heads = config_dict.placeholder(int)
    # Part of the masked patches that is decoded in each step.
    decoder.fraction = 1 / 3
    # The same for each block, with commas between, under strategy=blockwise.
    decoder.block_fractions = config_dict.placeholder(str)

    # Of the local losses.
    config.loss = ml_collections.ConfigDict()
    # Each target patch is given zero mean and unit variance (`mae`).
    config.loss.normalize_pixels = True
    # What computes the loss of `mae`; `pallas` is the platform's kernel. Default: what was measured to be best.
    config.loss.implementation = config_dict.placeholder(str)
    # Temperature of `simclr` and `moco`. Default: the objective's.
    config.loss.temperature = config_dict.placeholder(float)
    # Weight λ of the off-diagonal terms of barlow_twins. Default: the objective's.
    config.loss.off_diagonal = config_dict.placeholder(float)
    # Tokens of each sequence whose logits are in memory at a time. Default: as many as make 2^24 logits.
    config.loss.chunk = config_dict.placeholder(int)

    # What a block owns for its loss.
    config.head = ml_collections.ConfigDict()
    # One head for all blocks.
    config.head.shared = False
    # all: the shared head learns from all blocks, by the mean of their gradients. last: from the last one, as in SOLO.
    config.head.trained_by = "all"
    # With trained_by=last: steps between copies of the head, which the other blocks read.
    config.head.refresh = 1
    # How a block's tokens become one vector, for objectives that look at whole images or tiles. Default: the
    # objective's.
    config.head.readout = config_dict.placeholder(str)
    # Width to which the readout cbe_gap expands tokens. Default: the objective's.
    config.head.expansion = config_dict.placeholder(int)
    # Width of the hidden layers of projectors and predictors. Default: the objective's.
    config.head.hidden = config_dict.placeholder(int)
    # Width of a projector's output, or of a tile's part. Default: the objective's.
    config.head.width = config_dict.placeholder(int)

    # Of `simclr`, `moco`, `byol`, barlow_twins and `vicreg`.
    config.views = ml_collections.ConfigDict()
    # The augmentations that make two views of an image. Default: the objective's.
    config.views.recipe = config_dict.placeholder(str)

    # Averages of parameters, of `moco` and `byol`.
    config.momentum = momentum = ml_collections.ConfigDict()
    # Decay of the average at the first step. Default: the objective's.
    momentum.decay = config_dict.placeholder(float)
    # Steps until the decay is 1. Default: those of the run; with a queue the decay stays as it is.
    momentum.steps = config_dict.placeholder(int)
    # Keys in the queue of `moco`, which then is v2. 0: MoCo v3, which has none.
    momentum.queue = 0

    # Tiles of an image, of `jigsaw` and `context`.
    config.tiles = tiles = ml_collections.ConfigDict()
    # Shorter side to which images are resized first. Default: by model.image_size.
    tiles.image_size = config_dict.placeholder(int)
    # Side of the random crop that is cut into 3 x 3 cells. Default: by model.image_size.
    tiles.crop = config_dict.placeholder(int)
    # Side of a tile, cut at random from its cell. Default: by model.image_size.
    tiles.size = config_dict.placeholder(int)
    # Share of images that lose their colours.
    tiles.gray = 0.66
    # Number of permutations, the classes of `jigsaw`.
    tiles.permutations = 1000
    # How they are chosen. pgl: from a group, so that two differ in at least 6 places. greedy_mean: as in the papers.
    tiles.permutation_set = "pgl"
    # Permutations of each image in a step.
    tiles.per_image = 8

    # Visual tokens, of `beit`. (For the tokenizer of text see data.tokenizer.)
    config.tokenizer = tokenizer = ml_collections.ConfigDict()
    # How the vocabulary is made of patches. kmeans: centroids. kmeans_norm: centroids of normalised patches. exemplar:
    # patches drawn at random.
    tokenizer.kind = "kmeans"
    # Size of the vocabulary. Default: the objective's.
    tokenizer.codes = config_dict.placeholder(int)
    # Training images to which it is fitted, at most.
    tokenizer.examples = 5000

    # Of `classification`, the objective of fine-tuning.
    config.classifier = classifier = ml_collections.ConfigDict()
    # Number of classes. Default: those of the data.
    classifier.classes = config_dict.placeholder(int)
    # The head reads the means of tokens over a pool x pool grid; 1: the mean of all.
    classifier.pool = 1
    # Greatest share of images for which a branch of a layer is left out. It rises from 0 at the first layer; under
    # blockwise it is the same in all.
    classifier.drop_path = 0.0
    # Share of each target that all classes get alike.
    classifier.label_smoothing = 0.0
    # Alpha of the share by which two images are mixed (mixup); 0: none.
    classifier.mixup = 0.0
    # Alpha of the share that is cut from another image (CutMix); 0: none.
    classifier.cutmix = 0.0
    # Share of the images of which a rectangle is replaced by noise.
    classifier.erase = 0.0

    # Where examples come from, and what happens to them.
    config.data = data = ml_collections.ConfigDict()
    # Images: `embedded`, embedded:scenes, tfds:NAME, folder:PATH or arrays:FILE.npz. Text: text:stdlib, text:PATH or
    # tfds:NAME. Your own: module:Name:ARGUMENT.
    data.source = "embedded"
    # A tokenizer.json. Default: bytes.
    data.tokenizer = config_dict.placeholder(str)
    # Directory of TFDS data sets. Default: $TFDS_DATA_DIR, or ~/tensorflow_datasets.
    data.dir = config_dict.placeholder(str)
    # The split that is trained on, or a slice of it such as `train[:10%]`.
    data.train_split = "train"
    # The split that is held out, on which probes are measured.
    data.test_split = "test"
    # Share of each class's training images.
    data.fraction = 1.0
    # Half of the images are mirrored.
    data.flip = True
    # Range of the area of the random resized crop; (1.0, 1.0) is no crop.
    data.crop_scale = (0.2, 1.0)
    # Largest random shift in pixels.
    data.shift = 0
    # Processes that decode; 0: threads of this one.
    data.workers = 0
    # What happens at an image that cannot be decoded.
    data.on_corrupt = "skip"

    # Of every block and head.
    config.optimizer = optimizer = ml_collections.ConfigDict()
    # Which optimizer.
    optimizer.name = "adamw"
    # The optimizer states of layers are in host memory, under strategy=end_to_end.
    optimizer.in_host_memory = False
    # Learning rate for a batch of 256, scaled in proportion to the batch size.
    optimizer.base_learning_rate = 1.5e-4
    # Length of the warm-up in steps, which counts where warmup_share is given too. Default: 5 % of the steps, MAE's 40
    # of 800 epochs.
    optimizer.warmup_steps = config_dict.placeholder(int)
    # Length of the warm-up as a share of the steps.
    optimizer.warmup_share = config_dict.placeholder(float)
    # Of matrices only: no biases, norms or mask tokens.
    optimizer.weight_decay = 0.05
    # Decay of the first moment.
    optimizer.b1 = 0.9
    # Decay of the second moment.
    optimizer.b2 = 0.95
    # Factor of the learning rate from layer to layer, towards the input.
    optimizer.layer_decay = 1.0
    # Factors of the learning rate of each block and its head, with commas between; the stem goes with block 1.
    optimizer.block_rates = config_dict.placeholder(str)
    # Largest gradient norm of a block; 0: no clipping.
    optimizer.clip = 0.0

    # How devices are used. -1 means all that the other axes leave.
    config.mesh = ml_collections.ConfigDict()
    # Devices over which the batch is split.
    config.mesh.data = -1
    # Devices over which batch and states are split.
    config.mesh.fsdp = 1
    # Stages over which strategy=pipelined spreads the blocks.
    config.mesh.block = 1

    # Several batches in one program.
    config.pipeline = ml_collections.ConfigDict()
    # Batches (M) of one program, which all wait on the device. Under `pipelined`: from filling to draining the
    # pipeline, by default 8 for each stage. Else: those on which a block trains before the next one does, by default 1.
    config.pipeline.batches = config_dict.placeholder(int)
    # Where blocks stay for several batches, what they send waits in host memory.
    config.pipeline.host_streams = False

    # Checkpoints in the workdir.
    config.checkpoint = ml_collections.ConfigDict()
    # Steps between checkpoints. Default: a tenth of the run.
    config.checkpoint.every = config_dict.placeholder(int)
    # How many of the newest are kept.
    config.checkpoint.keep = 2

    # What metrics.jsonl gets.
    config.log = ml_collections.ConfigDict()
    # Steps between lines.
    config.log.every = 10
    # Steps between measurements of how the features of different images differ, each at the next logged step; 0: never.
    config.log.monitor_every = 100

    # Probes of every block at the end of a run.
    config.probe = probe = ml_collections.ConfigDict()
    # Images to learn a probe from, at most.
    probe.train_examples = 20_000
    # Images to test it on, at most. Classifiers that were trained are tested on all.
    probe.test_examples = 10_000
    # A feature is the block's tokens averaged over a pool x pool grid.
    probe.pool = 2
    return config
