"""Eight CPU devices and strict JAX for every test; must run before JAX starts a backend."""

import os
import pathlib

import jax
import pytest
from absl import flags

from blockjax.probes import features

os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])
# Almost all time goes into compiling, and the compiled programs are tiny.
quick = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # later ones have no other emitters
    quick += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", quick)
# Programs for TPUs keep everything in HBM: else the compiler moves arrays to a memory that it does not count.
os.environ.setdefault("LIBTPU_INIT_ARGS", "--xla_vf_vmem_memory_space_assignment=false")

jax.config.update("jax_num_cpu_devices", 8)
# Many tests compile the same tiny programs.
cache = pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_numpy_rank_promotion", "raise")
# grain's worker processes read absl flags, which only absl.app parses.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True, scope="session")
def coarse_pixels():
    """Raw pixels are probed at 8 a side: a ridge regression of 3,072 features takes longer than a whole tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_PIXEL_SIDE", 8)
        yield


# Linux allows a process 65,530 mappings; every compiled program takes a few, and a process that has none left crashes.
_MANY_MAPPINGS = 30_000


@pytest.fixture(autouse=True, scope="module")
def dropped_programs():
    """Drops compiled programs between files, where they are many."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()
