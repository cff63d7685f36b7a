"""Jigsaw puzzles: the permutation by which nine tiles were shuffled, of 1000.

    python -m blockjax.main --config configs/jigsaw.py --workdir runs/jigsaw

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/jigsaw.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at log 1000 = 6.91; a long plateau there is normal.

Measured, 400 steps of 128 images, seed 0: loss 6.93–6.94 at the start, 4.10–4.21 at the end. Linear probe of blocks 1
to 4: 0.756 0.729 0.740 0.729; the twin 0.742 0.748 0.735 0.737; untrained 0.722, raw pixels 0.485.

Noroozi and Favaro, arXiv 1603.09246: tiles of 64 pixels from a crop of 255, 1000 permutations, here with a Hamming
distance of at least 6. There is no published recipe of this form for ViTs; AdamW as for the other objectives.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of jigsaw, small or for ImageNet."""
    return recipe(
        argument, "jigsaw", batch=1024, epochs=100.0, base_learning_rate=5e-4, weight_decay=0.05
    )
