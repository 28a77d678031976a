"""Names what one engine's exported KV depends on, so that no other engine takes it for its own.

Called once by the runner. KV is a function of weights, precision and architecture; weights are told
apart by a few numbers of each tensor, since reading 12 GB at each start would cost seconds.
"""

import hashlib

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from verger.engine.device.model import GptOss

LAYOUT = 1
"""Of `Runner.export`; a change makes what was exported before foreign."""
SAMPLES = 64
"""Numbers that are looked at in a tensor, evenly spread over it."""


def fingerprint(model: GptOss) -> str:
    """32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    kinds = [layer.is_sliding for layer in model.layers]
    shape = (LAYOUT, model.dtype, model.kv_heads, model.head_dim, model.window, kinds)
    digest.update(repr(shape).encode())
    samples = {name: _sample(array) for name, array in _tensors(model)}
    mx.eval(samples)
    for name, array in _tensors(model):
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.asarray(samples[name]).data)
    return digest.hexdigest()


def _tensors(model: GptOss) -> list[tuple[str, mx.array]]:
    """By name: all weights, and of each layer what is computed from the configuration."""
    named = dict(tree_flatten(model.reference.parameters()))
    for i, layer in enumerate(model.layers):
        named[f"rope {i}"] = layer.rope.frequencies
        named[f"softmax {i}"] = mx.array(layer.softmax_scale)
    return sorted((name, array) for name, array in named.items() if isinstance(array, mx.array))


def _sample(array: mx.array) -> mx.array:
    flat = array.reshape(-1)
    return mx.contiguous(flat[:: max(1, flat.size // SAMPLES)]).view(mx.uint8)
