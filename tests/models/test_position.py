"""Positions of a grid, and for another one."""

import numpy as np
import pytest

from blockjax.models.position import resized_positions, sincos_2d


@pytest.mark.parametrize("to", [(4, 4), (8, 8), (7, 9), (2, 3)])
def test_resized_positions_are_those_of_bicubic_in_pytorch(to):
    """As facebookresearch/mae, util/pos_embed.py, asks for."""
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    image = torch.tensor(table.T.reshape(1, 8, 4, 4))
    expected = torch.nn.functional.interpolate(image, to, mode="bicubic", align_corners=False)
    found = resized_positions(table, (4, 4), to)
    np.testing.assert_allclose(found, expected[0].numpy().reshape(8, -1).T, atol=1e-5)


def test_resized_positions_stay_near_those_that_were_seen():
    seen = sincos_2d(7, 7, 48)

    def farthest(table):
        gaps = np.linalg.norm(table[:, None] - seen[None], axis=-1).min(axis=1)
        return gaps.max()

    step = np.linalg.norm(seen[0] - seen[8])  # to the next patch, diagonally
    assert farthest(resized_positions(seen, (7, 7), (14, 14))) < step / 2
    assert farthest(sincos_2d(14, 14, 48)) > step
