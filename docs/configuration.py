"""Writes reference/configuration.md: every config field, from the code that knows it.

python docs/configuration.py
"""

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import ml_collections
from marks import marked

from blockjax.checks import Bound
from blockjax.config import bounds, coupling, defaults, modality
from blockjax.kernels.masked_reconstruction import IMPLEMENTATIONS
from blockjax.models.decoders import DECODERS
from blockjax.models.heads import READOUTS
from blockjax.models.layers import MLPS, NORMS
from blockjax.models.text import POSITIONS, TEXT_PRESETS
from blockjax.models.vit import PRESETS
from blockjax.objectives import TASKS
from blockjax.objectives.masked.tokenizer import KINDS
from blockjax.objectives.tiles.permutations import LARGEST
from blockjax.objectives.two_view.augment import RECIPES
from blockjax.techniques import CONSISTENCIES, TEACHERS, WHICH

PAGE = Path(__file__).parent / "reference" / "configuration.md"
# Fields of text that take one of a few values.
CHOICES = {
    "dtype": defaults.DTYPES,
    "strategy": defaults.STRATEGIES,
    "remat": defaults.REMATS,
    "objective": tuple(TASKS),
    "consistency.kind": CONSISTENCIES,
    "distillation.teacher": TEACHERS,
    "cross_block.which": WHICH,
    "hybrid.losses": coupling.LOSSES,
    "schedule": coupling.SCHEDULES,
    "model.preset": (*PRESETS, *TEXT_PRESETS),
    "model.positions": POSITIONS,
    "model.norm": NORMS,
    "model.mlp": MLPS,
    "decoder.kind": tuple(DECODERS),
    "loss.implementation": IMPLEMENTATIONS,
    "head.trained_by": coupling.TRAINED_BY,
    "head.readout": READOUTS,
    "views.recipe": tuple(RECIPES),
    "tiles.permutation_set": tuple(LARGEST),
    "tokenizer.kind": KINDS,
    "data.on_corrupt": ("skip", "error"),
    "optimizer.name": defaults.OPTIMIZERS,
}
_OWN = dict.fromkeys(("objective", "strategy", "decoder.kind"), ("or `module:Name` of your own",))
_KINDS = {bool: "True or False", int: "integer", float: "number", str: "text", tuple: "two numbers"}
# Groups of one subject that are no group of fields, by their first field.
_TOP = {
    "seed": ("The run", ""),
    "consistency": (
        "Coupling of blocks",
        "What ties blocks together on purpose; all are off by default.",
    ),
    "schedule": ("Order of training", ""),
    "techniques": ("Techniques of your own", ""),
    "backbone": ("Starting from a backbone", "For fine-tuning and for pretraining that goes on."),
}
_COUPLINGS = ("consistency", "distillation", "cross_block", "hybrid", "overlap")
_HEAD = """# Configuration

Every field of a config, with its default. A config file returns these fields, changed; the command line changes them
once more:

```bash
python -m blockjax.main --config quickstart --config.blocks=2 --config.mask.ratio=0.5
```

The defaults are MAE's recipe in four blocks. *Open* means that the field has no default of its own: it is filled in
before the run starts, and the workdir's `config.json` shows by what. Most open fields follow from the objective or from
the preset of the model. In Python, `blockjax.config.default_config()` returns all fields and `blockjax.config.resolve`
fills in and checks a config. A value that cannot be used is refused before anything is compiled, with what would fit.
"""


@dataclasses.dataclass(frozen=True)
class Field:
    """A field, or a group of fields.

    Attributes:
      path: "model.depth".
      description: of the comment above it.
      default: as it stands in the code; None for one that is open.
      kind: the type of its values; None for a group.
    """

    path: str
    description: str
    default: str | None
    kind: type | None

    @property
    def is_group(self) -> bool:
        """Whether it is a group of fields."""
        return self.kind is None


def fields() -> list[Field]:
    """Returns all fields and groups of `default_config`, in its order.

    The description of a field is the comment above it.
    """
    source = inspect.getsource(defaults)
    lines = source.splitlines()
    (function,) = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    config, names, found = defaults.default_config(), {"config": ""}, []
    for node in function.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        target = node.targets[0]
        group = names[ast.unparse(target.value)]
        path = f"{group}.{target.attr}".lstrip(".")
        value = ast.get_source_segment(source, node.value)
        kind = _kind(config, path)
        names[ast.unparse(target)] = path
        for other in node.targets[1:]:
            names[other.id] = path
        default = None if ".placeholder(" in value else value
        found.append(Field(path, _comment(lines, node.lineno - 1), default, kind))
    return found


def page() -> str:
    """Returns the page."""
    parts, rows = [_HEAD], []

    def flush():
        if rows:
            parts.append(
                "\n".join(["| Field | Default | What it is |", "|---|---|---|", *rows, ""])
            )
            rows.clear()

    for field in fields():
        if field.path in _TOP:
            flush()
            title, text = _TOP[field.path]
            parts.append("\n".join([f"## {title}", "", *([text, ""] if text else [])]))
        if field.is_group:
            flush()
            level = "###" if field.path in _COUPLINGS else "##"
            modality_ = " ".join(f"*{fact.capitalize()}.*" for fact in _modality(field.path))
            parts.append(f"{level} {field.path}\n\n{_marked(field)} {modality_}".rstrip() + "\n")
        else:
            rows.append(_row(field))
    flush()
    return "\n".join(parts).rstrip() + "\n"


def all_bounds() -> dict[str, Bound]:
    """Returns the bounds of all fields that are numbers."""
    found = bounds.BOUNDS | coupling.BOUNDS
    for task in TASKS.values():
        found |= task.bounds
    return found


def _row(field):
    default = "*open*" if field.default is None else f"`{field.default}`"
    facts = [_KINDS[field.kind]]
    if field.path in CHOICES:
        choices = [f"`{choice}`" for choice in CHOICES[field.path]]
        facts = [f"one of {', '.join([*choices, *_OWN.get(field.path, ())])}"]
    elif field.path in all_bounds():
        facts.append(all_bounds()[field.path].wanted())
    fact = ", ".join([*facts, *_modality(field.path)])
    text = f"{_marked(field)} *{fact[0].upper()}{fact[1:]}.*"
    return f"| `{field.path}` | {default} | {text} |"


def _modality(path):
    """Returns the facts which a field or group has by itself, not by its group."""
    both = (modality.OF_IMAGES, "images"), (modality.OF_TEXT, "text")
    return [f"{where} only" for fields, where in both if path in fields]


def _marked(field):
    """Returns the description, in which names of fields, files and values are code."""
    text = marked(field.description)
    for choice in CHOICES.get(field.path, ()):
        text = re.sub(rf"(?<![`\w]){choice}(?=[:;] )", rf"`{choice}`", text)
    return text


def _kind(config, path):
    *groups, name = path.split(".")
    for group in groups:
        config = config[group]
    kind = config.get_type(name)
    return None if issubclass(kind, ml_collections.ConfigDict) else kind


def _comment(lines, at):
    first = at
    while lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return " ".join(line.strip().removeprefix("#").strip() for line in lines[first:at])


if __name__ == "__main__":
    PAGE.write_text(page())
