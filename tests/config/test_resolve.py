"""Every bad config is a sentence before anything is compiled."""

import jax
import ml_collections
import pytest

from blockjax import config as config_lib
from tests.tiny import tiny_config


def resolve(config, devices=1, platform="cpu"):
    return config_lib.resolve(config, devices=devices, platform=platform)


BAD = {
    "blocks": ({"blocks": 3}, r"blocks 3 does not divide the depth of 4 layers.*1, 2, 4"),
    "patch": ({"model.patch_size": 5}, r"patch_size 5 does not divide.*32.*1, 2, 4, 8, 16, 32"),
    "heads": (
        {"model.heads": 5},
        r"width 32 is not divisible by model.heads 5.*1, 2, 4, 8, 16, 32",
    ),
    "width": ({"model.width": 30, "model.heads": 2}, r"model.width must be divisible by 4"),
    "all_masked": ({"mask.ratio": 0.99}, r"mask.ratio 0.99 leaves no visible patch of 16"),
    "none_masked": ({"mask.ratio": 0.0}, r"mask.ratio 0 leaves no masked patch of 16"),
    "schedule": (
        {"mask.schedule": "cosine"},
        r"mask.schedule 'cosine' cannot be read for 4 blocks",
    ),
    "gray": ({"tiles.gray": 1.5}, r"tiles.gray must be from 0 to 1, not 1.5"),
    "temperature": ({"loss.temperature": 0.0}, r"loss.temperature must be above 0"),
    "momentum": ({"momentum.decay": 1.5}, r"momentum.decay must be from 0 to 1, not 1.5"),
    "monitor": ({"log.monitor_every": -1}, r"log.monitor_every must be at least 0, not -1"),
    "rising": ({"mask.schedule": "0.75,0.5,0.5,0.5"}, r"later blocks cannot see more"),
    "schedule_end_to_end": (
        {"mask.schedule": "linear:0.9", "strategy": "end_to_end"},
        r"end_to_end has one block",
    ),
    "strategy": (
        {"strategy": "blockwize"},
        r"strategy 'blockwize' is unknown; did you mean 'blockwise'",
    ),
    "preset": ({"model.preset": "xl"}, r"model.preset 'xl' is unknown.*ti, s, b, l, h"),
    "remat": ({"remat": "full"}, r"remat 'full' is unknown.*none, layer, nested, offload"),
    "decoder": (
        {"decoder.kind": "attention"},
        r"decoder.kind 'attention' is unknown.*cross_attention",
    ),
    "decoder_heads": ({"decoder.heads": 5}, r"decoder.width 32 must be divisible.*heads 5"),
    "decoder_width": ({"decoder.width": 30, "decoder.heads": 2}, r"must be divisible by 4"),
    "fraction": ({"decoder.fraction": 0.0}, r"decoder.fraction must be above 0"),
    "whole_fraction": ({"decoder.fraction": 1.1}, r"at most 1, not 1.1"),
    "dtype": ({"dtype": "float16"}, r"dtype 'float16' is unknown"),
    "on_corrupt": ({"data.on_corrupt": "ignore"}, r"data.on_corrupt 'ignore' is unknown"),
    "epochs": ({"steps": None, "epochs": 0.0}, r"epochs must be above 0, not 0"),
    "decay": (
        {"optimizer.weight_decay": -0.1},
        r"optimizer.weight_decay must be at least 0, not -0.1",
    ),
    "interval": ({"checkpoint.every": 0}, r"checkpoint.every must be at least 1, not 0"),
    "objective": ({"objective": "mea"}, r"objective 'mea' is unknown; did you mean 'mae'"),
    "implementation": ({"loss.implementation": "cuda"}, r"loss.implementation 'cuda' is unknown"),
    "batch": ({"batch_size": 0}, r"batch_size must be at least 1, not 0"),
    "both_lengths": ({"epochs": 2.0}, r"exactly one of steps and epochs; got steps=20, epochs=2.0"),
    "no_length": ({"steps": None}, r"exactly one of steps and epochs; got steps=None, epochs=None"),
    "unroll": ({"model.unroll": 2}, r"model.unroll 2 does not divide the 1 layers"),
    "crop": ({"data.crop_scale": (0.0, 1.0)}, r"data.crop_scale must be two areas"),
    "pool": ({"probe.pool": 3}, r"probe.pool 3 does not divide the 4 x 4 grid"),
    "cells": ({"classifier.pool": 3}, r"classifier.pool 3 does not divide the 4 x 4 grid"),
    "streamed_schedule": (
        {"mask.schedule": "linear:0.9", "strategy": "streamed"},
        r"strategy=streamed runs all blocks in one loop, and mask.schedule .* set mask.schedule=constant",
    ),
    "pipelined_schedule": (
        {"mask.schedule": "linear:0.9", "strategy": "pipelined"},
        r"strategy=pipelined runs all blocks in one loop, and mask.schedule .* strategy=blockwise",
    ),
    "block_fractions": (
        {"decoder.block_fractions": "1,0.5"},
        r"decoder.block_fractions '1,0.5' should be 4 numbers .* one for each block",
    ),
    "fractions_above_1": (
        {"decoder.block_fractions": "1,1,1,2"},
        r"'1,1,1,2' are parts of the masked patches; each must be above 0 and at most 1",
    ),
    "fractions_in_one_loop": (
        {"decoder.block_fractions": "1,1,1,0.5", "strategy": "streamed"},
        r"strategy=streamed runs all blocks in one loop, and decoder.block_fractions=1,1,1,0.5 lets",
    ),
    "fractions_of_others": (
        {"decoder.block_fractions": "1,1,1,1", "objective": "rotation"},
        r"parts of the masked patches that mae decodes, and objective=rotation has none",
    ),
    "pipeline_batches": (
        {"pipeline.batches": 0},
        r"pipeline.batches must be at least 1, not 0",
    ),
    "block_axis": ({"mesh.block": 1, "mesh.data": 3}, r"mesh.data=3.* does not fit 1 device"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values(case):
    overrides, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        resolve(tiny_config(**overrides))


def test_batch_and_mesh_must_fit_the_devices():
    config = tiny_config(**{"batch_size": 6, "mesh.data": -1})
    for fsdp in (1, 2):
        config.mesh.fsdp = fsdp
        with pytest.raises(ValueError, match=r"batch_size 6 does not divide over 4 .*; 4 would"):
            resolve(config, devices=4)
    resolve(config, devices=2)
    with pytest.raises(ValueError, match=r"mesh.block=4 spreads blocks .* set strategy=pipelined"):
        resolve(tiny_config(**{"mesh.block": 4}), devices=4)
    fields = {"mesh.block": 4, "strategy": "pipelined"}
    assert resolve(tiny_config(**fields), devices=4).pipeline.batches == 32
    with pytest.raises(ValueError, match=r"blocks 2 .* mesh.block=4 stages; .* that do: 1, 2"):
        resolve(tiny_config(**fields, blocks=2), devices=4)


def test_a_mistyped_key_names_the_nearest():
    config = tiny_config()
    with config.unlocked():
        config.optimizer.base_lr = 1.0
    with pytest.raises(ValueError, match=r"no field optimizer.base_lr; did you mean 'optimizer.b"):
        resolve(config)
    config = tiny_config()
    with config.unlocked():
        config.batchsize = 1
    with pytest.raises(ValueError, match=r"no field batchsize; did you mean 'batch_size'"):
        resolve(config)
    config = tiny_config()
    with config.unlocked(), config.ignore_type():
        config.mask = 0.75
    with pytest.raises(ValueError, match=r"config field mask is a group of fields, not 0.75"):
        resolve(config)
    config = ml_collections.ConfigDict({"steps": 3})
    with pytest.raises(ValueError, match=r"config lacks .*seed"):
        resolve(config)


def test_defaults_that_depend_on_other_fields():
    config = config_lib.default_config()
    config.steps = 1000
    config.model.preset = "B"
    config.model.depth = 8
    resolved = resolve(config, platform="tpu")
    assert (resolved.model.width, resolved.model.depth, resolved.model.heads) == (768, 8, 12)
    assert resolved.dtype == "bfloat16" and resolve(config).dtype == "float32"
    older = config_lib.resolve(config, devices=1, platform="gpu", multiplies_bfloat16=False)
    assert older.dtype == "float32"
    assert resolved.decoder.heads == 6
    config_lib.fill_lengths(resolved, 1000)
    assert resolved.optimizer.warmup_steps == 50 and resolved.checkpoint.every == 100
    assert config.model.width is None  # the user's config is left alone


def test_steps_from_epochs_and_data():
    config = tiny_config(**{"steps": None, "epochs": 2.5, "batch_size": 8})
    assert config_lib.total_steps(config, examples=80) == 25
    assert config_lib.total_steps(tiny_config(), examples=80) == 20
    assert config_lib.total_steps(config, examples=8) == 2
    with pytest.raises(ValueError, match=r"batch_size 8 is larger.*has 7 examples"):
        config_lib.total_steps(config, examples=7)
    config = resolve(tiny_config(**{"optimizer.warmup_steps": 20}))
    with pytest.raises(ValueError, match=r"warmup_steps 20 must be shorter than the run of 20"):
        config_lib.fill_lengths(config, 20)


def test_a_warmup_may_be_a_share_of_the_run_which_becomes_steps():
    config = resolve(tiny_config(**{"optimizer.warmup_steps": None, "optimizer.warmup_share": 0.3}))
    config_lib.fill_lengths(config, 20)
    assert (config.optimizer.warmup_steps, config.optimizer.warmup_share) == (6, None)
    # What a workdir saves can be read and resolved again.
    again = resolve(config_lib.from_json(config_lib.to_json(config)))
    config_lib.fill_lengths(again, 20)
    assert again.optimizer.warmup_steps == 6
    said = resolve(tiny_config(**{"optimizer.warmup_steps": 5, "optimizer.warmup_share": 0.3}))
    config_lib.fill_lengths(said, 20)
    assert said.optimizer.warmup_steps == 5
    fields = {"optimizer.warmup_steps": None, "optimizer.warmup_share": 1.0}
    with pytest.raises(ValueError, match=r"warmup_share must be from 0 to below 1, not 1"):
        resolve(tiny_config(**fields))


def test_differences_name_fields_and_leave_free_ones():
    a, b = resolve(tiny_config()), resolve(tiny_config())
    b.model.depth, b.log.every, b.checkpoint.keep, b.data.dir = 8, 99, 7, "/elsewhere"
    b.mesh.fsdp, b.probe.pool, b.data.workers = 2, 1, 3
    found = config_lib.differences(config_lib.to_json(a), config_lib.to_json(b))
    assert found == ["model.depth: 4 -> 8"]
    assert config_lib.differences(config_lib.to_json(a), config_lib.to_json(a)) == []


def test_arguments_of_config_files():
    parse = config_lib.parse_argument
    assert parse("size=64,data=tfds:x", size=224, data="embedded") == {"size": 64, "data": "tfds:x"}
    assert parse(None, size=224) == {"size": 224}
    with pytest.raises(ValueError, match=r"'sise=1' is unknown; .*size=224"):
        parse("sise=1", size=224)
    with pytest.raises(ValueError, match=r"size='big' is not a number"):
        parse("size=big", size=224)


def test_offloading_on_several_cpu_devices_is_refused():
    config = tiny_config(remat="offload", **{"mesh.data": -1})
    with pytest.raises(ValueError, match=r"remat=offload on 4 CPU devices .* set remat=layer"):
        config_lib.resolve(config, devices=4, platform="cpu")
    assert config_lib.resolve(config, devices=4, platform="gpu").remat == "offload"


@pytest.mark.parametrize(
    ("file", "argument"),
    [
        ("quickstart", None),
        ("digits", None),
        ("bim", None),
        ("bim", "model=l16,strategy=end_to_end,decoder=self_attention,data=embedded,batch=64"),
        ("bim", "model=ti4,size=32,data=embedded,blocks=6"),
    ],
)
def test_config_files_resolve(file, argument):
    from blockjax.config.files import load_config

    config = load_config(f"configs/{file}.py" + (f":{argument}" if argument else ""))
    resolved = resolve(config, devices=jax.device_count())
    assert resolved.model.image_size % resolved.model.patch_size == 0
    if argument and "l16" in argument:
        assert (resolved.model.width, resolved.decoder.depth, resolved.decoder.fraction) == (
            1024,
            8,
            1.0,
        )


def test_bim_refuses_unknown_models():
    from blockjax.config.files import load_config

    with pytest.raises(ValueError, match="model=xxl7 is unknown"):
        load_config("configs/bim.py:model=xxl7")
    with pytest.raises(ValueError, match="there is no such file"):
        load_config("configs/none.py")


def test_fields_younger_than_a_saved_run_are_its_defaults():
    new = config_lib.to_json(tiny_config())
    saved = {field: value for field, value in new.items() if field != "microbatches"}
    assert config_lib.differences(saved, new) == []
    new["microbatches"] = 2
    assert config_lib.differences(saved, new) == ["microbatches: 1 -> 2"]


@pytest.mark.parametrize("field", ["model.dept", "modell.depth", "depth"])
def test_a_field_that_is_not_there_cannot_be_set(field):
    with pytest.raises(ValueError, match=f"--config.{field}: there is no"):
        config_lib.set_field(tiny_config(), field, 1)


def test_the_depth_is_the_preset_s_unless_given():
    config = config_lib.default_config()
    config.model.preset = "L"
    assert config_lib.depth(config) == 24
    config.model.depth = 5
    assert config_lib.depth(config) == 5
    config.model.depth, config.model.preset = None, "xl"
    with pytest.raises(ValueError, match=r"model.preset 'xl' is unknown"):
        config_lib.depth(config)
