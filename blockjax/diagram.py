"""Draws how a config trains: its blocks, their local losses, and which loss's gradient reaches which block.

    python -m blockjax.diagram --config quickstart --output isolation

writes isolation.light.svg and isolation.dark.svg: the config as it stands, and the same network end to end under it.
The gradients are found, not assumed: a step of the train step that the config describes, with few and narrow layers and
random data, is taken again with the head of one loss changed. Where a block's update changes, a gradient of that loss
arrives.
"""

import argparse
import ast
import contextlib
import functools
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np

from blockjax import config as config_lib
from blockjax.config.coupling import couplings
from blockjax.config.files import load_config
from blockjax.config.modality import is_text
from blockjax.config.variants import OPTIONS, vary
from blockjax.learner.build import make_learner
from blockjax.report.command import begin, check_devices
from blockjax.report.diagram import THEMES, Network, draw
from blockjax.workdir.files import write_bytes_atomic

_OPTIMIZERS = {
    "adamw": "AdamW",
    "adafactor": "Adafactor",
    "sgd": "SGD",
    "lamb": "LAMB",
    "lars": "LARS",
}
# What makes a block's update depend on another head in another way than by a gradient, or takes turns.
_OTHERWISE = (
    "distillation",
    "head.shared",
    "hybrid",
    "schedule",
    "overlap.alternate",
)


def main() -> None:
    """Reads the flags and draws."""
    parser = argparse.ArgumentParser(
        prog="python -m blockjax.diagram",
        description=__doc__,
        epilog=f"options of --strategy: {OPTIONS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, help="name or file; --config.FIELD=VALUE changes a field")
    add("--strategy", default="blockwise", help="blockwise or end_to_end, with options, as blockwise+window (default: "
        "blockwise)")  # fmt: skip
    add(
        "--output",
        type=Path,
        required=True,
        metavar="NAME",
        help="of NAME.light.svg, NAME.dark.svg",
    )
    arguments, rest = parser.parse_known_args()
    begin()
    check_devices()
    try:
        config = load_config(arguments.config)
        for text in rest:
            field, equals, value = text.partition("=")
            if not (field.startswith("--config.") and equals):
                raise ValueError(f"argument {text!r} is unknown; see --help")
            with contextlib.suppress(ValueError, SyntaxError):  # what cannot be read is a word
                value = ast.literal_eval(value)
            config_lib.set_field(config, field.removeprefix("--config."), value)
        names = [arguments.strategy]
        if not arguments.strategy.startswith("end_to_end"):
            names.append("+".join(["end_to_end", *({"remat"} & {*arguments.strategy.split("+")})]))
        networks = [network(vary(config, name)) for name in names]
        for theme in THEMES:
            path = arguments.output.with_name(f"{arguments.output.name}.{theme}.svg")
            write_bytes_atomic(path, draw(networks, theme).encode())
            print(path)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def network(config: ml_collections.ConfigDict) -> Network:
    """Returns what is drawn of a config, with strategy `blockwise` or `end_to_end`.

    Args:
      config: as a config file returns it.

    Raises:
      ValueError: a bad config, or one whose gradients cannot be found in this way.
    """
    learner, config = _learner(config)
    state, vit = learner.abstract_state(), learner.vit
    reached = gradients(config)
    is_cut = len(reached) > 1 and not np.triu(reached[:, 1:].T, 1).any()
    rows = learner.rows
    layers = _count(state.blocks.params["layers"]) // learner.depths
    head = _count(state.blocks.params["head"]) // rows
    name = learner.batch.encoded
    shape = dict(learner.batch.arrays)[name].shape
    size = " × ".join(map(str, shape[:2])) if len(shape) > 1 else f"{shape[0]} tokens"
    title, caption = _words(reached, is_cut)
    return Network(
        title=title,
        caption=caption,
        source=f"{'text' if is_text(config) else name}\n{size}",
        layers=vit.depth // learner.depths,
        width=vit.width,
        stem=_count(state.stem.params),
        block=layers,
        head=head,
        head_name="decoder" if learner.objective.reconstructs else "head",
        optimizer=_OPTIMIZERS.get(config.optimizer.name, config.optimizer.name),
        optimizers=rows,
        reached=reached,
        draws_memory=is_cut or len(reached) == 1,
    )


def gradients(config: ml_collections.ConfigDict) -> np.ndarray:
    """Finds which loss's gradient reaches which block, in a step of the config's own train step.

    Args:
      config: as a config file returns it.

    Returns:
      bool [losses, 1 + K]: of each loss, whether it trains the stem, and each block.

    Raises:
      ValueError: a bad config, or one whose gradients cannot be found in this way.
    """
    config = config.copy_and_resolve_references()
    _check(config)
    config.model.width, config.model.heads, config.model.depth = 32, 2, config.blocks
    if not is_text(config):
        config.decoder.width, config.decoder.heads = 32, 2
    config.batch_size = 8
    config.dtype, config.remat, config.optimizer.in_host_memory = "float32", "none", False
    config.optimizer.name = "sgd"  # whose momentum is the gradient
    learner, config = _learner(config)
    start = jax.tree_util.tree_map_with_path(_some, learner.abstract_state())
    batch, step = learner.batch.random(8), jax.jit(learner.train_step)

    def trained(state):
        new, _ = step(state, batch, jax.random.key(4))
        return new.stem, new.blocks

    stem, blocks = trained(start)
    found = []
    for loss in range(learner.losses):
        heads = start.blocks.params["head"]
        head = jax.tree.map(functools.partial(_changed, row=loss), heads)
        params = {**start.blocks.params, "head": head}
        other_stem, other = trained(start.replace(blocks=start.blocks.replace(params=params)))
        of_stem = any(
            _differ(*pair) for pair in zip(*map(_leaves, (stem, other_stem)), strict=True)
        )
        of_blocks = np.zeros(learner.depths, bool)
        for one, two in zip(*map(_of_layers, (blocks, other)), strict=True):
            of_blocks |= (one.reshape(learner.depths, -1) != two.reshape(learner.depths, -1)).any(1)
        found.append([of_stem, *of_blocks])
    return np.array(found)


def _learner(config):
    config = config.copy_and_resolve_references()
    config.mesh.data, config.mesh.fsdp, config.mesh.block = 1, 1, 1
    config = config_lib.resolve(config, devices=1, platform=jax.default_backend())
    config_lib.fill_lengths(config, config.steps or 1000)
    return make_learner(config, config.steps or 1000), config


def _check(config):
    if config.strategy not in ("blockwise", "end_to_end") or (config.pipeline.batches or 1) > 1:
        raise ValueError(
            "a diagram is drawn of blockwise and end_to_end; streamed and pipelined blocks, and blocks that stay, have "
            "the gradients of blockwise"
        )
    otherwise = _OTHERWISE
    if config.consistency.kind == "agreement":  # a gradient of the loss below enters the loss
        otherwise = (*otherwise, "consistency")
    bad = [field for field in couplings(config) if field.startswith(otherwise)]
    if bad:
        raise ValueError(
            f"{bad[0]}: blocks then learn from each other in other ways than by gradients of one loss, or take turns, "
            "which this diagram cannot show; draw without it"
        )


def _words(reached, is_cut):
    """Returns a title and a sentence."""
    if len(reached) == 1:
        return "End to end", (
            "One loss at the end. Its gradient runs back through every block, so all activations wait for it in "
            "memory."
        )
    if is_cut:
        return "Block by block", (
            "Every block has a loss of its own. No gradient leaves a block, so its activations are freed before the "
            "next block trains."
        )
    return "Coupled blocks", (
        "Every block has a loss of its own. Gradients of the losses named at a boundary cross it."
    )


def _some(path, leaf):
    """Returns an array of a state: some numbers, as where it starts at zero no gradient would pass; moments are 0."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if "opt_state" in name or not np.issubdtype(leaf.dtype, np.floating):
        return np.zeros(leaf.shape, leaf.dtype)
    return 0.3 * np.sin(len(name) + np.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)


def _changed(leaf, row):
    leaf = leaf.copy()
    leaf[row] *= 1.5
    return leaf


def _count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def _differ(one, two):
    return bool((one != two).any())


def _of_layers(blocks):
    """Returns the parameters of all layers, and their optimizer states, which move at a learning rate of 0 too."""
    width = jax.tree.leaves(blocks.params["layers"])[0].shape[:2]
    found = jax.tree_util.tree_flatten_with_path((blocks.params, blocks.opt_state))[0]
    return [
        np.asarray(leaf)
        for path, leaf in found
        if "layers" in jax.tree_util.keystr(path) and leaf.shape[:2] == width
    ]


if __name__ == "__main__":
    main()
