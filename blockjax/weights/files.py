"""Tensors by name in files: safetensors, and PyTorch files as far as they hold nothing but tensors."""

import argparse
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from blockjax.workdir.files import write_bytes_atomic

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


class UnusableWeights(ValueError):
    """Weights that cannot be read, or do not fit; the message names the file, and the tensor if it is one."""


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file, or of the weight files in a folder, float32 where they are of another float type.

    Nothing in a file is ever executed: a PyTorch file is read by `torch.load(weights_only=True)`.

    Raises:
      UnusableWeights: there is no such file, or it is damaged, or holds things other than tensors.
    """
    if path.is_dir():
        path = _file_in(path)
    elif not path.is_file():
        raise UnusableWeights(f"weights {path}: there is no such file or folder")
    if path.name.endswith(".index.json"):
        try:
            parts = sorted(set(json.loads(path.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise UnusableWeights(
                f"{path} is not an index of safetensors files: {error}"
            ) from error
        return {k: v for part in parts for k, v in read_tensors(path.parent / part).items()}
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise UnusableWeights(
        f"weights {path}: a file must end in .safetensors or {', '.join(TORCH_SUFFIXES)}"
    )


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file, whole or not at all."""
    # PyTorch's readers ask for the key.
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    write_bytes_atomic(path, save(contiguous, metadata={"format": "pt"}))


def _file_in(folder):
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    found = sorted(
        path for path in folder.iterdir() if path.suffix in (".safetensors", *TORCH_SUFFIXES)
    )
    if len(found) == 1:
        return found[0]
    what = f"several: {', '.join(path.name for path in found)}; name one" if found else "none"
    raise UnusableWeights(f"{folder} should have one file of weights, and has {what}")


def _read_safetensors(path):
    try:
        with safe_open(path, "numpy") as file:
            return {name: _as_float32(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UnusableWeights(
            f"{path} is damaged or not a safetensors file ({error}); fetch it again"
        ) from error


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UnusableWeights(
            f"{path} is a PyTorch file, which needs PyTorch to read: `pip install torch`, or give the weights as "
            "safetensors"
        ) from error
    try:
        # Training scripts keep their command line beside the weights; it is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnusableWeights(
            f"{path} holds more than tensors, which would have to be executed: refused "
            f"({' '.join(str(error).split())[:200]}); save its state_dict() alone, or as safetensors"
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, OSError, KeyError, ValueError) as error:
        raise UnusableWeights(
            f"{path} is damaged or not a PyTorch file ({' '.join(str(error).split())[:200]}); fetch it again"
        ) from error
    found = _state_dict(found)
    if not found:
        raise UnusableWeights(f"{path} holds no named tensors")
    return {name: _as_float32(tensor.detach().float().numpy()) for name, tensor in found.items()}


def _state_dict(found: Any) -> dict[str, Any]:
    """Returns the tensors of what a PyTorch file holds: a state dict, or a dict that has one as "model" or the like."""
    import torch

    if not isinstance(found, dict):
        return {}
    for key in ("model", "state_dict", "module"):
        if isinstance(found.get(key), dict):
            return _state_dict(found[key])
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _as_float32(array):
    if array.dtype == ml_dtypes.bfloat16 or np.issubdtype(array.dtype, np.floating):
        return np.asarray(array, np.float32)
    return array
