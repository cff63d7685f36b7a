"""Command lines of the pages, read by the commands' own parsers: as far as they go without data and devices."""

import argparse
import contextlib
import importlib
import sys
from unittest import mock

from absl import app, flags

from blockjax import config as config_lib
from blockjax.config.files import find_config
from blockjax.config.modality import is_text
from blockjax.config.variants import vary
from blockjax.data.sources import tfds
from blockjax.data.sources.source import Source
from blockjax.extensions import chosen, source_reference
from blockjax.learner.build import make_learner
from blockjax.objectives import find_task
from blockjax.xla.targets import parse_target
from tests.main_flags import forget_flags

# Numbers of devices with which a config is tried where nothing says how many there are.
_DEVICES = (1, 2, 4, 8, 16, 64, 512)
# Files that readers replace by their own.
OWN_FILES = ("/path/", "runs/", "photos.zip", "file.npz")


class Parsed(BaseException):
    """What a command was about to do: the function that it calls, and with what."""

    def __init__(self, name, args, kwargs):
        self.name, self.args, self.kwargs = name, args, kwargs


def _stop(name):
    def called(*args, **kwargs):
        raise Parsed(name, args, kwargs)

    return called


# What each command calls when its flags are read, by module.
_CALLS = {
    "evaluate": ("evaluate",),
    "export": ("export",),
    "reconstruct": ("reconstruct",),
    "sample": ("open_text_weights",),
    "gallery": ("open_source",),
    "diagram": ("network",),
    "compare": ("compare",),
    "memory.__main__": ("_run", "make_plan"),
    "benchmark.__main__": (
        *("input_path", "probes", "rivals.features", "rivals.train", "stages", "kernel"),
        *("estimate_lib.estimates", "step", "preparation", "pipeline"),
    ),
    "data.prepare": ("prepare",),
}
_MODULES = {"memory": "memory.__main__", "benchmark": "benchmark.__main__", "finetune": "main"}


def parsed(command: str, arguments: list[str]) -> Parsed:
    """Reads a command's flags, and returns what it would do.

    Raises:
      ValueError: it refuses them; what it says.
    """
    name = _MODULES.get(command, command)
    if name not in ("main", *_CALLS):  # it would be run
        raise ValueError(f"blockjax.{command} is no command that tests/docs/commands.py knows")
    module = importlib.import_module(f"blockjax.{name}")
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(sys, "argv", [f"blockjax.{command}", *arguments]))
        said = enter(mock.patch.object(sys, "stderr", _Said()))
        if name == "main":
            _patch_main(stack)
        for call in _CALLS.get(name, ()):
            enter(mock.patch(f"blockjax.{name}.{call}", _stop(call)))
        for quiet in ("begin", "check_devices", "keep_freed_memory", "_local_rates"):
            if hasattr(module, quiet):
                enter(mock.patch.object(module, quiet, lambda *_: None))
        try:
            code = module.main()
        except Parsed as found:
            return found
        except SystemExit as end:
            raise ValueError(end.code if isinstance(end.code, str) else said.text) from None
        finally:
            if name == "main":
                forget_flags()
    raise ValueError(f"it ends with {code!r}, without doing anything")


class _Said:
    text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def _patch_main(stack):
    sys.modules.pop("config_config", None)  # the config file of the call before
    training = mock.patch("blockjax.training.run.Training", _stop("Training"))
    stack.enter_context(training)
    stack.enter_context(mock.patch("jax.distributed.initialize", lambda *_: None))
    # app.run would print a usage error and exit with a number.
    stack.enter_context(mock.patch.object(app, "usage", _usage))


def _usage(shorthelp=False, writeto_stdout=False, detailed_error=None, exitcode=None):
    raise SystemExit(str(detailed_error))


def options() -> set[str]:
    """Returns the flags of all commands, "--workdir"."""
    found = {f"--{flag.name}" for flag in flags.FLAGS.get_key_flags_for_module("blockjax.main")}

    def keep(self, *_):
        found.update(option for action in self._actions for option in action.option_strings)
        raise SystemExit(0)

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", keep),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", keep),
    ):
        for command in _CALLS:
            _quietly(command)
    return found


def _quietly(command):
    with contextlib.suppress(SystemExit):
        importlib.import_module(f"blockjax.{command}").main()


def check(command: str, arguments: list[str], workdirs: set[str]) -> None:
    """Checks a command line as far as it goes without data, devices and a compiler.

    Args:
      command: such as "evaluate" or "data.prepare".
      arguments: what follows it.
      workdirs: those that commands of the pages train or write.

    Raises:
      ValueError: it would be refused; says why.
    """
    call = parsed(command, arguments)
    if call.name == "Training":
        check_config(call.args[0])
    elif call.name == "compare":
        _check_compare(*call.args, **call.kwargs)
    elif call.name == "_run":
        for row in call.args[0]:
            check_config(row.config, row.target)
    elif call.name == "make_plan":
        check_config(call.args[0], call.args[1])
    elif call.name in ("evaluate", "export", "reconstruct", "open_text_weights"):
        workdir = str(call.kwargs.get("workdir") or call.args[0])
        _check_workdir(workdir, workdirs)
        data = call.kwargs.get("data")
        if data:
            check_source(data)
    elif call.name == "open_source" or call.name == "prepare":
        check_source(call.args[0])
    elif call.name == "kernel":
        for target in call.args[0]:
            parse_target(target)
    elif call.name in ("estimate_lib.estimates", "step"):
        is_step = (
            call.name == "step"
        )  # (config, rounds, strategies), or (configs, strategies, rounds)
        files, strategies = ([call.args[0]], call.args[2]) if is_step else call.args[:2]
        for config in files:
            loaded = config_lib.load_config(config) if isinstance(config, str) else config
            for strategy in strategies:
                check_config(vary(loaded, strategy))
    elif call.name in ("rivals.train", "preparation", "pipeline", "network"):
        check_config(call.args[0])


def check_config(config, target="local") -> None:
    """Checks that a config resolves and can be put together, on the devices of a target.

    Raises:
      ValueError: it does not.
    """
    config = config.copy_and_resolve_references()
    check_source(config.data.source)
    if config.backbone:
        _from_backbone(config)
    if config.data.tokenizer and config.data.tokenizer.startswith(OWN_FILES):
        config.data.tokenizer = None
    target = parse_target(target)
    counts = _DEVICES
    if target.kind != "local":
        counts = (1,)
        for side in target.layout.split("x") if target.layout else ():
            counts = (counts[0] * int(side),)
    errors = []
    for count in counts:
        try:
            resolved = config_lib.resolve(config, devices=count, platform="gpu")
            break
        except ValueError as error:
            errors.append(error)
    else:
        raise errors[0]
    if find_task(config.objective).takes_labels and resolved.classifier.classes is None:
        resolved.classifier.classes = 10
    steps = resolved.steps or 100_000
    config_lib.fill_lengths(resolved, steps)
    make_learner(resolved, steps)


def check_source(spec: str) -> None:
    """Checks a `data.source`: its kind, and the name of what is not a file.

    Raises:
      ValueError: there is no such thing.
    """
    kind, _, rest = spec.partition(":")
    if spec in ("embedded", "embedded:scenes", "text:stdlib"):
        return
    if kind in ("folder", "arrays", "text") and rest.startswith(OWN_FILES):
        return
    if kind == "tfds" and rest.partition("/")[0] in tfds.catalogue():
        return
    reference = source_reference(spec)
    if not reference:
        raise ValueError(f"data.source {spec!r} is none")
    chosen("data.source", reference[0], {}, Source)


def _check_compare(files, strategies, seeds, workdir, *, sweep, finetune, labels, targets):
    """The checks of `blockjax.compare.compare`, without opening data."""
    from blockjax import compare

    names = [compare.config_name(file) for file in files]
    if len(set(names)) < len(names):
        raise ValueError("the configs have one name twice")
    for target in targets:
        parse_target(target)
    for file in files:
        for strategy in strategies:
            first = {field: values[0] for field, values in sweep.items()}
            for field, values in sweep.items():
                for value in values:
                    cell = compare.Cell("name", file, strategy, {**first, field: value}, seeds[0])
                    config_lib.check_field(cell.config(), field)
                    check_config(cell.config())
    if finetune is not None:
        config_lib.load_config(finetune)


def _check_workdir(workdir, workdirs):
    parents = {workdir, *(workdir.rsplit("/", n)[0] for n in range(1, workdir.count("/") + 1))}
    if not parents & workdirs:
        raise ValueError(f"no command of the pages makes {workdir}")


def _from_backbone(config):
    """Takes the sizes from the config after which the backbone's workdir is called, as training does from the run."""
    try:
        base = config_lib.load_config(find_config(config.backbone.split("/")[-1].split("-")[0]))
    except ValueError:
        base = config_lib.load_config("quickstart")
    for name in ("preset", "image_size", "patch_size", "width", "depth", "heads"):
        if config.model[name] is None:
            config.model[name] = base.model[name]
    if config.blocks is None:
        config.blocks = base.blocks
    if config.tune_blocks is None and not is_text(config):
        config.backbone = None
    config.depth_blocks = None


# Configs of which one takes what a sentence sets.
_BASES = (
    ("quickstart",),
    ("text",),
    ("finetune", "--config.backbone=runs/quickstart"),
    ("simclr",),
    ("quickstart", "--config.pipeline.batches=2"),
    ("quickstart", "--config.strategy=end_to_end"),
    ("quickstart", "--config.head.shared=True", "--config.head.trained_by=last"),
)


def check_fragment(arguments: list[str]) -> None:
    """Checks a part of a command line, "--config.blocks=8" or "--seeds 0,1": some command and config take it.

    Raises:
      ValueError: none does.
    """
    known = options()
    changes = {}
    for word in arguments:
        name, equals, value = word.partition("=")
        if name.startswith("--config."):
            field = name.removeprefix("--config.")
            config_lib.check_field(config_lib.default_config(), field)
            if equals:
                changes[field] = value
        elif name.startswith("--") and name not in known:
            raise ValueError(f"no command has the flag {name}")
    if "--config" in arguments:
        config_lib.load_config(arguments[arguments.index("--config") + 1])
    if not changes:
        return
    errors = []
    changed = [f"--config.{field}={value}" for field, value in changes.items()]
    for base in _BASES:
        try:
            call = parsed("main", ["--config", *base, *changed])
            check_config(call.args[0])
            return
        except ValueError as error:
            errors.append(error)
    raise errors[0]
