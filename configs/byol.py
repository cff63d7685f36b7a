"""BYOL: predict what the averaged encoder makes of the other view.

    python -m blockjax.main --config configs/byol.py --workdir runs/byol

trains four blocks on the embedded images, on a CPU; :strategy=end_to_end is the twin under global backpropagation. For
ImageNet, on a pod or a large server (not trained here, so no accuracy is claimed):

    python -m blockjax.main --config configs/byol.py:model=b16,strategy=blockwise,blocks=4

More arguments: size, data, batch, epochs, steps. The loss, from 0 to 8, starts at about 4.

Measured, 400 steps of 128 images, seed 0: loss 3.97–4.06 at the start, 0.77–0.80 at the end. Linear probe of blocks 1
to 4: 0.705 0.698 0.699 0.714; the twin 0.702 0.692 0.690 0.697; untrained 0.722, raw pixels 0.485.

Source of the task: Grill et al., arXiv 2006.07733, and google-deepmind/deepmind-research, byol/configs/byol.py and
byol/utils: batch 4096, momentum from 0.99 to 1 (its preset for 300 epochs), heads 4096 and 256 wide, its views. Of the
optimizer: BYOL on ViT-B in the paper of MoCo v3 (arXiv 2104.02057; figure 6, from 100 epochs, which section 5 takes
over to longer runs; no code): AdamW (0.9, 0.999), base learning rate 1e-4 for 256 images, weight decay 0.03, 40 of 300
epochs warm-up, frozen patch embedding.

Deviations: AdamW in place of BYOL's own LARS, for ViTs; every block has a projector and a predictor of its own, on
tokens that are widened to 2048 and averaged (arXiv 2302.01647), not on CLS; the average starts equal to the encoder;
images are resized to 448 x 448 before views are cut, in the image's own proportions.
"""

from blockjax.config.recipes import recipe


def get_config(argument=None):
    """Returns the config of BYOL, small or for ImageNet."""
    config = recipe(
        argument,
        "byol",
        batch=4096,
        epochs=300.0,
        warmup_epochs=40.0,
        base_learning_rate=1e-4,
        weight_decay=0.03,
        b2=0.999,
    )
    if config.model.image_size > 64:
        config.model.freeze_embedding = True
        config.momentum.decay = 0.99
    return config
