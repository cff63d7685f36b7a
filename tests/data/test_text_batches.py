import itertools
import json

import numpy as np
import pytest

from blockjax.data.batch import text_batch
from blockjax.data.sources.source import fraction_of
from blockjax.data.sources.text import open_text
from blockjax.data.text_batches import text_train_batches


@pytest.fixture
def source(tmp_path):
    """Fifteen sequences of seven tokens, all different."""
    (tmp_path / "a.txt").write_bytes(bytes(range(1, 121)))
    return open_text(f"text:{tmp_path}/a.txt", "train", context=7)


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return [batch["tokens"].tolist() for batch in batches]


def joined(batches):
    return [*itertools.chain(*batches)]


def test_batches_are_as_described(source):
    spec = text_batch(7, 258)
    assert spec.encoded == "tokens"
    batch = next(iterator := text_train_batches(source, batch_size=4, seed=0))
    iterator.close()
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in spec.abstract(4).items()
    }
    random = spec.random(500)["tokens"]
    assert random.min() >= 0 and random.max() == 257


def test_an_epoch_has_every_sequence_once(source):
    count = len(source)
    assert count == 15
    batches = take(text_train_batches(source, batch_size=5, seed=0), 6)
    everything = sorted(source.tokens.tolist())
    epochs = [joined(batches[:3]), joined(batches[3:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == everything
    assert epochs[0] != epochs[1] and epochs[0] != everything
    assert batches != take(text_train_batches(source, batch_size=5, seed=1), 6)


def test_processes_share_a_batch(source):
    whole = take(text_train_batches(source, batch_size=4, seed=0), 5)
    parts = [
        take(text_train_batches(source, batch_size=4, seed=0, rows=np.array(rows)), 5)
        for rows in ([0, 1], [2, 3])
    ]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


def test_training_goes_on_where_it_was(source):
    iterator = text_train_batches(source, batch_size=4, seed=0)
    for _ in range(5):  # into the second epoch
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"position": 20, "seed": 0, "size": 15}
    expected = take(iterator, 3)
    again = text_train_batches(source, batch_size=4, seed=0)
    again.set_state(state)
    assert take(again, 3) == expected
    message = r"the number of sequences was 14 when.*is 15 now\. Restore .*model\.context"
    with pytest.raises(ValueError, match=message):
        again.set_state(state | {"size": 14})


def test_a_part_of_a_text_is_trained_on(source):
    part = fraction_of(source, 0.4, seed=0)
    assert len(part) == 6
    sequences = joined(take(text_train_batches(part, batch_size=3, seed=0), 2))
    assert sorted(sequences) == sorted(part[i]["tokens"].tolist() for i in range(6))


@pytest.mark.slow
def test_worker_processes_make_the_same_batches(source):
    expected = take(text_train_batches(source, batch_size=4, seed=0), 4)
    assert take(text_train_batches(source, batch_size=4, seed=0, workers=1), 4) == expected
