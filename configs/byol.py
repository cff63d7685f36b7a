"""BYOL: predict what the averaged encoder makes of the other view.

    python -m blockjax.main --config configs/byol.py --workdir runs/byol

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/byol.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at about 4 of 8.

Measured, 400 steps of 128 images, seed 0: loss 3.97–4.06 at the start, 0.77–0.80 at the end. Linear probe of blocks 1
to 4: 0.705 0.698 0.699 0.714; the twin 0.702 0.692 0.690 0.697; untrained 0.722, raw pixels 0.485.

Grill et al., arXiv 2006.07733; optimizer as MoCo v3 has it for ViTs (arXiv 2104.02057): AdamW, base learning rate
1.5e-4, weight decay 0.1, 300 epochs, frozen patch embedding.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of BYOL, small or for ImageNet."""
    config = recipe(
        argument, "byol", batch=4096, epochs=300.0, base_learning_rate=1.5e-4, weight_decay=0.1
    )
    config.model.freeze_embedding = config.model.image_size > 64
    return config
