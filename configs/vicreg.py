"""VICReg: views agree, dimensions keep their variance and are uncorrelated.

    python -m blockjax.main --config configs/vicreg.py --workdir runs/vicreg

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/vicreg.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at about 25 to 40.

Measured, 400 steps of 128 images, seed 0: loss 36.78–39.46 at the start, 18.32–18.67 at the end. Linear probe of blocks
1 to 4: 0.751 0.738 0.734 0.705; the twin 0.731 0.711 0.709 0.705; untrained 0.722, raw pixels 0.485.

Bardes et al., arXiv 2105.04906: weights 25, 25 and 1, 8192 dimensions at a batch of 2048. There is no published recipe
for ViTs; optimizer as MoCo v3 has it.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of VICReg, small or for ImageNet."""
    config = recipe(
        argument, "vicreg", batch=2048, epochs=300.0, base_learning_rate=1.5e-4, weight_decay=0.1
    )
    config.model.freeze_embedding = config.model.image_size > 64
    return config
