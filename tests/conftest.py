"""Four CPU devices and strict JAX for every test; must run before JAX starts a backend."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Almost all time goes into compiling, and the compiled programs are tiny.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
from absl import flags

jax.config.update("jax_num_cpu_devices", 4)
# Many tests compile the same tiny programs.
cache = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_numpy_rank_promotion", "raise")
# grain's worker processes read absl flags, which only absl.app parses.
flags.FLAGS.mark_as_parsed()
