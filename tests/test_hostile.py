"""Hostile input: every command ends in a sentence that says what was given, what would fit and where to change it.

The commands run in this process as far as the first compilation, which no bad input may reach.
"""

import builtins
import contextlib
import errno
import functools
import importlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np
import pytest

from blockjax import config as config_lib
from blockjax.objectives import TASKS, TEXT_OBJECTIVES
from blockjax.training.run import Training
from blockjax.workdir.metrics import MetricsFile
from tests.main_flags import forget_flags
from tests.tiny import marked, tiny_config
from tests.tiny_text import tiny_text_config

ROOT = Path(__file__).parent.parent
COMMANDS = ("main", "evaluate", "export")
STEPS = 2
_SECONDS = 60  # what takes longer hangs
_COMPILE = Training._compile


class Ended(NamedTuple):
    """How a command ended; `compiles` where nothing was wrong with its input."""

    status: int
    text: str
    compiles: bool = False


class Compiles(BaseException):
    """A command was about to compile a train step."""


class Hangs(BaseException):
    """Something took too long."""


@contextlib.contextmanager
def limited(seconds):
    """Ends what takes longer."""

    def late(number, frame):
        raise Hangs(f"took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def call(command, *argv, encoding="utf-8"):
    """Runs a command in this process; returns how it ended, with what it printed to streams of that encoding."""
    module = importlib.import_module(f"blockjax.{command}")
    sys.modules.pop("config_config", None)  # the config file of the call before
    printed = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    status, compiles = 0, False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"blockjax.{command}", *map(str, argv)])
        patch.setattr(sys, "stdout", printed)
        patch.setattr(sys, "stderr", printed)
        try:
            with limited(_SECONDS):
                module.main()
        except SystemExit as end:
            status = end.code or 0
            if isinstance(end.code, str):
                printed.write(end.code)
                status = 1
        except Compiles:
            compiles = True
        except (Exception, Hangs):
            traceback.print_exc(file=printed)
            status = 1
        finally:
            forget_flags()
    printed.flush()
    return Ended(status, printed.buffer.getvalue().decode(encoding), compiles)


def assert_says(ended, words):
    """Checks that a command was refused, in a sentence with these words."""
    assert "Traceback" not in ended.text, ended.text
    assert not ended.compiles, f"accepted: {ended.text}"
    assert ended.status in (1, 2), ended
    missing = [word for word in words if word not in ended.text]
    assert not missing, f"the message lacks {missing}: {ended.text}"


def assert_works(ended, words=()):
    """Checks that a command got as far as it should."""
    assert "Traceback" not in ended.text and ended.status == 0, ended.text
    missing = [word for word in words if word not in ended.text]
    assert not missing, f"the message lacks {missing}: {ended.text}"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """Keeps what commands write where nobody named a folder, and stops at the first compilation of a train step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "the tests have one")

    def compiles(*_):
        raise Compiles

    monkeypatch.setattr(Training, "_compile", compiles)
    monkeypatch.setattr("blockjax.training.run.report", lambda *_: {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data.npz and tiny.py, a config file."""
    folder = tmp_path_factory.mktemp("hostile")
    train, test = marked(40), marked(24)
    np.savez(
        folder / "data.npz",
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
    )
    (folder / "tiny.py").write_text(config_file(folder / "data.npz"))
    (folder / "epochs.py").write_text(config_file(folder / "data.npz", steps=None))
    (folder / "beit.py").write_text(
        config_file(folder / "data.npz", objective="beit", **{"mask.ratio": 0.4})
    )
    (folder / "labels.py").write_text(
        config_file(folder / "data.npz", objective="classification", **{"mask.ratio": None})
    )
    return folder


def config_file(data, **fields):
    """Returns the text of a config file for a run that takes a moment."""
    tiny = {
        "steps": STEPS,
        "mesh.data": -1,
        "blocks": 1,
        "model.width": 16,
        "model.depth": 1,
        "decoder.width": 16,
        "checkpoint.every": 1,
        "data.source": f"arrays:{data}",
        "data.flip": False,
    }
    return (
        "from tests.tiny import tiny_config\n\n\ndef get_config():\n"
        f"    return tiny_config(**{ {**tiny, **fields}!r})\n"
    )


@pytest.fixture(scope="module")
def trained(folder):
    """The workdir of a run with checkpoints of two steps; to be copied."""
    workdir = folder / "trained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blockjax.training.run.report", lambda *_: {})
        patch.setenv("JAX_COMPILATION_CACHE_DIR", "the tests have one")
        assert_works(call("main", f"--config={folder / 'tiny.py'}", f"--workdir={workdir}"))
    return workdir


@pytest.fixture
def workdir(trained, tmp_path):
    """A copy of that workdir."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def halfway(workdir):
    """A copy of that workdir as it was after the first step."""
    shutil.rmtree(workdir / "checkpoints" / f"{STEPS:08d}")
    return workdir


@pytest.fixture
def train(folder, tmp_path):
    """Returns a function that calls `main` with flags."""

    def train(*flags, config="tiny.py", workdir=tmp_path / "run", **options):
        return call(
            "main", f"--config={folder / config}", f"--workdir={workdir}", *flags, **options
        )

    return train


# --- Fields.


def numbers(config, prefix=""):
    """Yields every field that is a number, and its type."""
    for name in config:
        kind = config.get_type(name)
        if issubclass(kind, ml_collections.ConfigDict):
            yield from numbers(config[name], f"{prefix}{name}.")
        elif kind in (int, float):
            yield prefix + name, kind


NUMBERS = dict(numbers(config_lib.default_config()))
HOSTILE = (math.nan, math.inf, 1.5, -1, 0, 10**30, "many")


def refusal(objective, field, value):
    """Returns what is wrong with how a config with this value is checked; None if nothing is."""
    kind = NUMBERS[field]
    if kind is float and isinstance(value, int):
        value = float(value)
    if objective in TEXT_OBJECTIVES:
        config = tiny_text_config(objective=objective)
    else:
        ratio = {} if objective == "mae" else {"mask.ratio": None}
        config = tiny_config(objective=objective, **ratio)
    if field == "epochs":
        config.steps = None
    config_lib.set_field(config, field, value)
    try:
        config = config_lib.resolve(config, devices=1, platform="cpu")
        config_lib.fill_lengths(config, config_lib.total_steps(config, examples=1000))
    except ValueError as error:
        return None if field in str(error) else f"does not name the field: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if isinstance(value, str) or not math.isfinite(value):
        return "accepted"
    if kind is int and (isinstance(value, float) or value >= 2**63):
        return "accepted"
    return None


def test_every_number_is_checked_under_every_objective():
    """The bounds are those of all objectives, but some look at a field before it is checked."""
    tried = [(field, value, "mae") for field in NUMBERS for value in HOSTILE]
    tried += [(f, v, o) for f in NUMBERS for v in (math.nan, 0) for o in TASKS if o != "mae"]
    wrong = [
        f"{objective}, {field}={value}: {found}"
        for field, value, objective in tried
        if (found := refusal(objective, field, value))
    ]
    assert not wrong, f"{len(wrong)} of {len(tried)}:\n" + "\n".join(wrong[:60])


# What is senseless for a reason of its own: fields, and what the message must say.
SENSELESS = {
    "steps past int32": ({"steps": 2**31}, ("steps", "2147483648", "2,147,483,647")),
    # Keys have 32 bits: a larger seed would be another one.
    "seed past uint32": ({"seed": 2**32}, ("seed", "4294967296", "4,294,967,295")),
    "epochs past int32": ({"steps": None, "epochs": 1e30}, ("epochs", "1e+30")),
    "b1 of 1": ({"optimizer.b1": 1.0}, ("optimizer.b1", "1")),
    "b1 above 1": ({"optimizer.b1": 2.0}, ("optimizer.b1", "2")),
    "b1 below 0": ({"optimizer.b1": -1.0}, ("optimizer.b1", "-1")),
    "b2 above 1": ({"optimizer.b2": 1.5}, ("optimizer.b2", "1.5")),
    "norm_epsilon below 0": ({"model.norm_epsilon": -1.0}, ("model.norm_epsilon", "-1")),
    "no hidden units": ({"model.mlp_ratio": 0.01}, ("model.mlp_ratio", "0.01", "model.width")),
    "a shift out of the image": ({"data.shift": 32}, ("data.shift", "32", "model.image_size")),
    "workers by the thousand": ({"data.workers": 100_000}, ("data.workers", "100000")),
    # Positions alone would be 20 GB.
    "a huge image": ({"model.image_size": 100_000}, ("model.image_size", "100000", "65,536")),
    "tiny patches": (
        {"model.image_size": 12_800, "model.patch_size": 1},
        ("model.image_size", "12800", "model.patch_size"),
    ),
    "tiles of a huge image": (
        {"objective": "jigsaw", "mask.ratio": None, "tiles.image_size": 1_000_000},
        ("tiles.image_size", "1000000"),
    ),
    "a head wider than memory": ({"head.expansion": 2**31 - 1}, ("head.expansion", "2147483647")),
    "layers by the billion": ({"model.depth": 2**31 - 1}, ("model.depth", "2147483647")),
    "decoder layers by the billion": ({"decoder.depth": 2**31 - 1}, ("decoder.depth",)),
    "a negative weight": (
        {"objective": "barlow_twins", "mask.ratio": None, "loss.off_diagonal": -1.0}
        | {"batch_size": 64, "head.width": 16},
        ("loss.off_diagonal", "-1"),
    ),
    "classes below 0": ({"classifier.classes": -3}, ("classifier.classes", "-3")),
    "no area": ({"data.crop_scale": (math.nan, 1.0)}, ("data.crop_scale", "nan")),
    "an area above 1": ({"data.crop_scale": (0.5, math.inf)}, ("data.crop_scale", "inf")),
    "schedule nan": ({"mask.schedule": "linear:nan"}, ("mask.schedule", "nan")),
    "schedule inf": ({"mask.schedule": "linear:inf"}, ("mask.schedule", "inf")),
    "schedule of nan": ({"mask.schedule": "nan,nan,nan,nan"}, ("mask.schedule", "nan")),
}


@pytest.mark.parametrize("case", SENSELESS)
def test_values_that_make_no_sense(case):
    fields, words = SENSELESS[case]
    with pytest.raises(ValueError) as error, limited(5):
        config = config_lib.resolve(tiny_config(**fields), devices=1, platform="cpu")
        config_lib.total_steps(config, examples=1000)
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"the message lacks {missing}: {error.value}"


@pytest.mark.parametrize(
    "field, others",
    [
        ("model.image_size", {}),  # a prime: no patch size but 1 and itself
        ("model.width", {"model.heads": 3}),
        ("model.depth", {"blocks": 2}),
        ("decoder.width", {"decoder.heads": 3}),
    ],
)
def test_what_would_fit_a_large_number_is_found_at_once(field, others):
    fields = {**others, field: 2**31 - 1}
    with pytest.raises(ValueError, match=field), limited(5):
        config_lib.resolve(tiny_config(**fields), devices=1, platform="cpu")


# Flags of `main`, beside those of a config that is right, and what the message must say.
FLAGS = {
    "steps": (
        "--config.steps=9223372036854775808",
        ("steps", "9223372036854775808", "2,147,483,647"),
    ),
    "steps nan": ("--config.steps=nan", ("--config.steps", "nan")),
    "steps empty": ("--config.steps=", ("--config.steps",)),
    "seed": ("--config.seed=9223372036854775808", ("seed", "9223372036854775808", "4,294,967,295")),
    "ratio 0": ("--config.model.mlp_ratio=0", ("model.mlp_ratio", "0")),
    "ratio -1": ("--config.model.mlp_ratio=-1", ("model.mlp_ratio", "-1")),
    "ratio nan": ("--config.model.mlp_ratio=nan", ("model.mlp_ratio", "nan")),
    "mask nan": ("--config.mask.ratio=nan", ("mask.ratio", "nan")),
    "schedule": ("--config.mask.schedule=nan", ("mask.schedule", "nan")),
    "heads": ("--config.model.heads=0", ("model.heads", "0", "at least 1")),
    "size": ("--config.model.image_size=-8", ("model.image_size", "-8", "at least 1")),
    "patches": ("--config.model.patch_size=0", ("model.patch_size", "0", "at least 1")),
    "batch": ("--config.batch_size=9223372036854775808", ("batch_size", "9223372036854775808")),
    "bool": ("--config.data.flip=maybe", ("--config.data.flip", "maybe")),
    "field of a group": ("--config.image_size=64", ("--config.image_size", "model.image_size")),
    "field misspelt": ("--config.model.widht=3", ("--config.model.widht", "width")),
    "field unlike any": ("--config.zzz=3", ("--config.zzz", "no such field", "defaults.py")),
    "field of a number": ("--config.model.width.x=3", ("--config.model.width.x", "model.width")),
    "group": ("--config.model=4", ("--config.model", "group", "model.width")),
    "field without a name": ("--config.=1", ("--config.",)),
    "field of nothing": ("--config.model.=1", ("--config.model.",)),
    "flag": ("--confg=1", ("confg", "config")),
    "no value": ("--config.steps", ("--config.steps",)),
    "word": ("quickly", ("quickly",)),
    "backbone": ("--config.backbone=", ("backbone",)),
    "source": ("--config.data.source=", ("data.source", "embedded", "folder:")),
    "nobody": ("--config.data.source=folder:~nobody_at_all/x", ("data.source", "~nobody_at_all")),
    "split": ("--config.data.train_split=", ("data.train_split", "train[:10%]")),
    "process": ("--process_id=1", ("--coordinator", "--process_count")),
}


@pytest.mark.parametrize("case", FLAGS)
def test_flags(case, train):
    flag, words = FLAGS[case]
    assert_says(train(flag), words)


@pytest.mark.parametrize("epochs", ["nan", "inf", "1e30", "0", "-1"])
def test_epochs(epochs, train):
    ended = train(f"--config.epochs={epochs}", config="epochs.py")
    assert_says(ended, ("epochs", epochs.replace("1e30", "1e+30")))


def test_a_config_that_is_right_compiles(train):
    assert train().compiles


# --- Config files.

START = "from blockjax.config import default_config\ndef get_config():\n    c = default_config()\n"
# Their names and contents, and what the message must say beside the name.
CONFIG_FILES = {
    "syntax.py": ("def get_config(:\n", ("line 1", "syntax")),
    "name.py": ("def get_config():\n    return nope\n", ("line 2", "'nope' is not defined")),
    "value.py": ("def get_config():\n    raise ValueError('3 is odd')\n", ("line 2", "3 is odd")),
    "key.py": ("def get_config():\n    return {}['a']\n", ("line 2", "KeyError", "'a'")),
    "assertion.py": ("assert False\n", ("line 1", "AssertionError")),
    "import.py": ("import no_such_package\n", ("line 1", "no_such_package")),
    "file.py": ("def get_config():\n    open('/no/such')\n", ("line 2", "/no/such")),
    "exit.py": ("def get_config():\n    raise SystemExit(3)\n", ("line 2", "SystemExit")),
    "loop.py": ("def get_config():\n    return get_config()\n", ("line 2", "recursion")),
    "type.py": (f"{START}    c.steps = 'many'\n    return c\n", ("line 4", "steps", "many")),
    "deep.py": (f"{START}    c.model.width.x = 3\n    return c\n", ("line 4", "'x'")),
    "more.py": (f"{START}    c.widht = 3\n    c.steps = 1\n    return c\n", ("widht",)),
    "group.py": (f"{START}    c.steps = 1\n    del c['mask']\n    return c\n", ("mask",)),
    "few.py": (
        "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 1})\n",
        ("default_config", "batch_size"),
    ),
    "none.py": ("def get_config():\n    pass\n", ("get_config", "None", "ConfigDict")),
    "no_function.py": ("x = 1\n", ("get_config",)),
    "no_call.py": ("get_config = 3\n", ("get_config",)),
    "needs_argument.py": ("def get_config(size):\n    return size\n", ("argument", "size")),
    "empty.py": ("", ("get_config",)),
    "numbers.json": ('{"steps": 3}', ("Python", "get_config")),
    "steps.yaml": ("steps: 3\n", ("Python", "get_config")),
}


@pytest.mark.parametrize("name", CONFIG_FILES)
def test_config_files(name, tmp_path):
    content, words = CONFIG_FILES[name]
    (tmp_path / name).write_text(content)
    assert_says(call("main", f"--config={tmp_path / name}", "--workdir=run"), (name, *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "config, words",
    [
        ("no_such.py", ("--config", "no_such.py", "no such file")),
        ("", ("--config", "empty")),
        (".", ("--config", "folder")),
        ("{root}/configs/quickstart.py:steps=3", ("quickstart.py", "get_config()", "1 was given")),
        ("{root}/configs/bim.py:stesp=3", ("stesp=3", "epochs=800.0")),
        ("{root}/configs/bim.py:size=0,data=embedded", ("model.image_size", "0", "at least 1")),
        (
            "{root}/configs/bim.py:epochs=inf,data=embedded,size=32,model=ti8,batch=8",
            ("epochs", "inf"),
        ),
        ("{root}/configs/simclr.py:steps=nan", ("steps='nan'", "int")),
    ],
)
def test_config_arguments(config, words):
    assert_says(call("main", f"--config={config.format(root=ROOT)}", "--workdir=run"), words)


# --- Data.


def _labels(change):
    def arrays(images, labels):
        return {"images": images, "labels": change(labels)}

    return arrays


# What is in an npz file, made of images and labels that are right; and what the message must say.
ARRAYS = {
    "nothing": (lambda images, labels: {}, ("train_images", "images")),
    "no images": (lambda images, labels: {"images": images[:0]}, ("0 images", "data.source")),
    "no height": (
        lambda images, labels: {"images": np.zeros((40, 0, 32, 3), np.uint8)},
        ("images of", "(40, 0, 32, 3)"),
    ),
    "one negative label": (
        _labels(lambda labels: np.where(np.arange(40) == 3, -1, labels)),
        ("labels of", "-1", "from 0"),
    ),
    "labels below 0": (_labels(lambda labels: -1 - labels), ("labels of", "-4", "from 0")),
    "labels past int32": (_labels(lambda labels: labels + 2**40), ("labels of", "1099511627776")),
    "labels that count nothing": (
        _labels(lambda labels: labels + 10**9),
        ("number of classes", "1000000004"),
    ),
    "labels that are no integers": (
        _labels(lambda labels: labels + 0.5),
        ("labels of", "float64", "integer"),
    ),
    "labels for fewer images": (_labels(lambda labels: labels[:-1]), ("labels of", "[39]", "40")),
    "classes that only the test has": (
        lambda images, labels: {
            "train_images": images,
            "train_labels": labels,
            "test_images": images,
            "test_labels": labels + 5,
        },
        ("classifier.classes", "9"),
    ),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_arrays(case, train, tmp_path):
    make, words = ARRAYS[case]
    images, labels = marked(40)
    np.savez(tmp_path / "odd.npz", **make(images, labels))
    flag = f"--config.data.source=arrays:{tmp_path / 'odd.npz'}"
    ended = train(flag, config="labels.py")
    assert_says(ended, words if "classifier.classes" in words else ("odd.npz", *words))


def test_more_codes_than_patches_are_found_before_they_are_fitted(train):
    """40 images of 16 patches, of which a tenth is held out."""
    ended = train("--config.tokenizer.codes=600", config="beit.py")
    assert_says(ended, ("tokenizer.codes", "600", "576", "more images"))


@pytest.mark.parametrize("denied", ["images", "images/dark"])
def test_folders_that_may_not_be_read(denied, train, tmp_path, monkeypatch):
    """Also one below, whose images would be missing in silence."""
    for name in ("dark", "bright"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(10):
            (tmp_path / "images" / name / f"{index}.png").touch()
    allowed = os.scandir

    def scandir(path="."):
        if Path(path) == tmp_path / denied:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    ended = train(f"--config.data.source=folder:{tmp_path / 'images'}")
    assert_says(ended, ("data.source", str(tmp_path / denied), "Permission denied"))


def test_a_file_that_may_not_be_read(train, folder, monkeypatch):
    allowed = builtins.open

    def denied(path, *arguments, **options):
        if str(path).endswith("data.npz"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", denied)
    assert_says(train(), ("data.source", "data.npz", "Permission denied"))


# --- Workdirs that cannot be used.


@pytest.mark.parametrize(
    "workdir, words",
    [
        ("", ("--workdir", "empty")),
        ("file", ("--workdir", "file", "cannot be written")),
        ("file/run", ("--workdir", "file/run", "cannot be written")),
        ("x" * 300, ("--workdir", "too long")),
        ("/proc/run", ("--workdir", "/proc/run", "cannot be written")),
    ],
    ids=["empty", "file", "below a file", "long", "proc"],
)
def test_workdirs_that_cannot_be_written(workdir, words, train, tmp_path):
    (tmp_path / "file").touch()
    assert_says(train(workdir=workdir), words)


@pytest.mark.parametrize(
    "workdir, words",
    [
        ("", ("--workdir", "empty")),
        ("no_such", ("no_such", "no such file or folder")),
        ("file", ("file", ".safetensors")),
        ("empty", ("empty", "has none")),
        ("x" * 300, ("--workdir", "too long")),
    ],
    ids=["nothing", "none", "file", "empty", "long"],
)
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_workdirs_that_cannot_be_read(command, workdir, words, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    rest = ["--format", "timm", "--output", "out"] if command == "export" else []
    assert_says(call(command, "--workdir", workdir, *rest), words)


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EROFS])
def test_a_workdir_without_permission(reason, train, monkeypatch):
    def denied(path, *_, **__):
        raise OSError(reason, os.strerror(reason), str(path))

    monkeypatch.setattr(Path, "touch", denied)
    assert_says(train(), ("--workdir", "cannot be written", os.strerror(reason)))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_config_that_may_not_be_read(command, workdir, train, monkeypatch):
    allowed = io.open

    def denied(path, *arguments, **options):
        if str(path).endswith("config.json"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(path, *arguments, **options)

    monkeypatch.setattr(io, "open", denied)  # as pathlib does
    assert_says(run_on(command, workdir, train), ("config.json", "Permission denied"))


# --- Workdirs that are damaged.


def run_on(command, workdir, train, *rest, **options):
    """Runs a command on a workdir, as quick as it gets."""
    if command == "main":
        return train(*rest, workdir=workdir, **options)
    if command == "evaluate":
        quick = ["--probes", "knn", "--readouts", "mean", "--output", workdir / "evaluation"]
        return call("evaluate", "--workdir", workdir, *quick, *rest, **options)
    output = ["--format", "safetensors", "--output", workdir / "exported"]
    return call("export", "--workdir", workdir, *output, *rest, **options)


def put(workdir, name, content):
    """Puts text, an empty folder (True) or nothing (None) in the place of what is there."""
    path = workdir / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if content is True:
        path.mkdir()
    elif content is not None:
        path.write_text(content)


def put_field(workdir, field, value):
    """Sets a field of config.json, or takes it away where the value is None."""
    config = json.loads((workdir / "config.json").read_text())
    *groups, name = field.split(".")
    group = functools.reduce(dict.__getitem__, groups, config)
    if value is None:
        del group[name]
    else:
        group[name] = value
    (workdir / "config.json").write_text(json.dumps(config))


# What is there instead, for which commands, and what the message must say.
DAMAGED = {
    "config list": ("config.json", "[1, 2]", COMMANDS, ("config.json", "list")),
    "config garbage": ("config.json", "{nope", COMMANDS, ("config.json", "line 1")),
    "config folder": ("config.json", True, COMMANDS, ("config.json",)),
    "checkpoints file": ("checkpoints", "x", COMMANDS, ("checkpoints", "file")),
    "figures file": ("figures", "x", ("main",), ("figures", "file")),
    "metrics folder": ("metrics.jsonl", True, ("main",), ("metrics.jsonl",)),
    "metrics garbage": ("metrics.jsonl", "a\nb\n", ("main",), ("line 1", "metrics.jsonl")),
    "metrics list": ("metrics.jsonl", "[1]\n[2]\n", ("main",), ("line 1", "metrics.jsonl")),
    "metrics no step": (
        "metrics.jsonl",
        '{"a": 1}\n{"a": 2}\n',
        ("main",),
        ("line 1", "metrics.jsonl"),
    ),
}


@pytest.mark.parametrize(
    "case, command", [(case, command) for case in DAMAGED for command in DAMAGED[case][2]]
)
def test_damaged_workdirs(case, command, workdir, train):
    name, content, _, words = DAMAGED[case]
    put(workdir, name, content)
    if name == "metrics.jsonl":  # what it holds is needed to go on
        shutil.rmtree(workdir / "checkpoints" / f"{STEPS:08d}")
    assert_says(run_on(command, workdir, train), (str(workdir), *words))


# Fields of config.json and what they are damaged to, None where they are lost; and what the message must say.
DAMAGED_FIELDS = {
    "model.width": (None, ("config.json", "model.width")),
    "dtype": (None, ("config.json", "dtype")),
    "mask.ratio": (None, ("config.json", "mask.ratio")),
    "model": (3, ("config.json", "model", "group")),
    "decoder.heads": ("two", ("config.json", "decoder.heads", "two")),
    "strategy": ("faster", ("config.json", "strategy", "faster", "blockwise")),
    "objective": ([1], ("config.json", "objective")),
    "model.heads": (3, ("config.json", "model.heads", "3")),
    "model.patch_size": (0, ("config.json", "model.patch_size", "0")),
    "model.mlp_ratio": (math.nan, ("config.json", "model.mlp_ratio", "nan")),
    "seed": ("one", ("config.json", "seed", "one")),
    "colour": (1, ("config.json", "colour")),
}


@pytest.mark.parametrize("field", DAMAGED_FIELDS)
def test_damaged_fields(field, workdir, train):
    value, words = DAMAGED_FIELDS[field]
    put_field(workdir, field, value)
    assert_says(run_on("export", workdir, train), (str(workdir), *words))


def test_a_field_that_has_a_default_may_be_lost(workdir, train):
    put_field(workdir, "noise", None)
    assert_works(run_on("export", workdir, train))


# What is not needed: what is there instead, and for which command.
NOT_NEEDED = {
    "metrics garbage": ("metrics.jsonl", "a\nb\n", "evaluate"),
    "summary garbage": ("summary.json", "x", "export"),
    "summary list": ("summary.json", "[1]", "export"),
    "summary of other probes": ("summary.json", '{"probes": [{"a": 1}]}', "export"),
    # A damaged checkpoint is one, whatever its manifest says; there is an older one.
    "manifest list": (f"checkpoints/{STEPS:08d}/manifest.json", "[1]", "export"),
    "manifest odd": (f"checkpoints/{STEPS:08d}/manifest.json", '{"a": 3}', "export"),
    "manifest of nothing": (f"checkpoints/{STEPS:08d}/manifest.json", "{}", "export"),
}


@pytest.mark.parametrize("case", NOT_NEEDED)
def test_what_a_command_does_not_need(case, workdir, train):
    name, content, command = NOT_NEEDED[case]
    put(workdir, name, content)
    if case == "manifest of nothing":
        put(workdir, name.replace("manifest", "metadata"), "x")
    assert_works(run_on(command, workdir, train))


def test_data_that_changed_are_noticed_before_anything_is_compiled(
    halfway, train, folder, tmp_path
):
    images, labels = marked(80)
    shutil.copy(folder / "data.npz", tmp_path / "before.npz")
    try:
        np.savez(folder / "data.npz", images=images, labels=labels)
        ended = train(workdir=halfway)
    finally:
        shutil.copy(tmp_path / "before.npz", folder / "data.npz")
    assert_says(ended, ("number of readable images was 40", "data.source"))


# --- Arguments of the other commands.


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--pool=0", ("--pool", "0")),
        ("--blocks=2", ("--blocks", "2", "1")),
        ("--blocks=", ("--blocks", "numbers")),
        ("--train_examples=0", ("--train_examples", "0", "at least 1")),
        ("--train_examples=x", ("--train_examples", "x")),
        ("--data=", ("data.source", "embedded")),
        ("--output=file", ("--output", "file", "cannot be written")),
        ("--probes=", ("--probes", "knn")),
    ],
)
def test_arguments_of_evaluate(argument, words, trained, tmp_path):
    (tmp_path / "file").touch()
    quick = ["--probes=knn", "--readouts=mean", "--output=out"]
    assert_says(call("evaluate", f"--workdir={trained}", *quick, argument), words)


def test_an_evaluation_that_cannot_be_written(workdir, train):
    (workdir / "evaluation" / "evaluation.json").mkdir(parents=True)
    assert_says(run_on("evaluate", workdir, train), ("--output", "cannot be written", "directory"))


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--blocks=0", ("blocks", "0", "1")),
        ("--format=onnx", ("--format", "onnx", "timm")),
        ("--output=file", ("--output", "file", "exists")),
        ("--output=file/out", ("--output", "file/out", "cannot be written")),
        (f"--output={'x' * 300}", ("--output", "too long")),
        ("--output=", ("--output", "empty")),
    ],
    ids=["blocks", "format", "file", "below a file", "long", "empty"],
)
def test_arguments_of_export(argument, words, trained, tmp_path):
    (tmp_path / "file").touch()
    arguments = ["--format=timm", "--output=out", argument]
    assert_says(call("export", f"--workdir={trained}", *arguments), words)


@pytest.fixture(scope="module")
def exported(trained, folder):
    """An exported folder; to be copied."""
    output = folder / "exported"
    assert_works(
        call("export", "--workdir", trained, "--format", "safetensors", "--output", output)
    )
    return output


@pytest.mark.parametrize(
    "field, value",
    [
        *(("width", math.nan), ("width", -16), ("width", "x"), ("heads", 0), ("heads", 3)),
        *(("patch_size", 0), ("depth", 10**30), ("norm_epsilon", None), ("mlp_ratio", math.inf)),
    ],
)
def test_exported_folders_with_a_damaged_field(field, value, exported, tmp_path, train):
    weights = shutil.copytree(exported, tmp_path / "weights")
    config = json.loads((weights / "config.json").read_text())
    config["vit"][field] = value
    (weights / "config.json").write_text(json.dumps(config))
    for ended in (
        call("export", "--workdir", weights, "--format", "timm", "--output", "out"),
        train(f"--config.backbone={weights}"),
    ):
        assert_says(ended, (str(weights), "config.json", field))


def test_an_exported_folder_whose_config_is_a_list(exported, tmp_path):
    weights = shutil.copytree(exported, tmp_path / "weights")
    (weights / "config.json").write_text("[1]")
    ended = call("export", "--workdir", weights, "--format", "timm", "--output", "out")
    assert_says(ended, (str(weights), "config.json", "list"))


# --- A disk that is full.


def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk(command, trained, train, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    workdir = tmp_path / "new" if command == "main" else trained
    where = ["--output", tmp_path / "out"] if command != "main" else []
    assert_says(run_on(command, workdir, train, *where), ("cannot be written", "No space left"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["arrays", "manifest", "metrics"])
def test_a_disk_that_fills_up(what, halfway, train, monkeypatch):
    monkeypatch.setattr(Training, "_compile", _COMPILE)
    if what == "arrays":
        monkeypatch.setattr("blockjax.workdir.checkpoint.ocp.save_async", full)
    elif what == "metrics":
        monkeypatch.setattr(MetricsFile, "append", full)
    else:
        written = Path.write_text

        def write_text(path, *arguments, **options):
            if path.name == "manifest.json":
                full()
            return written(path, *arguments, **options)

        monkeypatch.setattr(Path, "write_text", write_text)
    ended = train(workdir=halfway)
    assert_says(ended, (str(halfway), "No space left", "Free space", "same command"))
    assert_one_whole_checkpoint(halfway)


def assert_one_whole_checkpoint(workdir):
    """Checks that the checkpoint of step 1 is there, whole, and nothing of another that needs room."""
    # Threads of orbax may make empty folders anew after all was removed; the next save removes them.
    files = [path for path in (workdir / "checkpoints").rglob("*") if path.is_file()]
    assert {path.relative_to(workdir / "checkpoints").parts[0] for path in files} == {"00000001"}
    ended = call("export", "--workdir", workdir, "--format", "timm", "--output", "out")
    assert_works(ended)


# --- What needs a process of its own.

RUNNER = """
import importlib, os, resource, sys, traceback
if limit := os.environ.get("FILE_SIZE_LIMIT"):
    sys.dont_write_bytecode = True  # it would be cut off, and read again
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit),) * 2)
calls = " ".join(sys.argv[1:]).split(" + ")
for words in map(str.split, calls):
    sys.argv[:] = [words[0], *words[1:]]
    status = 0
    try:
        importlib.import_module(f"blockjax.{words[0]}").main()
    except SystemExit as end:
        status = end.code or 0
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    print(f"\\nended {status}", file=sys.stderr, flush=True)
"""


def in_a_process(*calls, **environment):
    """Runs commands one after another in one process; returns how each ended."""
    words = " + ".join(" ".join(map(str, call)) for call in calls).split(" ")
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment(**environment),
        timeout=120,
    )
    *parts, rest = done.stdout.decode(errors="replace").split("\nended ")
    texts = [parts[0], *(part.partition("\n")[2] for part in parts[1:])]
    ends = [int(part.partition("\n")[0]) for part in [*parts[1:], rest]]
    assert len(ends) == len(calls), done.stdout
    return [Ended(status, text) for status, text in zip(ends, texts, strict=True)]


def _environment(**more):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "XLA_FLAGS") if name in os.environ}
    # A cache of its own: what a limit cuts off must not be read again.
    cache = str(Path.cwd() / "cache")
    own = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
    return {**kept, **own, **more}


@pytest.mark.slow
def test_an_unknown_platform(trained, folder):
    calls = (
        ["main", f"--config={folder / 'tiny.py'}", "--workdir=run"],
        ["evaluate", "--workdir", trained],
        ["export", "--workdir", trained, "--format", "timm", "--output", "out"],
    )
    for ended in in_a_process(*calls, JAX_PLATFORMS="nonsense"):
        assert_says(ended, ("JAX_PLATFORMS", "nonsense", "cpu"))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_ascii_stream_takes_every_name(command, trained, train, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "läufe – 走")
    assert_works(run_on(command, workdir, train, encoding="ascii"))


@pytest.mark.slow
def test_a_limit_on_the_size_of_files(halfway, folder):
    run = ["main", f"--config={folder / 'tiny.py'}", f"--workdir={halfway}"]
    [ended] = in_a_process(run, FILE_SIZE_LIMIT="20000", JAX_ENABLE_COMPILATION_CACHE="false")
    # Threads of orbax may still print what they could not write.
    last = ended._replace(text=ended.text.rpartition("error: ")[2])
    assert_says(last, (str(halfway), "File too large", "step 1", "Free space", "same command"))
    assert_one_whole_checkpoint(halfway)


HOLDER = """
import sys
from blockjax import main
from blockjax.training.run import Training

def hold(*_):
    print("holds", flush=True)
    sys.stdin.read()

Training._compile = hold
main.main()
"""


@pytest.mark.slow
def test_a_workdir_has_one_run_at_a_time(halfway, folder, train):
    """Others may read it; and a process that is killed leaves nothing that must be removed."""
    flags = [f"--config={folder / 'tiny.py'}", f"--workdir={halfway}"]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
    )
    try:
        assert b"holds\n" in iter(holder.stdout.readline, b"")
        ended = train(workdir=halfway)
        assert_works(run_on("export", halfway, train))
    finally:
        holder.kill()
        holder.communicate()
    assert_says(ended, ("--workdir", str(halfway), "another process", str(holder.pid)))
    assert train(workdir=halfway).compiles
