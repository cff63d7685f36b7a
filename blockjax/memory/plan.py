"""`--plan`: the fastest settings of a config that fit a memory."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import ml_collections

from blockjax.config.fields import flatten
from blockjax.memory.jobs import run_job, sketches
from blockjax.memory.profiles import MIB
from blockjax.memory.search import Limits, Plan, search
from blockjax.memory.settings import beside, roots
from blockjax.report.table import render_table
from blockjax.xla.rates import Rates, rates_of
from blockjax.xla.targets import parse_target

_UNITS = {
    "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "MB": 10**6, "GB": 10**9, "TB": 10**12,
}  # fmt: skip


def parse_size(option: str, text: str) -> int:
    """Returns the bytes that a text such as "16GiB" says.

    Raises:
      ValueError: it cannot be read; names the option.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]+)", text.strip())
    if not match or match[2] not in _UNITS or not float(match[1]):
        raise ValueError(
            f"{option} {text!r}: a size is a number and one of {', '.join(_UNITS)}: 16GiB"
        )
    return int(float(match[1]) * _UNITS[match[2]])


def make_plan(
    config: ml_collections.ConfigDict,
    target: str,
    rates: Rates | None,
    limits: Limits,
    *,
    strategies: Sequence[str] = (),
    blocks: Sequence[int] = (),
    batches: Sequence[int] = (),
    most: int = 20,
) -> Plan:
    """Looks for the fastest settings of a config that fit, and says what it does.

    Args:
      config: as a config file returns it.
      target: see `parse_target`.
      rates: of a device, where the target is local.
      limits: what a setting has to fit.
      strategies: to choose from, see `roots`.
      blocks: K to choose from, see `beside`.
      batches: numbers of images to choose from; default: the config's.
      most: how many programs are compiled at most.

    Raises:
      ValueError: bad options, or nothing fits; says what would.
    """
    rates = rates or rates_of(parse_target(target))

    def trace(settings):
        return sketches([setting.apply(config) for setting in settings], target, rates)

    def compiled(setting):
        return run_job(setting.apply(config), target, rates=rates).profile

    def others(root):
        known = root.sketch
        is_moved = bool(known.estimate.link) or config.mesh.fsdp != 1
        return beside(root.setting, config, rows=known.rows, is_moved=is_moved, blocks=blocks)

    plan = search(
        roots(config, strategies, batches),
        trace,
        compiled,
        limits,
        beside=others,
        most=most,
        say=functools.partial(print, flush=True),
    )
    if not plan.fitting:
        raise ValueError(_nothing(plan))
    return plan


def _nothing(plan):
    """Says why nothing fits, and what would."""
    reasons = dict.fromkeys(plan.left_out.values())
    if not plan.refused:
        return f"no setting is possible: {'; '.join(reasons)}"
    known = [candidate for candidate in plan.refused if candidate.needed is not None]
    text = "nothing fits"
    if known:
        least = min(known, key=lambda candidate: candidate.needed)
        text += f"; nearest is {least.setting}: {least.refused}"
    rest = (
        ""
        if plan.is_complete
        else f" after {plan.compiled} compiled programs (--compiles for more)"
    )
    if reasons:
        rest += f". Left out: {'; '.join(reasons)}"
    return f"{text}{rest}. Give more memory, a smaller --batch, or all strategies"


def show_plan(plan: Plan, source: str, config: ml_collections.ConfigDict, target: str) -> None:
    """Prints the settings that fit, and how to run the fastest."""
    render_table(
        f"fastest by estimate, {source}, {target}",
        ["setting", "~images/s", "~ms a batch", "limited by", "MiB of a device", "MiB of the host"],
        [
            [
                str(candidate.setting),
                f"{candidate.images_per_second:,.0f}",
                f"{1e3 * candidate.seconds:.3g}",
                candidate.profile.estimate.limit,
                f"{candidate.profile.total / MIB:,.1f}",
                f"{candidate.host / MIB:,.1f}",
            ]
            for candidate in plan.fitting
        ],
    )
    print(f"programs compiled: {plan.compiled}{'; these do not fit:' if plan.refused else ''}")
    for candidate in plan.refused:
        print(f"  {candidate.setting}: {candidate.refused}")
    for reason in dict.fromkeys(plan.left_out.values()):
        names = [str(setting) for setting, text in plan.left_out.items() if text == reason]
        print(f"left out: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {reason}")
    if not plan.is_complete:
        print("faster ones may fit: no more programs were compiled (--compiles)")
    best = plan.fitting[0].setting
    given = flatten(config.to_dict())
    changes = [
        f"--config.{field}={value}"
        for field, value in best.fields().items()
        if value != (given[field] or (1 if field == "pipeline.batches" else None))
    ]
    command = " ".join(
        ["python -m blockjax.main", f"--config {source}", *changes, "--workdir WORKDIR"]
    )
    print(f"to run the fastest: {command}", flush=True)


def lines(plan: Plan) -> list[dict[str, Any]]:
    """Returns what `--json` writes: a line for each setting that was compiled or refused, those that fit first."""
    found = []
    for candidate in (*plan.fitting, *plan.refused):
        line = {
            **candidate.setting.fields(),
            "fits": candidate.refused is None,
            "refused": candidate.refused,
            "estimated_seconds": candidate.seconds,
            "estimated_images_per_second": candidate.images_per_second,
            "host_bytes": candidate.host,
        }
        if candidate.profile is not None:
            line["total_device_bytes"] = candidate.profile.total
            line["estimated_limit"] = candidate.profile.estimate.limit
            line["estimated_parts"] = dataclasses.asdict(candidate.profile.estimate)
        found.append(line)
    return found
