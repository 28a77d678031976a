"""A small gpt-oss in PyTorch, with the parameter names and arithmetic of mlx-lm's `gpt_oss`.

Called by the trainer and the exporter. Must not know tokenizers, text or MLX.

Sources: mlx_lm/models/gpt_oss.py and rope_utils.py (0.32.2). All experts are computed for all
tokens and weighted by the (mostly zero) gates: on a CPU that is far faster than gathering.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.nano.config import SWIGLU_LIMIT, NanoConfig
from scripts.nano.quantise import mxfp4_straight_through

SWIGLU_ALPHA = 1.702
LOCAL_FROM_WINDOWS = 2.5  # from this length on, blocks of a window are faster than a full square


@dataclass(slots=True)
class LayerCache:
    """Keys (already rotated) and values of one layer, (1 or B, kv heads, length, head_dim)."""

    keys: Tensor
    values: Tensor


def yarn_frequencies(config: NanoConfig) -> tuple[Tensor, float]:
    """Angles per position, (head_dim / 2,), and the factor on queries and keys."""
    scaling, dims, base = config.rope_scaling, config.head_dim, config.rope_theta

    def correction(rotations: float) -> float:
        span = scaling.original_max_position_embeddings / (rotations * 2 * math.pi)
        return dims * math.log(span) / (2 * math.log(base))

    low = max(math.floor(correction(scaling.beta_fast)), 0)
    high = min(math.ceil(correction(scaling.beta_slow)), dims - 1)
    periods = base ** (torch.arange(0, dims, 2, dtype=torch.float32) / dims)
    ramp = ((torch.arange(dims // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1.0 - ramp
    mixed = (scaling.factor * periods * periods) / (
        scaling.factor * periods * keep + periods * (1 - keep)
    )
    return 1.0 / mixed, 0.1 * math.log(scaling.factor) + 1.0


class Rope(nn.Module):
    """Rotates halves (not pairs), as mx.fast.rope with traditional=False."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        frequencies, self.mscale = yarn_frequencies(config)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def tables(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(start, start + length, dtype=torch.float32)
        angles = positions[:, None] * self.frequencies
        return angles.cos() * self.mscale, angles.sin() * self.mscale

    @staticmethod
    def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Grouped-query attention with one learned sink logit per head."""

    def __init__(self, config: NanoConfig, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.sinks = nn.Parameter(torch.zeros(self.heads))
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        """`past` belongs to all rows when it has only one."""
        batch, length, _ = x.shape
        window = self.window
        q = self._split(self.q_proj(x), self.heads)
        k = self._split(self.k_proj(x), self.kv_heads)
        v = self._split(self.v_proj(x), self.kv_heads)
        q, k = Rope.rotate(q, *rope).to(v.dtype), Rope.rotate(k, *rope).to(v.dtype)
        if past is not None:
            k = torch.cat([past.keys.expand(batch, -1, -1, -1), k], dim=2)
            v = torch.cat([past.values.expand(batch, -1, -1, -1), v], dim=2)
        if window is not None and past is None and length > LOCAL_FROM_WINDOWS * window:
            out = attend_locally(q, k, v, self.sinks, window)
        else:
            mask = visible(length, k.shape[2] - length, window)
            out = attend(q, k, v, self.sinks, mask)
        out = out.transpose(1, 2).reshape(batch, length, -1)
        return self.o_proj(out), LayerCache(k, v)

    def _split(self, x: Tensor, heads: int) -> Tensor:
        batch, length, _ = x.shape
        return x.view(batch, length, heads, self.head_dim).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the keys and the head's sink, which has no value; `mask` is True where visible.

    q is (..., heads, L, dim), k and v (..., kv heads, S, dim). The sink enters as one more key that
    is 1 in one more dimension, where the queries hold the sink's logit: no further pass is needed.
    """
    *lead, heads, length, dim = q.shape
    kv_heads, keys = k.shape[-3], k.shape[-2] + 1
    logits = sinks.to(q.dtype).view(-1, 1, 1).expand(*lead, -1, length, 1)
    q = torch.cat([q * dim**-0.5, logits], dim=-1)
    sink_key = F.one_hot(torch.tensor(dim), dim + 1).to(k.dtype)
    k = torch.cat([F.pad(k, (0, 1)), sink_key.expand(*lead, kv_heads, 1, -1)], dim=-2)
    hidden = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -torch.inf)
    with torch.autocast("cpu", enabled=False):
        scores = q.reshape(*lead, kv_heads, -1, dim + 1) @ k.transpose(-1, -2)
        weights = (scores.view(*lead, heads, length, keys) + F.pad(hidden, (0, 1))).softmax(dim=-1)
        out = weights.view(*lead, kv_heads, -1, keys) @ F.pad(v, (0, 0, 0, 1))
    return out.view(*lead, heads, length, dim)


def attend_locally(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int) -> Tensor:
    """The same for a window without a past: each block of queries sees two blocks of keys."""
    batch, heads, length, dim = q.shape
    blocks = -(-length // window)
    padding = blocks * window - length

    def with_previous(x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, window, padding)).view(batch, -1, blocks + 1, window, dim)
        return torch.cat([x[:, :, :-1], x[:, :, 1:]], dim=3).transpose(1, 2)

    q = F.pad(q, (0, 0, 0, padding)).view(batch, heads, blocks, window, dim).transpose(1, 2)
    mask = visible(window, window, window).repeat(blocks, 1, 1, 1)  # (blocks, 1, window, 2 window)
    mask[0, :, :, :window] = False
    out = attend(q, with_previous(k), with_previous(v), sinks, mask)
    return out.transpose(1, 2).reshape(batch, heads, -1, dim)[:, :, :length]


class Experts(nn.Module):
    """Mixture of SwiGLU experts, the gpt-oss variant with clamps and `up + 1`."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        experts, hidden, inner = (
            config.num_local_experts,
            config.hidden_size,
            config.intermediate_size,
        )
        self.top_k = config.num_experts_per_tok
        self.is_quantised = False  # forward sees MXFP4 weights, as the saved model does
        self.router = nn.Linear(hidden, experts)
        self.gate_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.up_proj = nn.Parameter(torch.empty(experts, inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))
        self.gate_bias = nn.Parameter(torch.zeros(experts, inner))
        self.up_bias = nn.Parameter(torch.zeros(experts, inner))
        self.down_bias = nn.Parameter(torch.zeros(experts, hidden))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the balance loss (1.0 when the experts are used evenly)."""
        logits = self.router(x).float()
        best, indices = logits.topk(self.top_k, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, indices, best.softmax(dim=-1))
        gate_proj, up_proj, down_proj = map(
            self._as_saved, (self.gate_proj, self.up_proj, self.down_proj)
        )
        hidden = self._activate(
            F.linear(x, gate_proj.flatten(0, 1), self.gate_bias.flatten()),
            F.linear(x, up_proj.flatten(0, 1), self.up_bias.flatten()),
        )
        experts, inner = self.gate_bias.shape
        weighted = hidden.unflatten(-1, (experts, inner)) * gates[..., None].to(hidden.dtype)
        down = down_proj.transpose(1, 2).flatten(0, 1)  # (experts * inner, hidden)
        out = weighted.flatten(-2) @ down.to(weighted.dtype) + gates @ self.down_bias
        usage = (gates > 0).float().flatten(0, -2).mean(0)
        share = logits.softmax(dim=-1).flatten(0, -2).mean(0)
        return out.to(x.dtype), (usage * share).sum() * experts / self.top_k

    def _as_saved(self, weight: Tensor) -> Tensor:
        return mxfp4_straight_through(weight) if self.is_quantised else weight

    @staticmethod
    def _activate(gate: Tensor, up: Tensor) -> Tensor:
        gate = gate.clamp(max=SWIGLU_LIMIT)
        up = up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)
        return (up + 1.0) * (gate * torch.sigmoid(SWIGLU_ALPHA * gate))


class Block(nn.Module):
    """Pre-norm attention, then pre-norm experts."""

    def __init__(self, config: NanoConfig, layer_type: str) -> None:
        super().__init__()
        window = config.sliding_window if layer_type == "sliding_attention" else None
        self.self_attn = Attention(config, window)
        self.mlp = Experts(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: LayerCache | None
    ) -> tuple[Tensor, Tensor, LayerCache]:
        attended, cache = self.self_attn(self.input_layernorm(x), rope, past)
        x = x + attended
        mixed, balance = self.mlp(self.post_attention_layernorm(x))
        return x + mixed, balance, cache


@dataclass(slots=True)
class Output:
    """`logits` (B, length, vocab); `balance` the mean balance loss; `cache` one entry per layer."""

    logits: Tensor
    balance: Tensor
    cache: list[LayerCache]


class Nano(nn.Module):
    """The whole model."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, kind) for kind in config.layer_types)
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rope = Rope(config)
        self._initialise()

    def forward(self, ids: Tensor, past: list[LayerCache] | None = None, start: int = 0) -> Output:
        """`start` is the position of the first id; sliding layers' caches hold only the window."""
        x = self.embed_tokens(ids)
        rope = self.rope.tables(start, ids.shape[1])
        balances, caches = [], []
        for index, layer in enumerate(self.layers):
            x, balance, cache = layer(x, rope, past[index] if past else None)
            balances.append(balance)
            caches.append(cache)
        return Output(self.lm_head(self.norm(x)), torch.stack(balances).mean(), caches)

    def quantise_experts(self, is_quantised: bool) -> None:
        """Train (or run) with the expert weights rounded as they will be saved."""
        for layer in self.layers:
            layer.mlp.is_quantised = is_quantised

    def _initialise(self) -> None:
        residual = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2 or name.endswith("bias"):
                continue
            scale = 0.1 if "embed" in name else parameter.shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj")):
                scale *= residual
            nn.init.normal_(parameter, std=scale)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def visible(length: int, past: int, window: int | None) -> Tensor:
    """(length, past + length): causal, at most `window` positions, the own one included."""
    queries = torch.arange(past, past + length)[:, None]
    keys = torch.arange(past + length)[None, :]
    mask = keys <= queries
    return mask if window is None else mask & (keys > queries - window)
