"""BEiT's masked prediction of visual tokens, with centroids of patches as tokens (not DALL-E's tokenizer).

    python -m blockjax.main --config configs/beit.py --workdir runs/beit

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/beit.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at log 512 = 6.24; what
the tokens' frequencies alone give is in `token_entropy`.

Measured, 400 steps of 128 images, seed 0: loss 6.24–6.25 at the start, 4.10–4.12 at the end. Linear probe of blocks 1
to 4: 0.663 0.648 0.638 0.628; the twin 0.713 0.683 0.644 0.627; untrained 0.721, raw pixels 0.485.

Bao et al., arXiv 2106.08254, and microsoft/unilm, beit: 40 % of the patches masked in rectangles, AdamW (0.9, 0.98),
1.5e-3 at a batch of 2048, weight decay 0.05, clipping at 3, 800 epochs. The tokens are those of CCViT (arXiv
2303.04664): 2048 centroids for blocks, and 8192, as many as BEiT has words, under end_to_end.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of BEiT, small or for ImageNet."""
    config = recipe(
        argument, "beit", batch=2048, epochs=800.0, base_learning_rate=1.9e-4, weight_decay=0.05
    )
    config.optimizer.b2 = 0.98
    config.optimizer.clip = 3.0
    return config
