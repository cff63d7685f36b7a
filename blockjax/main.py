"""Flags, and handing over to the loop. Short on purpose: everything else can be imported in a notebook."""

import os
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from blockjax.config.fields import check_field
from blockjax.config.files import config_name, find_config, load_config
from blockjax.report.command import begin, check_devices, what_happened
from blockjax.xla.host_memory import keep_freed_memory

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A config that comes with blockjax, by its name (quickstart), or the path of a config file; with :arguments if it "
    "takes any. "
    "Any field can be changed: --config.batch_size=64 --config.model.depth=8",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for checkpoints, metrics and figures. A run that was stopped there goes on. "
    "Default: runs/NAME of the config.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Several processes, one on each machine, started with the same command. On Cloud TPU, SLURM, Open MPI and "
    "Kubernetes they find each other; elsewhere give the three flags below.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, reachable from all; implies --distributed."
)
_PROCESS_COUNT = flags.DEFINE_integer("process_count", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")


def _main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if _CONFIG.value is None:
        raise app.UsageError("--config is missing; try --config quickstart")
    logging.set_verbosity(logging.WARNING)
    begin()
    keep_freed_memory()
    _join_processes()
    check_devices()
    # After the flags: --help stays quick.
    from blockjax.data.decode import CorruptImage
    from blockjax.memory import DoesNotFit
    from blockjax.training.run import Interrupted, Training
    from blockjax.workdir.checkpoint import NotSaved, UnusableCheckpoint
    from blockjax.workdir.lock import WorkdirInUse

    workdir = _WORKDIR.value
    if workdir is None:
        workdir = Path("runs") / config_name(
            config_flags.get_config_filename(flags.FLAGS["config"])
        )
    try:
        run = Training(_CONFIG.value, workdir)
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        run.run()
    except Interrupted as stop:
        print(stop, flush=True)
        sys.exit(1)
    except (
        *(FloatingPointError, DoesNotFit, UnusableCheckpoint, NotSaved, WorkdirInUse),
        CorruptImage,
    ) as error:
        sys.exit(f"error: {error}")
    except (jax.errors.JaxRuntimeError, OSError) as error:
        message = what_happened(error, workdir)
        if message is None:
            raise
        if jax.process_count() == 1:
            sys.exit(message)
        print(message, file=sys.stderr, flush=True)
        os._exit(1)  # a proper exit would wait for the others


def _join_processes():
    """Connects this process with the others of the run, if there are any; must come before any use of devices."""
    by_hand = {
        "coordinator": _COORDINATOR.value,
        "process_count": _PROCESS_COUNT.value,
        "process_id": _PROCESS_ID.value,
    }
    missing = [f"--{name}" for name, value in by_hand.items() if value is None]
    if 0 < len(missing) < len(by_hand):
        raise app.UsageError(
            f"{' and '.join(missing)} missing: --coordinator, --process_count and --process_id go together"
        )
    if missing and not _DISTRIBUTED.value:
        return
    if not missing and not 0 <= _PROCESS_ID.value < _PROCESS_COUNT.value:
        raise app.UsageError(
            f"--process_id={_PROCESS_ID.value} must be from 0 to --process_count - 1 = {_PROCESS_COUNT.value - 1}"
        )
    try:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESS_COUNT.value, _PROCESS_ID.value)
    except (ValueError, RuntimeError) as error:
        sys.exit(
            f"error: the processes cannot find each other: {error} Give --coordinator=HOST:PORT, --process_count and "
            "--process_id to each."
        )


def _parse_flags(argv):
    """Parses flags; what the config file or a mistyped field raises becomes one sentence."""
    try:
        argv = _find_configs(argv)
        _check_config(argv)
        rest = flags.FLAGS(argv)
        if _CONFIG.value is not None:
            _ = _CONFIG.value.is_locked  # a file that could not be read raises only when it is used
        return rest
    except (flags.Error, OSError, ValueError) as error:
        # ml_collections puts whole tracebacks into its messages; the last line says what is wrong.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[-1] if len(lines) > 1 else str(error)
        sys.exit("error: " + text.removeprefix("ValueError: "))
    except (AttributeError, KeyError, TypeError) as error:
        while error.args and isinstance(error.args[0], Exception):
            error = error.args[0]
        sys.exit("error: " + " ".join(str((error.args or [error])[0]).split()))


def _find_configs(argv):
    """Puts the path of its file in the place of a config's name, as only blockjax knows names."""
    found = []
    for before, arg in zip(["", *argv], argv, strict=False):
        flag, equals, config = arg.partition("=")
        if before in ("--config", "-config"):
            arg = find_config(arg)
        elif equals and flag in ("--config", "-config"):
            arg = f"{flag}={find_config(config)}"
        found.append(arg)
    return found


def _check_config(argv):
    """Reads the config file, and checks that it has the fields which the other flags change."""
    given = [arg.lstrip("-") for arg in argv[1:] if arg.startswith("-")]
    after = dict(zip((arg.lstrip("-") for arg in argv), argv[1:], strict=False))
    file = next((arg[7:] for arg in given if arg.startswith("config=")), after.get("config"))
    if file is None:
        return
    config = load_config(file)
    for arg in given:
        if arg.startswith("config."):
            check_field(config, arg.removeprefix("config.").partition("=")[0].partition("[")[0])


def main() -> None:
    """Runs the command line."""
    # --help shows the flags of the program's own file, which is another one for `blockjax`.
    for flag in flags.FLAGS.get_key_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    app.run(_main, flags_parser=_parse_flags)


if __name__ == "__main__":
    main()
