"""Texts of files, folders, the standard library and TFDS data sets, one split of them, in a fixed order."""

import dataclasses
import os
import sysconfig
from pathlib import Path

import numpy as np
from absl import logging

from blockjax.checks import given_path, near_path
from blockjax.data.sources import tfds
from blockjax.data.sources.folder import reraise, visible
from blockjax.data.sources.source import DatasetUnavailable
from blockjax.data.sources.splits import (
    HOLD_OUT,
    TEST_NAMES,
    choose_part,
    held_out_by_name,
    parse_split,
    slice_indices,
)

STDLIB = "stdlib"
# Python's own modules; neither what is installed beside them nor their tests, which are data as much as text.
_NOT_STDLIB = frozenset(
    {"site-packages", "dist-packages", "sitecustomize.py", "test", "tests", "idle_test"}
)
_BUILT = ("config-", "_sysconfigdata")  # written when Python was built, with paths of that machine
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_DOES = "change data.source, data.train_split or data.test_split"


@dataclasses.dataclass(frozen=True)
class Documents:
    """Texts of one split.

    Attributes:
      names: what to call each in a message.
      texts: each in UTF-8, none of them empty.
      what: how many and of which kind, for logs.
    """

    names: list[str]
    texts: list[bytes]
    what: str


def stdlib_documents(split: str) -> Documents:
    """Reads the running interpreter's standard library, its .py files without tests: about 12 MB, licence PSF-2.0.

    Files that are not UTF-8 are left out.

    Raises:
      ValueError: it is not there as files, or there is no such split.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for file in _files(root, _is_stdlib) if file.endswith(".py")]
    files = [file for file in files if (root / file).is_file()]
    if not files:
        raise ValueError(
            f"data.source is text:stdlib, and this Python has no source files in {root}; set data.source to "
            "text:<folder> with files of your own"
        )
    texts = {file: (root / file).read_bytes() for file in files}
    files = [file for file, text in texts.items() if text and _flaw(text) is None]
    files, _ = _chosen(files, split, "the standard library", [])
    what = f"{len(files):,} files of Python's own, PSF-2.0"
    return Documents(files, [texts[file] for file in files], what)


def path_documents(given: str, split: str) -> Documents:
    """Reads a text file, or all files of a folder and below, hidden ones left out.

    A folder with train/ and one of test/, val/, validation/ is split by them. Of other folders one file in ten is the
    test part, chosen by its name, so that further files change nothing for those that are there; of a file, or where
    a folder has one only, the last tenth.

    Args:
      given: of a file or folder.
      split: `train`, `test` (also `val`, `validation`), a further folder beside train/ and test/, or a slice of one;
        slices are of files.

    Raises:
      ValueError: it does not exist, has no text, has a file that is not UTF-8 text, or there is no such split.
    """
    path = given_path("data.source", given)
    if not path.exists():
        near = near_path(path, "text:") or f"text:{STDLIB} needs no files; "
        raise ValueError(
            f"data.source names {path}, which does not exist; {near}set data.source to text:<file> or text:<folder>"
        )
    try:
        if path.is_dir():
            return _folder_documents(path, split)
        if not path.is_file():
            raise ValueError(
                f"data.source names {path}, which is neither a file nor a folder; name one of them in data.source"
            )
        return _file_documents(path.parent, [path.name], split, [], str(path))
    except OSError as error:
        raise ValueError(
            f"data.source names {path}, in which {error.filename} cannot be read: {error.strerror}; repair or remove it"
        ) from error


def tfds_documents(name: str, split: str, data_dir: str | None) -> Documents:
    """Reads the Text feature of a prepared TFDS data set, "text" or the first; every example is a document.

    Args:
      name: as for `blockjax.data.sources.tfds.find_builder`.
      split: in TFDS's notation; there has to be such a split.
      data_dir: as in `blockjax.data.sources.open_source`.

    Raises:
      DatasetUnavailable: it is unknown, not prepared, or has no Text feature or no such split.
      ValueError: an example is not UTF-8 text, or all are empty.
    """
    import tensorflow_datasets

    builder = tfds.prepared_builder(name, data_dir, f"'text:{STDLIB}'")
    features = builder.info.features
    texts = [k for k, v in features.items() if isinstance(v, tensorflow_datasets.features.Text)]
    if not texts:
        raise DatasetUnavailable(
            f"{tfds.title_of(builder)} has no text, only {', '.join(features)}; set data.source to a data set with a "
            f"Text feature, or to text:{STDLIB}"
        )
    feature = "text" if "text" in texts else texts[0]
    documents = {}
    for index, record in enumerate(tfds.open_records(builder, split)):
        text = b"".join(tfds.parse_record(record)[feature].bytes_list.value)
        name = f"{builder.info.full_name} {split}, record {index}"
        _check_text(text, name)
        if text:
            documents[name] = text
    if not documents:
        raise ValueError(
            f"{tfds.title_of(builder)} has no text in {feature!r} of split {split!r}; {_DOES}"
        )
    what = f"{len(documents):,} examples"
    return Documents(list(documents), list(documents.values()), what)


def _folder_documents(root, split):
    base, _ = parse_split(split)
    parts = [name for name in ("train", *TEST_NAMES) if (root / name).is_dir()]
    if "train" not in parts or len(parts) == 1:  # a folder of a project's tests is no test part
        return _file_documents(root, _files(root, visible), split, [], f"the folder {root}")
    if base not in parts and (root / base).is_dir():
        parts.append(base)
    others = sorted(e.name for e in os.scandir(root) if visible(e.name) and e.name not in parts)
    if others:
        logging.warning(
            "%s has the splits %s; %s beside them are not read.",
            root,
            ", ".join(parts),
            ", ".join(others[:3]) + (", ..." if len(others) > 3 else ""),
        )
    part, _ = choose_part(base, parts, f"the folder {root}")
    folder = root / part
    return _file_documents(folder, _files(folder, visible), split, parts, f"the folder {folder}")


def _file_documents(root, files, split, parts, where):
    """Reads the files of a split, all of which there are where the split is a folder."""
    files = [file for file in files if (root / file).stat().st_size]  # pipes have none either
    if not files:
        raise ValueError(
            f"data.source names {where}, where there is no text: no file, or empty ones only; put text there, or "
            "change data.source"
        )
    names, side = _chosen(files, split, where, parts)
    texts = [(root / name).read_bytes() for name in names]
    names = [str(root / name) for name in names]
    for name, text in zip(names, texts, strict=True):
        _check_text(text, name)
    what = f"{len(names):,} file" + "s" * (len(names) > 1)
    if side:  # one file only
        cut = _last_tenth(texts[0])
        texts = [texts[0][:cut] if side == "train" else texts[0][cut:]]
        what = f"{'all but the last tenth' if side == 'train' else 'the last tenth'} of a file"
    return Documents(names, texts, what)


def _chosen(files, split, where, parts):
    """Returns the files of a split, and which side of a single file it is where that has to be cut."""
    base, bounds = parse_split(split)
    held_out = "the last tenth" if len(files) == 1 else "one file in ten"
    _, side = choose_part(base, parts, where, held_out)
    cut = side if len(files) == 1 else None
    if side and not cut:
        test = held_out_by_name(files, HOLD_OUT)
        files = [files[i] for i in np.flatnonzero(test if side == "test" else ~test)]
    chosen = [files[i] for i in slice_indices(len(files), bounds)]
    if not chosen:
        raise _empty_slice(split, where, len(files))
    return chosen, cut


def _empty_slice(split, where, count):
    return ValueError(
        f"the split {split!r} of {where} is empty: slices are of files, of which it has {count:,}; {_DOES}"
    )


def _files(root, is_read):
    """Returns the files below a folder, sorted and relative to it, by `is_read` of their and folders' names."""
    files = []
    for directory, below, names in os.walk(root, onerror=reraise):
        below[:] = filter(is_read, below)
        directory = os.path.relpath(directory, root)
        files += [
            os.path.normpath(os.path.join(directory, name)) for name in filter(is_read, names)
        ]
    return sorted(files)


def _is_stdlib(name):
    return visible(name) and name not in _NOT_STDLIB and not name.startswith(_BUILT)


def _last_tenth(text):
    """Returns where the last tenth of a text begins: after the line break before it, or at a whole character."""
    at = len(text) - len(text) // HOLD_OUT
    line = text.rfind(b"\n", len(text) * 8 // 10, at) + 1
    if line:
        return line
    while at < len(text) and text[at] & 0xC0 == 0x80:  # within a character
        at -= 1
    return at


def _flaw(text):
    """Returns what is not text, where, and the encoding that it may have; None for text in UTF-8."""
    if encoding := _BOMS.get(text[:2]):
        return f"is {encoding} (its first bytes are 0x{text[:2].hex()})", encoding
    if (at := text.find(b"\0")) >= 0:
        return f"is not text: the byte at offset {at:,} is 0", None
    try:
        text.decode()
    except UnicodeDecodeError as error:
        byte = f"the byte at offset {error.start:,} is 0x{text[error.start]:02x}"
        return f"is not UTF-8: {byte}", "LATIN1"
    return None


def _check_text(text, name):
    flaw = _flaw(text)
    if flaw is None:
        return
    what, encoding = flaw
    convert = f"convert it, from {encoding} by iconv -f {encoding} -t UTF-8, " if encoding else ""
    raise ValueError(
        f"data.source has {name}, which {what}; {convert}leave it out, or change data.source"
    )
