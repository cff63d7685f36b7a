import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockjax.objectives.masked.masking import random_order, visible_counts


def test_every_image_has_an_order_of_its_own():
    """One permutation for the whole batch is a fault seen elsewhere."""
    order = np.asarray(random_order(jax.random.key(0), 64, 16))
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(16), (64, 1)))
    assert len(np.unique(order, axis=0)) == 64
    first = np.bincount(np.asarray(random_order(jax.random.key(1), 4000, 16))[:, 0], minlength=16)
    assert first.min() > 180 and first.max() < 320  # 250 expected, standard deviation 15


def test_counts_round_down_as_mae_does():
    assert visible_counts(0.75, "constant", 196, 3) == (49, 49, 49)
    assert visible_counts(0.625, "constant", 64, 1) == (24,)
    assert visible_counts(0.9375, "constant", 64, 1) == (4,)
    assert visible_counts(0.7, "constant", 10, 1) == (3,)  # 10 · (1 − 0.7) is 3.0000000000000004
    assert visible_counts(0.9, "constant", 100, 1) == (10,)  # and 100 · (1 − 0.9) 9.999999999999998


def test_schedules():
    assert visible_counts(0.5, "linear:0.75", 64, 3) == (32, 24, 16)
    assert visible_counts(0.5, "0.5,0.75", 64, 2) == (32, 16)
    for bad in ("linear", "linear:", "0.5", "0.5,0.5,0.5", "0.5,x"):
        with pytest.raises(ValueError, match="cannot be read for 2 blocks"):
            visible_counts(0.5, bad, 64, 2)
    with pytest.raises(ValueError, match="later blocks cannot see more"):
        visible_counts(0.75, "linear:0.5", 64, 2)
    with pytest.raises(ValueError, match="no visible patch of 64 in block 2"):
        visible_counts(0.5, "linear:1.0", 64, 2)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 400), st.floats(0, 1))
def test_counts_are_never_empty_or_whole(patches, ratio):
    try:
        (visible,) = visible_counts(ratio, "constant", patches, 1)
    except ValueError as error:
        assert "leaves no" in str(error)
    else:
        assert 1 <= visible < patches
        assert abs(visible - patches * (1 - ratio)) <= 1.0
