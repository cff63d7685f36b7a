"""The largest batch that fits a device, in as few compilations as possible."""

import itertools
import math
from collections.abc import Callable


def largest_batch(total: Callable[[int], int | None], limit: int, start: int, multiple: int) -> int:
    """Returns the largest batch whose step fits, to 3 % of itself or one multiple.

    Memory is almost a line in the batch, so two figures tell about where it meets the limit.

    Args:
      total: batch -> bytes; None if the compiler refuses.
      limit: bytes of the device.
      start: first batch to try.
      multiple: the batch must be divisible by this.

    Returns:
      0 if not even `multiple` images fit.
    """
    known, low, high = {}, 0, math.inf
    batch = max(multiple, start // multiple * multiple)
    for attempt in itertools.count():
        known[batch] = total(batch)
        fits = known[batch] is not None and known[batch] <= limit
        low, high = (batch, high) if fits else (low, batch)
        step = max(multiple, int(0.03 * low) // multiple * multiple)
        if high - low <= step:
            return low
        batch = _meeting_point(known, limit)
        # What was refused lies on no line; and now and then halving guards against a line that is none.
        if batch is None or known.get(high, 0) is None or attempt % 4 == 3:
            batch = 2 * low if high == math.inf else (low + high) // 2
        batch = int(min(max(batch, low + step), high - multiple, 16 * max(low, multiple)))
        batch = batch // multiple * multiple


def _meeting_point(known, limit):
    """Returns the batch at which a line through the two known sizes nearest to the limit meets it."""
    points = [(batch, size) for batch, size in known.items() if size is not None]
    points = sorted(sorted(points, key=lambda point: abs(point[1] - limit))[:2])
    if len(points) < 2:
        return None
    (b0, s0), (b1, s1) = points
    return None if s1 <= s0 else int(b0 + (limit - s0) * (b1 - b0) / (s1 - s0))
