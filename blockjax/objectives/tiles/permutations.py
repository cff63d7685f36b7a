"""Sets of permutations of nine tiles: the classes of a jigsaw puzzle."""

import functools
import itertools

import numpy as np

_POINTS = 9
# The permutations that each kind of set has; 9! is all there are.
LARGEST = {"pgl": 1512, "greedy_mean": 362_880}


def check_permutations(count: int, kind: str) -> None:
    """Checks that `permutations` can be called with these arguments.

    Raises:
      ValueError: the kind is unknown, or its set has fewer permutations than `count`; says what would fit.
    """
    if kind not in LARGEST:
        raise ValueError(
            f"the permutation set {kind!r} is unknown; it may be one of {', '.join(LARGEST)}"
        )
    if not 1 <= count <= LARGEST[kind]:
        fitting = [other for other, largest in LARGEST.items() if 1 <= count <= largest]
        other = f", or {fitting[0]!r} for {count}" if fitting else ""
        raise ValueError(
            f"the permutation set {kind!r} has from 1 to {LARGEST[kind]} permutations of nine tiles, "
            f"not {count}; ask for at most {LARGEST[kind]}{other}"
        )


@functools.cache
def permutations(count: int, kind: str = "pgl") -> np.ndarray:
    """Returns `count` different permutations of nine tiles, int32 [count, 9], the same ones on every machine.

    Args:
      count: how many.
      kind: "pgl": a fixed subset of the smallest of three groups that has so many elements. Two permutations of such a
        group agree on few of the nine points on which it acts, so their Hamming distance (places at which they differ)
        has a proven minimum:

        - AGL(1, 9), 72 elements, x -> a x + b over GF(9), a not 0. Two elements agree where their difference, which is
          linear, has its one root: distance at least 8.
        - PGL(2, 8), 504 elements, x -> (a x + b) / (c x + d) over GF(8) and infinity, a d - b c not 0. It is sharply
          3-transitive, so two elements agree on at most two points: distance at least 7.
        - PGammaL(2, 8), 1512 elements: the same after a Frobenius power, x, x^2 or x^4. Two elements agree on the
          fixed points of a third, which are at most the projective line over GF(2), three points: distance at least 6.

        "greedy_mean": the set of the jigsaw papers (arXiv 1603.09246; generator bbrattoli/JigsawPuzzlePytorch,
        select_permutations.py): from a random start always the permutation, among all 9!, with the largest mean
        distance to those chosen. Such sets contain pairs that differ in one swap (distance 2): nearly ambiguous labels.

    Raises:
      ValueError: the kind is unknown, or its set has fewer permutations than `count`; says what would fit.
    """
    check_permutations(count, kind)
    # The stream of `RandomState` is frozen: a new NumPy must not give the labels of a saved head another meaning.
    random = np.random.RandomState(0)
    if kind == "greedy_mean":
        found = _greedy_mean(count, random)
    else:
        size = min(size for size in _GROUPS if count <= size)
        found = _GROUPS[size]()[random.permutation(size)[:count]]
    found = np.ascontiguousarray(found, np.int32)
    found.flags.writeable = False  # it is cached
    return found


def _greedy_mean(count, random):
    every = np.array(list(itertools.permutations(range(_POINTS))), np.uint8)
    # In random order, so that of several best ones, which are many, a random one is the first.
    every = every[random.permutation(len(every))]
    columns = np.ascontiguousarray(every.T)
    agreements = np.zeros(len(every), np.int32)  # with the chosen ones, in sum
    chosen = [0]
    while len(chosen) < count:
        for column, value in zip(columns, every[chosen[-1]], strict=True):
            agreements += column == value
        agreements[chosen[-1]] = np.iinfo(np.int32).max // 2  # not again
        chosen.append(int(agreements.argmin()))
    return every[chosen]


def _multiply_9(x, y):
    """The product in GF(9) = GF(3)[i], i^2 = -1; a + b i is the number a + 3 b."""
    a, b, c, d = x % 3, x // 3, y % 3, y // 3
    return (a * c - b * d) % 3 + 3 * ((a * d + b * c) % 3)


def _add_9(x, y):
    return (x % 3 + y % 3) % 3 + 3 * ((x // 3 + y // 3) % 3)


def _multiply_8(x, y):
    """The product in GF(8) = GF(2)[t] / (t^3 + t + 1); bit n of a number is the coefficient of t^n; addition is xor."""
    product = 0
    for bit in range(3):
        if y >> bit & 1:
            product ^= x << bit
    for bit in (4, 3):
        if product >> bit & 1:
            product ^= 0b1011 << (bit - 3)
    return product


_INFINITY = 8


def _moebius(a, b, c, d, x):
    """The value of (a x + b) / (c x + d) on GF(8) and infinity."""
    if x == _INFINITY:
        top, bottom = a, c
    else:
        top, bottom = _multiply_8(a, x) ^ b, _multiply_8(c, x) ^ d
    if bottom == 0:
        return _INFINITY
    inverse = next(y for y in range(1, 8) if _multiply_8(bottom, y) == 1)
    return _multiply_8(top, inverse)


@functools.cache
def _agl_1_9():
    return np.array(
        [
            [_add_9(_multiply_9(a, x), b) for x in range(9)]
            for a, b in itertools.product(range(1, 9), range(9))
        ]
    )


@functools.cache
def _pgl_2_8():
    # Numerator and denominator may be scaled together: one of each such set.
    scaled = [(a, b, 1, d) for a, b, d in itertools.product(range(8), repeat=3)]
    scaled += [(a, b, 0, 1) for a, b in itertools.product(range(8), repeat=2)]
    return np.array(
        [
            [_moebius(a, b, c, d, x) for x in range(9)]
            for a, b, c, d in scaled
            if _multiply_8(a, d) ^ _multiply_8(b, c)
        ]
    )


@functools.cache
def _pgammal_2_8():
    square = np.array([_multiply_8(x, x) for x in range(8)] + [_INFINITY])
    group = _pgl_2_8()
    return np.concatenate([group, group[:, square], group[:, square[square]]])


_GROUPS = {72: _agl_1_9, 504: _pgl_2_8, 1512: _pgammal_2_8}
