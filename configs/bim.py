"""Block-wise masked image modeling with MAE's published recipe; with strategy=end_to_end it is MAE.

    python -m blockjax.main \
        --config configs/bim.py:model=b16,size=224,strategy=blockwise,blocks=4,data=tfds:imagenet2012

Needs a pod or a large GPU server; not trained here, so no accuracy is claimed.

Arguments, with their defaults: model=b16 (ti, s, b, l, h and the patch size), size=224, strategy=blockwise, blocks=4,
data=tfds:imagenet2012, batch=4096, epochs=800, decoder=cross_attention (self_attention is MAE's own: 8 layers of width
512 that decode every masked patch; in block-wise training each block owns such a decoder).

Source: He et al., arXiv 2111.06377, table 8, and facebookresearch/mae, PRETRAIN.md and main_pretrain.py: AdamW
(0.9, 0.95), base learning rate 1.5e-4 for 256 images, batch 4096, weight decay 0.05, 40 of 800 epochs warm-up, cosine
decay, 75 % masked, normalised pixels, crops of at least 0.2 of the area, flips.

Deviations: a decoder for each block, and a light one, of the kind of CrossMAE's (arXiv 2401.14391; a third of the
masked patches decoded in each step, as in TonyLianLong/CrossMAE, README.md), of one layer 192 wide where CrossMAE has
12; decoder=self_attention has MAE's. Of BIM (arXiv 2311.17218) only the idea is taken, not its decoders, nor how many
patches it masks from block to block: all blocks see the same ones, unless --config.mask.schedule is set. Crops are
bilinear, not bicubic.
"""

import re

from blockjax.config import default_config, parse_argument


def get_config(argument=None):
    """Returns the config of MAE's recipe for the model, size, strategy and data of the argument."""
    given = parse_argument(
        argument,
        model="b16",
        size=224,
        strategy="blockwise",
        blocks=4,
        data="tfds:imagenet2012",
        batch=4096,
        epochs=800.0,
        decoder="cross_attention",
    )
    match = re.fullmatch(r"(ti|s|b|l|h)(\d+)", given["model"])
    if not match:
        raise ValueError(
            f"config argument model={given['model']} is unknown; it may be ti, s, b, l or h with a patch size: b16"
        )
    config = default_config()
    config.epochs = given["epochs"]
    config.batch_size = given["batch"]
    config.strategy = given["strategy"]
    config.blocks = given["blocks"]

    config.model.preset = match[1]
    config.model.patch_size = int(match[2])
    config.model.image_size = given["size"]

    config.decoder.kind = given["decoder"]
    if given["decoder"] == "self_attention":
        config.decoder.depth, config.decoder.width, config.decoder.fraction = 8, 512, 1.0
    else:
        config.decoder.depth, config.decoder.width, config.decoder.fraction = 1, 192, 1 / 3

    config.data.source = given["data"]
    if given["data"] == "tfds:imagenet2012":
        config.data.test_split = "validation"
    config.data.workers = 8 if given["size"] > 96 else 0
    return config
