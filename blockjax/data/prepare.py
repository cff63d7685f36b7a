"""Prepares a data set for training: `python -m blockjax.data.prepare tfds:<name>`, once.

Data sets of the TFDS catalogue need TensorFlow and a network here, and neither to be read.
"""

import argparse
import importlib.util
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from blockjax.data import builders
from blockjax.data.archives import NEEDED, broken_archives, check_archives
from blockjax.data.sources.source import DatasetUnavailable
from blockjax.data.sources.tfds import find_builder


def prepare(spec: str, data_dir: str | None = None, manual_dir: str | None = None) -> str:
    """Downloads and writes a data set as ArrayRecord files, if that was not done yet.

    Args:
      spec: `embedded`, `embedded:scenes` or `tfds:<name>`.
      data_dir: the directory of TFDS data sets; None means $TFDS_DATA_DIR or
        ~/tensorflow_datasets.
      manual_dir: where the files lie that TFDS asks the user to fetch; None means
        <data_dir>/downloads/manual.

    Returns:
      The directory of the data set.

    Raises:
      DatasetUnavailable: the data set is unknown, or TensorFlow or a file of the user is missing or broken.
      ValueError: `spec` names something that needs no preparation.
    """
    kind = builders.EMBEDDED.get(spec.removeprefix("embedded"))
    if kind is not None and spec.startswith("embedded"):
        return str(builders.embedded_builder(data_dir, kind).data_dir)
    kind, _, name = spec.partition(":")
    if kind != "tfds" or not name:
        raise ValueError(
            f"{spec!r} cannot be prepared; 'embedded', 'embedded:scenes' and 'tfds:<name>' can."
        )
    builder = find_builder(name, data_dir)
    folder = Path(builder.data_dir)
    if builders.is_prepared(builder):
        if builder.name in NEEDED and "train" not in builder.info.splits:
            raise DatasetUnavailable(
                f"{builder.info.full_name} was prepared in {folder} without its training set: remove that folder, and "
                "run this command again."
            )
        return str(folder)
    if builder.name in NEEDED:
        manual_dir = manual_dir or folder.parents[1] / "downloads" / "manual"
        check_archives(builder.name, manual_dir)
    if importlib.util.find_spec("tensorflow") is None:
        raise DatasetUnavailable(
            f"Preparing {builder.info.full_name} needs TensorFlow, for this step only: "
            "pip install tensorflow-cpu, then run this command again."
        )
    import tensorflow as tf
    import tensorflow_datasets as tfds

    for left in folder.parent.glob(f"incomplete.*_{folder.name}"):
        logging.warning("%s was left by a preparation that was killed; it can be removed.", left)
    try:
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(
                # What TFDS keeps in its bucket is in another file format.
                manual_dir=manual_dir,
                try_download_gcs=False,
            ),
        )
    except AssertionError as error:  # the files that the user has to fetch are not there
        raise DatasetUnavailable(
            f"{builder.info.full_name}: {error}\nPut the files there, or name their directory with "
            "--manual_dir."
        ) from error
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, tf.errors.OpError) as error:
        paths = [Path(manual_dir) / file for file in NEEDED.get(builder.name, ())]
        what = broken_archives(paths, inner=True) or (
            f"a file that was fetched cannot be read: {error}. Fetch it again, and run this command again; nothing "
            "half-done is kept."
        )
        raise DatasetUnavailable(f"{builder.info.full_name}: {what}") from error
    return str(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m blockjax.data.prepare", description=__doc__)
    parser.add_argument(
        "source", help="'embedded', 'embedded:scenes' or 'tfds:<name>', as in data.source"
    )
    parser.add_argument(
        "--data_dir", help="as data.dir; default: TFDS_DATA_DIR or ~/tensorflow_datasets"
    )
    parser.add_argument("--manual_dir", help="where the files are that you had to fetch yourself")
    args = parser.parse_args(argv)
    try:
        print(f"{args.source} is ready in {prepare(args.source, args.data_dir, args.manual_dir)}")
    except (ValueError, OSError) as error:  # requests' network errors are OSErrors
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
