"""Carries trained weights from PyTorch to MLX: a plain .npz under the names of mlx-lm's `gpt_oss`.

`train_nano` writes it, `export` reads it; the two run in different environments. Knows only numpy.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]


def mlx_name(name: str) -> str:
    """`layers.0.mlp.gate_proj` → `model.layers.0.mlp.experts.gate_proj.weight`."""
    if name.startswith("lm_head"):
        return name
    parts = name.split(".")
    if parts[-1] in ("gate_proj", "up_proj", "down_proj"):
        parts[-1:] = ["experts", parts[-1], "weight"]
    elif parts[-1] in ("gate_bias", "up_bias", "down_bias"):
        parts[-1:] = ["experts", parts[-1].replace("_bias", "_proj"), "bias"]
    return ".".join(["model", *parts])


def save_weights(arrays: Mapping[str, FloatArray], path: Path) -> None:
    """`arrays` has PyTorch's names; the file appears complete or not at all."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, allow_pickle=False, **{mlx_name(n): array for n, array in arrays.items()})
    os.replace(partial, path)


def load_weights(path: Path) -> dict[str, FloatArray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
