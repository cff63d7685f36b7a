"""The archives that a user fetches for a data set of the TFDS catalogue: whether they are there, and whole."""

import os
import tarfile
from pathlib import Path

from blockjax.data.sources.source import DatasetUnavailable

# TFDS prepares what it finds; without one of these there would be no training set, or no test set.
NEEDED = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}
_BLOCK = 512  # bytes; one of zeros ends a tar file


def check_archives(name: str, folder: str | os.PathLike) -> None:
    """Checks the archives of a data set as far as a few seconds allow.

    Args:
      name: of the data set.
      folder: where the user put them.

    Raises:
      DatasetUnavailable: one is missing, is not a tar file, or ends before it should.
    """
    folder = Path(folder)
    needed = NEEDED.get(name, ())
    missing = [file for file in needed if not (folder / file).is_file()]
    if missing:
        raise DatasetUnavailable(
            f"{name}: {' and '.join(missing)} not found in {folder}. Put the files there, or name their directory with "
            "--manual_dir."
        )
    broken = broken_archives([folder / file for file in needed])
    if broken:
        raise DatasetUnavailable(f"{name}: {broken}")


def broken_archives(paths: list[Path], *, inner: bool = False) -> str:
    """Returns what is wrong with tar files and what to do, or "".

    Args:
      paths: of the tar files.
      inner: whether to look into tar files in them, too; reads a little of every file in those.
    """
    for path in paths:
        place = path.name
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if inner and member.name.endswith(".tar"):
                        place = f"{member.name} in {path.name}"
                        with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as below:
                            below.getmembers()
                        place = path.name
            with path.open("rb") as file:  # one that was cut between two members looks whole
                file.seek(tar.offset)
                if file.read(_BLOCK) != bytes(_BLOCK):
                    raise tarfile.ReadError("it ends before it should")
        except (tarfile.TarError, OSError) as error:
            return (
                f"{place} cannot be read: {error}. Fetch {path} again, compare its checksum with the one it is "
                "published with, and run this command again; nothing half-done is kept."
            )
    return ""
