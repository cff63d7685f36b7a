"""Sources of examples: the embedded set, TFDS data sets, image folders, array files; text is opened in `text`."""

import difflib
import os

from blockjax.checks import given_path
from blockjax.data.sources.arrays import ArraysSource
from blockjax.data.sources.folder import open_folder
from blockjax.data.sources.source import Source
from blockjax.data.sources.tfds import TfdsSource, catalogue, open_tfds
from blockjax.extensions import chosen, source_reference

_PREFIXES = ("tfds", "folder", "arrays")
_EMBEDDED = ("embedded", "embedded:scenes")
KINDS = (*_EMBEDDED, "tfds:<name>", "folder:<path>", "arrays:<file.npz>", "<module>:<name>")


def open_source(spec: str, split: str, data_dir: str | None = None) -> Source:
    """Opens one split of a data set; never downloads.

    Args:
      spec: `embedded`, or `embedded:scenes`; `tfds:<name>`, a prepared TFDS data set; `folder:<path>`, with images in
        <path>/<split>/<class>, <path>/<class>, <path>/<split> or <path>; `arrays:<file.npz>`,
        with uint8 images and, optionally, integer labels; or `<module>:<name>:<argument>`, a `Source` of your own,
        which is called with the argument ("" where there is none) and the split.
      split: `train`, `test` or another split of the data set, or a slice such as `train[:10%]`.
        Folders and array files without a test part hold out a tenth of each class for it.
      data_dir: the directory of TFDS data sets; None means $TFDS_DATA_DIR or
        ~/tensorflow_datasets.

    Raises:
      DatasetUnavailable: the TFDS data set is unknown or not prepared.
      ValueError: `spec` or `split` does not name anything that can be read.

    Examples:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> folder = tempfile.TemporaryDirectory()
      >>> file = pathlib.Path(folder.name) / "images.npz"
      >>> np.savez(file, train_images=np.zeros((20, 8, 8), np.uint8), train_labels=np.arange(20) % 2)
      >>> source = open_source(f"arrays:{file}", "train")  # a tenth is held out
      >>> len(source), source.labelled, source[0]["image"].shape
      (18, True, (8, 8))
      >>> folder.cleanup()
    """
    kind, _, rest = spec.partition(":")
    if kind == "embedded" and spec in _EMBEDDED:
        from blockjax.data import builders

        builder = builders.EMBEDDED[spec.removeprefix("embedded")]
        source = TfdsSource(builders.embedded_builder(data_dir, builder), split)
    elif kind == "tfds" and rest:
        source = open_tfds(rest, split, data_dir)
    elif kind == "folder" and rest:
        source = open_folder(given_path("data.source", rest), split)
    elif kind == "arrays" and rest:
        source = ArraysSource(given_path("data.source", rest), split)
    elif kind == "text":
        raise ValueError(
            f"data.source is {spec!r}, which is text, for the objectives on text, next_token and masked_token: set "
            f"objective to one of them, or data.source to one of {', '.join(KINDS)}."
        )
    elif own := source_reference(spec):
        source = chosen("data.source", own[0], {}, Source)(own[1], split)
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


def _did_you_mean(spec: str) -> str:
    kind, _, rest = spec.partition(":")
    if os.path.isdir(spec):
        near = [f"folder:{spec}"]
    elif spec.endswith(".npz") and os.path.isfile(spec):
        near = [f"arrays:{spec}"]
    else:
        kinds = {name: name for name in _EMBEDDED} | {k: f"{k}:{rest or '...'}" for k in _PREFIXES}
        near = [
            kinds[k]
            for k in difflib.get_close_matches(spec if kind == "embedded" else kind, kinds, n=1)
        ]
        near += [f"tfds:{n}" for n in difflib.get_close_matches(spec, catalogue(), n=1)]
    return f" Did you mean {near[0]!r}?" if near else ""
