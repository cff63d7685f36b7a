"""blockjax: block-wise self-supervised training of Vision Transformers in JAX.

The encoder is cut into gradient-isolated blocks. Each block has its own local loss, its own gradients and its own
optimizer state, so one block's activations are all that training holds at a time. `blockjax.strategies` has the
train steps as pure functions; `python -m blockjax.main` runs them; `blockjax.load` opens what they trained.
"""

__version__ = "0.1.0"


def __getattr__(name):
    # Loaded when it is used: `python -m blockjax.main --help` stays quick.
    if name == "load":
        from blockjax.weights.loading import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
