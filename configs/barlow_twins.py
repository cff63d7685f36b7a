"""Barlow Twins: views agree in each dimension of the embedding, and dimensions are uncorrelated.

    python -m blockjax.main --config configs/barlow_twins.py --workdir runs/barlow_twins

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/barlow_twins.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at about the number of dimensions, 4 x batch = 512.

Zbontar et al., arXiv 2103.03230, λ 0.0051 and 8192 dimensions at a batch of 2048; block by block arXiv 2302.01647,
whose noise is --config.noise=0.25. There is no published recipe for ViTs; optimizer as MoCo v3 has it.
"""

from blockjax.recipes import recipe


def get_config(argument=None):
    """Returns the config of Barlow Twins, small or for ImageNet."""
    config = recipe(
        argument,
        "barlow_twins",
        batch=2048,
        epochs=300.0,
        base_learning_rate=1.5e-4,
        weight_decay=0.1,
    )
    config.model.freeze_embedding = config.model.image_size > 64
    return config
