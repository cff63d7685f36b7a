"""What the README shows works as it stands there."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_a_block_of_ones_own():
    """A block function that is no ViT, through block_update and blockwise."""
    codes = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    (code,) = [code for code in codes if "import Block" in code]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    names = {}
    exec(code, names)
    last = names["metrics"]["loss"]
    jax, x = names["jax"], names["x"]
    params = jax.vmap(names["init"])(jax.random.split(jax.random.key(0), 3))
    start = names["init_state"](names["block"].optimizer, params)
    _, first = names["train_step"](start, (x, np.sin(x[:, :4])), jax.random.key(2))
    assert last.shape == (3,)
    assert np.all(last < 0.3 * first["loss"])
    assert last[2] < last[0]  # a later block builds on the earlier ones


def test_commands_name_files_and_fields_that_exist():
    from blockjax.config import default_config
    from blockjax.objectives import OBJECTIVES

    for name in OBJECTIVES:  # for which configs/NAME.py stands
        assert f"| `{name}`" in README
    for path in set(re.findall(r"configs/\w+\.py", README)) - {"configs/NAME.py"}:
        assert (Path(__file__).parent.parent / path).is_file()
    config = default_config()
    for field in set(re.findall(r"--config\.([a-z_.]+)", README)):
        group, _, name = field.rpartition(".")
        assert name in (config[group] if group else config), field
