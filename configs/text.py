r"""A causal language model block by block, on the source files of Python's own standard library: bytes, no download.

    python -m blockjax.main --config configs/text.py --workdir runs/text

Add --config.strategy=end_to_end (and another --workdir) for its twin under global backpropagation. Six minutes on one
CPU core. Bits per byte of the last block, mean of three seeds: 1.579, end to end 1.468; --config.overlap.window=2 1.498
(two seeds), for twice the time.

With arguments it takes real sizes and texts: the widths and depths of GPT-2 (model=gpt2, gpt2-medium, gpt2-large,
gpt2-xl), a text and a tokenizer:

    python -m blockjax.main --config configs/text.py:model=gpt2-medium,context=1024,batch=16,blocks=24,steps=100000 \
        --config.data.source=text:/path/to/folder --config.data.tokenizer=/path/to/tokenizer.json
"""

from blockjax.config import default_config, parse_argument


def get_config(argument=None):
    """Returns the config of a small model, or of the one that the argument names.

    Args:
      argument: `model=`, `context=`, `batch=`, `blocks=`, `steps=`, `strategy=`, `data=`, `objective=`.
    """
    given = parse_argument(
        argument,
        model="",
        context=0,
        batch=0,
        blocks=4,
        steps=0,
        strategy="blockwise",
        data="text:stdlib",
        objective="next_token",
    )
    config = default_config()
    config.objective = given["objective"]
    config.strategy = given["strategy"]
    config.blocks = given["blocks"]
    config.data.source = given["data"]
    if given["model"]:
        config.model.preset = given["model"]
        config.model.context = given["context"] or 1024
        config.batch_size = given["batch"] or 512
        config.steps = given["steps"] or 100_000
        # GPT-3's for this width (arXiv 2005.14165, table 2.1) are 6e-4 to 2.5e-4.
        config.optimizer.base_learning_rate = 3e-4 * 256 / config.batch_size
        config.optimizer.weight_decay = 0.1
        config.optimizer.clip = 1.0
        return config
    config.model.width, config.model.depth, config.model.heads = 96, 4, 3
    config.model.context = given["context"] or 128
    config.batch_size = given["batch"] or 32
    config.steps = given["steps"] or 1500
    config.optimizer.base_learning_rate = 5e-3 * 256 / config.batch_size
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip = 1.0
    config.probe.test_examples = 4000  # sequences of the held-out text
    return config
