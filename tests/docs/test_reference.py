"""The pages of reference say what the code says, and the examples of docstrings work."""

import doctest
import importlib.util
import re
import sys
from pathlib import Path

import pytest

from blockjax.config import default_config, resolve, set_field
from blockjax.config.fields import flatten

DOCS = Path(__file__).parents[2] / "docs"
# Modules whose docstrings have examples.
EXAMPLES = (
    *("checks", "config.fields", "config.files", "config.resolve", "data.sources"),
    *("kernels.masked_reconstruction.api", "probes.knn", "probes.linear"),
    *("strategies.block", "strategies.blockwise", "strategies.state"),
)


@pytest.fixture
def generator(monkeypatch):
    """Imports one of the programs that write pages."""
    monkeypatch.syspath_prepend(DOCS)  # of what they import beside them

    def program(name):
        spec = importlib.util.spec_from_file_location(f"writes_{name}", DOCS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # as dataclasses need it
        spec.loader.exec_module(module)
        return module

    return program


@pytest.mark.parametrize("name", ["configuration", "commands"])
def test_a_page_is_what_the_code_says(generator, name):
    module = generator(name)
    assert module.PAGE.read_text() == module.page(), f"python docs/{name}.py writes it anew"


def test_every_field_is_described(generator):
    fields = generator("configuration").fields()
    of_code = flatten(default_config().to_dict())
    assert sorted(field.path for field in fields if not field.is_group) == sorted(of_code)
    assert [field.path for field in fields if not field.description] == []
    descriptions = [field.description for field in fields]
    assert len(descriptions) == len({*descriptions})


def test_a_wrong_choice_is_refused_with_those_on_the_page(generator):
    configuration = generator("configuration")
    for field, choices in configuration.CHOICES.items():
        config = default_config()
        config.steps = 100
        values = {"objective": _OBJECTIVES.get(field, "mae"), field: "none_such"}
        if field == "model.preset":
            choices = choices[:5]  # the others are of text
        for name, value in values.items():
            set_field(config, name, value)
        if values["objective"] == "next_token":
            config.data.source = "text:stdlib"
        with pytest.raises(ValueError) as refused:
            resolve(config, devices=1, platform="cpu")
        assert all(choice in str(refused.value) for choice in choices), (field, refused.value)


# Under which a field is looked at; the others are under every objective.
_OBJECTIVES = {
    **dict.fromkeys(("model.positions", "model.norm", "model.mlp"), "next_token"),
    **{"views.recipe": "simclr", "tiles.permutation_set": "jigsaw", "tokenizer.kind": "beit"},
}


def test_text_without_choices_is_free(generator):
    configuration = generator("configuration")
    free = {
        field.path
        for field in configuration.fields()
        if field.kind is str and field.path not in configuration.CHOICES
    }
    assert free == {
        *("backbone", "mask.schedule", "decoder.block_fractions", "optimizer.block_rates"),
        "techniques",
        *("data.source", "data.tokenizer", "data.dir", "data.train_split", "data.test_split"),
    }


def test_every_number_has_bounds(generator):
    configuration = generator("configuration")
    numbers = [field.path for field in configuration.fields() if field.kind in (int, float)]
    assert {*numbers} == {*configuration.all_bounds()}


def test_every_command_is_on_the_page(generator):
    sources = [path.read_text() for path in (DOCS.parent / "blockjax").rglob("*.py")]
    named = re.findall(r'\bprog="python -m blockjax\.([\w.]+)"', "\n".join(sources))
    assert {"main", "finetune", *named} == {*generator("commands").COMMANDS}


def test_every_flag_is_described(generator):
    commands = generator("commands")
    for command in commands.COMMANDS:
        found = commands.flags_of(command)
        assert len(found) > 2, command
        assert [flag for flag, text in found if not text] == []


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings_work(name):
    result = doctest.testmod(importlib.import_module(f"blockjax.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_all_modules_with_examples_are_run():
    package = DOCS.parent / "blockjax"
    found = {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        for path in package.rglob("*.py")
        if ">>> " in path.read_text()
    }
    assert found == {*EXAMPLES}
