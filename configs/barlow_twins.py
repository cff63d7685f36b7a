"""Barlow Twins: views agree in each dimension of the embedding, and dimensions are uncorrelated.

    python -m blockjax.main --config configs/barlow_twins.py --workdir runs/barlow_twins

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/barlow_twins.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts below the number of dimensions, 4 x batch = 512,
as two views of an image are alike from the start.

Measured, 400 steps of 128 images, seed 0: loss 372.09–391.19 at the start, 93.70–95.97 at the end. Linear probe of
blocks 1 to 4: 0.751 0.724 0.706 0.719; the twin 0.729 0.709 0.700 0.705; untrained 0.722, raw pixels 0.485.

Source of the task: Zbontar et al., arXiv 2103.03230, and facebookresearch/barlowtwins, main.py: λ 0.0051, three layers
of 8192 at a batch of 2048, BYOL's views with crops of at least 0.08 of the area; block by block arXiv 2302.01647 and
shoaibahmed/blockwise_ssl, train.sh: 300 epochs, tokens that are widened to 2048 and averaged, a projector for each
block. Its noise is --config.noise=0.25.

Deviations: both are for ResNets, with LARS, weight decay 1e-6 and 10 epochs warm-up, and no recipe is published for
ViTs. So the optimizer is that of MoCo v3 with ViTs (arXiv 2104.02057; facebookresearch/moco-v3, CONFIG.md): AdamW
(0.9, 0.999), base learning rate 1.5e-4 for 256 images, weight decay 0.1, 40 of 300 epochs warm-up, frozen patch
embedding. Smaller batches get four times as many dimensions as images, the ratio above. Images are resized to
448 x 448 before views are cut, in the image's own proportions.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of Barlow Twins, small or for ImageNet."""
    config = recipe(
        argument,
        "barlow_twins",
        batch=2048,
        epochs=300.0,
        warmup_epochs=40.0,
        base_learning_rate=1.5e-4,
        weight_decay=0.1,
        b2=0.999,
    )
    config.model.freeze_embedding = config.model.image_size > 64
    return config
