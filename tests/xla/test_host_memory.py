"""Memory that is kept between steps."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
import sys

import jax
import jax.numpy as jnp

from blockjax.xla.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
values = jnp.ones((5000, 16))
program = jax.jit(lambda x: jnp.exp(x @ x.T) @ x)
assert program.lower(values).compile().memory_analysis().temp_size_in_bytes > 2**26

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(values).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(8)))  # the system may take pages back at any time
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_a_step_takes_no_new_pages_from_the_operating_system():
    def least(how):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return int(done.stdout)

    assert least("keep") < 1000 < least("give back")
