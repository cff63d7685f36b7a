"""Jigsaw puzzles: the permutation by which nine tiles were shuffled, of 1000.

    python -m blockjax.main --config configs/jigsaw.py --workdir runs/jigsaw

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/jigsaw.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at log 1000 = 6.91; a long plateau there is normal.

Measured, 400 steps of 128 images, seed 0: loss 6.93–6.94 at the start, 4.10–4.21 at the end. Linear probe of blocks 1
to 4: 0.756 0.729 0.740 0.729; the twin 0.742 0.748 0.735 0.737; untrained 0.722, raw pixels 0.485.

Source: Noroozi and Favaro, arXiv 1603.09246, and MehdiNoroozi/JigsawPuzzleSolver: tiles of 64 pixels from a crop of
255 of an image of 256. Grey images (0.66), tiles standardised one by one, 1000 features of a tile, a hidden layer of
4096 and eight permutations of an image are google/revisiting-self-supervised's, config/jigsaw/imagenet.sh and
self_supervision/jigsaw.py.

Deviations: 1000 permutations with a Hamming distance of at least 6, where published sets have near duplicates. Both
recipes are for convolutional networks, with SGD (35 epochs in the second), and none of this form is published for
ViTs. So the optimizer is the one with which ViTs learn ImageNet's classes, DeiT's (arXiv 2012.12877;
facebookresearch/deit, main.py): AdamW (0.9, 0.999), 2.5e-4 for 256 images (5e-4 for 512 there), batch 1024, weight
decay 0.05, 5 epochs warm-up, here of 100 epochs, there of 300. Images are resized to 448 x 448 first,
and tiles cut from them in the image's own proportions.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of jigsaw, small or for ImageNet."""
    return recipe(
        argument,
        "jigsaw",
        batch=1024,
        epochs=100.0,
        warmup_epochs=5.0,
        base_learning_rate=2.5e-4,
        weight_decay=0.05,
        b2=0.999,
    )
