"""Every config field with its default."""

import ml_collections
from ml_collections import config_dict

STRATEGIES = ("blockwise", "end_to_end", "streamed", "streamed_end_to_end", "pipelined")
REMATS = ("none", "layer", "nested", "offload")
DTYPES = ("auto", "float32", "bfloat16")
OPTIMIZERS = ("adamw", "adafactor", "lamb", "lars", "lion", "muon", "sgd")


def default_config() -> ml_collections.ConfigDict:
    """Returns the config that every file in configs/ starts from: MAE's recipe (arXiv 2111.06377), in four blocks."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    # Length of the run: exactly one of the two.
    config.steps = config_dict.placeholder(int)
    config.epochs = config_dict.placeholder(float)
    config.batch_size = 256  # images per step, over all devices
    # Of activations; auto: bfloat16 on TPU and on GPUs from Ampere on, else float32. Parameters are float32.
    config.dtype = "auto"
    # end_to_end: one loss at the end; streamed: block states in host memory; streamed_end_to_end: one loss, and layers'
    # states and inputs in host memory; pipelined: blocks over mesh.block devices
    config.strategy = "blockwise"
    config.blocks = (
        4  # must divide the depth; under end_to_end only the depths at which features are read
    )
    # layer: recompute activations layer by layer in the backward pass; nested: also the inputs of layers, in groups of
    # about √L; offload: as layer, with the inputs of layers in host memory
    config.remat = "none"
    config.microbatches = 1  # parts of the batch that run one after another: less memory, more time
    # Of images mae, beit, rotation, jigsaw, context, simclr, moco, byol, barlow_twins, vicreg; classification. Of text
    # next_token, masked_token. What is open below and differs between objectives is filled in by the chosen one.
    config.objective = "mae"
    config.noise = 0.0  # added to what leaves a block, as part of its standard deviation

    # Techniques that couple blocks; see docs of each in blockjax/techniques. Weights of 0 switch them off.
    config.consistency = ml_collections.ConfigDict()
    config.consistency.weight = 0.0  # of the term, beside the local loss
    # predictor: a block's tokens can be foretold from those of the block below; agreement: local gradients at a
    # boundary agree (SGR), for about twice the time
    config.consistency.kind = "predictor"
    config.distillation = ml_collections.ConfigDict()
    config.distillation.weight = (
        0.0  # of predicting another block's features, against the local loss's 1 - weight
    )
    config.distillation.teacher = (
        "ladder"  # the block below, on the whole image; or top, the last block
    )
    config.distillation.ramp = 0.1  # share of the steps in which the weight rises from 0
    # Of the average of parameters with which the teacher works; 0: one step old; default: the parameters themselves.
    config.distillation.decay = config_dict.placeholder(float)
    config.cross_block = ml_collections.ConfigDict()
    config.cross_block.blocks = 0  # earlier blocks to which every head attends
    config.cross_block.which = "latest"  # or first
    config.hybrid = ml_collections.ConfigDict()  # steps in which gradients cross all boundaries
    config.hybrid.every = 0  # each so many steps; 0: never
    config.hybrid.share = 0.0  # of the run, at its end
    config.hybrid.losses = "last"  # that are backpropagated; or every block's
    config.overlap = ml_collections.ConfigDict()
    config.overlap.window = 1  # blocks that a local loss trains; 2: also the one below
    config.overlap.alternate = False  # in every other step boundaries lie in the middle of blocks
    # sequential: one block after the other, each for its part of the steps, on frozen ones below
    config.schedule = "simultaneous"

    # Where the encoder comes from: a workdir, a folder that was exported or a file of weights; default: random numbers.
    config.backbone = config_dict.placeholder(str)
    config.depth_blocks = config_dict.placeholder(int)  # the first so many blocks of that run
    config.grow = False  # layers above those of the backbone start from random numbers
    config.from_scratch = False  # random numbers all the same, in an encoder of the same size
    # The last so many blocks learn, 0 for heads only; default: all.
    config.tune_blocks = config_dict.placeholder(int)

    config.model = model = ml_collections.ConfigDict()
    # ti, s, b, l, h; of text also gpt2, gpt2-medium, gpt2-large, gpt2-xl; the fields below override it
    model.preset = "ti"
    model.image_size = 32
    model.patch_size = 4
    model.width = config_dict.placeholder(int)
    model.depth = config_dict.placeholder(int)
    model.heads = config_dict.placeholder(int)
    model.mlp_ratio = 4.0
    model.unroll = 1  # layers per turn of the loop over layers
    model.freeze_embedding = False  # keep the patch embedding as it starts, as MoCo v3 does
    # Positions are parameters, which start as the fixed ones; so they are at another image_size than the backbone's.
    model.learned_positions = False
    model.norm_epsilon = 1e-6  # of every LayerNorm in the encoder
    model.zero_residuals = False  # every layer starts as the identity
    # Of text:
    model.context = config_dict.placeholder(int)  # tokens of a sequence; default: 256
    model.vocabulary = config_dict.placeholder(int)  # default: the tokenizer's
    model.positions = "rotary"  # or learned
    model.norm = "layer_norm"  # or rms_norm, as in Llama
    model.mlp = "gelu"  # or swiglu, as in Llama
    model.bias = True  # of dense layers
    model.tied = False  # the embedding is the readout of every block

    config.mask = ml_collections.ConfigDict()
    config.mask.ratio = config_dict.placeholder(
        float
    )  # default: 0.75 for mae, BEiT's share for beit, BERT's 0.15 for masked_token
    config.mask.schedule = (
        "constant"  # linear:0.9 (ratio of the last block), or a ratio for each block
    )

    config.decoder = decoder = ml_collections.ConfigDict()
    decoder.kind = "cross_attention"  # or self_attention, MAE's own
    decoder.depth = 1
    decoder.width = 192
    decoder.heads = config_dict.placeholder(int)  # default: 32 channels a head, as in MAE
    decoder.fraction = 1 / 3  # part of the masked patches that is decoded each step
    decoder.block_fractions = config_dict.placeholder(
        str
    )  # of each block, with commas between; mae under blockwise

    config.loss = ml_collections.ConfigDict()
    config.loss.normalize_pixels = True  # each target patch to zero mean and unit variance
    # Of mae: xla, pallas (the platform's kernel), and more in blockjax.kernels.masked_reconstruction; default: what was
    # measured to be best.
    config.loss.implementation = config_dict.placeholder(str)
    config.loss.temperature = config_dict.placeholder(float)  # of simclr and moco
    config.loss.off_diagonal = config_dict.placeholder(float)  # of barlow_twins: λ
    # Of text: tokens of each sequence whose logits are in memory at a time; default: as many as make 2^24 logits.
    config.loss.chunk = config_dict.placeholder(int)

    config.head = ml_collections.ConfigDict()
    config.head.shared = False  # one head for all blocks
    config.head.trained_by = "all"  # blocks, by the mean of their gradients; or last, as in SOLO
    config.head.refresh = 1  # trained by last: steps between copies of it, which the others read
    # Of objectives that look at whole images or tiles:
    config.head.readout = config_dict.placeholder(str)  # cbe_gap, gap, cls
    config.head.expansion = config_dict.placeholder(int)  # width of the readout cbe_gap
    config.head.hidden = config_dict.placeholder(int)  # width of hidden layers
    config.head.width = config_dict.placeholder(int)  # of a projector's output, or of a tile's part

    config.views = ml_collections.ConfigDict()
    config.views.recipe = config_dict.placeholder(str)  # augmentations of two-view objectives

    config.momentum = momentum = ml_collections.ConfigDict()  # of moco and byol
    momentum.decay = config_dict.placeholder(float)  # of the average at the first step
    momentum.steps = config_dict.placeholder(int)  # until 1; default: the run's; queue: never
    momentum.queue = 0  # keys in the queue of moco, which then is v2; 0 is MoCo v3, which has none

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
    classifier.pool = 1  # the head reads the means over a pool x pool grid; 1: the mean of all
    classifier.drop_path = 0.0  # rises to this with the layers; under blockwise the same in all
    classifier.label_smoothing = 0.0
    classifier.mixup = 0.0  # alpha; 0: none
    classifier.cutmix = 0.0
    classifier.erase = 0.0  # share of images

    config.data = data = ml_collections.ConfigDict()
    # tfds:NAME, folder:PATH, arrays:FILE.npz; of text text:stdlib, text:PATH, tfds:NAME
    data.source = "embedded"
    data.tokenizer = config_dict.placeholder(str)  # of text, a tokenizer.json; default: bytes
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
    optimizer.name = "adamw"  # adafactor, lamb, lars, lion, muon, sgd
    optimizer.in_host_memory = False  # its states of layers, of strategy end_to_end
    optimizer.base_learning_rate = 1.5e-4  # for 256 images; scaled with the batch size
    # Length of the warm-up; the steps count where both are given. Default: 5 % of the steps, MAE's 40 of 800 epochs.
    optimizer.warmup_steps = config_dict.placeholder(int)
    optimizer.warmup_share = config_dict.placeholder(float)  # of the steps
    optimizer.weight_decay = 0.05
    optimizer.b1 = 0.9
    optimizer.b2 = 0.95
    optimizer.layer_decay = 1.0  # of the learning rate, from layer to layer towards the input
    # What multiplies the learning rate of each block and its head, with commas between; the stem goes with block 1.
    optimizer.block_rates = config_dict.placeholder(str)
    optimizer.clip = 0.0  # largest gradient norm of a block; 0: no clipping

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # devices over which images are split; -1: the rest
    config.mesh.fsdp = 1  # devices over which images and states are split
    config.mesh.block = 1  # stages over which `pipelined` spreads the blocks

    config.pipeline = ml_collections.ConfigDict()
    # Batches of one program, which all wait on the device. Under `pipelined` those from filling to draining the
    # pipeline, by default 8 for each stage; else those on which a block trains before the next one does, by default 1.
    config.pipeline.batches = config_dict.placeholder(int)
    config.pipeline.host_streams = (
        False  # of blocks that stay: the batches' streams wait in host memory
    )

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every = config_dict.placeholder(int)  # steps; default: a tenth of the run
    config.checkpoint.keep = 2

    config.log = ml_collections.ConfigDict()
    config.log.every = 10  # steps
    # Steps between looks at how features of different images differ, each at the next step that is logged; 0: never.
    config.log.monitor_every = 100

    config.probe = probe = ml_collections.ConfigDict()
    probe.train_examples = 20_000  # at most so many images to learn a probe from
    probe.test_examples = 10_000  # and to test it; classifiers that were trained are tested on all
    probe.pool = 2  # a feature is the block's tokens averaged over a pool x pool grid
    return config
