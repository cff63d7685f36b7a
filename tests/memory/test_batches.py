"""The search for the largest batch."""

import pytest

from blockjax.memory.batches import largest_batch


@pytest.mark.parametrize("limit", [20, 100, 1_000, 99_999])
@pytest.mark.parametrize("multiple", [1, 8])
def test_the_largest_batch_is_found_in_few_compilations(limit, multiple):
    def total(batch):  # almost a line, and from some size on the compiler refuses
        return None if batch > 50_000 else round(20 + 1.1 * batch + batch % 3)

    asked = []

    def compiled(batch):
        assert batch % multiple == 0
        asked.append(batch)
        return total(batch)

    found = largest_batch(compiled, limit, start=60, multiple=multiple)
    largest = max(
        (b for b in range(0, 50_001, multiple) if b and total(b) <= limit),
        default=0,
    )
    assert found % multiple == 0
    assert largest - max(multiple, 0.03 * largest) <= found <= largest
    assert len(asked) == len(set(asked)) <= 18
    assert largest_batch(lambda batch: batch, 64, 64, 1) == 64


def test_few_compilations_find_the_largest_batch_on_a_line():
    asked = []

    def compiled(batch):
        asked.append(batch)
        return 20 + 3 * batch

    assert largest_batch(compiled, 30_000, start=64, multiple=1) == 9993
    assert len(asked) <= 6
