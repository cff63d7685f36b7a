"""Context prediction: the direction in which a tile lies from the centre tile, of eight.

    python -m blockjax.main --config configs/context.py --workdir runs/context

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/context.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at log 8 = 2.08; a plateau there is normal.

Measured, 400 steps of 128 images, seed 0: loss 2.10 at the start, 1.50–1.55 at the end. Linear probe of blocks 1 to 4:
0.823 0.824 0.800 0.796; the twin 0.815 0.823 0.809 0.812; untrained 0.722, raw pixels 0.485.

Source: Doersch et al., arXiv 1505.05192, in the form of google/revisiting-self-supervised,
config/relative_patch_location/imagenet.sh and self_supervision/patch_utils.py: tiles of 64 pixels from a crop of 255,
grey images (0.66), tiles standardised one by one, all eight pairs with the centre, a hidden layer of 4096.

Deviations: that recipe is for ResNets, with SGD and 35 epochs, and none is published for ViTs. So the optimizer is the
one with which ViTs learn ImageNet's classes, DeiT's (arXiv 2012.12877; facebookresearch/deit, main.py): AdamW
(0.9, 0.999), 2.5e-4 for 256 images (5e-4 for 512 there), batch 1024, weight decay 0.05, 5 epochs warm-up, here of 100
epochs, there of 300. The crop is taken from an image whose shorter side is 256 pixels, not 292; images are resized to
448 x 448 first, and tiles cut from them in the image's own proportions.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of context prediction, small or for ImageNet."""
    return recipe(
        argument,
        "context",
        batch=1024,
        epochs=100.0,
        warmup_epochs=5.0,
        base_learning_rate=2.5e-4,
        weight_decay=0.05,
        b2=0.999,
    )
