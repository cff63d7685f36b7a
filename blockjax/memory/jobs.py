"""Compiles a config's train step for any target, in processes of their own where backends and flags would mix."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections

from blockjax import config as config_lib
from blockjax.memory.profiles import DoesNotFit, MemoryProfile, compile_step, place_config
from blockjax.memory.sketch import Sketch
from blockjax.xla.buffers import Breakdown, read_breakdown
from blockjax.xla.rates import Rates, rates_of
from blockjax.xla.roofline import Estimate
from blockjax.xla.targets import local_limit, parse_target


@dataclasses.dataclass(frozen=True)
class Result:
    """What one process found.

    Attributes:
      profile: of the compiled step.
      measured: bytes that running a few steps really took, if asked for.
      seconds: that a batch really took, if asked for.
      breakdown: of the memory at its peak, if asked for.
    """

    profile: MemoryProfile
    measured: int | None = None
    seconds: float | None = None
    breakdown: Breakdown | None = None


def profile(config: ml_collections.ConfigDict, target: str = "local") -> MemoryProfile:
    """Compiles a config's train step, allocating nothing, and returns its memory on one device.

    It is the step that `python -m blockjax.main` runs: the same function, shardings and donation.

    Args:
      config: as a config file returns it.
      target: see `parse_target`. "local" is compiled in this process, anything else in one of its own.

    Raises:
      ValueError: a bad config or target, or a package that must be installed first.
      DoesNotFit: the compiler refuses, since the device has too little memory.
    """
    if parse_target(target).kind != "local":
        return run_job(config, target).profile
    placement, config = place_config(config, jax.devices())
    return compile_step(placement, config.batch_size, local_limit(jax.devices()[0]))[1]


def run_job(
    config: ml_collections.ConfigDict,
    target: str,
    *,
    measure: bool = False,
    breakdown: bool = False,
    dump: Path | None = None,
    rates: Rates | None = None,
) -> Result:
    """Compiles a config's train step for a target in a new process; a compiler that crashes costs this figure only.

    Args:
      config: as a config file returns it.
      target: see `parse_target`.
      measure: also run a few steps; local only.
      breakdown: also read where the bytes go.
      dump: folder for all that XLA writes about the program; None throws it away.
      rates: of a device, for the estimate of the time; default: its maker's, and none for local.

    Raises:
      ValueError: a bad config or target, a missing package, or a compiler that crashed.
      DoesNotFit: the compiler refuses, since the device has too little memory.
    """
    parsed = parse_target(target)
    rates = rates or rates_of(parsed)
    environment = parsed.environment()
    with tempfile.TemporaryDirectory(prefix="blockjax_") as folder:
        written = Path(dump) if dump else Path(folder) / "xla"
        if breakdown or dump:
            flags = f"--xla_dump_to={written} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*train_step.*"
            present = environment.get("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
            environment["XLA_FLAGS"] = f"{present} {flags}".strip()
        if measure:
            environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        job = {"config": config_lib.to_json(config), "target": target, "measure": measure}
        result = _work({**job, "rates": rates and dataclasses.asdict(rates)}, environment)
        found = result["profile"]
        found["estimate"] = found["estimate"] and Estimate(**found["estimate"])
        return Result(
            MemoryProfile(**found),
            result["measured"],
            result["seconds"],
            read_breakdown(written) if breakdown else None,
        )


def sketches(
    configs: Sequence[ml_collections.ConfigDict], target: str, rates: Rates
) -> list[Sketch | str]:
    """Traces the steps of configs for a target in a new process.

    Args:
      configs: as a config file returns them.
      target: see `parse_target`.
      rates: of a device.

    Returns:
      Of each a sketch, or why there is no such step.

    Raises:
      ValueError: a missing package, or a process that crashed.
    """
    parsed = parse_target(target)
    job = {"sketches": [config_lib.to_json(config) for config in configs], "target": target}
    result = _work({**job, "rates": dataclasses.asdict(rates)}, parsed.environment())
    return [
        found["error"]
        if "error" in found
        else Sketch(**{**found, "estimate": Estimate(**found["estimate"])})
        for found in result["sketches"]
    ]


def local_rates() -> Rates:
    """Measures the rates of the attached devices in a process of its own, which takes seconds.

    Raises:
      ValueError: that process crashed.
    """
    return Rates(**_work({"calibrate": True}, {})["rates"])


def _work(job, environment):
    """Runs a job in a process of its own, see `blockjax.memory.worker`."""
    with tempfile.TemporaryDirectory(prefix="blockjax_") as folder:
        given, found = Path(folder) / "job.json", Path(folder) / "result.json"
        given.write_text(json.dumps(job))
        process = subprocess.run(
            [sys.executable, "-m", "blockjax.memory.worker", str(given), str(found)],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if not found.exists():
            raise ValueError(_crash(process))
        result = json.loads(found.read_text())
    if "error" in result:
        if result["does_not_fit"] is not None:
            raise DoesNotFit(result["error"], **result["does_not_fit"])
        raise ValueError(result["error"])
    return result


def _crash(process):
    how = f"exit status {process.returncode}"
    if process.returncode < 0:
        how = signal.Signals(-process.returncode).name
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    last = f": {lines[-1][:200]}" if lines else ""
    return f"the compiler's process died ({how}){last}"
