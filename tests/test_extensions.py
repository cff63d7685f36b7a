"""What a user writes takes the place of what blockjax has, by `module:Name`; what cannot is refused in a sentence."""

import json
import re
import shutil
import zipfile

import jax
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax import extensions
from blockjax.config.fields import set_field
from blockjax.data.sources import open_source
from blockjax.learner.build import make_learner
from blockjax.techniques import Technique
from tests.docs.pages import ROOT, codes
from tests.tiny import STEPS, images, tiny_config


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """The modules of docs/extending, and some that are wrong, where Python finds them."""
    for page in sorted((ROOT / "docs" / "extending").glob("*.md")):
        for code in codes(page):
            if name := re.match(r"# (\w+)\.py\n", code.text):
                (tmp_path / f"{name[1]}.py").write_text(code.text)
    (tmp_path / "broken.py").write_text("import no_such_module_anywhere")
    (tmp_path / "failing.py").write_text("1 / 0")
    (tmp_path / "half.py").write_text(
        "from blockjax.objectives import Objective\nclass Half(Objective): pass\nnumber = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(extensions, "_allowed", set())
    return tmp_path


def resolved(**fields):
    return config_lib.resolve(tiny_config(**fields), devices=1, platform="cpu")


def learner_of(**fields):
    config = resolved(**fields)
    config_lib.fill_lengths(config, STEPS)
    return make_learner(config, STEPS)


BAD = {
    ("objective", "denoize"): r"unknown; .*one of mae, .*module:Name of your own",
    ("objective", "nowhere:Denoise"): r"there is no module nowhere in .* or on Python's path",
    ("objective", "denoise:Denois"): r"denoise.py defines no Denois; did you mean 'Denoise'",
    ("objective", "zips:ZipImages"): r"is no subclass of .*objective.Objective",
    ("objective", "half:Half"): r"lacks from_config, init_head, loss, prepare, seen",
    ("objective", "broken:Any"): r"broken cannot be imported: No module named 'no_such_module",
    ("objective", "failing:Any"): r"failing cannot be imported: ZeroDivisionError",
    ("decoder.kind", "denoise:Denoise"): r"is no subclass of .*decoders.Decoder",
    ("strategy", "half:number"): r"is int; it must be a function",
    ("strategy", "blockwize"): r"did you mean 'blockwise'",
    ("techniques", "whitening:Whitening,denoise:Denoise"): r"is no subclass of .*Technique",
    ("techniques", "whitening"): r"techniques 'whitening' is unknown",
}


@pytest.mark.parametrize("field, value", BAD, ids=lambda part: str(part))
def test_what_cannot_be_used_is_one_sentence(field, value):
    with pytest.raises(ValueError, match=BAD[field, value]) as refused:
        resolved(**{field: value})
    assert "\n" not in str(refused.value) and field in str(refused.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"schedule": "sequential"}, "schedule=sequential drives the blocks in a way of its own"),
        ({"head.shared": True}, "head.shared=True drives the blocks"),
        ({"hybrid.every": 2}, "hybrid.every=2 drives the blocks"),
        ({"pipeline.batches": 2}, "is a driver for one batch"),
        ({"mask.schedule": "linear:0.75"}, "runs all blocks in one loop"),
    ],
)
def test_a_driver_of_ones_own_refuses_what_chooses_another(fields, message):
    with pytest.raises(ValueError, match=message):
        resolved(strategy="skipping:half_of_steps", **fields)


def test_techniques_of_ones_own_where_they_cannot_be():
    with pytest.raises(ValueError, match="techniques=whitening:Whitening changes blocks"):
        resolved(techniques="whitening:Whitening", strategy="streamed_end_to_end")
    with pytest.raises(ValueError, match="set microbatches=1"):
        learner_of(techniques="whitening:Whitening", microbatches=2)


def test_a_technique_that_sweeps_needs_all_blocks_at_one_batch(monkeypatch):
    class Sweeping(Technique):
        sweeps = True

        def apply(self, block):
            return block

    monkeypatch.setattr("half.Sweeping", Sweeping, raising=False)
    learner_of(techniques="half:Sweeping")
    with pytest.raises(ValueError, match="Sweeping looks at all blocks before their updates"):
        learner_of(techniques="half:Sweeping", **{"pipeline.batches": 2})


def test_all_together_train():
    """A decoder, a driver and a technique of one's own in one step: losses fall, and the technique has its metric."""
    learner = learner_of(
        strategy="skipping:half_of_steps",
        techniques="whitening:Whitening, whitening:Strong",
        **{"decoder.kind": "pooled:PooledDecoder", "model.depth": 2, "blocks": 2},
    )
    assert type(learner.objective.decoder).__name__ == "PooledDecoder"
    assert [technique.weight for technique in learner.techniques] == [0.1, 1.0]
    state, step = jax.jit(learner.init)(jax.random.key(0)), jax.jit(learner.train_step)
    losses, moved = [], []
    for _ in range(STEPS):
        before = state.blocks.params["head"]["mask_token"]
        state, metrics = step(state, {"image": images()}, jax.random.key(1))
        losses.append(metrics["loss"])
        moved.append((state.blocks.params["head"]["mask_token"] != before).any(axis=(1, 2, 3)))
    assert np.all(losses[-1] < losses[0]) and metrics["correlation"].shape == (2,)
    assert np.all(np.any(moved, axis=0)) and not np.any(np.all(moved, axis=0))  # in some steps


def test_sources_of_ones_own(modules):
    with pytest.raises(ValueError, match=r"is no subclass of .*Source"):
        open_source("denoise:Denoise", "train")
    # A module that is not there is a slip in the kind.
    with pytest.raises(ValueError, match="Did you mean 'folder:photos'"):
        open_source("foldr:photos", "train")
    with zipfile.ZipFile(modules / "photos.zip", "w") as archive:
        for k in range(20):
            archive.writestr(f"{'ab'[k % 2]}/{k}.png", b"pixels")
    source = open_source("zips:ZipImages:photos.zip", "test")
    assert len(source) == 2 and source[0] == {"image": b"pixels", "label": 0}


@pytest.fixture
def saved(tmp_path):
    """Returns a function that writes the config.json of a run with these fields, and returns its path."""

    def write(**fields):
        config = resolved()
        config_lib.fill_lengths(config, STEPS)
        for field, value in fields.items():
            set_field(config, field, value)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config_lib.to_json(config)))
        return path

    return write


@pytest.mark.parametrize(
    "field, value",
    [
        ("objective", "half:Half"),
        ("strategy", "skipping:half_of_steps"),
        ("decoder.kind", "pooled:PooledDecoder"),
        ("techniques", "whitening:Whitening"),
        ("techniques", "\n whitening:Whitening"),
        ("data.source", "zips:ZipImages:photos.zip"),
        ("data.source", "shutil:rmtree:runs"),
    ],
)
def test_a_saved_config_imports_nothing_without_consent(field, value, saved, monkeypatch):
    path, (module, _, _) = saved(**{field: value}), value.strip().partition(":")
    monkeypatch.setattr("importlib.import_module", lambda name: pytest.fail(f"imports {name}"))
    with pytest.raises(
        ValueError, match=f"names {module}:.* BLOCKJAX_EXTENSIONS={module} in front"
    ):
        config_lib.read_saved(path)


def test_consent(saved, monkeypatch):
    path = saved(objective="denoise:Denoise", techniques="whitening:Whitening")
    monkeypatch.setenv("BLOCKJAX_EXTENSIONS", "denoise,whitening")
    assert config_lib.read_saved(path).objective == "denoise:Denoise"
    monkeypatch.setenv("BLOCKJAX_EXTENSIONS", "denoise")
    with pytest.raises(ValueError, match="names whitening:Whitening"):
        config_lib.read_saved(path)
    extensions.allow("whitening")
    config_lib.read_saved(path)
    monkeypatch.delenv("BLOCKJAX_EXTENSIONS")
    # Whoever gives a config wants what it names: a run goes on without further ado.
    resolved(objective="denoise:Denoise")
    config_lib.read_saved(path)


def test_data_that_blockjax_knows_need_no_consent(saved):
    for source in ("arrays:numbers.npz", "folder:photos", "tfds:cifar10", "embedded:scenes"):
        config_lib.read_saved(saved(**{"data.source": source}))


def test_the_package_of_a_module_that_is_missing_is_named(modules):
    shutil.copytree(
        ROOT / "docs" / "extending", modules / "mine"
    )  # a folder, but no such module in it
    with pytest.raises(ValueError, match=r"there is no module mine\.tasks"):
        resolved(objective="mine.tasks:Denoise")
