"""Settings that a plan chooses from."""

import pytest

from blockjax.memory.settings import Setting, beside, roots, smaller
from tests.tiny import tiny_config


def test_roots_keep_what_the_config_says():
    names = {root.strategy for root in roots(tiny_config())}
    assert {"end_to_end", "blockwise", "streamed"} <= names and "pipelined" not in names
    (root,) = roots(tiny_config(**{"pipeline.batches": 3, "blocks": 2}), ["streamed"])
    assert root == Setting("streamed", "none", 2, 3, 1, 8)
    assert [root.batch for root in roots(tiny_config(), ["blockwise"], [8, 32])] == [8, 32]
    assert "pipelined" in {root.strategy for root in roots(tiny_config(**{"mesh.block": 2}))}
    with pytest.raises(ValueError, match=r"strategy.*blockwize"):
        roots(tiny_config(), ["blockwize"])


def test_a_stay_no_longer_than_the_run():
    assert roots(tiny_config(**{"pipeline.batches": 20}))  # all 20 steps of it
    with pytest.raises(ValueError, match=r"pipeline.batches=21 .* steps=20; set it to at most 20"):
        roots(tiny_config(**{"pipeline.batches": 21}))


def test_other_blocks_and_stays_stand_beside_a_root():
    config = tiny_config(**{"model.depth": 12, "blocks": 3, "steps": 10})
    root = Setting("streamed", "none", 3, 1, 1, 8)

    def found(**options):
        settings = beside(root, config, **{"rows": 3, "is_moved": True, **options})
        return {(s.blocks, s.batches) for s in settings}

    # 2, its double, a layer a block, and the config's; 16 batches are more than the run has.
    assert found() == {(k, m) for k in (2, 3, 4, 12) for m in (1, 4)}
    assert found(is_moved=False) == {(k, 1) for k in (2, 3, 4, 12)}
    assert found(rows=1, is_moved=False) == {(3, 1)}
    assert found(blocks=[6]) == {(6, 1), (6, 4)}
    config.pipeline.batches = 1
    assert found(blocks=[6]) == {(6, 1)}


def test_smaller_settings():
    root = Setting("blockwise", "none", 4, 1, 1, 8)
    layer = Setting("blockwise", "layer", 4, 1, 1, 8)
    assert smaller(root) == [layer, Setting("blockwise", "none", 4, 1, 4, 8)]
    assert {s.remat for s in smaller(layer)} == {"nested", "offload", "layer"}
    assert smaller(Setting("blockwise", "nested", 4, 1, 4, 8)) == []  # 8 images are no 16 parts
    assert smaller(Setting("blockwise", "none", 4, 1, 1, 6))[-1].microbatches == 1


def test_a_setting_in_a_config():
    setting = Setting("end_to_end", "layer", 2, 1, 4, 16)
    config = setting.apply(tiny_config(**{"distillation.weight": 0.5}))
    assert (config.strategy, config.remat, config.blocks) == ("end_to_end", "layer", 2)
    assert (config.pipeline.batches, config.microbatches, config.batch_size) == (1, 4, 16)
    assert config.distillation.weight == 0.0  # no other block to couple with
    kept = Setting("blockwise", "layer", 2, 1, 4, 16).apply(
        tiny_config(**{"distillation.weight": 0.5})
    )
    assert kept.distillation.weight == 0.5
