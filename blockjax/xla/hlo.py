"""Reading the text of compiled programs: computations, arrays, and what the operations of a program move."""

import math
import re

# "%body.7 (p: (s32[], f32[8])) -> (s32[], f32[8]) {" begins a computation, "ENTRY %main ..." the program.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
# "ROOT %fusion.1 = (f32[8]{0}, f32[]) fusion(%a, %b), kind=..."
_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_BITS = {"pred": 8}
# They name memory, or are done before the program runs.
_FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")


def computations(program: str) -> tuple[dict[str, list[str]], str | None]:
    """Returns the lines of each computation, by name, and the name of the one that is the program."""
    found, entry, lines = {}, None, None
    for line in program.splitlines():
        if begin := _COMPUTATION.match(line):
            lines = found.setdefault(begin[2], [])
            entry = begin[2] if begin[1] else entry
        elif lines is not None:
            lines.append(line)
    return found, entry


def array_bytes(shape: str) -> list[int]:
    """Returns the bytes of each array in a shape such as "(f32[8,4]{1,0}, s8[])"."""
    return [
        math.prod(int(n) for n in sizes.split(",") if n) * _bits(kind) // 8
        for kind, sizes in _ARRAY.findall(shape)
    ]


def moved_bytes(program: str) -> int:
    """Returns what the operations of a program read and write in memory, in bytes: their operands and results.

    A fusion reads and writes once, whatever is in it. An operand counts once, however often it is read. What stands
    in loops and branches is left out.

    Args:
      program: the text of a program for a GPU or a CPU, `compiled.as_text()`.
    """
    found, entry = computations(program)
    sizes, moved = {}, 0
    for line in found.get(entry, ()):
        operation = _OPERATION.match(line)
        if not operation:
            continue
        name, shape, kind, rest = operation.groups()
        sizes[name] = sum(array_bytes(shape))
        if kind not in _FREE:
            read = {operand for operand in _REFERENCE.findall(rest) if operand in sizes}
            moved += sizes[name] + sum(sizes[operand] for operand in read)
    return moved


def _bits(kind):
    # f32, bf16, s8, f8e4m3fn, u4
    return _BITS.get(kind) or int(re.search(r"\d+", kind)[0])
