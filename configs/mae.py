"""MAE as small as the recipes of the other objectives, to compare it with them; configs/digits.py is tuned longer.

    python -m blockjax.main --config configs/mae.py --workdir runs/mae

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed), with the hyperparameters and the
light decoder of configs/bim.py:

    python -m blockjax.main --config configs/mae.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at about 2, half of it from a fresh decoder's
predictions. Predicting the mean would give 1 (1.04 in the small recipe, which does not normalise patches).

Measured, 400 steps of 128 images, seed 0: loss 2.13–2.27 at the start, 0.57–0.58 at the end. Linear probe of blocks 1
to 4: 0.742 0.742 0.743 0.739; the twin 0.687 0.674 0.667 0.676; untrained 0.722, raw pixels 0.485.

Source: He et al., arXiv 2111.06377, table 8, and facebookresearch/mae, PRETRAIN.md and main_pretrain.py. Numbers and
deviations (light decoders, one for each block) are those that configs/bim.py names.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of MAE, small or for ImageNet."""
    config = recipe(
        argument,
        "mae",
        batch=4096,
        epochs=800.0,
        warmup_epochs=40.0,
        base_learning_rate=1.5e-4,
        weight_decay=0.05,
        b2=0.95,
    )
    if config.model.image_size <= 64:  # as in configs/digits.py
        config.mask.ratio = 0.625
        config.decoder.width = 64
        config.decoder.fraction = 0.5
        config.loss.normalize_pixels = False
    return config
