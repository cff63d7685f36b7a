"""Image files in folders, one for each class or without labels."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from blockjax.data.sources.source import Source, description_of
from blockjax.data.sources.splits import (
    TEST_NAMES,
    choose_part,
    of_side,
    parse_split,
    slice_indices,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


class FolderSource(Source):
    """The image files of a folder, as encoded bytes."""

    def __init__(self, root: Path, files: Sequence[str], labels, class_names, title: str):
        """Takes what `open_folder` found.

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
        self.description = description_of(title, len(files), class_names)

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


def open_folder(root: Path, split: str) -> FolderSource:
    """Opens one split of <root>/<split>/<class>, <root>/<class>, <root>/<split> or <root>.

    Folders called train, test, val or validation are splits. One alone that has images in it, beside other folders of
    images, could as well be a class, and is refused.

    Raises:
      ValueError: there is no such split or no image, the folders can be read in two ways, or not at all.
    """
    if not root.is_dir():
        raise ValueError(f"data.source names the folder {root}, which does not exist.")
    try:
        return _open_folder(root, split)
    except OSError as error:  # links that lead nowhere, folders of others
        raise ValueError(
            f"data.source names {root}, in which {error.filename} cannot be read: {error.strerror}. "
            "Repair or remove it."
        ) from error


def _open_folder(root, split):
    base, bounds = parse_split(split)
    parts = [name for name in ("train", *TEST_NAMES) if (root / name).is_dir()]
    _check_parts(root, parts, base)
    if parts and base not in parts and (root / base).is_dir():
        parts.append(base)
    part, held_out = choose_part(base, parts, f"the folder {root}")
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
    files = [file for group in groups for file in group]
    labels_B = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])
    chosen = np.flatnonzero(of_side(labels_B, len(files), held_out))
    chosen = chosen[slice_indices(len(chosen), bounds)]
    return FolderSource(
        root,
        [files[i] for i in chosen],
        labels_B[chosen] if classes else None,
        classes or None,
        f"{root} {split}",
    )


def _check_parts(root, parts, base):
    """Refuses what could be a split or a class, and names folders of images that are neither."""
    others = [n for n in _subfolders(root) if n not in (*parts, base)] if parts else []
    others = sorted(n for n in others if _has_images(root / n))
    if not others:
        return
    others = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    if len(parts) == 1 and _has_images(root / parts[0], below=False):
        raise ValueError(
            f"data.source names {root}, where {parts[0]} could be a split or a class beside {others}. If it is a "
            f"class, move all of them into {root / 'train'}; if it is a split, move the others out of {root}."
        )
    logging.warning(
        "%s has the splits %s; %s beside them are not read.", root, ", ".join(parts), others
    )


def _has_images(folder: Path, below: bool = True) -> bool:
    for _, folders, names in os.walk(folder):
        folders[:] = filter(visible, folders) if below else []
        if any(map(_is_image, names)):
            return True
    return False


def _subfolders(folder: Path) -> list[str]:
    return [entry.name for entry in os.scandir(folder) if entry.is_dir() and visible(entry.name)]


def _image_files(root: Path, folder: str) -> list[str]:
    """Returns the image files in `folder` and below, sorted and relative to `root`; none where there is no folder."""
    if not (root / folder).exists():  # a class that another part has
        return []
    files = []
    for directory, below, names in os.walk(root / folder, onerror=reraise):
        below[:] = filter(visible, below)
        directory = os.path.relpath(directory, root)
        files += [
            os.path.normpath(os.path.join(directory, name)) for name in names if _is_image(name)
        ]
    return sorted(files)


def reraise(error: OSError) -> None:
    """Raises what `os.walk` would leave out, or files would be missing in silence."""
    raise error


def _is_image(name: str) -> bool:
    return visible(name) and name.lower().endswith(SUFFIXES)


def visible(name: str) -> bool:
    """Tells whether a file or folder of this name is read; hidden ones are not."""
    # Archives made on a Mac have a folder of shadow files with the names of the real ones; Python puts what it compiled
    # beside sources.
    return not name.startswith(".") and name not in ("__MACOSX", "__pycache__")
