"""SimCLR: two views of an image attract each other, all other views of the batch repel.

    python -m blockjax.main --config configs/simclr.py --workdir runs/simclr

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/simclr.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts a little above log(2 batch - 1) = 5.54.

Measured, 400 steps of 128 images, seed 0: loss 5.94–6.30 at the start, 2.89–2.94 at the end. Linear probe of blocks 1
to 4: 0.787 0.793 0.782 0.768; the twin 0.770 0.782 0.772 0.762; untrained 0.722, raw pixels 0.485.

Chen et al., arXiv 2002.05709; optimizer as MoCo v3 has it for ViTs (arXiv 2104.02057): AdamW, base learning rate
1.5e-4, weight decay 0.1, 300 epochs, frozen patch embedding.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of SimCLR, small or for ImageNet."""
    config = recipe(
        argument, "simclr", batch=4096, epochs=300.0, base_learning_rate=1.5e-4, weight_decay=0.1
    )
    config.model.freeze_embedding = config.model.image_size > 64
    return config
