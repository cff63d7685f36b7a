"""What a program computes and moves, counted before the compiler: one entry for each operation that is not fused."""

import dataclasses
from typing import Any

from jax.extend import core

from blockjax.xla.flops import equation_flops
from blockjax.xla.jaxprs import programs, total, turns


@dataclasses.dataclass(frozen=True)
class Work:
    """An operation that is run by itself, or all that is fused in a program or in the body of a loop.

    Attributes:
      flops: of matrix products and convolutions.
      is_narrow: whether these multiply numbers of 16 bits or less.
      size: bytes that it reads and writes.
      turns: how often it runs.
    """

    flops: float
    is_narrow: bool
    size: float
    turns: float = 1.0


# What they hold runs as if it stood in their place.
_CALLS = ("jit", "closed_call", "core_call", "remat2", "custom_jvp_call", "custom_vjp_call")
# They name an array anew, or are done in reading it.
_NAMES = [
    "bitcast_convert_type",
    "copy",
    "expand_dims",
    "optimization_barrier",
    "reshape",
    "squeeze",
    "stop_gradient",
    "transpose",
]
# They read no more than they return.
_PARTS = ("dynamic_slice", "gather", "slice", "split")
# They write no more than the operand that stands at this place.
_INTO = {"dynamic_update_slice": 1, "scatter": 2, "scatter-add": 2}
_ALONE = ("cumsum", "conv_general_dilated", "dot_general", "sort", "top_k")


def work(jaxpr: core.ClosedJaxpr) -> list[Work]:
    """Lists what a program does, on whole arrays.

    Matrix products read their operands and write their results. All else is taken to be fused as well as can be:
    between one product and the next it reads each array once and writes what others read, reductions included. So the
    bytes are a lower bound. Loops count as in `blockjax.xla.jaxprs.total`; of a `cond` the branch with most operations.
    """
    return _work(jaxpr.jaxpr)


def _work(jaxpr):
    walk = _Walk()
    scope = {v: _Array(_size(v)) for v in (*jaxpr.invars, *jaxpr.constvars)}
    walk.run(jaxpr, scope)
    for variable in jaxpr.outvars:
        walk.store(_read(scope, variable))
    size = walk.moved + sum(array.size for _, array in walk.reads)
    return [*walk.found, Work(0.0, False, size)] if size else walk.found


@dataclasses.dataclass(eq=False)
class _Array:
    """An array of a program.

    Attributes:
      size: in bytes.
      stage: how many operations that are not fused come before it, at least.
      is_stored: whether it is in memory: what is fused gets there only if it is read later.
    """

    size: int
    stage: int = 0
    is_stored: bool = True


class _Walk:
    """Goes through one program, and all that it calls.

    Attributes:
      found: operations that are not fused.
      reads: (stage, array) of what is fused and reads whole arrays.
      moved: other bytes that what is fused reads and writes.
    """

    def __init__(self):
        self.found, self.reads, self.moved = [], set(), 0

    def run(self, jaxpr, scope):
        for equation in jaxpr.eqns:
            operands = [_read(scope, variable) for variable in equation.invars]
            results = self._results(equation, operands)
            scope.update(zip(equation.outvars, results, strict=True))

    def store(self, array):
        """Puts an array into memory, if it is not there."""
        if array is not None and not array.is_stored:
            array.is_stored = True
            self.moved += array.size

    def _results(self, equation, operands):
        """Counts an equation; returns its arrays."""
        name, inside = equation.primitive.name, programs(equation)
        known = {array for array in operands if array is not None}
        stage = max((array.stage for array in known), default=0)
        if name in _CALLS:
            (program,) = inside
            scope = dict(zip(program.invars, operands, strict=True))
            scope |= {v: _Array(_size(v)) for v in program.constvars}
            self.run(program, scope)
            return [_read(scope, variable) for variable in program.outvars]
        if name in _NAMES:
            return operands[: len(equation.outvars)]
        if name == "cond":
            branches = [_work(branch.jaxpr) for branch in equation.params["branches"]]
            self.found += max(branches, key=_flops_and_size)
        elif name in ("scan", "while", "shard_map"):
            times = turns(equation)
            for part in (part for program in inside for part in _work(program)):
                self.found.append(dataclasses.replace(part, turns=part.turns * times))
        elif name in _ALONE or inside:
            flops = sum(total(part, equation_flops) for part in inside)
            flops = equation_flops(equation) or flops
            size = sum(array.size for array in known) + sum(map(_size, equation.outvars))
            self.found.append(Work(flops, _is_narrow(equation), size))
        elif name == "device_put":  # what goes to the host is read, what comes is written
            self.moved += sum(map(_size, equation.outvars))
        else:
            return self._fused(equation, operands, stage)
        for array in known:
            self.store(array)
        return [_Array(_size(variable), stage + 1) for variable in equation.outvars]

    def _fused(self, equation, operands, stage):
        name = equation.primitive.name
        if name in _INTO:
            put = equation.invars[_INTO[name]]
            self.store(operands[0])
            self._reads([operands[_INTO[name]]], stage)
            self.moved += _size(put)
            return [_Array(_size(equation.outvars[0]), stage)]
        if name in _PARTS:
            self.store(operands[0])
            self.moved += sum(map(_size, equation.outvars))
            operands = operands[1:]
        self._reads(operands, stage)
        return [_Array(_size(variable), stage, is_stored=False) for variable in equation.outvars]

    def _reads(self, operands, stage):
        for array in filter(None, operands):
            if array.stage < stage:
                self.store(array)
            if array.is_stored:
                self.reads.add((stage, array))


def _read(scope, variable):
    """Returns the array of a variable, None for a number that stands in the program."""
    return scope.get(variable) if isinstance(variable, core.Var) else None


def _flops_and_size(found):
    return sum(part.flops * part.turns for part in found), sum(p.size * p.turns for p in found)


def _is_narrow(equation):
    return all(variable.aval.dtype.itemsize <= 2 for variable in equation.invars)


def _size(variable: Any) -> int:
    return variable.aval.size * variable.aval.dtype.itemsize
