"""Eight layers in four blocks on the embedded scenes: sixteen digits on a photo, derived from one symbol by a grammar.

    python -m blockjax.main --config configs/scenes.py --workdir runs/scenes

To name the symbol a network has to undo four levels of rules, so depth pays, unlike on the quickstart's single digits.
"""

from blockjax.config import default_config


def get_config():
    """Returns the config for the embedded scenes."""
    config = default_config()
    config.steps = 10_000
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
