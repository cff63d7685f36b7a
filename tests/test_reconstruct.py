"""Pictures of a user's own images."""

import jax
import numpy as np
import pytest
from PIL import Image

from blockjax.data.decode import CorruptImage
from blockjax.reconstruct import reconstruct
from blockjax.training.run import Training
from tests.tiny import images, tiny_config, tiny_learner


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    np.savez(folder / "data.npz", images=images(40))
    fields = {"steps": 1, "mesh.data": -1, "data.source": f"arrays:{folder / 'data.npz'}"}
    Training(tiny_config(**fields), folder / "mae").run()
    fields |= {"objective": "rotation", "mask.ratio": None, "data.flip": False}
    Training(tiny_config(**fields, **{"data.crop_scale": (1.0, 1.0)}), folder / "turns").run()
    return folder


@pytest.mark.slow
def test_images_of_any_kind_are_drawn(runs, tmp_path):
    """Of other sizes, grey, with transparency, with a palette; in files and folders."""
    kinds = {"a.png": ("RGBA", (70, 40)), "b.png": ("L", (20, 20)), "c.gif": ("P", (64, 200))}
    for name, (mode, size) in kinds.items():
        Image.new(mode, size, 120).save(tmp_path / name)
    (tmp_path / "more").mkdir()
    Image.new("RGB", (33, 31), (200, 10, 10)).save(tmp_path / "more" / "d.jpg")
    files = [tmp_path / name for name in kinds] + [tmp_path / "more"]
    for attention in (False, True):
        output = tmp_path / "out" / f"{attention}.png"
        reconstruct(runs / "mae", files, output, attention=attention)
        with Image.open(output) as picture:
            width, height = picture.size
        assert width > 4 * 60 and height > 5 * 60  # four columns; image, blocks 1 to 4
    reconstruct(runs / "turns", None, tmp_path / "test.png", attention=True)
    assert (tmp_path / "test.png").is_file()


@pytest.mark.slow
def test_what_cannot_be_drawn(runs, tmp_path):
    with pytest.raises(
        ValueError, match="trained by rotation, which reconstructs nothing; give --att"
    ):
        reconstruct(runs / "turns", None, tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x\.jpg should end in \.png"):
        reconstruct(runs / "mae", None, tmp_path / "x.jpg")
    with pytest.raises(ValueError, match="no such file or folder"):
        reconstruct(runs / "mae", [tmp_path / "none.png"], tmp_path / "x.png")
    with pytest.raises(ValueError, match="has no image files"):
        reconstruct(runs / "mae", [tmp_path], tmp_path / "x.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(CorruptImage, match=r"text\.png: "):
        reconstruct(runs / "mae", [tmp_path / "text.png"], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("blocks", [2, 4])
def test_attention_of_cls(blocks):
    """Of each block's last layer: it adds up to 1, and follows a key that the query asks for."""
    learner = tiny_learner(blocks=blocks)
    params = learner.backbone_params(jax.jit(learner.init)(jax.random.key(0)))
    found = learner.backbone.attention(params, images(3))
    assert found.shape == (blocks, 3, 2, 4, 4)
    np.testing.assert_allclose(found.sum(axis=(3, 4)), 1.0, rtol=1e-5)
    last = params["layers"]["attention"]
    before = learner.backbone.attention(params, images(3))
    sharp = dict(last, query={name: 30.0 * leaf for name, leaf in last["query"].items()})
    changed = {**params, "layers": {**params["layers"], "attention": sharp}}
    after = learner.backbone.attention(changed, images(3))
    assert after[0].max() > 2.0 * before[0].max()
    flat = dict(last, key=jax.tree.map(lambda leaf: leaf * 0.0, last["key"]))
    flat = {**params, "layers": {**params["layers"], "attention": flat}}
    np.testing.assert_allclose(learner.backbone.attention(flat, images(3)), 1 / 16, rtol=1e-5)
