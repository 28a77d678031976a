"""The real runner: edits and plans in, sampled ids out, on MLX.

Called by the engine's loop, on its one thread. Owns the model, the rows and what is held of KV;
turns a `Plan` into one ragged forward and one vectorised sampling. Must not know sockets,
scheduling, or where a row could be placed: the scheduler moves a row before it outgrows its place.

A step is submitted only after the one before has finished: MLX updates the KV in place only while
no pending work still reads it (otherwise it copies all of it, each step). So `launch` builds the
next step's graph while the last one computes, waits for that, and submits; the ids of the last
step are read by `collect` while the new one computes.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from time import perf_counter

import mlx.core as mx

from verger.engine.device.fingerprint import fingerprint
from verger.engine.device.forward import (
    DecodeGroup,
    Segment,
    Step,
    WindowCut,
    decode_group,
    forward,
)
from verger.engine.device.held import HeldKV
from verger.engine.device.kv import KVShape, KVStore, RowKV
from verger.engine.device.memory import (
    free_bytes,
    keep_resident,
    limit_buffer_cache,
    require_room,
)
from verger.engine.device.model import GptOss, load
from verger.engine.device.sampling import RowSampler, Sample, Sampler
from verger.engine.steps import (
    MAX_LAUNCHED_STEPS,
    Close,
    Edit,
    FreeSpan,
    FreeWindow,
    Import,
    KVGeometry,
    Memory,
    Move,
    Open,
    Plan,
    Prefill,
    Running,
    Sampled,
    Split,
    Stored,
)
from verger.messages import Hello, Submit


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


@dataclass(slots=True)
class Clocked:
    """How long steps take: each begins when it is submitted, which is when the one before it has
    finished, and on MLX's CPU backend submitting is already half of the computing."""

    durations_s: deque[float] = field(default_factory=deque)
    """Of finished steps that are not collected yet."""
    _started_s: float | None = None

    def next(self) -> None:
        """The step under way has finished, if there is one; another begins."""
        self.end()
        self._started_s = perf_counter()

    def end(self) -> None:
        """The step under way has finished."""
        if self._started_s is not None:
            self.durations_s.append(perf_counter() - self._started_s)
        self._started_s = None


class MlxRunner:
    """Implements `steps.Runner`."""

    def __init__(self, model: GptOss, sampler: Sampler, max_rows: int) -> None:
        limit_buffer_cache()
        self._model = model
        self._sampler = sampler
        self._free_bytes = free_bytes(model, max_rows)
        full, sliding = (_kv_shape(model, is_sliding=kind) for kind in (False, True))
        self._held = HeldKV(KVStore.create(full, sliding, max_rows, model.window))
        self._geometry = KVGeometry(full.token_bytes, sliding.token_bytes, model.window, max_rows)
        self._fingerprint = fingerprint(model)
        self._rows: dict[int, Row] = {}
        self._last_ids = mx.zeros((max_rows,), mx.int32)
        """The id last sampled for each ring row, on the device."""
        self._launched: deque[Launched] = deque(maxlen=MAX_LAUNCHED_STEPS)
        self._clocked = Clocked()
        self.step_s = 0.0
        """What the step collected last took."""

    @classmethod
    def load(cls, folder: Path, hello: Hello, max_rows: int) -> "MlxRunner":
        """Load a model's folder; raises ModelFolderError."""
        require_room(folder)
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

    @property
    def kv(self) -> KVGeometry:
        """What KV costs."""
        return self._geometry

    @property
    def free_bytes(self) -> int:
        """What this machine could spare for KV when the runner was made."""
        return self._free_bytes

    @property
    def fingerprint(self) -> str:
        """Names weights, precision and layout of what is exported."""
        return self._fingerprint

    def apply(self, edit: Edit) -> None:
        """Carry out one edit; may wait for the step under way."""
        match edit:
            case Open():
                self._open(edit)
            case Move():
                self._held.move(self._rows[edit.request_id].kv, edit.place)
            case Close():
                self._held.close(self._rows.pop(edit.request_id).kv, edit.kept, edit.window)
            case Split():
                self._held.split(edit)
            case FreeSpan():
                self._held.free_span(edit.span_id)
            case FreeWindow():
                self._held.free_window(edit.window_id)
            case Import():
                self._held.import_(edit)

    def launch(self, plan: Plan) -> None:
        """Build the step's graph, wait for the step before, submit."""
        decoding = self._in_order([self._rows[i] for i in plan.decodes])
        step = self._layout(decoding, plan.prefills)
        store = self._held.store
        logits = forward(self._model, store, self._tokens(decoding, plan.prefills), step)
        finishing = [row for p in plan.prefills for row in self._started_by(p)]
        self._advance(decoding, plan.prefills)
        launched = self._sample(logits, (*decoding, *finishing))
        windows = [cut.window.layers for segment in step.segments for cut in segment.cuts]
        mx.synchronize()
        self._clocked.next()
        mx.async_eval(self._last_ids, *store.arrays(), *windows, *launched.arrays())
        self._held.submitted()
        self._launched.append(launched)

    def collect(self) -> list[Sampled]:
        """Read the oldest step's ids, waiting for them if need be."""
        launched = self._launched.popleft()
        if not self._launched:
            mx.synchronize()
            self._clocked.end()
        self.step_s = self._clocked.durations_s.popleft()
        if launched.sample is None:
            return []
        ids, logprobs = launched.sample.resolve()
        for row, token in zip(launched.rows, ids, strict=True):
            row.sampler.observe(token)
        return [
            Sampled(row.submit.request_id, token, logprob)
            for row, token, logprob in zip(launched.rows, ids, logprobs, strict=True)
        ]

    def export(self, source: Stored | Running, window_id: int | None) -> bytes:
        """The bytes of some positions and, behind them, of a window."""
        return self._held.export(source, window_id, self._row_kv)

    def memory(self) -> Memory:
        """All KV, live arrays, and the peak."""
        active_bytes, peak_bytes = mx.get_active_memory(), mx.get_peak_memory()
        return Memory(self._held.kv_bytes, active_bytes, peak_bytes, mx.get_cache_memory())

    def _row_kv(self, request_id: int) -> RowKV:
        return self._rows[request_id].kv

    def _open(self, edit: Open) -> None:
        submit = edit.submit
        assert submit.grammar is None, "grammars are not implemented"
        assert submit.request_id not in self._rows
        self._rows[submit.request_id] = Row(
            submit=submit,
            kv=self._held.open(edit, self._row_kv),
            sampler=self._sampler.open(submit),
            sampled=submit.resumed_tokens,
        )

    def _in_order(self, rows: list[Row]) -> list[Row]:
        """By block and place."""
        assert all(row.kv.length < row.kv.block.capacity for row in rows)
        return sorted(rows, key=lambda row: (row.kv.block_id, row.kv.block_row))

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
        last_sampled = list(sampled)
        segments, last_segments = [], []
        for prefill in prefills:
            start = len(positions)
            positions.extend(range(prefill.start, prefill.stop))
            segments.append(self._segment(prefill, start))
            started = len(self._started_by(prefill))
            wanted = min(1, started)
            last_segments.append(replace(segments[-1], wanted=wanted))
            sampled.extend([len(positions) - 1] * started)
            last_sampled.extend(
                [len(decoding) + sum(s.wanted for s in last_segments) - 1] * started
            )
        return Step(
            positions=mx.array(positions),
            full_groups=tuple(_full_groups(decoding)),
            ring_groups=self._ring_groups(decoding),
            segments=tuple(segments),
            sampled=mx.array(sampled, mx.int32),
            last_segments=tuple(last_segments),
            last_sampled=mx.array(last_sampled, mx.int32),
        )

    def _segment(self, prefill: Prefill, start: int) -> Segment:
        """A chunk as flat tokens from `start` on, and empty windows for its cuts."""
        row = self._rows[prefill.request_id].kv
        assert prefill.start == row.length
        assert prefill.stop <= row.block.capacity
        assert all(prefill.start < cut.at <= prefill.stop for cut in prefill.cuts)
        stop = start + prefill.stop - prefill.start
        cuts = tuple(WindowCut(cut.at, self._held.new_window(cut)) for cut in prefill.cuts)
        return Segment(row, prefill.start, start, stop, stop - start, cuts)

    def _ring_groups(self, decoding: Sequence[Row]) -> tuple[DecodeGroup, ...]:
        if not decoding:
            return ()
        rows = [row.kv.ring_row for row in decoding]
        positions = [row.kv.length for row in decoding]
        return (decode_group(self._held.store.ring, rows, positions, 0),)

    def _advance(self, decoding: Sequence[Row], prefills: Sequence[Prefill]) -> None:
        """From here on the step's positions count as written."""
        for row in decoding:
            row.kv.length += 1
        for prefill in prefills:
            leader = self._rows[prefill.request_id].kv
            leader.length = prefill.stop
            if prefill.forks:
                forks = [self._rows[fork].kv for fork in prefill.forks]
                self._held.store.fork(leader, forks)

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
        """The rows that get their first token from this chunk: the prompt's and its forks'."""
        row = self._rows[prefill.request_id]
        if prefill.stop < len(row.submit.prompt) or row.submit.max_tokens == 0:
            return []
        return [row, *(self._rows[fork] for fork in prefill.forks)]


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
