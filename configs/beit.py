"""BEiT's masked prediction of visual tokens, with centroids of patches as tokens (not DALL-E's tokenizer).

    python -m blockjax.main --config configs/beit.py --workdir runs/beit

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/beit.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss starts at log 512 = 6.24; what
the tokens' frequencies alone give is in `token_entropy`.

Measured, 400 steps of 128 images, seed 0: loss 6.24–6.25 at the start, 4.10–4.12 at the end. Linear probe of blocks 1
to 4: 0.663 0.648 0.638 0.628; the twin 0.713 0.683 0.644 0.627; untrained 0.721, raw pixels 0.485.

Source: Bao et al., arXiv 2106.08254, table 12, and microsoft/unilm, beit/README.md (ImageNet-1k), beit/datasets.py and
beit/run_beit_pretraining.py: 75 of 196 patches masked in rectangles, AdamW (0.9, 0.98; the paper has 0.999), 1.5e-3 at
a batch of 2048, weight decay 0.05, 10 of 800 epochs warm-up, clipping at 3 (ViT-L: 1), crops of at least 0.08 of the
area, flips.

Deviations: the tokens are those of CCViT (arXiv 2303.04664), of the same crop at its full size: 2048 centroids for
blocks, and 8192, as many as BEiT has words, under end_to_end. Each block's gradient is clipped by itself. The encoder
is MAE's, with fixed positions, without LayerScale and relative positions; no stochastic depth (0.1 there) and no
colour jitter (0.4 in the paper, not in the code); the learning rate falls to 0, not to 1e-5; crops are bilinear.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of BEiT, small or for ImageNet."""
    config = recipe(
        argument,
        "beit",
        batch=2048,
        epochs=800.0,
        warmup_epochs=10.0,
        base_learning_rate=1.875e-4,  # 1.5e-3 at this batch
        weight_decay=0.05,
        b2=0.98,
        least_crop=0.08,
    )
    config.optimizer.b2 = 0.98
    config.optimizer.clip = 1.0 if config.model.preset in ("l", "h") else 3.0
    return config
