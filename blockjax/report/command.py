"""What every command does around its work: it can print anything, keeps compiled programs, and fails in sentences."""

import errno
import os
import sys
from pathlib import Path

import jax

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def begin() -> None:
    """Prepares a command, before devices are used: what it prints, and the cache of compiled programs."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a stream that knows ASCII only must not end a run
            stream.reconfigure(errors="backslashreplace")
    use_compilation_cache()


def check_devices() -> None:
    """Ends the command with a sentence where JAX has no devices, as for a platform that is not there."""
    try:
        jax.devices()
    except RuntimeError as error:
        asked = os.environ.get("JAX_PLATFORMS")
        text = " ".join(str(error).split())[:300]
        hint = (
            f"JAX_PLATFORMS={asked} asks for it; set it to cpu, cuda or tpu, or unset it"
            if asked
            else ""
        )
        sys.exit(f"error: JAX finds no devices: {text}. {hint}".rstrip(". ") + ".")


def what_happened(error: Exception, workdir: str | os.PathLike) -> str | None:
    """Returns a sentence on an error of the running program, or None where only its own text can help.

    Args:
      error: a `JaxRuntimeError` or an `OSError`.
      workdir: of the run.
    """
    text = " ".join(str(error).split())[:300]
    if isinstance(error, OSError):
        if error.errno not in _FULL:
            return None
        return (
            f"error: {error.filename or workdir} cannot be written: {error.strerror}. Free space there or lift the "
            f"limit on file sizes; then the same command goes on from the newest checkpoint in {workdir}."
        )
    if "RESOURCE_EXHAUSTED" in text:
        return (
            f"error: out of memory ({text}). Try --config.remat=layer, more --config.blocks, --config.microbatches=4, "
            "--config.strategy=streamed, a smaller --config.batch_size, or, where blocks stay, a smaller "
            "--config.pipeline.batches; `python -m blockjax.memory` compares them."
        )
    if jax.process_count() == 1:
        return None
    return (
        f"error: process {jax.process_index()} of {jax.process_count()} stops, as it seems that another one died "
        f"or cannot be reached ({text}). Start the same command on every machine again: it goes on from the "
        f"newest checkpoint in {workdir}."
    )


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs; $JAX_COMPILATION_CACHE_DIR chooses where."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "blockjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
