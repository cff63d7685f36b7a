"""Eight layers in four blocks on the embedded scenes: sixteen digits on a photo, derived from one symbol by a grammar.

    python -m blockjax.main --config configs/quickstart.py --workdir runs/quickstart

To name the symbol a network has to undo four levels of rules, so depth pays, unlike on the single digits of
configs/digits.py. --config.strategy=end_to_end (and another --workdir) is the twin under global backpropagation.

Under 5 minutes on 2 idle CPU cores. Seed 0 on one core, kNN and linear probe of blocks 1 to 4: 0.846 0.871 0.864 0.872
and 0.641 0.721 0.755 0.774; end to end at the same depths 0.804 0.822 0.856 0.870 and 0.591 0.636 0.699 0.725; raw
pixels 0.498 and 0.454, untrained 0.379 and 0.440. Other lengths, depths and numbers of blocks: results/scenes.md.
"""

from blockjax.config import default_config


def get_config():
    """Returns the quickstart's config."""
    config = default_config()
    config.steps = 7000
    config.batch_size = 64
    config.blocks = 4

    config.data.source = "embedded:scenes"
    config.model.image_size = 32
    config.model.patch_size = 8  # a digit
    config.model.width = 64
    config.model.depth = 8
    config.model.heads = 2

    config.mask.ratio = 0.5  # 8 of 16 patches are visible
    config.decoder.width = 64
    config.decoder.fraction = 1.0
    config.loss.normalize_pixels = False

    # Digits must not be mirrored, and a crop or a shift would tear patches from digits.
    config.data.flip = False
    config.data.crop_scale = (1.0, 1.0)

    config.optimizer.base_learning_rate = 8e-3  # 2e-3 at this batch
    config.log.every = 100
    config.probe.pool = 4
    return config
