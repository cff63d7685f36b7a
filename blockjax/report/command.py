"""What every command does around its work: the compilation cache, and sentences for errors."""

import os
from pathlib import Path

import jax


def what_happened(error: jax.errors.JaxRuntimeError, workdir: str | os.PathLike) -> str | None:
    """Returns a sentence on an error of the running program, or None where only its own text can help."""
    text = " ".join(str(error).split())[:300]
    if "RESOURCE_EXHAUSTED" in text:
        return (
            f"error: out of memory ({text}). Try --config.remat=layer, more --config.blocks, --config.microbatches=4, "
            "--config.strategy=streamed or a smaller --config.batch_size; `python -m blockjax.memory` compares them."
        )
    if jax.process_count() == 1:
        return None
    return (
        f"error: process {jax.process_index()} of {jax.process_count()} stops, as it seems that another one died "
        f"or cannot be reached ({text}). Start the same command on every machine again: it goes on from the "
        f"newest checkpoint in {workdir}."
    )


def use_compilation_cache():
    """Keeps compiled programs between runs; $JAX_COMPILATION_CACHE_DIR chooses where."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "blockjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
