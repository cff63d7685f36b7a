"""One process at a time trains in a workdir."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from absl import logging

try:
    import fcntl
except ImportError:  # not a POSIX system: runs are not kept apart
    fcntl = None


class WorkdirInUse(ValueError):
    """Another process trains in a workdir."""


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds a workdir for this process; the system releases it however the process ends.

    Raises:
      WorkdirInUse: another process holds it; names it.
    """
    if fcntl is None:
        yield
        return
    with (workdir / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise WorkdirInUse(
                f"--workdir {workdir} is in use by another process ({file.read().strip() or 'unknown'}); wait for it, "
                "end it, or choose another folder"
            ) from error
        except OSError as error:  # some network file systems have no locks
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            logging.warning("%s cannot be locked: %s", workdir, error.strerror)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield
