"""What the devices of a compiled step say to each other: how often, and how many bytes."""

import dataclasses
import re
from collections.abc import Iterator

from blockjax.xla.hlo import array_bytes, computations

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# "%ar.1 = f32[8,4]{1,0} all-reduce(%x), ..."; the shape may be a tuple, and "-start" begins an asynchronous pair.
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LIMIT = re.compile(r" = s32\[\][^ ]* constant\((\d+)\)")
_REFERENCE = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation in the text of a program.

    Attributes:
      kind: one of `KINDS`.
      size: bytes of its result on one device.
      turns: how often a step runs it: the turns of the loops around it, multiplied.
    """

    kind: str
    size: int
    turns: int


def read_collectives(program: str) -> list[Collective]:
    """Reads the collective operations of an optimized program, an asynchronous pair as one.

    The turns of a loop are known where XLA writes them down, or compares the loop's counter, which it makes begin at 0,
    with a constant. Both branches of a conditional count.

    Args:
      program: the text, `compiled.as_text()`.
    """
    found, entry = computations(program)
    if entry is None:
        return []
    turns = dict.fromkeys(found, 0)
    turns[entry] = 1
    # A computation stands in the text before those that use it.
    for name in reversed(found):
        for used, times in _uses(found[name], found):
            turns[used] += turns[name] * times
    return [
        Collective(kind, size, turns[name])
        for name, lines in found.items()
        for kind, size in map(_collective, lines)
        if kind and turns[name]
    ]


def _uses(lines, computations) -> Iterator[tuple[str, int]]:
    for line in lines:
        loop = _WHILE.search(line)
        if loop:
            condition, body = loop[1], loop[2]
            known = _TURNS.search(line)
            limits = [m[1] for m in map(_LIMIT.search, computations.get(condition, ())) if m]
            yield body, int(known[1] if known else limits[0] if len(limits) == 1 else 1)
            continue
        for name in _REFERENCE.findall(line):
            if name in computations:
                yield name, 1


def _collective(line):
    found = _COLLECTIVE.search(line)
    if not found:
        return None, 0
    sizes = array_bytes(found[1])
    if found[3] and found[2] == "collective-permute":
        sizes = sizes[1:2]  # the operand, the result and what synchronizes
    elif found[3] and found[2] != "all-reduce":
        sizes = sizes[len(sizes) // 2 :]  # the operands and the results
    return found[2], sum(sizes)
