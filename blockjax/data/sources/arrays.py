"""Images and labels in .npz files."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from blockjax.data.sources.source import Source, description_of
from blockjax.data.sources.splits import choose_part, of_side, parse_split, slice_indices


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
        self.description = description_of(f"{path} {split}", len(self._images), None)

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
    base, bounds = parse_split(split)
    try:
        file = np.load(path, allow_pickle=False)
    except _NPZ_ERRORS as error:
        raise ValueError(f"data.source names {path}, which is not a .npz file: {error}") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError(
            f"data.source names {path}, which is not a .npz file: save it with np.savez."
        )
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
        part, held_out = choose_part(base, parts, str(path))
        image_key, label_key = found[part]
        try:
            images = file[image_key]
            labels = file[label_key] if label_key in file.files else None
        except _NPZ_ERRORS as error:  # objects would need pickle
            raise ValueError(f"{path}: cannot read {image_key}, {label_key}: {error}") from error
    if images.dtype != np.uint8:
        raise ValueError(
            f"{image_key} of {path} is {images.dtype}: store images as uint8, 0 to 255, for "
            "instance with (images * 255).round().astype('uint8')."
        )
    is_images = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3, 4))
    if not is_images or 0 in images.shape[1:]:
        raise ValueError(
            f"{image_key} of {path} has the shape {images.shape}: it must be [N, H, W] or "
            "[N, H, W, channels] with 1, 3 or 4 channels, of at least a pixel."
        )
    if labels is not None:
        if labels.size != len(images) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{label_key} of {path} is {labels.dtype}{list(labels.shape)}: it must hold one "
                f"integer for each of the {len(images)} images."
            )
        if labels.size and not 0 <= labels.min() <= labels.max() < 2**31:
            raise ValueError(
                f"{label_key} of {path} goes from {labels.min()} to {labels.max()}: classes are numbered from 0; leave "
                "images without a class out, or the labels"
            )
        labels = labels.reshape(-1).astype(np.int32)
    chosen = np.flatnonzero(of_side(labels, len(images), held_out))
    chosen = chosen[slice_indices(len(chosen), bounds)]
    if len(chosen) == len(images):
        return images, labels
    return images[chosen], None if labels is None else labels[chosen]
