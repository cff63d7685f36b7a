"""The same numbers as transformers and timm, from random weights, to them and from them."""

import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from blockjax.models.backbone import Backbone
from blockjax.models.patches import CHANNEL_MEAN, CHANNEL_STD, patchify, standardize
from blockjax.models.position import sincos_2d
from blockjax.objectives.masked.mae import MaskedAutoencoder
from blockjax.weights import Weights, from_tensors, to_tensors
from tests.tiny import images
from tests.weights.made import made_weights

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[parity]'")
transformers = pytest.importorskip("transformers", reason="needs transformers")
pytestmark = pytest.mark.slow

# Width, depth, heads, patch, image; the same of the decoder. The second one has MLPs and heads of other sizes.
GEOMETRIES = {
    "small": {
        **{"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 8},
        **{"image_size": 32, "intermediate_size": 128, "decoder_hidden_size": 16},
        **{"decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2},
        "decoder_intermediate_size": 64,
    },
    "base-like": {
        **{"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "patch_size": 16},
        **{"image_size": 96, "intermediate_size": 384, "decoder_hidden_size": 128},
        **{"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4},
        "decoder_intermediate_size": 512,
    },
}


def randomized(model):
    """Returns a model with every trained parameter random: biases and norms too, which start at 0 and 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                scale = 0.05 if parameter.ndim > 1 else 0.3
                parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def pixel_values(batch):
    """Returns uint8 images as PyTorch takes them, [B, 3, H, W]."""
    pixels = (batch / 255.0 - CHANNEL_MEAN) / CHANNEL_STD
    return torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)


def state_dict(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def as_backbone(weights):
    norm, layers = jax.tree.map(
        lambda leaf: leaf[None], (weights.params["norm"], weights.params["layers"])
    )
    params = {"stem": weights.params["stem"], "layers": layers, "heads": {"norm": norm}}
    return Backbone(weights.vit, 1), params


def close(ours, theirs):
    difference = np.abs(np.asarray(ours) - theirs.detach().numpy()).max()
    assert difference < 1e-4, difference


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("normalize", [False, True])
def test_masked_autoencoder_of_transformers(geometry, normalize):
    """Encoder output, reconstruction and loss, for the same mask."""
    fields = GEOMETRIES[geometry]
    config = transformers.ViTMAEConfig(**fields, norm_pix_loss=normalize, mask_ratio=0.75)
    model = randomized(transformers.ViTMAEForPreTraining(config))
    is_published = (
        geometry == "base-like"
    )  # then positions are the fixed ones; a new model's may be zero
    if is_published:
        side = fields["image_size"] // fields["patch_size"]
        for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            table.data[0, 1:] = torch.tensor(sincos_2d(side, side, table.shape[-1]))
    weights = from_tensors(
        state_dict(model),
        source="test",
        heads=fields["num_attention_heads"],
        decoder_heads=fields["decoder_num_attention_heads"],
        norm_epsilon=config.layer_norm_eps,
    )
    vit, decoder = weights.vit, weights.decoder
    assert (vit.depth, vit.heads, decoder.depth) == (
        fields["num_hidden_layers"],
        fields["num_attention_heads"],
        fields["decoder_num_hidden_layers"],
    )
    assert vit.norm_epsilon == decoder.norm_epsilon == config.layer_norm_eps
    if is_published:
        assert not vit.learned_positions and not decoder.learned_positions

    batch = images(3, side=vit.image_size)
    noise = np.random.default_rng(1).random((3, vit.patches)).astype(np.float32)
    with torch.no_grad():
        theirs = model(pixel_values(batch), noise=torch.tensor(noise))
        encoded = model.vit(pixel_values(batch), noise=torch.tensor(noise)).last_hidden_state

    order = jnp.asarray(np.argsort(noise, axis=1))
    visible = int(vit.patches * 0.25)
    task = MaskedAutoencoder(
        patch_size=vit.patch_size,
        grid=vit.grid,
        width=vit.width,
        visible=(visible,),
        decoder=decoder,
        normalize_pixels=normalize,
    )
    patches = patchify(jnp.asarray(batch), vit.patch_size)
    ordered = jnp.take_along_axis(patches, order[:, :, None], axis=1)
    inputs = {"patches": standardize(ordered[:, :visible]), "positions": order[:, :visible]}
    tokens = vit.layers(weights.params["layers"], vit.stem(weights.params["stem"], inputs))
    head = {**weights.decoder_params, "norm": weights.params["norm"]}
    targets = {"patches": ordered[:, visible:], "positions": order}
    loss, _ = task.loss(head, tokens, targets, jax.random.key(0))
    predictions = task.decode(head, tokens, order[:, :visible], order[:, visible:])

    backbone, params = as_backbone(weights)
    close(backbone.normed(weights.params["norm"], tokens), encoded)
    masked = np.asarray(order[:, visible:, None], np.int64)
    close(predictions, torch.take_along_dim(theirs.logits, torch.tensor(masked), dim=1))
    close(loss, theirs.loss)
    assert float(loss) > 0.1

    # Whole images, and to transformers and back.
    config.mask_ratio = 0.0
    whole = transformers.ViTMAEModel(config)
    whole.load_state_dict(model.vit.state_dict())
    with torch.no_grad():
        same_order = torch.arange(vit.patches).float().repeat(3, 1)
        all_tokens = whole.eval()(pixel_values(batch), noise=same_order).last_hidden_state
    close(backbone(params, batch, "cls"), all_tokens[:, 0])
    rows, columns = vit.grid
    close(
        backbone(params, batch, "patches"), all_tokens[:, 1:].reshape(3, rows, columns, vit.width)
    )
    close(backbone(params, batch), all_tokens[:, 1:].mean(dim=1))


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["huggingface", "timm", "mae"])
@pytest.mark.parametrize("learned_positions", [False, True])
def test_there_and_back(form, learned_positions):
    decoder = {"width": 32, "depth": 2, "heads": 4} if form != "timm" else None
    weights = made_weights(decoder, learned_positions)
    back = from_tensors(to_tensors(weights, form), source="test", heads=4, decoder_heads=4)
    assert back.vit == weights.vit
    same(back.params, weights.params)
    same(back.decoder_params, weights.decoder_params)


def test_export_to_transformers(tmp_path):
    weights = made_weights(learned_positions=True)
    config = transformers.ViTConfig(
        **{"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8},
        **{"image_size": 32, "intermediate_size": 96, "layer_norm_eps": 1e-6},
    )
    model = transformers.ViTModel(config, add_pooling_layer=False)
    from safetensors.numpy import save_file

    config.save_pretrained(tmp_path)
    save_file(
        {k: np.ascontiguousarray(v) for k, v in to_tensors(weights, "huggingface").items()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    model, report = transformers.ViTModel.from_pretrained(
        tmp_path, add_pooling_layer=False, output_loading_info=True
    )
    assert not any(report.values()), report
    batch = images(2)
    with torch.no_grad():
        theirs = model.eval()(pixel_values(batch)).last_hidden_state
    backbone, params = as_backbone(weights)
    close(backbone(params, batch, "cls"), theirs[:, 0])
    close(backbone(params, batch), theirs[:, 1:].mean(dim=1))


class NoTorchvision(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torchvision, which timm imports for its data and which is not built for every PyTorch."""

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = mock.MagicMock(name=spec.name)
        module.__spec__, module.__path__, module.__version__ = spec, [], "0"
        return module

    def exec_module(self, module):
        pass


@pytest.fixture
def timm(monkeypatch):
    if not importlib.util.find_spec("timm"):
        pytest.skip("needs timm: pip install --no-deps timm")
    if not importlib.util.find_spec("torchvision"):
        monkeypatch.setattr(sys, "meta_path", [NoTorchvision(), *sys.meta_path])
    import timm

    return timm


def test_vision_transformer_of_timm(timm):
    """Features both ways, with learned positions and another pixel normalisation."""
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2, num_classes=5
    )
    model = randomized(model)
    mean, std = np.float32([0.5, 0.4, 0.6]), np.float32([0.5, 0.3, 0.4])
    weights = from_tensors(
        state_dict(model), source="test", heads=4, channel_mean=mean, channel_std=std
    )
    assert weights.vit.learned_positions
    batch = images(2)
    pixels = torch.tensor(((batch / 255.0 - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        theirs = model.forward_features(pixels)
    backbone, params = as_backbone(weights)
    close(backbone(params, batch, "cls"), theirs[:, 0])
    close(backbone(params, batch), theirs[:, 1:].mean(dim=1))

    ours = made_weights()
    result = model.load_state_dict(
        {name: torch.tensor(value) for name, value in to_tensors(ours, "timm").items()},
        strict=False,
    )
    assert result.missing_keys == ["head.weight", "head.bias"]
    assert not result.unexpected_keys
    with torch.no_grad():
        theirs = model.forward_features(pixel_values(batch))
    backbone, params = as_backbone(ours)
    close(backbone(params, batch, "cls"), theirs[:, 0])
    assert not np.allclose(backbone(params, batch), backbone(params, 255 - batch), atol=1e-2)


def test_other_heads_give_other_features():
    """Nothing in the tensors tells how many heads there are, so that figure has to arrive."""
    weights = made_weights()
    other = Weights(dataclasses.replace(weights.vit, heads=2), weights.params)
    batch = images(1)
    found = [backbone(params, batch) for backbone, params in map(as_backbone, (weights, other))]
    assert not np.allclose(*found, atol=1e-3)
