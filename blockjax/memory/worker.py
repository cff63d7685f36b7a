"""The process behind `run_job`: reads a job, compiles it, writes what it found."""

import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import ml_collections
from jax.sharding import NamedSharding, PartitionSpec

from blockjax.memory.profiles import DoesNotFit, compile_step, place_config
from blockjax.memory.sketch import sketch
from blockjax.workdir.files import write_json_atomic
from blockjax.xla.calibration import measured_rates
from blockjax.xla.rates import Rates
from blockjax.xla.targets import local_limit, parse_target

_STEPS = 5


def work(job: dict) -> dict:
    """Compiles, and runs if asked to, or traces, or measures rates.

    For the dictionaries see `run_job`, `sketches` and `local_rates`.
    """
    if "calibrate" in job:
        return {"rates": dataclasses.asdict(measured_rates(jax.devices()))}
    target = parse_target(job["target"])
    devices = target.devices()
    limit = target.limit if target.limit is not None else local_limit(devices[0])
    rates = job["rates"] and Rates(**job["rates"])
    if "sketches" in job:
        return {"sketches": [_sketch(config, devices, limit, rates) for config in job["sketches"]]}
    placement, config = place_config(ml_collections.ConfigDict(job["config"]), devices)
    compiled, profile = compile_step(placement, config.batch_size, limit, rates)
    size, seconds = None, None
    if job["measure"]:
        size, seconds = _measure(compiled, placement, config.batch_size)
    return {"profile": dataclasses.asdict(profile), "measured": size, "seconds": seconds}


def _sketch(config, devices, limit, rates):
    try:
        placement, config = place_config(ml_collections.ConfigDict(config), devices)
        return dataclasses.asdict(sketch(placement, config, limit, rates))
    except ValueError as error:
        return {"error": str(error)}


def _measure(compiled, placement, batch_size):
    """Runs a few steps.

    Returns:
      The peak of the device's memory, of the process's resident memory on CPU; and the median of the seconds of a
      batch, without the first step.
    """
    learner, mesh = placement.learner, placement.mesh
    device = mesh.devices.flat[0]
    before = _resident("VmRSS") if device.platform == "cpu" else 0
    if device.platform == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak that compiling left
    state = placement.init_for(compiled, jax.random.key(0))
    batch = placement.place([learner.batch.random(batch_size)] * (learner.batches or 1))
    key = jax.device_put(jax.random.key(1), NamedSharding(mesh, PartitionSpec()))
    times = []
    for _ in range(1 + _STEPS):
        start = time.perf_counter()
        state, metrics = compiled(state, batch, key)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[1:]) / (learner.batches or 1)
    if device.platform == "cpu":
        return _resident("VmHWM") - before, seconds
    return device.memory_stats()["peak_bytes_in_use"], seconds


def _resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 2**10
    raise ValueError(f"this system does not tell {field} of a process")


def main() -> None:
    """Runs the job in the file of the first argument, and writes the result to the second."""
    job, found = map(Path, sys.argv[1:])
    try:
        result = work(json.loads(job.read_text()))
    except DoesNotFit as error:
        figures = {"needed": error.needed, "limit": error.limit, "devices": error.devices}
        result = {"error": str(error), "does_not_fit": figures}
    except ValueError as error:
        result = {"error": str(error), "does_not_fit": None}
    except jax.errors.JaxRuntimeError as error:
        text = " ".join(str(error).split())[:400]
        result = {"error": f"the compiler refuses: {text}", "does_not_fit": None}
    write_json_atomic(found, result)


if __name__ == "__main__":
    main()
