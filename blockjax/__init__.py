"""blockjax: block-wise self-supervised training of Vision Transformers in JAX.

The encoder is cut into gradient-isolated blocks. Each block has its own local loss, its own gradients and its own
optimizer state, so one block's activations are all that training holds at a time. `blockjax.strategies` has the
train steps as pure functions; `python -m blockjax.main` runs them.
"""

__version__ = "0.1.0"
