"""MoCo v3, or with --config.momentum.queue MoCo v2.

    python -m blockjax.main --config configs/moco.py --workdir runs/moco

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/moco.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at about 0.8 log(batch) = 3.9.

Measured, 400 steps of 128 images, seed 0: loss 3.95–4.02 at the start, 2.41–2.53 at the end. Linear probe of blocks 1
to 4: 0.729 0.711 0.695 0.690; the twin 0.738 0.716 0.702 0.728; untrained 0.722, raw pixels 0.485.

Source: Chen et al., arXiv 2104.02057, and facebookresearch/moco-v3, CONFIG.md (ViT-Base), main_moco.py and
moco/builder.py: AdamW (0.9, 0.999), base learning rate 1.5e-4 for 256 images, weight decay 0.1, 40 of 300 epochs
warm-up, batch 4096, temperature 0.2, momentum from 0.99 to 1, heads 4096 and 256 wide, BYOL's views with crops of at
least 0.08 of the area, frozen patch embedding.

With a queue (65536 keys officially) head, decay and views are those of arXiv 2003.04297 and facebookresearch/moco: two
dense layers without BatchNorm, 128 wide at the end, 0.999 throughout, no predictor. The optimizer stays that of v3,
there it is SGD; and both views are queries, there the first alone.

Deviations: every block has a projector and a predictor of its own, on tokens that are widened to 2048 and averaged
(arXiv 2302.01647), not on CLS; images are resized to 448 x 448 before views are cut, in the image's own proportions;
only matrices decay, there all parameters; ViT-S has 6 heads, there 12.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of MoCo, small or for ImageNet."""
    config = recipe(
        argument,
        "moco",
        batch=4096,
        epochs=300.0,
        warmup_epochs=40.0,
        base_learning_rate=1.5e-4,
        weight_decay=0.1,
        b2=0.999,
    )
    config.model.freeze_embedding = config.model.image_size > 64
    return config
