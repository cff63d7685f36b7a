"""The embedded scenes: always the same, derived by the grammar and by nothing else, test parts of their own."""

import hashlib

import numpy as np
import pytest

from blockjax.data import prepare
from blockjax.data.decode import decode
from blockjax.data.embedded import scenes
from blockjax.data.embedded.compose import TRAIN_COUNT
from blockjax.data.sources import open_source

REFERENCE = {
    "train": ("f1036f683403dd23", "754bba8bb3785936"),
    "test": ("d15df091caf4fe8b", "dacf8247a22bb056"),
}


@pytest.fixture
def few(monkeypatch):
    """Fewer scenes, in the order of all."""
    monkeypatch.setattr(scenes, "TRAIN_SCENES", 60)
    monkeypatch.setattr(scenes, "TEST_SCENES", 20)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_composes_the_reference_bytes(few):
    found = scenes.compose_scenes()
    assert found["train"][0].shape == (60, 32, 32, 3)
    assert found["test"][0].shape == (20, 32, 32, 3)
    assert {name: (digest(x), digest(y)) for name, (x, y) in found.items()} == REFERENCE


def test_parts_share_neither_digits_nor_background(few, monkeypatch):
    """Every digit and every photo's half is marked; what a scene shows says where it was taken from."""
    digits = np.zeros((5000, 28, 28), np.uint8)
    digits[TRAIN_COUNT:] = 40  # test digits only
    labels = np.arange(5000) % 10
    photo = np.full((256, 256, 3), 100, np.uint8)
    photo[:, int(0.65 * 256) :] = 200
    monkeypatch.setattr(scenes, "read_digits", lambda: (digits, labels.astype(np.uint8)))
    monkeypatch.setattr(scenes, "read_photos", lambda: [photo])
    found = scenes.compose_scenes()
    assert np.unique(found["train"][0]).tolist() == [30]  # the dimmed photo, and digits of zeros
    assert np.unique(found["test"][0]).tolist() == [20]  # |60 - 40|


def undo(rules, symbols):
    """Returns the symbol from which `symbols` were derived, by searching all rules from the lowest level up."""
    for level in rules[::-1]:
        pairs = {tuple(pair): symbol for symbol in range(10) for pair in level[symbol].tolist()}
        assert len(pairs) == 20  # no pair comes from two symbols
        symbols = [pairs[pair] for pair in zip(symbols[::2], symbols[1::2], strict=True)]
    (symbol,) = symbols
    return symbol


def test_the_label_is_the_symbol_from_which_the_digits_were_derived(few, monkeypatch):
    """Digits are squares whose value is their class; so a scene can be read back, half by half."""
    labels = (np.arange(5000) % 10).astype(np.uint8)
    digits = np.broadcast_to(10 * (1 + labels[:, None, None]), (5000, 28, 28)).astype(np.uint8)
    monkeypatch.setattr(scenes, "read_digits", lambda: (digits, labels))
    monkeypatch.setattr(scenes, "read_photos", lambda: [np.zeros((256, 256, 3), np.uint8)])
    rules = scenes.draw_rules(np.random.RandomState(1))
    seen = set()
    for images, given in scenes.compose_scenes().values():
        for image, label in zip(images[..., 0], given, strict=True):
            cells = image[4::8, 4::8] // 10 - 1
            assert (np.kron(10 * (cells + 1), np.ones((8, 8), int)) == image).all()
            halves = [cells[:2], cells[2:]]
            quarters = [side for half in halves for side in (half[:, :2], half[:, 2:])]
            symbols = [int(symbol) for quarter in quarters for symbol in quarter.reshape(-1)]
            assert undo(rules, symbols) == label
            seen.add(int(label))
    assert seen == set(range(10))


def test_both_productions_of_a_symbol_are_equally_likely():
    rules = scenes.draw_rules(np.random.RandomState(0))
    rng = np.random.RandomState(2)
    derived = {tuple(scenes.derive(rng, rules, 3)) for _ in range(400)}
    assert len(derived) > 390  # of 2 ** 15
    firsts = [undo(rules[1:], scenes.derive(rng, rules, 3)[:8].tolist()) for _ in range(400)]
    a, b = rules[0, 3, :, 0]
    assert a != b and set(firsts) == {a, b} and 150 < firsts.count(a) < 250


def test_the_source_holds_the_composed_scenes(few, tmp_path, capsys):
    assert prepare.main(["embedded:scenes", "--data_dir", str(tmp_path)]) == 0
    assert "blockjax_scenes" in capsys.readouterr().out
    composed = scenes.compose_scenes()
    for split, (images, labels) in composed.items():
        source = open_source("embedded:scenes", split, str(tmp_path))
        examples = [source[i] for i in range(len(source))]
        found = [(digest(decode(example["image"])), example["label"]) for example in examples]
        assert sorted(found) == sorted(
            (digest(image), int(label)) for image, label in zip(images, labels, strict=True)
        )
    assert {path.name for path in tmp_path.iterdir()} == {"blockjax_scenes"}
