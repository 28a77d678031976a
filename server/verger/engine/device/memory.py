"""Whether a model can be loaded here, what is left for KV, and the limits that MLX is given.

Called by the runner when it is made: before weights are loaded, and before KV is allocated. Must
not know rows or requests.
"""

import os
from pathlib import Path

import mlx.core as mx

from verger.engine.device.model import GptOss
from verger.engine.pressure import MEMINFO, meminfo_bytes
from verger.errors import ModelFolderError
from verger.memory_fit import BUFFER_CACHE_BYTES, MachineMemory, Need

CHUNK_TOKENS = 2048
"""The most prompt tokens that one step computes."""
LAYERS_UNDER_WAY = 2
"""Metal frees a layer's arrays when the GPU has done with them, while the host is a layer ahead."""
LOGITS_COPIES = 8
"""What sampling holds at once of a step's logits: noise, cutoffs, logprobs."""


def limit_buffer_cache() -> None:
    """MLX would otherwise keep as many freed buffers as there is memory."""
    mx.set_cache_limit(BUFFER_CACHE_BYTES)


def keep_resident() -> None:
    """Wire what Metal recommends: macOS would otherwise page idle weights out, and the next
    prefill would be several times slower. Elsewhere there is no such limit to set."""
    if mx.metal.is_available():
        mx.set_wired_limit(_working_set_bytes())


def require_room(folder: Path) -> None:
    """Raises ModelFolderError if the weights alone are more than the machine may hold: loading them
    would take the whole of it down. Whether KV is left beside them shows once they are loaded."""
    need = Need(sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    is_metal = mx.metal.is_available()
    usable_bytes = _working_set_bytes() if is_metal else available_bytes()
    memory = MachineMemory(_total_bytes(), usable_bytes)
    if not need.fits(memory):
        raise ModelFolderError(f"{need.shortage(str(folder), memory)}. Serve a smaller model.")


def free_bytes(model: GptOss, rows: int) -> int:
    """What KV may take beside what is allocated now, which is the weights, and what a step needs.

    Without Metal memory is the whole machine's: half of what is available.
    """
    if not mx.metal.is_available():
        return available_bytes() // 2
    taken = mx.get_active_memory() + step_bytes(model, rows)
    return max(0, _working_set_bytes() - taken)


def step_bytes(model: GptOss, rows: int) -> int:
    """What the largest step computes in, and the buffers kept for the next one."""
    logits_bytes = rows * model.vocabulary_size * LOGITS_COPIES * mx.float32.size
    layers_bytes = LAYERS_UNDER_WAY * chunk_bytes(model, CHUNK_TOKENS)
    return BUFFER_CACHE_BYTES + layers_bytes + logits_bytes


def chunk_bytes(model: GptOss, tokens: int, scored_tokens: int = 0) -> int:
    """The transient peak of one layer for a chunk of `tokens`, beside KV and weights.

        hidden       tokens x 10 width                    residual, norms, what leaves the layer
        attention    tokens x 4 (query + 2 kv) head_dim   projected, rotated, in attention's order
        experts      tokens x top_k x (5 width + 4 inner) gathered, up, gate, activated, down, sum
        scores       query x tokens x scored_tokens x 5   only where attention is not fused (CPU)

    The counts are those of arrays that live at once in mlx-lm 0.32.2's layers, as measured.
    """
    args = model.reference.args
    hidden = 10 * args.hidden_size
    attention = 4 * (model.query_heads + 2 * model.kv_heads) * model.head_dim
    inner = 5 * args.hidden_size + 4 * args.intermediate_size
    numbers = tokens * (hidden + attention + args.num_experts_per_tok * inner)
    scores = 5 * model.query_heads * tokens * scored_tokens
    total: int = numbers * model.dtype.size + scores * mx.float32.size
    return total


def available_bytes() -> int:
    """Memory that could be had without swapping; where Linux does not say, half of all of it."""
    try:
        text = MEMINFO.read_text()
    except FileNotFoundError:
        return _total_bytes() // 2
    return meminfo_bytes(text, "MemAvailable")


def _total_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _working_set_bytes() -> int:
    return int(mx.device_info()["max_recommended_working_set_size"])
