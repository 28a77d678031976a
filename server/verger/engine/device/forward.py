"""The ragged forward: one pass over the weights for decode rows and prefill chunks alike.

Called by the runner. A step is a flat list of tokens, the decode rows first (ordered by the block
that holds their KV), then the prefill segments. Projections, experts and the head see all tokens
at once as (tokens, width); attention runs once per block for the decode rows and once per segment
for the prefills, each on the row's own KV. Only tokens that are sampled from meet the last layer's
experts and the head.

Must not know requests, sampling or scheduling. Nothing here evaluates: the result is lazy.
The architecture is gpt-oss's (arXiv 2508.10925): alternating sliding-window and full attention,
both with learned sinks; a position p of a sliding layer sees positions p - window + 1 … p.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx

from verger.engine.device.kv import Block, KVStore, RowKV
from verger.engine.device.model import GptOss, Layer
from verger.engine.device.spans import Piece, ring_indices

SLIDING_QUERIES = 512
"""Queries of a prefill that attend at once in a sliding layer: more would compute mostly mask."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decode rows whose KV lies in one block; flat tokens start:stop of the step.

    `rows` (n,) are their rows in the block, `write_at` (n,) the index of the new position.
    The call attends on block rows 0:extent and positions 0:length under `mask`
    (extent, 1, 1, length), None when all of it is valid. `token_of_row` (extent,) brings the
    queries into block order, None when they are in it already.
    """

    block: Block
    start: int
    stop: int
    rows: mx.array
    write_at: mx.array
    extent: int
    length: int
    mask: mx.array | None
    token_of_row: mx.array | None


@dataclass(frozen=True, slots=True)
class WindowCut:
    """A window before position `at` of a chunk, to be filled layer by layer."""

    at: int
    window: Piece


@dataclass(frozen=True, slots=True)
class Segment:
    """A prefill chunk: positions first:first+n of `row`, flat tokens start:stop of the step.

    All of them are written; of the last `wanted` of them a layer's attention is computed."""

    row: RowKV
    first: int
    start: int
    stop: int
    wanted: int
    cuts: tuple[WindowCut, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """Where each flat token belongs. `positions` (tokens,); `sampled` (rows,) indexes tokens.

    What the last layer makes of tokens that are not sampled from, nobody reads: it attends for
    `last_segments`, and `last_sampled` (rows,) indexes what comes out of that."""

    positions: mx.array
    full_groups: tuple[DecodeGroup, ...]
    ring_groups: tuple[DecodeGroup, ...]
    segments: tuple[Segment, ...]
    sampled: mx.array
    last_segments: tuple[Segment, ...]
    last_sampled: mx.array


def forward(model: GptOss, store: KVStore, tokens: mx.array, step: Step) -> mx.array:
    """Logits (sampled rows, vocabulary) for the flat `tokens` (tokens,); extends the KV."""
    hidden = model.embed(tokens)
    of_kind = {True: 0, False: 0}
    for number, layer in enumerate(model.layers, 1):
        is_last = number == len(model.layers)
        segments = step.last_segments if is_last else step.segments
        attended = _attention(
            model, store, layer, of_kind[layer.is_sliding], hidden, step, segments
        )
        if is_last:
            hidden, attended = hidden[step.sampled], attended[step.last_sampled]
        hidden = hidden + layer.output(attended)
        hidden = hidden + layer.experts(layer.experts_norm(hidden))
        of_kind[layer.is_sliding] += 1
    return model.head(model.final_norm(hidden))


def _attention(
    model: GptOss,
    store: KVStore,
    layer: Layer,
    index: int,
    hidden: mx.array,
    step: Step,
    segments: Sequence[Segment],
) -> mx.array:
    """What the wanted tokens attend to, (wanted, heads × head_dim), in the step's flat order;
    `index` counts the layers of its kind."""
    normed = layer.attention_norm(hidden)
    heads = model.query_heads + 2 * model.kv_heads
    projected = layer.query_key_value(normed).reshape(-1, heads, 1, model.head_dim)
    rotated = layer.rope(projected[:, : -model.kv_heads], step.positions)
    queries, keys = rotated[:, : model.query_heads], rotated[:, model.query_heads :]
    values = projected[:, -model.kv_heads :]
    groups = step.ring_groups if layer.is_sliding else step.full_groups
    prefill = prefill_sliding if layer.is_sliding else prefill_full
    parts = []
    for group in groups:
        q, k, v = (_part(x, group.start, group.stop) for x in (queries, keys, values))
        parts.append(decode(layer, index, group, q, k, v))
    for segment in segments:
        qkv = (_part(x, segment.start, segment.stop) for x in (queries, keys, values))
        q, k, v = (x.transpose(2, 1, 0, 3) for x in qkv)
        out = prefill(store, layer, index, segment, q, k, v)
        parts.append(out.transpose(2, 1, 0, 3))
    attended = parts[0] if len(parts) == 1 else mx.concatenate(parts)
    return attended.reshape(attended.shape[0], model.query_heads * model.head_dim)


def _part(x: mx.array, start: int, stop: int) -> mx.array:
    """Some of a step's tokens; all of them cost no operation."""
    return x if stop - start == x.shape[0] else x[start:stop]


def decode(
    layer: Layer, index: int, group: DecodeGroup, q: mx.array, k: mx.array, v: mx.array
) -> mx.array:
    """One new position for each row of a block; q, k, v and the result (n, heads, 1, head_dim)."""
    block = group.block
    block.keys[index][group.rows, :, group.write_at] = k[:, :, 0]
    block.values[index][group.rows, :, group.write_at] = v[:, :, 0]
    if group.token_of_row is not None:
        q = q[group.token_of_row]
    out = mx.fast.scaled_dot_product_attention(
        q,
        block.keys[index][: group.extent, :, : group.length],
        block.values[index][: group.extent, :, : group.length],
        scale=layer.softmax_scale,
        mask=group.mask,
        sinks=layer.sinks,
    )
    return out if group.token_of_row is None else out[group.rows]


def prefill_full(
    store: KVStore,
    layer: Layer,
    index: int,
    segment: Segment,
    q: mx.array,
    k: mx.array,
    v: mx.array,
) -> mx.array:
    """A chunk of one row in a full-attention layer; arrays are (1, heads, n, head_dim), the result
    has `segment.wanted` instead of n."""
    block, at = segment.row.block, segment.row.block_row
    stop = segment.first + q.shape[2]
    # A slice of one row: with the row's number as index MLX would copy what is written once more.
    block.keys[index][at : at + 1, :, segment.first : stop] = k
    block.values[index][at : at + 1, :, segment.first : stop] = v
    wanted = q[:, :, q.shape[2] - segment.wanted :]
    if segment.wanted == 0:
        return wanted
    return mx.fast.scaled_dot_product_attention(
        wanted,
        block.keys[index][at : at + 1, :, :stop],
        block.values[index][at : at + 1, :, :stop],
        scale=layer.softmax_scale,
        mask="causal",
        sinks=layer.sinks,
    )


def prefill_sliding(
    store: KVStore,
    layer: Layer,
    index: int,
    segment: Segment,
    q: mx.array,
    k: mx.array,
    v: mx.array,
) -> mx.array:
    """A chunk of one row in a sliding layer: attends to ring and itself, then fills the ring."""
    ring, at = store.ring, segment.row.ring_row
    window, n = ring.capacity, q.shape[2]
    past = min(segment.first, window - 1)
    before = ring_indices(segment.first - past, segment.first, window)
    keys = mx.concatenate([ring.keys[index][at][None, :, before], k], axis=2)
    values = mx.concatenate([ring.values[index][at][None, :, before], v], axis=2)
    for cut in segment.cuts:
        cut_chunk(cut, keys[0], values[0], segment.first - past)
    kept = min(n, window)
    stop = segment.first + n
    after = ring_indices(stop - kept, stop, window)
    ring.keys[index][at, :, after] = k[0, :, n - kept :]
    ring.values[index][at, :, after] = v[0, :, n - kept :]
    parts = [q[:, :, :0]] if segment.wanted == 0 else []
    for start in range(n - segment.wanted, n, SLIDING_QUERIES):
        stop = min(n, start + SLIDING_QUERIES)
        low = max(0, start + past - window + 1)
        parts.append(
            mx.fast.scaled_dot_product_attention(
                q[:, :, start:stop],
                keys[:, :, low : stop + past],
                values[:, :, low : stop + past],
                scale=layer.softmax_scale,
                mask=window_mask(stop - start, stop + past - low, window),
                sinks=layer.sinks,
            )
        )
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def cut_chunk(cut: WindowCut, keys: mx.array, values: mx.array, first: int) -> None:
    """Copy a window out of one sliding layer's keys and values, (kv heads, n, head_dim), of which
    `first` is the first position: the chunk and, before it, all that its first query sees."""
    stop = cut.at - first
    start = stop - cut.window.tokens
    assert start >= 0
    cut.window.layers.append(mx.stack([keys[:, start:stop], values[:, start:stop]]))


@lru_cache(maxsize=16)
def window_mask(queries: int, keys: int, window: int) -> mx.array | str:
    """Who sees whom when the last query aligns with the last key: causal within the window.

    True at (i, j) when key j is at most window - 1 positions before query i.
    """
    if keys <= window:
        return "causal"
    query_at = mx.arange(keys - queries, keys)[:, None]
    key_at = mx.arange(keys)[None]
    return (key_at <= query_at) & (key_at > query_at - window)


def decode_group(
    block: Block, rows: Sequence[int], positions: Sequence[int], start: int
) -> DecodeGroup:
    """Group decode rows of one block; flat tokens from `start`. In the ring, index = p % window;
    in a full block the capacity exceeds every position, so the same formula is the identity."""
    extent = max(rows) + 1
    valid = [1] * extent
    token_of_row = [0] * extent
    for token, (row, position) in enumerate(zip(rows, positions, strict=True)):
        valid[row] = min(position + 1, block.capacity)
        token_of_row[row] = token
    length = max(valid)
    is_ragged = any(v != length for v in valid)
    in_order = list(rows) == list(range(extent))
    return DecodeGroup(
        block=block,
        start=start,
        stop=start + len(rows),
        rows=mx.array(list(rows)),
        write_at=mx.array([p % block.capacity for p in positions]),
        extent=extent,
        length=length,
        mask=_valid_mask(valid, length) if is_ragged else None,
        token_of_row=None if in_order else mx.array(token_of_row),
    )


def _valid_mask(valid: list[int], length: int) -> mx.array:
    """(rows, 1, 1, length), true where a row has written."""
    return (mx.arange(length)[None] < mx.array(valid)[:, None])[:, None, None]
