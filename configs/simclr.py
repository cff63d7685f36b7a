"""SimCLR: two views of an image attract each other, all other views of the batch repel.

    python -m blockjax.main --config configs/simclr.py --workdir runs/simclr

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/simclr.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts a little above log(2 batch - 1) = 5.54.

Measured, 400 steps of 128 images, seed 0: loss 5.94–6.30 at the start, 2.89–2.94 at the end. Linear probe of blocks 1
to 4: 0.787 0.793 0.782 0.768; the twin 0.770 0.782 0.772 0.762; untrained 0.722, raw pixels 0.485.

Source of the task: Chen et al., arXiv 2002.05709, and google-research/simclr, README.md, run.py, model_util.py and
data_util.py: temperature 0.1, batch 4096, three layers 2048 and 128 wide, jitter of strength 1, crops of at least 0.08
of the area. Of the optimizer: SimCLR on ViT-B in the paper of MoCo v3 (arXiv 2104.02057; figure 6, from 100 epochs,
which section 5 takes over to longer runs; no code): AdamW (0.9, 0.999), base learning rate 2e-4 for 256 images, weight
decay 0.1, 40 of 300 epochs warm-up, frozen patch embedding.

Deviations: AdamW in place of SimCLR's own LARS, for ViTs; the paper of MoCo v3 has BYOL's views and does not say all of
its head and temperature, so SimCLR's are kept; every block has a projector of its own, on tokens that are widened to
2048 and averaged (arXiv 2302.01647), not on CLS; images are resized to 448 x 448 before
views are cut, in the image's own proportions.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of SimCLR, small or for ImageNet."""
    config = recipe(
        argument,
        "simclr",
        batch=4096,
        epochs=300.0,
        warmup_epochs=40.0,
        base_learning_rate=2e-4,
        weight_decay=0.1,
        b2=0.999,
    )
    config.model.freeze_embedding = config.model.image_size > 64
    return config
