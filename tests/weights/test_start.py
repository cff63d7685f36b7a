"""What a run starts from: positions at another image size, and the heads of weights that do not say them."""

import dataclasses

import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.learner.build import make_learner
from blockjax.models.position import resized_positions, sincos_2d
from blockjax.training.run import Training
from blockjax.weights import UnusableWeights, Weights, from_tensors, to_tensors
from blockjax.weights.files import write_tensors
from blockjax.weights.loading import open_run
from blockjax.weights.start import fitted_params, start_of
from configs import finetune
from tests.tiny import marked_data, tiny_config
from tests.weights.made import made_weights


def started(path, **overrides):
    """Returns the resolved config, the encoder and its first parameters of a fine-tuning from such weights."""
    config = finetune.get_config()
    config.backbone, config.steps, config.batch_size, config.mesh.data = str(path), 4, 8, 1
    for field, value in overrides.items():
        group, _, name = field.rpartition(".")
        with config.ignore_type():
            (config[group] if group else config)[name] = value
    config, weights = start_of(config)
    config = config_lib.resolve(config, devices=1, platform="cpu")
    config.classifier.classes = 4
    config_lib.fill_lengths(config, 4)
    vit = make_learner(config, 4).vit
    return config, vit, weights and fitted_params(weights, vit, str(path))


@pytest.fixture
def file(tmp_path):
    """Weights with 4 heads, positions of 4 x 4 patches, and no config beside."""
    write_tensors(tmp_path / "model.safetensors", to_tensors(made_weights(), "timm"))
    return tmp_path / "model.safetensors"


def test_fixed_positions_stay_fixed_at_their_own_size(file):
    config, vit, params = started(file, **{"model.heads": 4})
    assert not vit.learned_positions and "positions" not in params["stem"]
    assert not config.model.learned_positions


def test_positions_at_another_size_lie_between_those_of_the_backbone(file):
    config, vit, params = started(file, **{"model.heads": 4, "model.image_size": 64})
    expected = resized_positions(sincos_2d(4, 4, 48), (4, 4), (8, 8))
    np.testing.assert_array_equal(params["stem"]["positions"], expected)
    # The config that stands in the workdir describes the same encoder, without the backbone.
    again = make_learner(config_lib.from_json(config_lib.to_json(config)), 4).vit
    assert again == vit and again.learned_positions
    # What is exported has them, and comes back with them.
    bare = dataclasses.replace(vit, unroll=1, remat="none")
    norm = {"scale": np.ones(48, np.float32), "bias": np.zeros(48, np.float32)}
    for form in ("timm", "huggingface"):
        tensors = to_tensors(Weights(bare, {**params, "norm": norm}), form)
        back = from_tensors(tensors, source="test", heads=4)
        assert back.vit.learned_positions and back.vit.grid == (8, 8)
        np.testing.assert_array_equal(back.params["stem"]["positions"], expected)


def test_an_encoder_from_scratch_has_the_fixed_positions_of_its_size(file):
    _, vit, params = started(file, from_scratch=True, **{"model.image_size": 64})
    assert params is None and not vit.learned_positions


def test_heads_that_no_file_says_are_those_of_the_config(file, caplog):
    assert started(file, **{"model.heads": 4})[1].heads == 4
    assert not caplog.records
    assert started(file)[1].heads == 1  # 64 channels each
    assert "does not say how many heads" in caplog.text and "--config.model.heads" in caplog.text
    (file.parent / "config.json").write_text('{"num_attention_heads": 2}')
    with pytest.raises(ValueError, match=r"has 2 heads, and not 4; .*model\.heads"):
        started(file, **{"model.heads": 4})


@pytest.mark.slow
def test_layers_grow_above_a_frozen_backbone(tmp_path):
    """The first block of another run stays as it is; what is above starts as it would without a backbone."""
    fields = {"mesh.data": -1, "data.flip": False, "data.source": f"arrays:{marked_data(tmp_path)}"}
    fields |= {"steps": 2}
    Training(tiny_config(**fields, **{"blocks": 4}), tmp_path / "below").run()
    grown = {"backbone": str(tmp_path / "below"), "depth_blocks": 1, "tune_blocks": 1, "blocks": 2}
    with pytest.raises(UnusableWeights, match=r"asks for .*grow=True"):
        Training(tiny_config(**fields, **grown, **{"model.depth": 2}), tmp_path / "refused")
    run = Training(
        tiny_config(**fields, **grown, **{"model.depth": 2, "grow": True, "seed": 1}),
        tmp_path / "grown",
    )
    start = run.backbone["layers"]["mlp"]["Dense_0"]["kernel"]
    drawn = run.learner.init(run.key("init")).blocks.params["layers"]["mlp"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(start[1], drawn[1, 0])
    run.run()
    below, above = open_run(tmp_path / "below").params, open_run(tmp_path / "grown").params
    kernels = [of["layers"]["mlp"]["Dense_0"]["kernel"][:, 0] for of in (below, above)]
    np.testing.assert_array_equal(kernels[1][0], kernels[0][0])
    assert np.abs(kernels[1][1] - start[1]).max() > 1e-3

    with pytest.raises(UnusableWeights, match=r"it has 4 layers, .* grow=True .* not 2; set model"):
        Training(
            tiny_config(
                **fields,
                **{
                    "backbone": str(tmp_path / "below"),
                    "grow": True,
                    "model.depth": 2,
                    "blocks": 2,
                },
            ),
            tmp_path / "too_shallow",
        )
    with pytest.raises(ValueError, match=r"depth_blocks, grow and from_scratch say what"):
        Training(tiny_config(**fields, grow=True), tmp_path / "without")
