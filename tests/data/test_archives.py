import io
import sys
import tarfile
import types

import pytest

from blockjax.data import archives, builders, prepare
from blockjax.data.sources.source import DatasetUnavailable

TRAIN, VALIDATION = archives.NEEDED["imagenet2012"]


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Archives in ILSVRC2012's layout."""
    classes = {
        f"n0000000{c}.tar": tar_of({f"n0000000{c}_{i}.JPEG": b"pixels" * 200 for i in range(3)})
        for c in range(4)
    }
    folder = tmp_path / "manual"
    folder.mkdir()
    (folder / TRAIN).write_bytes(tar_of(classes))
    (folder / VALIDATION).write_bytes(tar_of({f"{i}.JPEG": b"pixels" * 200 for i in range(5)}))
    return folder


def test_whole_archives(folder):
    archives.check_archives("imagenet2012", folder)
    assert archives.broken_archives([folder / TRAIN, folder / VALIDATION], inner=True) == ""
    archives.check_archives("cifar10", folder / "nowhere")  # is downloaded


@pytest.mark.parametrize("missing", [[TRAIN], [VALIDATION], [TRAIN, VALIDATION]])
def test_missing_archives_are_named(folder, missing):
    for file in missing:
        (folder / file).unlink()
    with pytest.raises(DatasetUnavailable, match="--manual_dir") as error:
        archives.check_archives("imagenet2012", folder)
    for file in (TRAIN, VALIDATION):
        assert (file in str(error.value)) == (file in missing)


@pytest.mark.parametrize("file", [TRAIN, VALIDATION])
@pytest.mark.parametrize("damage", ["half", "member", "html", "empty"])
def test_broken_archives_are_named(folder, file, damage):
    data = (folder / file).read_bytes()
    if damage == "member":  # cut behind a whole member: looks like a smaller archive
        with tarfile.open(folder / file) as tar:
            last = tar.getmembers()[-1]
        data = data[: last.offset]
    else:
        data = {"half": data[: len(data) // 2], "html": b"<html>sign in</html>", "empty": b""}[
            damage
        ]
    (folder / file).write_bytes(data)
    with pytest.raises(DatasetUnavailable, match=rf"{file} cannot be read.*Fetch .*{file} again"):
        archives.check_archives("imagenet2012", folder)


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """TensorFlow and TFDS as far as `prepare` sees them: preparing reads the archives of the classes."""
    tensorflow = types.ModuleType("tensorflow")
    tensorflow.errors = types.SimpleNamespace(OpError=type("OpError", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: True)

    class Builder:
        name = "imagenet2012"
        data_dir = tmp_path / "data" / name / "5.1.0"
        info = types.SimpleNamespace(full_name="imagenet2012/5.1.0", splits={"train": 1})
        failure = None

        def download_and_prepare(self, file_format, download_config):
            assert file_format == "array_record"
            if self.failure:
                raise self.failure
            with tarfile.open(f"{download_config.manual_dir}/{TRAIN}") as tar:
                for member in tar:
                    with tarfile.open(fileobj=tar.extractfile(member)) as below:
                        below.getmembers()
            self.data_dir.mkdir(parents=True)

    built = Builder()
    monkeypatch.setattr(prepare, "find_builder", lambda name, data_dir: built)
    monkeypatch.setattr(builders, "is_prepared", lambda builder: builder.data_dir.exists())
    return built


def test_a_broken_class_is_named_and_a_second_try_works(folder, builder, capsys):
    good = (folder / TRAIN).read_bytes()
    with tarfile.open(folder / TRAIN) as tar:
        broken = tar.getmembers()[2].offset_data
    (folder / TRAIN).write_bytes(good[:broken] + b"x" * 400 + good[broken + 400 :])
    command = ["tfds:imagenet2012", "--manual_dir", str(folder)]
    assert prepare.main(command) == 1
    assert f"n00000002.tar in {TRAIN} cannot be read" in capsys.readouterr().err
    (folder / TRAIN).write_bytes(good)
    assert prepare.main(command) == 0
    assert str(builder.data_dir) in capsys.readouterr().out


def test_archives_lie_below_the_data_by_default(folder, builder, tmp_path):
    with pytest.raises(DatasetUnavailable, match=r"data/downloads/manual"):
        prepare.prepare("tfds:imagenet2012")
    (tmp_path / "data" / "downloads").mkdir(parents=True)
    folder.rename(tmp_path / "data" / "downloads" / "manual")
    assert prepare.prepare("tfds:imagenet2012") == str(builder.data_dir)


def test_other_files_that_cannot_be_read(folder, builder):
    builder.failure = sys.modules["tensorflow"].errors.OpError("reached end of file")
    with pytest.raises(DatasetUnavailable, match="cannot be read: reached end of file"):
        prepare.prepare("tfds:imagenet2012", manual_dir=str(folder))
    builder.failure = KeyError("a mistake")  # is none of the user's files
    with pytest.raises(KeyError):
        prepare.prepare("tfds:imagenet2012", manual_dir=str(folder))


def test_prepared_without_a_training_set(folder, builder):
    builder.data_dir.mkdir(parents=True)
    builder.info.splits = {"validation": 1}
    with pytest.raises(DatasetUnavailable, match=r"without its training set: remove"):
        prepare.prepare("tfds:imagenet2012", manual_dir=str(folder))


def test_what_a_killed_preparation_left_is_named(folder, builder, monkeypatch):
    left = builder.data_dir.parent / "incomplete.ABC_5.1.0"
    left.mkdir(parents=True)
    said = []
    monkeypatch.setattr(prepare.logging, "warning", lambda text, *args: said.append(text % args))
    prepare.prepare("tfds:imagenet2012", manual_dir=str(folder))
    assert len(said) == 1 and str(left) in said[0]
