import numpy as np
import pytest

from blockjax.objectives.tiles.permutations import permutations


def distances(rows):
    """Hamming distances of all pairs."""
    table = (rows[:, None] != rows[None]).sum(axis=2)
    return table[np.triu_indices(len(rows), 1)]


@pytest.mark.parametrize(
    ("count", "nearest", "mean"), [(72, 8, 8.113), (504, 7, 8.016), (1512, 6, 8.005)]
)
def test_whole_groups_have_their_distances(count, nearest, mean):
    """A wrong product of the field gives rows that are no permutations, equal, or too near."""
    rows = permutations(count)
    assert rows.shape == (count, 9) and rows.dtype == np.int32
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(9), (count, 1)))
    found = distances(rows)
    assert found.min() == nearest  # so no two are equal
    assert found.mean() == pytest.approx(mean, abs=5e-4)


@pytest.mark.parametrize("count", [72, 504, 1512])
def test_whole_groups_are_closed(count):
    rows = permutations(count)
    known = {tuple(row) for row in rows}
    some = rows[:: count // 24]
    products = some[:, rows].reshape(-1, 9)
    assert {tuple(row) for row in products} == known


@pytest.mark.parametrize(("count", "nearest"), [(2, 8), (71, 8), (73, 7), (503, 7), (1000, 6)])
def test_the_smallest_group_that_has_so_many(count, nearest):
    rows = permutations(count)
    assert len(np.unique(rows, axis=0)) == count
    assert distances(rows).min() >= nearest


def test_labels_mean_the_same_in_every_run():
    """The table is no part of a checkpoint, so it must not depend on the version of NumPy, or on this code's order."""
    np.testing.assert_array_equal(permutations(1000)[0], [1, 6, 4, 5, 2, 0, 8, 7, 3])
    checksum = (permutations(1000).astype(np.int64) * np.arange(1, 9001).reshape(1000, 9)).sum()
    assert checksum == 162_018_591
    with pytest.raises(ValueError, match="read-only"):
        permutations(1000)[0, 0] = 1  # it is cached


def test_greedy_takes_the_farthest_of_all():
    """By brute force over a sample: no other permutation is farther from those chosen before."""
    rows = permutations(12, "greedy_mean")
    assert len(np.unique(rows, axis=0)) == 12 and rows.dtype == np.int32
    rng = np.random.default_rng(0)
    others = np.stack([rng.permutation(9) for _ in range(5000)])
    for k in range(1, 12):
        sums = (others[:, None] != rows[None, :k]).sum(axis=(1, 2))
        assert (rows[k] != rows[:k]).sum() >= sums.max()
    # Nine permutations of which no two agree anywhere: a Latin square.
    assert distances(rows[:9]).min() == 9


def test_what_cannot_be_had_says_what_can():
    with pytest.raises(ValueError, match=r"at most 1512, or 'greedy_mean' for 2000"):
        permutations(2000)
    with pytest.raises(ValueError, match=r"from 1 to 362880 .* not 362881"):
        permutations(362_881, "greedy_mean")
    with pytest.raises(ValueError, match=r"not 0"):
        permutations(0)
    with pytest.raises(ValueError, match=r"'psl' is unknown; it may be one of pgl, greedy_mean"):
        permutations(5, "psl")
