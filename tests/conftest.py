"""Four CPU devices and strict JAX for every test; must run before JAX starts a backend."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from absl import flags

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
# grain's worker processes read absl flags, which only absl.app parses.
flags.FLAGS.mark_as_parsed()
