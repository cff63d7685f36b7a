import hashlib
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from absl import logging

from blockjax.data import builders, prepare
from blockjax.data.decode import decode
from blockjax.data.embedded import compose
from blockjax.data.sources import open_source


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def composed():
    return compose.compose()


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("embedded")
    builders.embedded_builder(directory)
    return directory


@pytest.fixture
def quick_build(prepared_dir, monkeypatch):
    """Replaces the building of the files by a copy."""

    def copy(self, **_):
        shutil.copytree(prepared_dir / "blockjax_embedded" / "1.0.0", self.data_dir)

    monkeypatch.setattr(builders.Embedded, "download_and_prepare", copy)


def test_composes_the_reference_bytes(composed):
    images_BHWC, labels_B = composed
    assert images_BHWC.shape == (5000, 32, 32, 3)
    assert digest(images_BHWC[:4000]) == "4b83477b4d92d640"
    assert digest(images_BHWC[4000:]) == "927b9fd9dbe9cd84"
    assert digest(labels_B) == "e680f1db0a09c91b"


def test_every_file_has_its_licence_in_the_notice():
    directory = Path(compose.__file__).parent
    notice = (directory / "NOTICE").read_text()
    photos = sorted(path.stem for path in directory.glob("*.jpg"))
    assert photos == sorted(compose.PHOTOS)
    assert all(f"\n    {name} " in notice for name in photos)
    assert "digits.npz" in notice and "by-sa/3.0" in notice


@pytest.mark.parametrize(
    ("split", "part"), [("train", slice(0, 4000)), ("test", slice(4000, None))]
)
def test_data_set_holds_the_composed_images(composed, prepared_dir, split, part):
    source = open_source("embedded", split, str(prepared_dir))
    images_BHWC, labels_B = composed
    expected = sorted(
        (digest(image), int(label))
        for image, label in zip(images_BHWC[part], labels_B[part], strict=True)
    )
    examples = [source[i] for i in range(len(source))]
    assert sorted((digest(decode(e["image"])), e["label"]) for e in examples) == expected
    np.testing.assert_array_equal(source.labels, [e["label"] for e in examples])
    assert source.class_names == [str(digit) for digit in range(10)]


def test_build_that_lost_the_race_takes_what_the_winner_made(
    prepared_dir, tmp_path, monkeypatch, quick_build
):
    copy = builders.Embedded.download_and_prepare

    def copy_while_another_wins(self, **_):
        copy(self)
        shutil.copytree(prepared_dir, tmp_path, dirs_exist_ok=True)

    monkeypatch.setattr(builders.Embedded, "download_and_prepare", copy_while_another_wins)
    builder = builders.embedded_builder(tmp_path)
    assert Path(builder.data_dir) == tmp_path / "blockjax_embedded" / "1.0.0"
    assert os.listdir(tmp_path) == ["blockjax_embedded"]


def test_directory_that_cannot_be_written(tmp_path, monkeypatch, quick_build):
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    builder = builders.embedded_builder(tmp_path / "file" / "below")
    assert Path(builder.data_dir).is_relative_to(tmp_path / "temporary")
    assert builders.is_prepared(builder)
    assert len(warnings) == 1
    assert "data.dir" in warnings[0] and str(tmp_path / "file" / "below") in warnings[0]


def test_prepare_command(tmp_path, capsys, quick_build):
    assert prepare.main(["embedded", "--data_dir", str(tmp_path)]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    assert len(open_source("embedded", "train", str(tmp_path))) == 4000
    assert prepare.main(["folder:/somewhere"]) == 1
    assert "embedded" in capsys.readouterr().err


def test_prepare_asks_for_tensorflow(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    assert prepare.main(["tfds:cifar10", "--data_dir", str(tmp_path)]) == 1
    assert "pip install tensorflow-cpu" in capsys.readouterr().err


def _build_at_once(directory, barrier, results):
    barrier.wait()
    results.put(str(builders.embedded_builder(directory).data_dir))


@pytest.mark.slow
def test_processes_that_build_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (str(tmp_path), barrier, results)
    processes = [context.Process(target=_build_at_once, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    target = str(tmp_path / "blockjax_embedded" / "1.0.0")
    assert [results.get(timeout=10) for _ in range(2)] == [target, target]
    assert len(open_source("embedded", "train", str(tmp_path))) == 4000
    assert os.listdir(tmp_path) == ["blockjax_embedded"]
