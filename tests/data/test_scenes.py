"""The embedded scenes: always the same, told apart by the largest digit, test parts of their own."""

import hashlib

import numpy as np
import pytest

from blockjax.data import prepare
from blockjax.data.decode import decode
from blockjax.data.embedded import scenes
from blockjax.data.embedded.compose import TRAIN_COUNT
from blockjax.data.sources import open_source

REFERENCE = {
    "train": ("4ef128e0296e4a52", "4a06b4247fddc0d0"),
    "test": ("564f6a990748f1cf", "e6afc1cca73268c1"),
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
    assert found["train"][0].shape == (60, 64, 64, 3)
    assert found["test"][0].shape == (20, 64, 64, 3)
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
    assert np.unique(found["train"][0]).tolist() == [100]
    assert np.unique(found["test"][0]).tolist() == [
        120,
        160,
        200,
    ]  # where two frames overlap, two digits


def test_the_label_is_the_largest_and_all_have_room(few, monkeypatch):
    """Digits are squares whose value is their class; so a scene can be read back."""
    labels = (np.arange(5000) % 10).astype(np.uint8)
    digits = np.broadcast_to(10 * (1 + labels[:, None, None]), (5000, 28, 28)).astype(np.uint8)
    monkeypatch.setattr(scenes, "read_digits", lambda: (digits, labels))
    monkeypatch.setattr(scenes, "read_photos", lambda: [np.zeros((256, 256, 3), np.uint8)])
    images, given = scenes.compose_scenes()["train"]
    seen = set()
    for image, label in zip(images[..., 0], given, strict=True):
        areas = {value: int((image == value).sum()) for value in np.unique(image) if value}
        own = 10 * (1 + int(label))
        assert areas[own] > 0.8 * 24 * 24
        # None of another class is larger than what two of the second size would cover.
        others = [area for value, area in areas.items() if value != own]
        assert all(area <= 4 * (0.72 * 30) ** 2 for area in others)
        seen.add(int(label))
    assert seen == set(range(10))


def test_frames_hardly_overlap():
    rng = np.random.RandomState(0)
    for _ in range(50):
        sizes = [30, 21, 20, 12]
        frames = [
            (*place, size) for place, size in zip(scenes._places(rng, sizes), sizes, strict=True)
        ]
        covered = np.zeros((64, 64), int)
        for row, column, size in frames:
            assert 0 <= row <= 64 - size and 0 <= column <= 64 - size
            covered[row : row + size, column : column + size] += 1
        for i, (row, column, size) in enumerate(frames):
            for other_row, other_column, other in frames[:i]:
                rows = min(row + size, other_row + other) - max(row, other_row)
                columns = min(column + size, other_column + other) - max(column, other_column)
                assert min(rows, columns) <= 2


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
