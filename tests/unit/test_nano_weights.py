"""Names of nano's weights on their way from PyTorch to MLX."""

from pathlib import Path

import numpy as np
import pytest

from scripts.nano.weights import load_weights, mlx_name, save_weights


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lm_head.weight", "lm_head.weight"),
        ("embed_tokens.weight", "model.embed_tokens.weight"),
        ("layers.0.self_attn.sinks", "model.layers.0.self_attn.sinks"),
        ("layers.1.mlp.router.bias", "model.layers.1.mlp.router.bias"),
        ("layers.2.mlp.gate_proj", "model.layers.2.mlp.experts.gate_proj.weight"),
        ("layers.3.mlp.down_bias", "model.layers.3.mlp.experts.down_proj.bias"),
    ],
)
def test_names_are_those_of_mlx_lm(name: str, expected: str) -> None:
    assert mlx_name(name) == expected


def test_weights_survive_the_file(tmp_path: Path) -> None:
    weights = {"norm.weight": np.arange(3, dtype=np.float32)}
    save_weights(weights, tmp_path / "weights.npz")
    loaded = load_weights(tmp_path / "weights.npz")
    assert loaded["model.norm.weight"].tolist() == [0.0, 1.0, 2.0]
