"""BEiT's masks: exact counts, and rectangles as the reference draws them."""

import math
import random

import jax
import numpy as np
import pytest

from blockjax.objectives.masked.block_masks import _rectangles, block_masks, min_block_area

SETTINGS = [((8, 8), 25), ((14, 14), 75), ((6, 6), 14)]


def draw(images, grid, count, seed=0):
    masks = jax.jit(block_masks, static_argnums=(1, 2, 3, 4))(
        jax.random.key(seed), images, grid, count, min_block_area(grid[0] * grid[1])
    )
    assert masks.dtype == bool and masks.shape == (images, grid[0] * grid[1])
    return np.asarray(masks).reshape(images, *grid)


def pairs(masks):
    """Returns how many pairs of neighbours are masked, mean over masks."""
    across = (masks[:, :, 1:] & masks[:, :, :-1]).sum()
    return (across + (masks[:, 1:] & masks[:, :-1]).sum()) / len(masks)


def drawn_by_the_rule(grid, count, min_area, generator):
    """BEiT's rule, one mask at a time and as many rectangles as it takes."""
    mask = np.zeros(grid, bool)
    while (left := count - mask.sum()) > 0:
        for _ in range(10):
            area = generator.uniform(min_area, left)
            aspect = math.exp(generator.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= grid[0] or width >= grid[1]:
                continue
            top = generator.randint(0, grid[0] - height)
            first = generator.randint(0, grid[1] - width)
            part = mask[top : top + height, first : first + width]
            if 0 < (~part).sum() <= left:
                part[:] = True
                break
        else:
            break
    return mask


@pytest.mark.parametrize(("grid", "count"), SETTINGS)
def test_every_mask_has_the_exact_count_and_is_its_own(grid, count):
    masks = draw(300, grid, count)
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), count)
    assert len(np.unique(masks.reshape(300, -1), axis=0)) > 295
    assert not np.array_equal(masks, draw(300, grid, count, seed=1))
    np.testing.assert_array_equal(masks, draw(300, grid, count))


@pytest.mark.parametrize("count", [1, 2, 48, 63])
def test_counts_that_no_rectangle_reaches_are_exact_too(count):
    np.testing.assert_array_equal(draw(64, (8, 8), count).sum(axis=(1, 2)), count)


@pytest.mark.parametrize(("grid", "count"), SETTINGS)
def test_masks_are_blocks(grid, count):
    masks = draw(300, grid, count)
    rng = np.random.default_rng(0)
    scattered = rng.permuted(masks.reshape(300, -1), axis=1).reshape(masks.shape)
    assert pairs(masks) > 1.5 * pairs(scattered)


@pytest.mark.parametrize(("grid", "count"), SETTINGS)
def test_rectangles_are_those_of_the_rule(grid, count):
    """Before counts are made exact: how many are, the mean count, the shape, and where."""
    area = min_block_area(grid[0] * grid[1])
    found = np.asarray(_rectangles(jax.random.key(0), 4000, grid, count, area))
    found = found.reshape(-1, *grid)
    generator = random.Random(0)
    expected = np.stack([drawn_by_the_rule(grid, count, area, generator) for _ in range(1000)])
    sizes = [masks.sum(axis=(1, 2)) for masks in (found, expected)]
    assert sizes[0].max() == count
    # Four standard deviations of 1000 draws are 0.06, 0.3 patches or less, and 0.06.
    exact = [(size == count).mean() for size in sizes]
    assert exact[0] == pytest.approx(exact[1], abs=0.06) and exact[0] > 0.6
    assert sizes[0].mean() == pytest.approx(sizes[1].mean(), abs=0.3)
    assert pairs(found) == pytest.approx(pairs(expected), rel=0.04)
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), atol=0.07)


@pytest.mark.parametrize(("grid", "count"), SETTINGS)
def test_every_place_is_masked_sometimes_and_no_side_is_preferred(grid, count):
    """Rectangles lie inside the image, so its middle is masked most, as with the reference."""
    share = draw(4000, grid, count).mean(axis=0)
    assert share.min() > 0.03 and share.max() < 0.85
    for turned in (share[::-1], share[:, ::-1], share.T):
        np.testing.assert_allclose(turned, share, atol=0.06)


def test_grids_need_not_be_square():
    masks = draw(200, (4, 10), 15)
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), 15)
    tall, wide = masks.any(axis=2).sum(axis=1), masks.any(axis=1).sum(axis=1)
    assert wide.mean() > tall.mean()


def test_the_smallest_area_is_beits_share():
    assert [min_block_area(n) for n in (196, 64, 36, 256, 4, 1)] == [16, 5, 3, 21, 1, 1]
