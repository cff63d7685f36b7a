"""Pictures of what objectives make of images."""

import io

import numpy as np
import pytest
from PIL import Image

from blockjax import gallery
from blockjax.objectives import OBJECTIVES
from blockjax.objectives.two_view.augment import RECIPES
from blockjax.report import figures
from tests.tiny import images


@pytest.fixture
def drawn(monkeypatch):
    """The rows of each picture that is drawn."""
    pictures = []

    def grid(rows):
        pictures.append(rows)
        return b"png"

    monkeypatch.setattr(figures, "grid", grid)
    return pictures


@pytest.mark.slow
def test_views_have_a_row_for_each_recipe(drawn):
    batch = images(8)
    gallery.views(batch)
    (rows,) = drawn
    assert list(rows) == ["image", *RECIPES]
    np.testing.assert_array_equal(rows["image"][2], batch[1] / 255.0)
    for name, row in rows.items():
        assert row.shape == (8, 32, 32, 3)
        assert row.min() >= 0.0 and row.max() <= 1.0
        assert (np.abs(row[0] - row[1]).max() > 0.01) == (name != "image")


@pytest.mark.slow
def test_tasks_are_those_of_one_view_and_what_does_not_suit_is_left_out(drawn, capsys):
    batch = images(32)
    gallery.tasks(batch, 4)
    gallery.tasks(np.zeros_like(batch), 4)  # black: no vocabulary
    whole, black = ({name.partition(":")[0] for name in rows} for rows in drawn)
    assert whole == {"image", *OBJECTIVES} - {"simclr", "moco", "byol", "barlow_twins", "vicreg"}
    assert black == whole - {"beit"}
    assert "beit is left out" in capsys.readouterr().err
    rows = drawn[0]
    np.testing.assert_allclose(
        rows["rotation: rotated 180"], batch[:8, ::-1, ::-1] / 255.0, atol=1e-6
    )
    seen = np.isclose(rows["mae: visible"], batch[:8] / 255.0, atol=1e-4).all(axis=-1).mean()
    assert 0.2 < seen < 0.4  # a quarter of the patches


def test_a_grid_is_a_picture_with_a_row_for_each_name():
    row = images(3) / 255.0
    sizes = []
    for names in (("a",), ("a", "b")):
        with Image.open(io.BytesIO(figures.grid(dict.fromkeys(names, row)))) as picture:
            sizes.append(picture.size)
    assert sizes[1][1] > 1.7 * sizes[0][1]
