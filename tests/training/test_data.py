"""What a run opens and reads of its data."""

import types

import pytest

from blockjax import config as config_lib
from blockjax.data.sources.source import Source, fraction_of
from blockjax.training import report
from blockjax.training.data import count_classes, host_batches
from tests.tiny import images, tiny_config


class Records(Source):
    """Like a TFDS data set: labels lie in the records, and to have all of them every record is read."""

    def __init__(self, labelled):
        self.labelled, self.class_names = labelled, ["a", "b", "c", "d"] if labelled else None
        self.description, self._images = "records", images(16)

    def __len__(self):
        return len(self._images)

    def __getitem__(self, index):
        label = {"label": index % 4} if self.labelled else {}
        return {"image": self._images[index], **label}

    @property
    def labels(self):
        raise AssertionError("all records would be read")

    def name(self, index):
        return f"record {index}"


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("objective", ["mae", "classification"])
def test_no_run_reads_all_labels_beforehand(objective, labelled, monkeypatch):
    source = Records(labelled)
    config = tiny_config(objective=objective)
    config = config_lib.resolve(config, devices=1, platform="cpu")
    if objective == "classification" and not labelled:
        with pytest.raises(ValueError, match="has no labels"):
            count_classes(config, source, source)
        return
    assert count_classes(config, source, source) == (4 if objective == "classification" else None)
    assert fraction_of(source, 1.0, 0) is source
    batches = host_batches(config, source)
    assert ("label" in next(batches)) == labelled
    batches.close()
    placement = types.SimpleNamespace(
        init_in=lambda *_: None, readable=lambda state: state, shardings=None
    )
    said = []
    run = types.SimpleNamespace(
        config=config,
        placement=placement,
        learner=None,
        train_source=source,
        test_source=source,
        key=lambda name: None,
        print=said.append,
    )
    monkeypatch.setattr(report, "probe_blocks", lambda *args, classes, pool: [classes])
    assert report._probes(run, None) == ([4] if labelled else [])
    assert bool(said) != labelled
