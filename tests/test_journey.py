"""A user's own folder of images, from pretraining to export, by commands alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blockjax

ROOT = Path(__file__).parent.parent
MODES = ("RGB", "L", "RGBA", "P", "LA")


def write_folder(root, count=60):
    """Three classes of images of other sizes and modes: dark, bright, half and half."""
    rng = np.random.default_rng(0)
    for index in range(count):
        label = index % 3
        height, width = rng.integers(40, 90, 2)
        pixels = rng.integers(0, 80, (height, width, 3)).astype(np.uint8)
        pixels[:, : (0, width, width // 2)[label]] += 150
        image = Image.fromarray(pixels).convert(MODES[index % len(MODES)])
        folder = root / ("dark", "bright", "half")[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index}.{'jpg' if index % 5 == 0 else 'png'}")


def command(module, *arguments, cwd):
    env = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "", "HOME": str(cwd)}
    env["XLA_FLAGS"] = os.environ["XLA_FLAGS"]  # that compiles fast
    done = subprocess.run(
        [sys.executable, "-m", f"blockjax.{module}", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=env,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_folder_of_ones_own(tmp_path):
    write_folder(tmp_path / "photos")
    data = f"--config.data.source=folder:{tmp_path / 'photos'}"
    small = ["--config.batch_size=16", "--config.steps=4", "--config.log.every=1"]
    pretrain = [
        *("--config", ROOT / "configs" / "quickstart.py", "--workdir", "run", data, *small),
        *("--config.model.width=32", "--config.model.heads=2", "--config.model.image_size=16"),
        *("--config.decoder.width=32", "--config.model.patch_size=4", "--config.probe.pool=2"),
    ]
    out = command("main", *pretrain, cwd=tmp_path)
    assert "54 images in 3 classes" in out and "block_4" in out
    out = command("evaluate", "--workdir", "run", "--blocks", "2,4", cwd=tmp_path)
    assert "block 4" in out
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["train_examples"] == 54 and evaluation["test_examples"] == 6
    tuned = ["--config", ROOT / "configs" / "finetune.py", "--config.backbone=run", data, *small]
    tuned += ["--workdir", "tuned", "--config.depth_blocks=2", "--config.tune_blocks=1"]
    out = command("finetune", *tuned, cwd=tmp_path)
    assert "in 3 classes" in out and "block_2" in out
    export = ["--workdir", "tuned", "--format", "huggingface", "--output", "exported"]
    command("export", *export, cwd=tmp_path)
    features, params = blockjax.load(tmp_path / "exported")
    image = np.zeros((16, 16, 3), np.uint8)
    assert features(params, image).shape == (32,) and features.vit.depth == 4  # two blocks
    command("reconstruct", "--workdir", "run", "--images", "photos", cwd=tmp_path)
    assert (tmp_path / "reconstruction.png").is_file()
