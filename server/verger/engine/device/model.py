"""Loads a gpt-oss folder through mlx-lm and names the parts that the forward needs.

The only file that leans on mlx-lm's internals (0.32.2: `utils.load_model`, the module tree of
`models/gpt_oss.py`, `rope_utils.YarnRoPE`). Called by the runner; knows nothing of rows or KV.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.gpt_oss import Model
from mlx_lm.utils import load_model

from verger.errors import ModelFolderError

Projection = Callable[[mx.array], mx.array]


@dataclass(frozen=True, slots=True)
class Rope:
    """YaRN rotary embedding. `scale` is the attention temperature that YaRN multiplies q and k by;
    it is folded into the softmax scale, so keys are stored without it."""

    dims: int
    frequencies: mx.array
    scale: float

    def __call__(self, x: mx.array, offsets: mx.array) -> mx.array:
        """Rotate x (tokens, heads, 1, head_dim) to the positions `offsets` (tokens,)."""
        return mx.fast.rope(
            x,
            self.dims,
            traditional=False,
            base=None,
            scale=1.0,
            offset=offsets,
            freqs=self.frequencies,
        )


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer block. Projections map (tokens, width) to (tokens, width)."""

    is_sliding: bool
    attention_norm: Projection
    query_key_value: Projection
    """The three projections as one: their outputs side by side."""
    output: Projection
    sinks: mx.array
    rope: Rope
    softmax_scale: float
    experts_norm: Projection
    experts: Projection


@dataclass(frozen=True, slots=True)
class GptOss:
    """A loaded gpt-oss; `reference` is mlx-lm's own model over the same arrays."""

    layers: tuple[Layer, ...]
    embed: Projection
    final_norm: Projection
    head: Projection
    query_heads: int
    kv_heads: int
    head_dim: int
    window: int
    vocabulary_size: int
    context_tokens: int
    dtype: mx.Dtype
    reference: Model


def load(folder: Path) -> GptOss:
    """Load weights into memory; on the CPU backend everything is cast to float32.

    Raises ModelFolderError for whatever is wrong with the folder.
    """
    try:
        model, config = load_model(folder, strict=True)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelFolderError(f"cannot load the model in {folder}: {error}") from error
    if not isinstance(model, Model):
        raise ModelFolderError(f"{folder} holds a {config.get('model_type')}, not a gpt-oss")
    if mx.default_device() == mx.Device(mx.cpu):
        cast_to_float32(model)
    return describe(model, int(config.get("max_position_embeddings", 131072)))


def cast_to_float32(model: nn.Module) -> None:
    """Half precision is 12 to 40 times slower on MLX's CPU backend, or missing."""
    is_half = (mx.bfloat16, mx.float16)
    model.update(
        tree_map(lambda x: x.astype(mx.float32) if x.dtype in is_half else x, model.parameters())
    )
    mx.eval(model.parameters())


def describe(model: Model, context_tokens: int) -> GptOss:
    """Name the parts of mlx-lm's module tree."""
    args = model.args
    body = model.model
    return GptOss(
        layers=tuple(
            _describe_layer(block, kind == "sliding_attention")
            for block, kind in zip(body.layers, body.layer_types, strict=True)
        ),
        embed=body.embed_tokens,
        final_norm=body.norm,
        head=model.lm_head,
        query_heads=args.num_attention_heads,
        kv_heads=args.num_key_value_heads,
        head_dim=args.head_dim,
        window=args.sliding_window,
        vocabulary_size=args.vocab_size,
        context_tokens=context_tokens,
        dtype=body.norm.weight.dtype,
        reference=model,
    )


def _describe_layer(block: nn.Module, is_sliding: bool) -> Layer:
    attention = block.self_attn
    rope = _describe_rope(attention.rope)
    return Layer(
        is_sliding=is_sliding,
        attention_norm=block.input_layernorm,
        query_key_value=_fuse(attention.q_proj, attention.k_proj, attention.v_proj),
        output=attention.o_proj,
        sinks=attention.sinks,
        rope=rope,
        softmax_scale=rope.scale**2 / math.sqrt(attention.head_dim),
        experts_norm=block.post_attention_layernorm,
        experts=block.mlp,
    )


def _fuse(*parts: nn.Module) -> Projection:
    """One linear layer for several of the same input: a call where there were three. The parts
    become views of it, so nothing is held twice and `reference` computes as before."""
    if len({_quantisation(part) for part in parts}) > 1:
        raise ModelFolderError("the query, key and value projections are quantised differently")
    fused = copy.copy(parts[0])
    for name in parts[0].parameters():
        fused[name] = mx.concatenate([part[name] for part in parts])
        start = 0
        for part in parts:
            stop = start + part[name].shape[0]
            part[name] = fused[name][start:stop]
            start = stop
    mx.eval(fused.parameters(), [part.parameters() for part in parts])
    projection: Projection = fused
    return projection


def _quantisation(layer: nn.Module) -> tuple[object, ...]:
    return tuple(getattr(layer, name, None) for name in ("group_size", "bits", "mode"))


def _describe_rope(rope: nn.Module) -> Rope:
    """YarnRoPE keeps wavelengths in `_freqs`; a config without rope scaling gets nn.RoPE."""
    if isinstance(rope, nn.RoPE):
        wavelengths = rope.base ** (mx.arange(0, rope.dims, 2, dtype=mx.float32) / rope.dims)
        return Rope(dims=rope.dims, frequencies=wavelengths, scale=1.0)
    return Rope(dims=rope.dims, frequencies=rope._freqs, scale=rope.mscale)
