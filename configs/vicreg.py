"""VICReg: views agree, dimensions keep their variance and are uncorrelated.

    python -m blockjax.main --config configs/vicreg.py --workdir runs/vicreg

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/vicreg.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at about 25 to 40.

Measured, 400 steps of 128 images, seed 0: loss 36.78–39.46 at the start, 18.32–18.67 at the end. Linear probe of blocks
1 to 4: 0.751 0.738 0.734 0.705; the twin 0.731 0.711 0.709 0.705; untrained 0.722, raw pixels 0.485.

Source of the task: Bardes et al., arXiv 2105.04906, and facebookresearch/vicreg, main_vicreg.py and augmentations.py:
weights 25, 25 and 1, three layers of 8192 at a batch of 2048, BYOL's views with crops of at least 0.08 of the area.

Deviations: that recipe is for ResNets, with LARS, weight decay 1e-6, 10 epochs warm-up and 1000 epochs, and none is
published for ViTs. So optimizer and epochs are those of MoCo v3 with ViTs (arXiv 2104.02057; facebookresearch/moco-v3,
CONFIG.md): AdamW (0.9, 0.999), base learning rate 1.5e-4 for 256 images, weight decay 0.1, 40 of 300 epochs warm-up,
frozen patch embedding. Every block has a projector of its own, on tokens that are widened to 2048 and averaged (arXiv
2302.01647). Smaller batches get four times as many dimensions as images, the ratio above. Images are resized to
448 x 448 before views are cut, in the image's own proportions.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of VICReg, small or for ImageNet."""
    config = recipe(
        argument,
        "vicreg",
        batch=2048,
        epochs=300.0,
        warmup_epochs=40.0,
        base_learning_rate=1.5e-4,
        weight_decay=0.1,
        b2=0.999,
    )
    config.model.freeze_embedding = config.model.image_size > 64
    return config
