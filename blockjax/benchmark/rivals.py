"""The same work with PyTorch and Hugging Face's transformers, in a process of its own, on as many threads, in turns."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from blockjax.benchmark.peer import cores
from blockjax.benchmark.steps import Runner
from blockjax.config.variants import vary
from blockjax.memory.profiles import place_config
from blockjax.models.patches import CHANNEL_MEAN, CHANNEL_STD
from blockjax.models.vit import PRESETS
from blockjax.report.table import render_table
from blockjax.weights.loading import load

# What is compared with ViTMAE.
_STRATEGIES = ("end_to_end", "end_to_end+remat", "blockwise")
_IMAGES, _SIDE = 16, 224  # of the features of ViT-S/16


def train(config: ml_collections.ConfigDict, rounds: int) -> None:
    """Prints the time of train steps against that of ViTMAE's with the config's encoder, on the same threads.

    The decoder is one layer of self-attention over all patches, and every masked patch is decoded, as ViTMAE does it.
    `blockwise` has one for each block. Steps here also make masks and views of uint8 images.

    Raises:
      ValueError: torch or transformers is not installed, the config is not an MAE, or there is a GPU or TPU.
    """
    _check()
    if config.objective != "mae":
        raise ValueError(f"config.objective is {config.objective!r}; ViTMAE trains 'mae'")
    with config.unlocked():
        config.decoder.kind, config.decoder.depth, config.decoder.fraction = (
            "self_attention",
            1,
            1.0,
        )
    _, resolved = place_config(vary(config, "end_to_end"), jax.devices())
    rows = {name: Runner(vary(config, name)).seconds for name in _STRATEGIES}
    optimizer = resolved.optimizer
    job = {
        "kind": "train",
        "fields": {
            **_encoder(resolved.model),
            "mask_ratio": resolved.mask.ratio,
            "norm_pix_loss": resolved.loss.normalize_pixels,
            "decoder_hidden_size": resolved.decoder.width,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": resolved.decoder.heads,
            "decoder_intermediate_size": 4 * resolved.decoder.width,
        },
        "batch": resolved.batch_size,
        "rate": optimizer.base_learning_rate * resolved.batch_size / 256,
        "weight_decay": optimizer.weight_decay,
        "betas": [optimizer.b1, optimizer.b2],
    }
    with _Peer(job) as peer:
        _print(f"train step, batch {resolved.batch_size}, float32", peer, rows, rounds)


def features(rounds: int) -> None:
    """Prints the time of reading features of 16 images at 224 pixels with ViT-S/16, and how far they differ.

    Raises:
      ValueError: torch or transformers is not installed, or there is a GPU or TPU.
    """
    _check()
    width, depth, heads = PRESETS["s"]
    model = ml_collections.ConfigDict(
        {"image_size": _SIDE, "patch_size": 16, "width": width, "depth": depth, "heads": heads}
    )
    images = np.random.default_rng(0).integers(0, 256, (_IMAGES, _SIDE, _SIDE, 3)).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "images.npy")
        pixels = (images / np.float32(255.0) - CHANNEL_MEAN) / CHANNEL_STD
        np.save(path, pixels.transpose(0, 3, 1, 2).astype(np.float32))
        job = {"kind": "features", "fields": _encoder(model), "images": path, "folder": folder}
        with _Peer(job) as peer:
            backbone, params = load(folder)
            read = jax.jit(backbone)
            error = np.abs(
                read(params, images) - np.load(os.path.join(folder, "features.npy"))
            ).max()

            def seconds():
                start = time.perf_counter()
                jax.block_until_ready(read(params, images))
                return time.perf_counter() - start

            title = f"features of {_IMAGES} images, {_SIDE} pixels, ViT-S/16, float32; difference {error:.0e}"
            _print(title, peer, {"blockjax": seconds}, rounds)


def _check():
    if missing := [
        name for name in ("torch", "transformers") if not importlib.util.find_spec(name)
    ]:
        raise ValueError(f"{missing[0]} is not installed: pip install -e '.[parity]'")
    if jax.default_backend() != "cpu":
        raise ValueError("both libraries are compared on CPU; set JAX_PLATFORMS=cpu")


def _encoder(model) -> dict[str, Any]:
    """Returns an encoder's fields in the names of transformers."""
    return {
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": int(model.width * model.get("mlp_ratio", 4.0)),
        "layer_norm_eps": model.get("norm_epsilon", 1e-6),
    }


def _print(title: str, peer: "_Peer", rows: Mapping[str, Callable[[], float]], rounds: int) -> None:
    """Times all in turns, each after one run that is not counted, and prints medians as ratios to PyTorch's."""
    work = {"transformers": peer.seconds, **rows}
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, seconds in work.items():
            seconds()  # the one before it has left its own data in the caches
            times[name].append(seconds())
    medians = {name: float(np.median(of)) for name, of in times.items()}
    base = medians["transformers"]
    threads = cores()
    render_table(
        f"{title}, {threads} thread{'s' if threads > 1 else ''}, {rounds} rounds",
        ["", "ms", "time / transformers"],
        [[name, round(1000 * t, 1), t / base] for name, t in medians.items()],
    )


class _Peer:
    """The other process."""

    def __init__(self, job: Mapping[str, Any]):
        command: Sequence[str] = [sys.executable, "-m", "blockjax.benchmark.peer", json.dumps(job)]
        threads = str(cores())
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        if self._process.stdout.readline() != "ready\n":
            self.__exit__()
            raise ValueError("the process with PyTorch ended early; it says why above")
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def seconds(self) -> float:
        """Lets it work once; returns how long that took."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())
