"""Rotation prediction (RotNet): by how many quarter turns an image was rotated.

    python -m blockjax.main --config configs/rotation.py --workdir runs/rotation

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/rotation.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at log 4 = 1.39.

Measured, 400 steps of 128 images, seed 0: loss 1.39 at the start, 0.80–0.83 at the end. Linear probe of blocks 1 to 4:
0.791 0.777 0.770 0.754; the twin 0.773 0.801 0.793 0.772; untrained 0.722, raw pixels 0.485.

Source: Gidaris et al., arXiv 1803.07728, and gidariss/FeatureLearningRotNet, config/ImageNet_RotNet_AlexNet.py and
dataloader.py: all four rotations of each image in a batch, crops of at least 0.08 of the area, flips.

Deviations: that recipe is for AlexNet, with SGD, 192 images and 50 epochs, and none is published for rotation alone
with a ViT on ImageNet. So the optimizer is the one with which ViTs learn ImageNet's classes, DeiT's (arXiv 2012.12877;
facebookresearch/deit, main.py): AdamW (0.9, 0.999), 2.5e-4 for 256 images (5e-4 for 512 there), batch 1024, weight
decay 0.05, 5 epochs warm-up, without its augmentations and stochastic depth. A run has 100 epochs, where DeiT has 300
and rotation with ResNets 35 (google/revisiting-self-supervised, config/rotation/imagenet.sh) to 105.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of rotation, small or for ImageNet."""
    return recipe(
        argument,
        "rotation",
        batch=1024,
        epochs=100.0,
        warmup_epochs=5.0,
        base_learning_rate=2.5e-4,
        weight_decay=0.05,
        b2=0.999,
        least_crop=0.08,
    )
