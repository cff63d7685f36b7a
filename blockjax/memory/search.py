"""Looks for the fastest settings that fit, compiling as few as possible."""

import dataclasses
import heapq
import itertools
import time
from collections.abc import Callable, Sequence

from blockjax.memory.profiles import MIB, DoesNotFit, MemoryProfile
from blockjax.memory.report import without_figure
from blockjax.memory.settings import Setting, smaller
from blockjax.memory.sketch import Sketch


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A setting, and what is known of it.

    Attributes:
      setting: what it is.
      sketch: of its traced step.
      profile: of its compiled step; None where it was not compiled, or the compiler refused.
      refused: why it does not fit; None if it does, or nobody knows.
      needed: bytes of the device, or of host memory, that it is known to need, where it does not fit.
    """

    setting: Setting
    sketch: Sketch
    profile: MemoryProfile | None = None
    refused: str | None = None
    needed: int | None = None

    @property
    def seconds(self) -> float:
        """Estimated seconds of a batch."""
        known = self.sketch if self.profile is None else self.profile
        return known.estimate.seconds

    @property
    def images_per_second(self) -> float:
        """Estimated."""
        return self.setting.batch / self.seconds

    @property
    def host(self) -> int:
        """Bytes of host memory for each device, as far as they are known."""
        return max(self.sketch.host, self.profile.host if self.profile else 0)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a setting has to fit.

    Attributes:
      device: bytes of a device; None: what it has.
      host: bytes of host memory for each device; None: as much as is needed.
    """

    device: int | None = None
    host: int | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was found.

    Attributes:
      fitting: the fastest first.
      refused: what does not fit.
      left_out: settings that cannot be, and why.
      compiled: how many programs were.
      is_complete: whether nothing faster can be among the rest, by the estimates.
    """

    fitting: list[Candidate]
    refused: list[Candidate]
    left_out: dict[Setting, str]
    compiled: int
    is_complete: bool


def search(
    first: Sequence[Setting],
    sketch: Callable[[list[Setting]], list[Sketch | str]],
    compile_setting: Callable[[Setting], MemoryProfile],
    limits: Limits,
    *,
    beside: Callable[[Candidate], list[Setting]] = lambda root: [],
    wanted: int = 3,
    most: int = 20,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Finds the fastest settings that fit, best first.

    Settings are traced, which gives a bound of their memory and an estimate of their time; those whose states alone are
    too large go at once. Then the fastest is compiled. If it does not fit, settings that need less memory and take no
    less time join (see `smaller`), and so on: whatever fits first is the fastest.

    Args:
      first: where to begin.
      sketch: traces settings; a text is the reason why there is no such step.
      compile_setting: raises DoesNotFit if the compiler refuses, and ValueError if it crashes.
      limits: what a setting has to fit.
      beside: further settings of each of `first`.
      wanted: how many are looked for.
      most: how many programs are compiled at most.
      say: is told what is done.
    """
    heap, order, seen = [], itertools.count(), set()
    fitting, refused, left_out, compiled = [], [], {}, 0

    def push(candidate):
        key = candidate.seconds / candidate.setting.batch
        heapq.heappush(heap, (key, next(order), candidate))

    def trace(settings):
        new = [setting for setting in dict.fromkeys(settings) if setting not in seen]
        seen.update(new)
        if new:
            say(f"tracing {len(new)}")
        found = []
        for setting, known in zip(new, sketch(new) if new else (), strict=True):
            if isinstance(known, str):
                left_out[setting] = known
                continue
            if known.estimate.seconds is None:
                left_out[setting] = without_figure(known.estimate.limit)
                continue
            candidate = _bounded(Candidate(setting, known), limits)
            found.append(candidate)
            if candidate.refused:
                refused.append(candidate)
            else:
                push(candidate)
        return found

    trace([setting for root in trace(first) for setting in beside(root)])
    begin = time.monotonic()
    while heap and len(fitting) < wanted:
        if heap[0][2].profile is None and compiled == most:
            break
        _, _, candidate = heapq.heappop(heap)
        if candidate.profile is not None:
            fitting.append(candidate)
            continue
        left = ""
        if compiled:
            seconds = (time.monotonic() - begin) / compiled * (most - compiled)
            left = f" (about {seconds / 60:.0f} min left at most)"
        compiled += 1
        rate = f"~{candidate.images_per_second:,.0f} images/s"
        say(f"compiling {compiled} of at most {most}: {candidate.setting}, {rate}{left}")
        try:
            profile = compile_setting(candidate.setting)
        except DoesNotFit as error:
            candidate = dataclasses.replace(candidate, refused=str(error), needed=error.needed)
        except ValueError as error:
            left_out[candidate.setting] = str(error)
            continue
        else:
            candidate = _bounded(dataclasses.replace(candidate, profile=profile), limits)
        if candidate.refused:
            say(f"  {candidate.refused}")
            refused.append(candidate)
            trace(smaller(candidate.setting))
        else:
            push(candidate)
    rest = [candidate for _, _, candidate in sorted(heap)]
    is_complete = bool(fitting) or all(candidate.profile for candidate in rest)
    fitting += [candidate for candidate in rest if candidate.profile is not None]
    return Plan(fitting[:wanted], refused, left_out, compiled, is_complete)


def _bounded(candidate, limits):
    """Returns a candidate that says why it does not fit, if it does not, by what is known of it."""
    known, profile, setting = candidate.sketch, candidate.profile, candidate.setting
    limit = known.limit if limits.device is None else limits.device
    needed = known.device if profile is None else profile.total
    if limit is not None and needed > limit:
        what = "states and images alone take" if profile is None else "takes"
        text = f"{what} {needed / MIB:,.1f} MiB of {limit / MIB:,.1f}"
        room = limit - (known.device - setting.batches * known.images)
        if setting.batches > 1 and profile is None and room >= known.images:
            text += f"; pipeline.batches of at most {room // known.images} would leave room"
        return dataclasses.replace(candidate, refused=text, needed=needed)
    if limits.host is not None and candidate.host > limits.host:
        text = (
            f"takes {candidate.host / MIB:,.1f} MiB of host memory for each device, and there are "
            f"{limits.host / MIB:,.1f}"
        )
        return dataclasses.replace(candidate, refused=text, needed=candidate.host)
    return candidate
