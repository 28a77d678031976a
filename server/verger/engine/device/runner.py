"""The real runner: plans in, sampled ids out, on MLX.

Called by the engine's loop, on its one thread. Owns the model, the KV store and the rows; turns a
`Plan` into one ragged forward and one vectorised sampling. Must not know sockets or scheduling.

A step is submitted only after the one before has finished: MLX updates the KV in place only while
no pending work still reads it (otherwise it copies all of it, each step). So `launch` builds the
next step's graph while the last one computes, waits for that, and submits; the ids of the last
step are read by `collect` while the new one computes.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import mlx.core as mx

from verger.engine.device.forward import DecodeGroup, Segment, Step, decode_group, forward
from verger.engine.device.kv import KVShape, KVStore, RowKV
from verger.engine.device.model import GptOss, load
from verger.engine.device.sampling import RowSampler, Sample, Sampler
from verger.engine.steps import MAX_LAUNCHED_STEPS, Memory, Plan, Prefill, Sampled
from verger.messages import Hello, Submit

HEADROOM_TOKENS = 64
"""A row is opened with room for its prompt and this much of its answer, then it grows."""
BUFFER_CACHE_BYTES = 2 << 30
"""Freed buffers that MLX may keep for reuse."""


@dataclass(slots=True)
class Row:
    """A running request. `sampled` counts the tokens launched, not those read."""

    submit: Submit
    kv: RowKV
    sampler: RowSampler
    sampled: int


@dataclass(frozen=True, slots=True)
class Launched:
    """A step under way; `rows` are parallel to what was sampled, none when only prefilling."""

    rows: tuple[Row, ...]
    sample: Sample | None

    def arrays(self) -> tuple[mx.array, ...]:
        """What to evaluate, besides the KV."""
        return () if self.sample is None else self.sample.arrays()


class MlxRunner:
    """Implements `steps.Runner`."""

    def __init__(self, model: GptOss, sampler: Sampler, max_rows: int) -> None:
        mx.set_cache_limit(BUFFER_CACHE_BYTES)
        self._model = model
        self._sampler = sampler
        self._store = KVStore.create(
            full=_kv_shape(model, is_sliding=False),
            sliding=_kv_shape(model, is_sliding=True),
            max_rows=max_rows,
            window=model.window,
        )
        self._rows: dict[int, Row] = {}
        self._last_ids = mx.zeros((max_rows,), mx.int32)
        """The id last sampled for each ring row, on the device."""
        self._launched: deque[Launched] = deque(maxlen=MAX_LAUNCHED_STEPS)

    @classmethod
    def load(cls, folder: Path, hello: Hello, max_rows: int) -> "MlxRunner":
        """Load a model's folder; raises ModelFolderError."""
        keep_resident()
        model = load(folder)
        seeds = Random()  # noqa: S311 (not secrets)
        return cls(model, Sampler(model.vocabulary_size, hello, seeds), max_rows)

    @property
    def context_tokens(self) -> int:
        """The longest sequence, prompt and generated tokens together."""
        return self._model.context_tokens

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, ordinary and special."""
        return self._model.vocabulary_size

    @property
    def device(self) -> str:
        """Backend and precision, for people."""
        kind = "cpu" if mx.default_device() == mx.Device(mx.cpu) else "gpu"
        return f"{kind} {str(self._model.dtype).rpartition('.')[2]}"

    def open(self, submit: Submit) -> None:
        """Place the row; computes nothing."""
        assert submit.grammar is None, "grammars are not implemented"
        room = min(len(submit.prompt) + HEADROOM_TOKENS, self.context_tokens)
        self._rows[submit.request_id] = Row(
            submit=submit,
            kv=self._store.open(room),
            sampler=self._sampler.open(submit),
            sampled=submit.resumed_tokens,
        )

    def launch(self, plan: Plan) -> None:
        """Build the step's graph, wait for the step before, submit."""
        decoding = self._grow_and_sort([self._rows[i] for i in plan.decodes])
        step = self._layout(decoding, plan.prefills)
        logits = forward(self._model, self._store, self._tokens(decoding, plan.prefills), step)
        finishing = [row for p in plan.prefills if self._is_last(p) for row in self._started_by(p)]
        self._advance(decoding, plan.prefills)
        launched = self._sample(logits, (*decoding, *finishing))
        mx.synchronize()
        mx.async_eval(self._last_ids, *self._store.arrays(), *launched.arrays())
        self._launched.append(launched)

    def collect(self) -> list[Sampled]:
        """Read the oldest step's ids, waiting for them if need be."""
        launched = self._launched.popleft()
        if launched.sample is None:
            if not self._launched:
                mx.synchronize()
            return []
        ids, logprobs = launched.sample.resolve()
        for row, token in zip(launched.rows, ids, strict=True):
            row.sampler.observe(token)
        return [
            Sampled(row.submit.request_id, token, logprob)
            for row, token, logprob in zip(launched.rows, ids, logprobs, strict=True)
        ]

    def close(self, request_id: int) -> None:
        """Free the row's KV; a step under way that still writes there does no harm, since
        whoever takes the place next writes later."""
        self._store.close(self._rows.pop(request_id).kv)

    def memory(self) -> Memory:
        """KV blocks, live arrays, and the peak."""
        return Memory(self._store.bytes, mx.get_active_memory(), mx.get_peak_memory())

    def _grow_and_sort(self, rows: Iterable[Row]) -> list[Row]:
        """Make room for one more position each, then order the rows by block and place."""
        decoding = list(rows)
        for row in decoding:
            self._store.reserve(row.kv, row.kv.length + 1)
        decoding.sort(key=lambda row: (id(row.kv.block), row.kv.block_row))
        return decoding

    def _tokens(self, decoding: Sequence[Row], prefills: Sequence[Prefill]) -> mx.array:
        """The step's flat tokens: ids that may still be on the device, then prompt chunks."""
        parts = []
        if decoding:
            parts.append(self._last_ids[mx.array([row.kv.ring_row for row in decoding])])
        for prefill in prefills:
            prompt = self._rows[prefill.request_id].submit.prompt
            parts.append(mx.array(prompt[prefill.start : prefill.stop], mx.int32))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def _layout(self, decoding: Sequence[Row], prefills: Sequence[Prefill]) -> Step:
        """Positions, groups and segments of the flat tokens."""
        positions = [row.kv.length for row in decoding]
        sampled = list(range(len(decoding)))
        segments = []
        for prefill in prefills:
            start = len(positions)
            positions.extend(range(prefill.start, prefill.stop))
            row = self._rows[prefill.request_id]
            segments.append(Segment(row.kv, prefill.start, start, len(positions)))
            if self._is_last(prefill):
                sampled.extend([len(positions) - 1] * (1 + len(prefill.forks)))
        return Step(
            positions=mx.array(positions),
            full_groups=tuple(_full_groups(decoding)),
            ring_groups=self._ring_groups(decoding),
            segments=tuple(segments),
            sampled=mx.array(sampled, mx.int32),
        )

    def _ring_groups(self, decoding: Sequence[Row]) -> tuple[DecodeGroup, ...]:
        if not decoding:
            return ()
        rows = [row.kv.ring_row for row in decoding]
        positions = [row.kv.length for row in decoding]
        return (decode_group(self._store.ring, rows, positions, 0),)

    def _advance(self, decoding: Sequence[Row], prefills: Sequence[Prefill]) -> None:
        """From here on the step's positions count as written."""
        for row in decoding:
            row.kv.length += 1
        for prefill in prefills:
            leader, *forks = self._started_by(prefill)
            leader.kv.length = prefill.stop
            for fork in forks:
                self._store.fork(leader.kv, fork.kv)

    def _sample(self, logits: mx.array, rows: tuple[Row, ...]) -> Launched:
        """Sample for all rows at once and remember the ids on the device."""
        if not rows:
            return Launched((), None)
        samplers = [row.sampler for row in rows]
        drawn = self._sampler.sample(logits, samplers, [row.sampled for row in rows])
        for row in rows:
            row.sampled += 1
        self._last_ids[mx.array([row.kv.ring_row for row in rows])] = drawn.ids.astype(mx.int32)
        return Launched(rows, drawn)

    def _started_by(self, prefill: Prefill) -> list[Row]:
        """The prefilled row and its forks."""
        return [self._rows[request_id] for request_id in (prefill.request_id, *prefill.forks)]

    def _is_last(self, prefill: Prefill) -> bool:
        return prefill.stop == len(self._rows[prefill.request_id].submit.prompt)


def keep_resident() -> None:
    """Wire what Metal recommends: macOS would otherwise page idle weights out, and the next
    prefill would be several times slower. Elsewhere there is no such limit to set."""
    if mx.metal.is_available():
        mx.set_wired_limit(int(mx.device_info()["max_recommended_working_set_size"]))


def _full_groups(decoding: Sequence[Row]) -> Iterable[DecodeGroup]:
    """One group for each run of rows in the same block."""
    start = 0
    while start < len(decoding):
        block = decoding[start].kv.block
        stop = start
        while stop < len(decoding) and decoding[stop].kv.block is block:
            stop += 1
        members = decoding[start:stop]
        rows = [row.kv.block_row for row in members]
        yield decode_group(block, rows, [row.kv.length for row in members], start)
        start = stop


def _kv_shape(model: GptOss, *, is_sliding: bool) -> KVShape:
    layers = sum(layer.is_sliding == is_sliding for layer in model.layers)
    return KVShape(layers, model.kv_heads, model.head_dim, model.dtype)
