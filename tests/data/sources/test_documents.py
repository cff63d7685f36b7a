import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging

from blockjax.data.sources import documents
from blockjax.data.sources.documents import path_documents, stdlib_documents, tfds_documents
from blockjax.data.sources.source import DatasetUnavailable


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def names(found, root):
    return [os.path.relpath(name, root) for name in found.names]


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    return lines


def test_the_last_tenth_of_a_file_is_held_out(tmp_path):
    text = "".join(f"{i:02} é line\n" for i in range(51)).encode()  # a tenth begins within one
    write(tmp_path / "a.txt", text)
    train, test = (path_documents(f"{tmp_path}/a.txt", split) for split in ("train", "test"))
    assert train.texts[0] + test.texts[0] == text
    assert test.texts[0].startswith(b"45") and test.texts[0].count(b"\n") == 6
    assert train.names == test.names == [str(tmp_path / "a.txt")]
    assert train.what == "all but the last tenth of a file"
    assert test.what == "the last tenth of a file"
    assert path_documents(f"{tmp_path}/a.txt", "val") == test


def test_a_long_line_is_cut_between_characters(tmp_path):
    line = "é".encode() * 54 + b"\n"  # a tenth begins within a character
    for begin in (b"", b"b\n"):  # a line break far away is no place to cut
        write(tmp_path / "a.txt", begin + line)
        train, test = (path_documents(f"{tmp_path}/a.txt", split) for split in ("train", "test"))
        assert train.texts == [begin + "é".encode() * 49] and test.texts == [
            "é".encode() * 5 + b"\n"
        ]


def test_one_file_in_ten_of_a_folder_is_held_out(tmp_path):
    for i in range(200):
        write(tmp_path / f"part{i % 3}" / "deep" / f"{i}.txt", b"%d" % i)
    for hidden in (".a.txt", ".git/b.txt", "__MACOSX/c.txt", "part1/__pycache__/d.pyc"):
        write(tmp_path / hidden, b"\0")
    write(tmp_path / "empty.txt", b"")
    os.mkfifo(tmp_path / "fifo")
    train, test = (path_documents(str(tmp_path), split) for split in ("train", "test"))
    assert 10 <= len(test.names) <= 30
    both = {*names(train, tmp_path), *names(test, tmp_path)}
    assert len(both) == len(train.names) + len(test.names) == 200
    for part in (train, test):
        assert part.names == sorted(part.names)
        assert [Path(name).read_bytes() for name in part.names] == part.texts
    assert test.what == f"{len(test.names)} files"
    # Others change nothing for those that were there.
    for i in range(200, 303):
        write(tmp_path / f"a{i}.txt", b"x")
    assert {*test.names} < {*path_documents(str(tmp_path), "test").names}
    assert {*train.names} < {*path_documents(str(tmp_path), "train").names}


@pytest.mark.parametrize("count", [2, 3, 5])
def test_of_a_few_files_there_is_one_on_each_side(tmp_path, count):
    for i in range(count):
        write(tmp_path / f"file {i}.txt", b"x")
    train, test = (path_documents(str(tmp_path), split) for split in ("train", "test"))
    assert len(test.names) == 1 and len(train.names) == count - 1
    assert test.what == "1 file"


def test_a_folder_of_one_file_is_cut(tmp_path):
    write(tmp_path / "a.txt", b"0123456789" * 10)
    assert path_documents(str(tmp_path), "test").texts == [b"0123456789"]
    write(tmp_path / "train" / "a.txt", b"x")
    write(tmp_path / "empty.txt", b"")
    assert path_documents(str(tmp_path), "train").what == "1 file"  # train alone is no part


def test_what_is_held_out_is_logged(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "info", lambda text, *args: lines.append(text % args))
    for name in ("a", "b"):
        write(tmp_path / f"{name}.txt", b"text")
        path_documents(str(tmp_path), "train")
        path_documents(str(tmp_path), "test")
    where = f"the folder {tmp_path} has no test part:"
    assert lines == [
        f"{where} the last tenth is held out.",
        f"{where} one file in ten is held out.",
    ]


def test_folders_of_parts_are_splits(tmp_path, warnings):
    for part in ("train", "val", "extra"):
        write(tmp_path / part / "deep" / f"{part}.txt", part.encode())
    for split in ("test", "val", "validation"):
        assert path_documents(str(tmp_path), split).texts == [b"val"]
    assert path_documents(str(tmp_path), "extra").texts == [b"extra"]
    assert len(warnings) == 3 and "splits train, val; extra beside" in warnings[0]
    assert path_documents(str(tmp_path), "train").texts == [b"train"]
    with pytest.raises(ValueError, match=r"no split 'foo'; it has train, val: set data\.train_"):
        path_documents(str(tmp_path), "foo")
    (tmp_path / "train" / "deep" / "train.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"the folder {tmp_path}/train, where there is no text"):
        path_documents(str(tmp_path), "train")


def test_a_folder_of_tests_alone_is_no_part(tmp_path):
    for i in range(20):
        write(tmp_path / "test" / f"{i}.txt", b"x")
        write(tmp_path / "src" / f"{i}.txt", b"x")
    train = path_documents(str(tmp_path), "train")
    assert {name.split("/")[0] for name in names(train, tmp_path)} == {"src", "test"}


def test_slices_are_of_files(tmp_path):
    for part in ("train", "test"):
        for i in range(20):
            write(tmp_path / part / f"{i}.txt", b"%d" % i)
    parts = [path_documents(str(tmp_path), f"train[{s}]") for s in (":25%", "25%:-5", "-5:")]
    assert [len(part.names) for part in parts] == [5, 10, 5]
    assert len({name for part in parts for name in part.names}) == 20
    with pytest.raises(ValueError, match=r"'train\[:1%\]' of the folder .* empty.* it has 20"):
        path_documents(str(tmp_path), "train[:1%]")
    with pytest.raises(ValueError, match=r"'train\[:a\]' is not understood.*data\.train_split"):
        path_documents(str(tmp_path), "train[:a]")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\n\0more", r"is not text: the byte at offset 5 is 0; leave it out, or change"),
        (
            "naïf".encode("latin1"),
            r"is not UTF-8: the byte at offset 2 is 0xef.*iconv -f LATIN1 -t",
        ),
        ("naïf".encode("utf-16"), r"is UTF-16 .*0xfffe.*iconv -f UTF-16 -t UTF-8"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, content, message):
    write(tmp_path / "a.txt", b"text")
    write(tmp_path / "b.txt", content)
    for path in (tmp_path, tmp_path / "b.txt"):
        with pytest.raises(
            ValueError, match=rf"data\.source has {tmp_path}/b\.txt, which {message}"
        ):
            for split in ("train", "test"):
                path_documents(str(path), split)


def test_paths_that_lead_to_no_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match=rf"names the folder {tmp_path}, where there is no text"):
        path_documents(str(tmp_path), "train")
    write(tmp_path / "shakespeare.txt", b"")
    with pytest.raises(ValueError, match=rf"names {tmp_path}/shakespeare\.txt, where there is no"):
        path_documents(f"{tmp_path}/shakespeare.txt", "train")
    near = rf"does not exist; did you mean 'text:{tmp_path}/shakespeare\.txt'\?"
    with pytest.raises(ValueError, match=near):
        path_documents(f"{tmp_path}/shakespear.txt", "train")
    with pytest.raises(ValueError, match=r"does not exist; text:stdlib needs no files"):
        path_documents(f"{tmp_path}/no/where", "train")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        path_documents(f"{tmp_path}/fifo", "train")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=r"loop cannot be read: Too many levels.*repair or remove"):
        path_documents(str(tmp_path), "train")


def test_the_standard_library_is_read():
    train, test = (stdlib_documents(split) for split in ("train", "test"))
    both = {**dict(zip(train.names, train.texts, strict=True))}
    assert not both.keys() & {*test.names}
    both |= zip(test.names, test.texts, strict=True)
    root = Path(sysconfig.get_path("stdlib"))
    assert both["argparse.py"] == (root / "argparse.py").read_bytes()
    assert {"json/decoder.py", "unittest/case.py"} <= both.keys()
    assert all(name.endswith(".py") for name in both)
    folders = {folder for name in both for folder in name.split("/")[:-1]}
    assert not folders & {"site-packages", "test", "tests", "idle_test", "__pycache__"}
    assert not any(str(root) in text.decode() for text in both.values())  # none is of one machine
    assert len(train.names) > 5 * len(test.names)
    assert train.what == f"{len(train.names)} files of Python's own, PSF-2.0"


def test_a_library_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(documents.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=rf"no source files in {tmp_path}; set data\.source to"):
        stdlib_documents("train")


def test_of_the_library_what_is_text_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(documents.sysconfig, "get_path", lambda name: str(tmp_path))
    for name, text in (("a", b"a"), ("b", b"b"), ("latin", b"# \xe9"), ("empty", b"")):
        write(tmp_path / f"{name}.py", text)
    write(tmp_path / "_sysconfigdata_.py", b"x")
    write(tmp_path / "config-3" / "c.py", b"x")
    write(tmp_path / "d.txt", b"x")
    write(tmp_path / "sitecustomize.py", b"x")
    (tmp_path / "link.py").symlink_to("nowhere")
    train, test = (stdlib_documents(split) for split in ("train", "test"))
    assert sorted(train.names + test.names) == ["a.py", "b.py"]
    assert sorted(train.texts + test.texts) == [b"a", b"b"]


class Poems(tfds.core.GeneratorBasedBuilder):
    """Two texts and a label in each example."""

    name = "blockjax_test_poems"
    VERSION = tfds.core.Version("1.0.0")
    TEXTS = ("author", "text")

    def _info(self):
        texts = {key: tfds.features.Text() for key in self.TEXTS}
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(texts | {"label": tfds.features.Scalar(np.int64)}),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(3), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {key: f"{key} {i} é" for key in self.TEXTS} | {"label": i}


class Verses(Poems):
    name = "blockjax_test_verses"
    TEXTS = ("author", "verse")


class Odd(Poems):
    """Texts of which some are empty, or no text."""

    name = "blockjax_test_odd"

    def _split_generators(self, dl_manager):
        splits = {"some": [b"", b"x"], "none": [b""], "broken": [b"x", b"\xe9"]}
        return {name: self._generate_examples(texts) for name, texts in splits.items()}

    def _generate_examples(self, texts):
        for i, text in enumerate(texts):
            yield i, {"text": text, "author": b"", "label": i}


class Numbers(Poems):
    name = "blockjax_test_numbers"
    TEXTS = ()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    for kind in (Poems, Verses, Odd, Numbers):
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        builder = kind(data_dir=directory, file_format="array_record")
        builder.download_and_prepare(download_config=config)
    return str(directory)


def test_a_text_feature_is_read(prepared):
    found = tfds_documents("blockjax_test_poems", "train", prepared)
    assert sorted(found.texts) == [f"text {i} é".encode() for i in range(3)]
    assert found.names[1] == "blockjax_test_poems/1.0.0 train, record 1"
    assert found.what == "3 examples"
    assert len(tfds_documents("blockjax_test_poems", "train[:1]", prepared).texts) == 1
    found = tfds_documents("blockjax_test_verses", "test", prepared)
    assert sorted(found.texts) == [f"author {i} é".encode() for i in range(2)]


def test_examples_without_text(prepared):
    assert tfds_documents("blockjax_test_odd", "some", prepared).texts == [b"x"]
    with pytest.raises(ValueError, match=r"no text in 'text' of split 'none'; change data\.source"):
        tfds_documents("blockjax_test_odd", "none", prepared)
    with pytest.raises(ValueError, match=r"1\.0\.0 broken, record \d, which is not UTF-8.*0xe9"):
        tfds_documents("blockjax_test_odd", "broken", prepared)


def test_data_sets_without_text_are_refused(prepared, tmp_path):
    with pytest.raises(DatasetUnavailable, match=r"no text, only label; set data\.source"):
        tfds_documents("blockjax_test_numbers", "train", prepared)
    with pytest.raises(DatasetUnavailable, match=r"no split 'val'; it has test, train"):
        tfds_documents("blockjax_test_poems", "val", prepared)
    with pytest.raises(
        DatasetUnavailable, match=r"(?s)not prepared.*data\.source to 'text:stdlib'"
    ):
        tfds_documents("imdb_reviews", "train", str(tmp_path))
