"""Fine-tunes an encoder with labels.

    python -m blockjax.finetune --config configs/finetune.py --config.backbone=runs/quickstart --workdir runs/finetune

The backbone is a workdir (--config.depth_blocks=3 takes its first three blocks), a folder that was exported, or a file
of weights. --config.tune_blocks=1 trains the last block only, 0 the classifier alone; --config.from_scratch=True
starts an encoder of the same size from random numbers; with another --config.model.image_size than the backbone's its
positions are interpolated, and train if the first block does; --config.data.fraction=0.01 takes one label in a hundred;
--config.strategy=blockwise gives every block a classifier of its own. Accuracy is that of all test images.

It is for backbones of configs/quickstart.py, on its data. --config configs/finetune.py:recipe=digits is for
those of configs/digits.py; measured there with all 4,000 labels, mean of seeds 0, 1 and 2: 0.886 from block-wise
training, 0.861 from its end-to-end twin, 0.465 from random numbers; 6 minutes on one core. With a tenth of the labels
(data.fraction=0.1, steps=300) 0.740, 0.604 and 0.245.

--config configs/finetune.py:steps=300,rate=4e-3,shift=0,pool=1 sets the length, the base learning rate, the largest
shift and classifier.pool where nothing else can, as in python -m blockjax.compare --finetune.

--config configs/finetune.py:recipe=mae is MAE's recipe for ViT-B on ImageNet. Source: facebookresearch/mae, FINETUNE.md
(arXiv 2111.06377, table 9, has 1e-3, layer decay 0.75 and no erasing) and main_finetune.py: AdamW (0.9, 0.999), base
learning rate 5e-4 for 256 images, batch 1024, weight decay 0.05, layer decay 0.65, 5 of 100 epochs warm-up, stochastic
depth 0.1, label smoothing 0.1, mixup 0.8, cutmix 1, erasing 0.25, crops of at least 0.08 of the area. Larger encoders
have 1e-3, 0.75, 50 epochs, and 0.2 (ViT-L) or 0.3 (ViT-H) there.

Deviations: no RandAugment, which blockjax does not have; the learning rate falls to 0, not to 1e-6; crops are bilinear.
"""

from blockjax.config import default_config, parse_argument


def get_config(argument=None):
    """Returns the config of a fine-tuning; the model is the backbone's."""
    given = parse_argument(argument, recipe="quickstart", steps=0, rate=0.0, shift=-1, pool=0)
    recipe = given["recipe"]
    if recipe not in ("quickstart", "digits", "mae"):
        raise ValueError(
            f"config argument recipe={recipe} is unknown; it may be quickstart, digits or mae"
        )
    config = default_config()
    config.objective = "classification"
    config.strategy = "end_to_end"
    with config.ignore_type():  # all of these are the backbone's
        config.blocks = None
        config.model.preset = config.model.image_size = config.model.patch_size = None

    config.optimizer.b2 = 0.999
    config.classifier.drop_path = 0.1
    config.classifier.label_smoothing = 0.1
    config.log.monitor_every = 0
    config.log.every = 10
    config.probe.pool = 1
    if recipe == "mae":
        config.batch_size = 1024
        config.epochs = 100
        config.data.source = "tfds:imagenet2012"
        config.data.test_split = "validation"
        config.data.crop_scale = (0.08, 1.0)
        config.data.workers = 8
        config.classifier.mixup, config.classifier.cutmix = 0.8, 1.0
        config.classifier.erase = 0.25
        config.optimizer.base_learning_rate = 5e-4
        config.optimizer.layer_decay = 0.65
    else:
        config.batch_size = 64
        # Digits must not be mirrored, and a crop would cut them.
        config.data.flip, config.data.crop_scale = False, (1.0, 1.0)
        config.optimizer.base_learning_rate = 1.6e-2  # 4e-3 at this batch
        config.optimizer.layer_decay = 0.75
    if recipe == "digits":
        config.steps, config.data.shift = 800, 3
    if recipe == "quickstart":
        config.steps, config.data.source = 600, "embedded:scenes"
        config.classifier.pool = 4  # which digit stands where is what the class depends on
    if given["steps"]:
        config.steps, config.epochs = given["steps"], None
    if given["rate"]:
        config.optimizer.base_learning_rate = given["rate"]
    if given["shift"] >= 0:
        config.data.shift = given["shift"]
    if given["pool"]:
        config.classifier.pool = given["pool"]
    return config
