"""Reads what XLA writes about its buffers (`--xla_dump_to`): who lies where in device memory, and when."""

import bisect
import dataclasses
import re
from collections import defaultdict
from pathlib import Path

# In the buffer assignment: "allocation 3: size 4096, color 1, preallocated-temp:" and below it its values,
# " value: <87 fusion.2{0} (phi) @0> (size=512,offset=128): f32[8,16]{1,0}".
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(?:, color (\d+))?, (.*):\s*$")
_VALUE = re.compile(
    r"^ value: <\d+ (\S+?)(\{[\d,]*\})?( \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\): (.*)$"
)
# In the live ranges: "    fusion.2{0}:49-51", in places of the program's order.
_LIVE = re.compile(r"^\s+(\S+\{[\d,]*\}):(\d+)-(\d+)$")
# In the program: the name of an instruction, and the operation of the source that it comes from.
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}]*?op_name="([^"]*)"')
# What the compiler itself adds, such as copies to and from a faster memory of the chip, stands for its first operand.
_COPY = re.compile(
    r"^\s*(?:ROOT )?%?([\w.\-]+) = .* "
    r"(?:copy|copy-start|copy-done|bitcast|reshape|transpose|get-tuple-element)\(%?([\w.\-]+)[,)]"
)

# What JAX adds to the scopes of an operation.
_MACHINERY = (
    "",
    "train_step",
    "while",
    "body",
    "cond",
    "closed_call",
    "checkpoint",
    "rematted_computation",
    "branch_0_fun",
)


@dataclasses.dataclass(frozen=True)
class Value:
    """A result of the program, and the bytes that hold it.

    Attributes:
      name: of the instruction in the compiled program.
      operation: the source operation behind it, with the scopes it stands in; "" where XLA does not tell.
      shape: such as f32[8,16].
      offset: in its allocation.
      size: in bytes.
      start: the place in the program's order at which it comes to life.
      end: the last place at which it is alive.
      is_phi: whether it only stands for another value that enters or leaves a loop.
    """

    name: str
    operation: str
    shape: str
    offset: int
    size: int
    start: int
    end: int
    is_phi: bool


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A piece of device memory.

    Attributes:
      kind: argument, output, constant or temp.
      size: in bytes.
      values: everything that lies in it at some time.
    """

    kind: str
    size: int
    values: tuple[Value, ...]

    @property
    def argument(self) -> str:
        """The path of an argument among the train step's arguments; "" where no value tells it."""
        paths = (v.operation.replace("\\", "") for v in self.values)
        return next((path for path in paths if re.match(r"(state|batch|rng)\b", path)), "")


@dataclasses.dataclass(frozen=True)
class Part:
    """Bytes at the peak that have one origin.

    Attributes:
      size: in bytes.
      count: how many buffers.
      shape: of the largest of them.
      origin: a path of scopes, from the block to the operation; "" where XLA does not tell.
    """

    size: int
    count: int
    shape: str
    origin: str


@dataclasses.dataclass(frozen=True)
class Breakdown:
    """What fills the device memory where the program needs most.

    Attributes:
      size: all allocations, in bytes.
      parts: what fills it at the peak, largest first; `gaps between buffers` is what the packing leaves unused there.
      timeline: (place in the program's order, bytes in use), at every change.
    """

    size: int
    parts: list[Part]
    timeline: list[tuple[int, int]]

    @property
    def named(self) -> float:
        """Fraction of the bytes whose origin is known; gaps are not."""
        return sum(part.size for part in self.parts if part.origin) / max(1, self.size)


def read_breakdown(folder: Path, module: str = "train_step") -> Breakdown:
    """Reads the dump of a compiled module and finds its peak.

    Args:
      folder: what `--xla_dump_to` named.
      module: part of the module's name.

    Raises:
      FileNotFoundError: the backend wrote no buffer assignment for it.
    """
    return _breakdown(_read_allocations(Path(folder), module))


def _read_allocations(folder, module):
    assignments = sorted(folder.glob(f"*{module}*after_optimizations-buffer-assignment.txt"))
    if not assignments:
        raise FileNotFoundError(
            f"this backend wrote no buffer assignment of {module} to {folder}; nothing to break down"
        )
    stem = str(assignments[-1]).removesuffix("-buffer-assignment.txt")
    operations = _read_operations(Path(stem + ".txt").read_text())
    ranges = {}
    for line in Path(stem + "-live-range.txt").read_text().splitlines():
        if match := _LIVE.match(line):
            ranges[match[1]] = int(match[2]), int(match[3])

    allocations, head, values = [], None, []

    def close():
        if head is not None:
            size, kind = head
            allocations.append(Allocation(kind, size, tuple(values)))

    for line in assignments[-1].read_text().splitlines():
        if match := _ALLOCATION.match(line):
            close()
            # Other colours are faster memories of the chip, not the device memory.
            kind = _kind(match[3]) if match[2] in (None, "0") else "elsewhere"
            head, values = (int(match[1]), kind), []
        elif head is not None and (match := _VALUE.match(line)):
            name, index = match[1], match[2] or "{}"
            start, end = ranges.get(name + index, (0, 0))
            shape = match[6].split("{")[0] if not match[6].startswith("(") else "tuple"
            values.append(
                Value(
                    name,
                    operations.get(name, ""),
                    shape,
                    int(match[5]),
                    int(match[4]),
                    start,
                    end,
                    bool(match[3]),
                )
            )
        elif head is not None and not line.startswith(" "):
            close()
            head = None
    close()
    return [a for a in allocations if a.kind != "elsewhere"]


def _read_operations(program):
    """Returns the source operation behind each instruction of a program's text that has one."""
    operations, copies = {}, {}
    for line in program.splitlines():
        if match := _INSTRUCTION.match(line):
            operations[match[1]] = match[2]
        elif match := _COPY.match(line):
            copies[match[1]] = match[2]
    for name in copies:
        source = name
        while source in copies:  # ends, as an operand stands before its use
            source = copies[source]
        if source in operations:
            operations[name] = operations[source]
    return operations


def _kind(description):
    for word, kind in (("parameter", "argument"), ("temp", "temp"), ("constant", "constant")):
        if word in description:
            return kind
    return "output"


def _breakdown(allocations):
    size = sum(a.size for a in allocations)
    fixed = [a for a in allocations if a.kind != "temp"]
    always = sum(a.size for a in fixed)
    moving = [(i, v) for i, a in enumerate(allocations) if a.kind == "temp" for v in a.values]
    timeline = _timeline(moving, always)
    peak = max(timeline, key=lambda point: point[1], default=(0, always))[0]

    found = defaultdict(list)
    for a in fixed:
        shape = a.values[0].shape if a.values else ""
        origin = argument_origin(a.argument) if a.kind == "argument" else f"{a.kind}s"
        found[origin].append((a.size, shape))
    used = 0
    for value, bytes_alone in _alive(moving, peak):
        found[operation_origin(value.operation)].append((bytes_alone, value.shape))
        used += bytes_alone
    gaps = size - always - used
    parts = [
        Part(sum(s for s, _ in sizes), len(sizes), max(sizes)[1], origin)
        for origin, sizes in found.items()
    ]
    if gaps > 0:
        parts.append(Part(gaps, 1, "gaps between buffers", ""))
    return Breakdown(size, sorted(parts, key=lambda part: -part.size), timeline)


def _timeline(moving, always):
    """Returns (place, bytes in use) at each change; values that share their bytes count once."""
    changes = defaultdict(list)
    for allocation, value in moving:
        key = (allocation, value.offset, value.size)
        changes[value.start].append((1, key))
        changes[value.end + 1].append((-1, key))
    alive, total, timeline = defaultdict(int), always, []
    for place in sorted(changes):
        for sign, key in changes[place]:
            before = alive[key] > 0
            alive[key] += sign
            total += key[2] * ((alive[key] > 0) - before)
        timeline.append((place, total))
    return timeline


def _alive(moving, place):
    """Yields the values alive at a place, each with the bytes that no larger one covers, named as well as can be."""
    groups = defaultdict(list)
    for allocation, value in moving:
        groups[allocation, value.offset, value.size].append(value)
    covered = defaultdict(list)
    for (allocation, offset, size), values in sorted(groups.items(), key=lambda item: -item[0][2]):
        if not any(v.start <= place <= v.end for v in values):
            continue
        # The same bytes pass from value to value, as through a loop: the nearest real one with a name tells most.
        best = min(
            values,
            key=lambda v: (
                not v.operation,
                not v.start <= place <= v.end,
                v.is_phi,
                abs(v.start - place),
            ),
        )
        alone = _uncovered(covered[allocation], offset, offset + size)
        if alone:
            yield best, alone


def _uncovered(intervals, start, stop):
    """Adds [start, stop) to sorted disjoint intervals, and returns how many of its bytes were not in them."""
    left = bisect.bisect_left(intervals, (start, start))
    if left and intervals[left - 1][1] >= start:
        left -= 1
    right, low, high, shared = left, start, stop, 0
    while right < len(intervals) and intervals[right][0] <= stop:
        a, b = intervals[right]
        shared += max(0, min(b, stop) - max(a, start))
        low, high = min(low, a), max(high, b)
        right += 1
    intervals[left:right] = [(low, high)]
    return stop - start - shared


def argument_origin(path: str) -> str:
    """Returns which part of the state an argument is, such as "blocks / optimizer state / layers"."""
    words = [word for word in re.split(r"[.\[\]'\"]+", path) if word and not word.isdigit()]
    if words[:1] == ["state"] and len(words) > 2:
        what = "parameters" if words[2] == "params" else "optimizer state"
        group = next((word for word in words[3:] if word in ("layers", "head")), "")
        return " / ".join(filter(None, [words[1], what, group]))
    return " / ".join(words) or "arguments"


def operation_origin(operation: str) -> str:
    """Returns the scopes of a source operation without JAX's wrappers; what runs in the backward pass says so."""
    backward = "transpose(" in operation
    path = re.sub(
        r"\b(?:transpose|jvp|vmap|checkpoint|rematted_computation|jit|pjit)\(|[()]", "", operation
    )
    words = [word for word in path.split("/") if word not in _MACHINERY]
    origin = " / ".join(word for i, word in enumerate(words) if i == 0 or word != words[i - 1])
    return f"{origin} (backward)" if origin and backward else origin
