"""Sources of examples: the embedded set, TFDS data sets, image folders, array files."""

import abc
import difflib
import functools
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from itertools import compress
from pathlib import Path

import numpy as np
from absl import logging

_PREFIXES = ("tfds", "folder", "arrays")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
KINDS = ("embedded", "tfds:<name>", "folder:<path>", "arrays:<file.npz>")
HOLD_OUT = 10  # where there is no test part, every tenth example is one

# Folders and array files name their second part in several ways.
_TEST_NAMES = ("test", "val", "validation")
_SPLIT = re.compile(r"(\w+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


class DatasetUnavailable(ValueError):
    """A data set that cannot be read here; the message says what would make it readable."""


class Source(abc.ABC):
    """Random access to the examples of one split; can be pickled.

    `source[i]` is a dict with `image`, encoded bytes or a uint8 array ([H, W] or [H, W, channels]),
    and, if `source.labelled`, the int `label`.

    Attributes:
      description: a short text for logs.
      labelled: whether examples have labels.
      class_names: the name of each label, or None.
    """

    description: str
    labelled: bool
    class_names: list[str] | None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> dict: ...

    @property
    @abc.abstractmethod
    def labels(self) -> np.ndarray | None:
        """Labels, int32 [len(self)], or None."""

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """What to call example `index` in a message."""


class TfdsSource(Source):
    """A split of a prepared TFDS data set in ArrayRecord files; images stay encoded."""

    def __init__(self, builder, split: str):
        """Opens the files.

        Args:
          builder: a TFDS builder whose data set is prepared.
          split: a split in TFDS's notation, for instance `train[:10%]`.
        """
        import tensorflow_datasets as tfds

        title = f"{builder.info.full_name} in {builder.data_dir}"
        splits, features = builder.info.splits, builder.info.features
        for base in (part.split("[")[0].strip() for part in split.split("+")):
            if base not in splits:
                raise DatasetUnavailable(
                    f"{title} has no split {base!r}; it has {', '.join(sorted(splits))}: set "
                    "data.train_split and data.test_split."
                )
            missing = [path for path in splits[base].filepaths if not path.exists()]
            if missing:
                raise DatasetUnavailable(
                    f"{title} is incomplete: {len(missing)} files are missing, {missing[0]} is one."
                )
        images = [key for key, value in features.items() if isinstance(value, tfds.features.Image)]
        if not images:
            raise DatasetUnavailable(
                f"{title} has no images, only {', '.join(features)}: set data.source to a data set "
                "with an Image feature."
            )
        self._image = "image" if "image" in images else images[0]
        label = dict(features.items()).get("label")
        self.labelled = isinstance(label, tfds.features.ClassLabel)
        self.class_names = list(label.names) if self.labelled else None
        try:
            self._records = builder.as_data_source(
                split, decoders={self._image: tfds.decode.SkipDecoding()}
            )
            len(self._records)  # refuses slices that end before they start
        except (ValueError, AssertionError) as error:
            raise DatasetUnavailable(
                f"{title}: cannot read split {split!r}: {error} Set data.train_split and "
                "data.test_split, for instance to 'train[:10%]'."
            ) from error
        self._title = f"{builder.info.full_name} {split}"
        self.description = _description(self._title, len(self), self.class_names)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        record = self._records[int(index)]
        example = {"image": record[self._image]}
        if self.labelled:
            example["label"] = int(record["label"])
        return example

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """Labels, int32 [len(self)], or None; reads every record, once."""
        if not self.labelled:
            return None
        return np.array([self[i]["label"] for i in range(len(self))], np.int32)

    def name(self, index: int) -> str:
        return f"{self._title}, record {index}"


class FolderSource(Source):
    """The image files of a folder, as encoded bytes."""

    def __init__(self, root: Path, files: Sequence[str], labels, class_names, title: str):
        """Takes what `_open_folder` found.

        Args:
          root: the folder that `files` are relative to.
          files: relative paths.
          labels: int32 [len(files)], or None.
          class_names: the names of the labels, or None.
          title: the start of the description.
        """
        self._root, self._files, self._labels = root, files, labels
        self.labelled = labels is not None
        self.class_names = class_names
        self.description = _description(title, len(files), class_names)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict:
        example = {"image": (self._root / self._files[index]).read_bytes()}
        if self.labelled:
            example["label"] = int(self._labels[index])
        return example

    @property
    def labels(self) -> np.ndarray | None:
        return self._labels

    def name(self, index: int) -> str:
        return str(self._root / self._files[index])


class ArraysSource(Source):
    """Images and labels of one split of an .npz file."""

    class_names = None

    def __init__(self, path: Path, split: str):
        """Reads the arrays into memory; `_ARRAY_KEYS` lists those that fit.

        Args:
          path: the .npz file.
          split: `train`, `test` (also `val`, `validation`), or a slice of one.
        """
        self._path, self._split = path, split
        self._images, self._labels = _read_arrays(path, split)
        self.labelled = self._labels is not None
        self.description = _description(f"{path} {split}", len(self._images), None)

    def __reduce__(self):
        # A process that receives the source reads the file itself.
        return ArraysSource, (self._path, self._split)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict:
        example = {"image": self._images[index]}
        if self.labelled:
            example["label"] = int(self._labels[index])
        return example

    @property
    def labels(self) -> np.ndarray | None:
        return self._labels

    def name(self, index: int) -> str:
        return f"{self._path} {self._split}, image {index}"


def open_source(spec: str, split: str, data_dir: str | None = None) -> Source:
    """Opens one split of a data set; never downloads.

    Args:
      spec: `embedded`; `tfds:<name>`, a prepared TFDS data set; `folder:<path>`, with images in
        <path>/<split>/<class>, <path>/<class>, <path>/<split> or <path>; `arrays:<file.npz>`,
        with uint8 images and, if wished, integer labels.
      split: `train`, `test` or another split of the data set, or a slice such as `train[:10%]`.
        Folders and array files without a test part hold out every tenth example for it.
      data_dir: the directory of TFDS data sets; None means $TFDS_DATA_DIR or
        ~/tensorflow_datasets.

    Raises:
      DatasetUnavailable: the TFDS data set is unknown or not prepared.
      ValueError: `spec` or `split` does not name anything that can be read.
    """
    kind, _, rest = spec.partition(":")
    if kind == "embedded" and not rest:
        from blockjax.data import builders

        source = TfdsSource(builders.embedded_builder(data_dir), split)
    elif kind == "tfds" and rest:
        source = _open_tfds(rest, split, data_dir)
    elif kind == "folder" and rest:
        source = _open_folder(Path(rest).expanduser(), split)
    elif kind == "arrays" and rest:
        source = ArraysSource(Path(rest).expanduser(), split)
    else:
        raise ValueError(
            f"data.source is {spec!r}, which is none of {', '.join(KINDS)}.{_did_you_mean(spec)}"
        )
    if not len(source):
        raise ValueError(
            f"{source.description}: the split is empty: change data.source, data.train_split or "
            "data.test_split."
        )
    return source


class PartSource(Source):
    """Some of the examples of another source."""

    def __init__(self, whole: Source, indices: np.ndarray):
        """Takes the examples at `indices`, in their order."""
        self._whole, self._indices = whole, indices
        self.labelled, self.class_names = whole.labelled, whole.class_names
        self.description = f"{len(indices):,} examples of {whole.description}"

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict:
        return self._whole[int(self._indices[index])]

    @property
    def labels(self) -> np.ndarray | None:
        labels = self._whole.labels
        return None if labels is None else labels[self._indices]

    def name(self, index: int) -> str:
        return self._whole.name(int(self._indices[index]))


def fraction_of(source: Source, fraction: float, seed: int) -> Source:
    """Returns a share of each class's examples, at least one of each; a smaller share of the same seed is a part of it.

    Without labels it is a share of all.
    """
    if fraction == 1.0:
        return source
    labels = source.labels
    labels = np.zeros(len(source), np.int32) if labels is None else labels
    order = np.random.default_rng(seed).permutation(len(source))
    chosen = []
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        chosen.append(of_class[: max(1, round(fraction * len(of_class)))])
    return PartSource(source, np.sort(np.concatenate(chosen)))


def find_builder(name: str, data_dir: str | None = None):
    """Returns the TFDS builder for `name`, prepared or not.

    Args:
      name: a name of the TFDS catalogue or of a data set in `data_dir`, with a config and a
        version if wished: `imagenet_resized/32x32:0.1.0`.
      data_dir: as in `open_source`.

    Raises:
      DatasetUnavailable: there is no such data set, config or version, or it was prepared in
        another file format than ArrayRecord.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name, _catalogue(), n=1)
        hint = f" Did you mean tfds:{near[0]}?" if near else ""
        raise DatasetUnavailable(
            f"TFDS has no data set {name!r}.{hint} Set data.source."
        ) from error
    except (ImportError, OSError) as error:  # a few need TensorFlow or files even for that
        raise DatasetUnavailable(f"TFDS cannot describe {name} here: {error}") from error
    except (ValueError, AssertionError, RuntimeError) as error:
        if "File format is already set" in str(error):
            raise DatasetUnavailable(
                f"{name} was prepared in {data_dir or 'the TFDS directory'} in another file "
                "format; blockjax reads ArrayRecord. Set data.dir to another directory and run "
                f"{prepare_command(name, '<directory>')}"
            ) from error
        raise DatasetUnavailable(
            f"data.source is tfds:{name}: the config or version does not exist: {error}"
        ) from error


def _catalogue() -> list[str]:
    import tensorflow_datasets as tfds

    # Listing the sets of the community needs TensorFlow.
    return tfds.list_builders(with_community_datasets=False)


def prepare_command(name: str, data_dir: str | None) -> str:
    """Returns the command that prepares the TFDS data set `name`."""
    where = f" --data_dir {data_dir}" if data_dir else ""
    return f"python -m blockjax.data.prepare tfds:{name}{where}"


def _open_tfds(name: str, split: str, data_dir: str | None) -> Source:
    from blockjax.data import builders

    builder = find_builder(name, data_dir)
    if not builders.is_prepared(builder):
        manual = (builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").strip()
        files = f"It needs files that you fetch yourself: {manual}\n" if manual else ""
        raise DatasetUnavailable(
            f"{builder.info.full_name} is not prepared in {builder.data_dir}.\n{files}"
            "Prepare it once, where there is a network and TensorFlow (reading needs neither):\n"
            f"  {prepare_command(name, data_dir)}\n"
            "Or set data.dir to where it is prepared, or data.source to 'embedded', which needs "
            "no download."
        )
    return TfdsSource(builder, split)


def _open_folder(root: Path, split: str) -> FolderSource:
    if not root.is_dir():
        raise ValueError(f"data.source names the folder {root}, which does not exist.")
    base, bounds = _parse_split(split)
    parts = [name for name in ("train", *_TEST_NAMES) if (root / name).is_dir()]
    if parts and base not in parts and (root / base).is_dir():
        parts.append(base)
    part, held_out = _choose_part(base, parts, f"the folder {root}")
    # Labels of all parts follow one list of classes.
    classes = sorted({name for p in parts or [""] for name in _subfolders(root / p)})
    groups = [_image_files(root, os.path.join(part, name)) for name in classes]
    if not part:
        classes = [name for name, files in zip(classes, groups, strict=True) if files]
        groups = [files for files in groups if files]
    if not any(groups):
        classes, groups = [], [_image_files(root, part)]
    if not any(groups):
        raise ValueError(
            f"data.source names {root / part}, which has no image files ({', '.join(SUFFIXES)})."
        )
    groups = [list(compress(files, _held_out(len(files), held_out))) for files in groups]
    files = [file for group in groups for file in group]
    labels_B = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    chosen = _slice(len(files), bounds)
    return FolderSource(
        root,
        [files[i] for i in chosen],
        labels_B[chosen] if classes else None,
        classes or None,
        f"{root} {split}",
    )


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.is_dir() and _visible(entry.name)]


def _image_files(root: Path, folder: str) -> list[str]:
    """Returns the image files in `folder` and below, sorted and relative to `root`."""
    files = []
    for directory, below, names in os.walk(root / folder):
        below[:] = filter(_visible, below)
        directory = os.path.relpath(directory, root)
        files += [
            os.path.normpath(os.path.join(directory, name))
            for name in names
            if _visible(name) and name.lower().endswith(SUFFIXES)
        ]
    return sorted(files)


def _visible(name: str) -> bool:
    # Archives made on a Mac have a folder of shadow files with the names of the real ones.
    return not name.startswith(".") and name != "__MACOSX"


# What the arrays of each part may be called: images, labels.
_ARRAY_KEYS = (
    ("train", "train_images", "train_labels"),
    ("train", "x_train", "y_train"),
    ("test", "test_images", "test_labels"),
    ("test", "x_test", "y_test"),
    ("val", "val_images", "val_labels"),
    ("val", "x_val", "y_val"),
    ("", "images", "labels"),
)


_NPZ_ERRORS = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error)


def _read_arrays(path: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    if not path.is_file():
        raise ValueError(f"data.source names the file {path}, which does not exist.")
    base, bounds = _parse_split(split)
    try:
        file = np.load(path, allow_pickle=False)
    except _NPZ_ERRORS as error:
        raise ValueError(f"data.source names {path}, which is no .npz file: {error}") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(f"data.source names {path}, which is no .npz file: save it by np.savez.")
    with file:
        found = {part: (x, y) for part, x, y in reversed(_ARRAY_KEYS) if x in file}
        if not found:
            names = ", ".join(x for _, x, _ in _ARRAY_KEYS)
            raise ValueError(
                f"{path} has the arrays {', '.join(file) or '(none)'}; data.source 'arrays:' "
                f"reads images from {names}, and labels from the names beside them "
                "(train_labels, y_train, ..., labels)."
            )
        parts = [part for part in found if part]
        part, held_out = _choose_part(base, parts, str(path))
        image_key, label_key = found[part]
        try:
            images = file[image_key]
            labels = file[label_key] if label_key in file.files else None
        except _NPZ_ERRORS as error:  # objects would need pickle
            raise ValueError(f"{path}: cannot read {image_key}, {label_key}: {error}") from error
    if images.dtype != np.uint8:
        raise ValueError(
            f"{image_key} of {path} is {images.dtype}: store images as uint8, 0 to 255, for "
            "instance by (images * 255).round().astype('uint8')."
        )
    if images.ndim != 3 and not (images.ndim == 4 and images.shape[3] in (1, 3, 4)):
        raise ValueError(
            f"{image_key} of {path} has the shape {images.shape}: it must be [N, H, W] or "
            "[N, H, W, channels] with 1, 3 or 4 channels."
        )
    if labels is not None:
        if labels.size != len(images) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{label_key} of {path} is {labels.dtype}{list(labels.shape)}: it must hold one "
                f"integer for each of the {len(images)} images."
            )
        labels = labels.reshape(-1).astype(np.int32)
    chosen = np.arange(len(images))[_held_out(len(images), held_out)]
    chosen = chosen[_slice(len(chosen), bounds)]
    if len(chosen) == len(images):
        return images, labels
    return images[chosen], None if labels is None else labels[chosen]


def _parse_split(split: str) -> tuple[str, tuple[str, str] | None]:
    """Splits `train[a:b]` into its name and its bounds."""
    match = _SPLIT.fullmatch(split)
    if not match:
        raise ValueError(
            f"The split {split!r} is not understood: set data.train_split and data.test_split to a "
            "name or to a slice such as 'train[:10%]'."
        )
    return match[1], None if "[" not in split else (match[2] or "", match[3] or "")


def _slice(count: int, bounds: tuple[str, str] | None) -> np.ndarray:
    """Returns the indices of a slice, of a fixed shuffle because files come sorted by class."""
    if bounds is None:
        return np.arange(count)

    def position(text: str) -> int | None:
        if not text:
            return None
        return round(int(text[:-1]) / 100 * count) if text.endswith("%") else int(text)

    low, high = map(position, bounds)
    return np.sort(np.random.RandomState(0).permutation(count)[low:high])


def _choose_part(base: str, parts: Sequence[str], where: str) -> tuple[str, str | None]:
    """Finds what to read for the split `base` where there are `parts`, perhaps none.

    Returns:
      The part ("" where there are none), and "train" or "test" if that part has to give every
      tenth example to the other side.
    """
    no_test = not set(parts) & set(_TEST_NAMES)
    if no_test and base in ("train", *_TEST_NAMES) and (not parts or "train" in parts):
        if base == "train":  # every run opens it
            logging.info("%s has no test part: every tenth example is held out.", where)
        return ("train" if parts else ""), ("train" if base == "train" else "test")
    for name in (base, *_TEST_NAMES) if base in _TEST_NAMES else (base,):
        if name in parts:
            return name, None
    raise ValueError(
        f"{where} has no split {base!r}; it has {', '.join(parts or ('train', 'test'))}: set "
        "data.train_split and data.test_split."
    )


def _held_out(count: int, side: str | None) -> np.ndarray:
    """Returns the mask of the examples that belong to `side`; all of them where it is None."""
    test = (np.arange(count) % HOLD_OUT == 0) & (count > 1)
    return {None: np.ones(count, bool), "train": ~test, "test": test}[side]


def _did_you_mean(spec: str) -> str:
    kind, _, rest = spec.partition(":")
    if os.path.isdir(spec):
        near = [f"folder:{spec}"]
    elif spec.endswith(".npz") and os.path.isfile(spec):
        near = [f"arrays:{spec}"]
    else:
        kinds = {"embedded": "embedded"} | {k: f"{k}:{rest or '...'}" for k in _PREFIXES}
        near = [kinds[k] for k in difflib.get_close_matches(kind, kinds, n=1)]
        near += [f"tfds:{n}" for n in difflib.get_close_matches(spec, _catalogue(), n=1)]
    return f" Did you mean {near[0]!r}?" if near else ""


def _description(title: str, count: int, class_names: Sequence[str] | None) -> str:
    classes = f" in {len(class_names)} classes" if class_names else ""
    return f"{title}: {count:,} images{classes}"
