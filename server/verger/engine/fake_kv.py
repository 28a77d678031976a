"""KV without a model: what a device would hold, and whether it was told to hold it rightly.

Part of the fake runner, and by itself the device in the scheduler's tests. It stands in for the
arrays: the "KV" of a position is a fingerprint of all ids up to it, so whatever was restored, cut,
split or read back shows whether it belongs where it is used. Everything against the contract in
`steps.py` is an AssertionError. Must not know the scheduler, tokenizers or sockets.

    prompt      17        4         99
    KV          f(17)     f(17,4)   f(17,4,99)      a span is some of these,
                                                    a window those before one position
"""

import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from verger.engine.steps import (
    Close,
    Cut,
    Edit,
    FreeSpan,
    FreeWindow,
    Import,
    Kept,
    KVGeometry,
    Move,
    Open,
    Place,
    Prefill,
    Running,
    Split,
    Stored,
)
from verger.messages import Submit

WORD_BYTES = 8
PRIME = (1 << 61) - 1
MULTIPLIER = 6_364_136_223_846_793_005

Values = list[int]
"""The KV of adjoining positions, a number each."""


@dataclass(slots=True)
class _Row:
    """An open request. Its ring holds the positions from `ring_start` on, at most `window`."""

    submit: Submit
    place: Place
    values: Values
    ring_start: int

    @property
    def computed_tokens(self) -> int:
        return len(self.values)

    @property
    def is_prefilled(self) -> bool:
        return self.computed_tokens >= len(self.submit.prompt)


class FakeKV:
    """Rows, spans and windows; ids of spans and windows are two separate series."""

    def __init__(self, geometry: KVGeometry) -> None:
        self.geometry = geometry
        self._rows: dict[int, _Row] = {}
        self._spans: dict[int, Values] = {}
        self._windows: dict[int, Values] = {}

    @property
    def request_ids(self) -> set[int]:
        """Who has a row."""
        return set(self._rows)

    @property
    def place_tokens(self) -> int:
        """Positions allocated in blocks that have at least one row."""
        blocks = {row.place.block_id: row.place for row in self._rows.values()}
        return sum(place.block_rows * place.capacity for place in blocks.values())

    @property
    def cache_bytes(self) -> int:
        """Spans and windows."""
        span_tokens = sum(map(len, self._spans.values()))
        window_tokens = sum(map(len, self._windows.values()))
        geometry = self.geometry
        return span_tokens * geometry.token_bytes + window_tokens * geometry.sliding_token_bytes

    @property
    def kv_bytes(self) -> int:
        """All that a device would have allocated for KV."""
        row_bytes = self.place_tokens * self.geometry.token_bytes
        return row_bytes + self.geometry.ring_bytes + self.cache_bytes

    def computed_tokens(self, request_id: int) -> int:
        """How many positions a row holds, counting launched steps."""
        return self._row(request_id).computed_tokens

    def apply(self, edit: Edit) -> None:
        """Carry out one edit."""
        match edit:
            case Open():
                self._open(edit)
            case Move():
                self._move(edit)
            case Close():
                self._close(edit)
            case Split():
                self._split(edit)
            case FreeSpan(span_id):
                _take(self._spans, span_id)
            case FreeWindow(window_id):
                _take(self._windows, window_id)
            case Import():
                self._import(edit)

    def compute(self, prefill: Prefill) -> tuple[int, ...]:
        """Compute a chunk of a prompt; the rows whose first token it samples."""
        row = self._row(prefill.request_id)
        prompt = row.submit.prompt
        assert row.computed_tokens == prefill.start < prefill.stop <= len(prompt), prefill
        _extend(row, prompt[prefill.start : prefill.stop])
        edges = [prefill.start, *(cut.at for cut in prefill.cuts)]
        assert all(before < after for before, after in zip(edges, edges[1:], strict=False)), prefill
        for cut in prefill.cuts:
            self._cut(row, cut)
        for fork_id in prefill.forks:
            self._fork(row, self._row(fork_id))
        if not row.is_prefilled:
            return ()
        started = (prefill.request_id, *prefill.forks)
        return tuple(i for i in started if self._row(i).submit.max_tokens > 0)

    def feed(self, request_id: int, token_id: int) -> None:
        """Compute one decode, which feeds the row's last sampled token."""
        row = self._row(request_id)
        assert row.is_prefilled, f"request {request_id} decodes before its prompt is computed"
        assert row.submit.max_tokens > 0, f"request {request_id} has no token to feed"
        _extend(row, (token_id,))

    def export(self, source: Stored | Running, window_id: int | None) -> bytes:
        """What a file would hold: as many bytes as a device's."""
        span = self._exported(source)
        payload = _encode(span, self.geometry.token_bytes)
        if window_id is None:
            return payload
        window = self._windows[window_id]
        overlap = min(len(span), len(window))
        assert span[-overlap:] == window[-overlap:], "the window is not the one behind the span"
        return payload + _encode(window, self.geometry.sliding_token_bytes)

    def _exported(self, source: Stored | Running) -> Values:
        if isinstance(source, Running):
            row = self._row(source.request_id)
            assert source.stop <= row.computed_tokens, f"{source} is not computed"
            return row.values[source.start : source.stop]
        assert source.span_id in self._spans, f"{source.span_id} is unknown or was freed before"
        span = self._spans[source.span_id]
        assert len(span) == source.stop - source.start, f"{source} has {len(span)} positions"
        return span

    def _open(self, edit: Open) -> None:
        submit = edit.submit
        assert submit.request_id not in self._rows, f"request {submit.request_id} has a row"
        assert len(self._rows) < self.geometry.max_rows
        self._check_place(edit.place)
        assert (edit.window_id is None) == (not edit.sources), "sources and window come together"
        values: Values = []
        for source in edit.sources:
            assert source.start == len(values) < source.stop, "the sources do not adjoin"
            values += self._source(source)
        assert len(values) < len(submit.prompt), "nothing is left to compute"
        assert len(values) <= edit.place.capacity
        restored = submit.prompt[: len(values)]
        _check_same(values, _continued(_seed(submit), restored), "the KV", submit.request_id)
        row = _Row(submit, edit.place, values, max(0, len(values) - self.geometry.window + 1))
        if edit.window_id is not None:
            assert edit.window_id in self._windows, f"no window {edit.window_id}"
            window = self._windows[edit.window_id]
            _check_same(window, values[row.ring_start :], "the window", submit.request_id)
        self._rows[submit.request_id] = row

    def _source(self, source: Stored | Running) -> Values:
        values = self._exported(source)
        if isinstance(source, Stored):
            _take(self._spans, source.span_id)
        return values

    def _move(self, edit: Move) -> None:
        row = self._row(edit.request_id)
        assert edit.place.capacity > row.place.capacity, "a row moves to a larger place only"
        self._check_place(edit.place)
        row.place = edit.place

    def _close(self, edit: Close) -> None:
        row = self._row(edit.request_id)
        if edit.window is not None:
            assert row.computed_tokens - edit.window.at in (0, 1), "the ring has no such window"
            assert self._window_start(edit.window.at) >= row.ring_start, "lost before the row began"
            self._cut(row, edit.window)
        end = 0
        for kept in sorted(edit.kept, key=lambda kept: kept.start):
            assert end <= kept.start < kept.stop <= row.computed_tokens, (
                f"{kept} overlaps or is not computed"
            )
            end = kept.stop
            self._keep(row, kept)
        del self._rows[edit.request_id]

    def _keep(self, row: _Row, kept: Kept) -> None:
        _put(self._spans, kept.span_id, row.values[kept.start : kept.stop])

    def _split(self, edit: Split) -> None:
        span = _take(self._spans, edit.span_id)
        assert 0 < edit.tokens < len(span), f"{edit} of {len(span)} positions"
        _put(self._spans, edit.span_id, span[edit.tokens :])
        _put(self._spans, edit.upper_id, span[: edit.tokens])

    def _import(self, edit: Import) -> None:
        geometry = self.geometry
        assert 0 <= edit.first < edit.stop <= edit.payload_tokens, "no such positions"
        assert 0 <= edit.window_tokens < geometry.window
        border = edit.payload_tokens * geometry.token_bytes
        window_bytes = edit.window_tokens * geometry.sliding_token_bytes
        assert len(edit.payload) == border + window_bytes, "the payload has another length"
        span = _decode(edit.payload[:border], geometry.token_bytes)
        _put(self._spans, edit.span_id, span[edit.first : edit.stop])
        if edit.window_id is not None:
            assert edit.window_tokens > 0, "the payload has no window"
            window = _decode(edit.payload[border:], geometry.sliding_token_bytes)
            _put(self._windows, edit.window_id, window)

    def _cut(self, row: _Row, cut: Cut) -> None:
        assert 0 < cut.at <= row.computed_tokens, f"{cut} of {row.computed_tokens} positions"
        _put(self._windows, cut.window_id, row.values[self._window_start(cut.at) : cut.at])

    def _fork(self, leader: _Row, fork: _Row) -> None:
        assert leader.is_prefilled, "forks start where the prompt ends"
        assert fork.submit.prompt == leader.submit.prompt
        assert fork.submit.cache_salt == leader.submit.cache_salt
        assert fork.computed_tokens == 0
        _extend(fork, fork.submit.prompt)
        fork.ring_start = leader.ring_start

    def _window_start(self, at: int) -> int:
        return max(0, at - self.geometry.window + 1)

    def _row(self, request_id: int) -> _Row:
        assert request_id in self._rows, f"request {request_id} has no row"
        return self._rows[request_id]

    def _check_place(self, place: Place) -> None:
        assert 0 <= place.row < place.block_rows, place
        for row in self._rows.values():
            if row.place.block_id == place.block_id:
                assert row.place.row != place.row, f"{place} is taken"
                is_same_block = row.place.block_rows == place.block_rows
                assert is_same_block, f"{place} is not of the block of {row.place}"
                assert row.place.capacity == place.capacity, f"{place} beside {row.place}"


def _extend(row: _Row, ids: Iterable[int]) -> None:
    last = row.values[-1] if row.values else _seed(row.submit)
    row.values += _continued(last, ids)
    assert row.computed_tokens <= row.place.capacity, f"{row.place} is too small"


def _seed(submit: Submit) -> int:
    """Tenants begin differently, so that KV used across them does not fit either."""
    return zlib.crc32(submit.cache_salt.encode())


def _continued(value: int, ids: Iterable[int]) -> Values:
    """The KV of these ids behind a position whose KV is `value`: a polynomial in the ids."""
    values: Values = []
    for token_id in ids:
        value = (value * MULTIPLIER + token_id + 1) % PRIME
        values.append(value)
    return values


def _check_same(found: Values, expected: Values, what: str, request_id: int) -> None:
    assert len(found) == len(expected), f"{what} of request {request_id}: {len(found)} positions"
    for position, (value, wanted) in enumerate(zip(found, expected, strict=True)):
        assert value == wanted, f"{what} of request {request_id} is not its own at {position}"


def _put(store: dict[int, Values], key: int, values: Values) -> None:
    assert key not in store, f"{key} is in use"
    store[key] = values


def _take(store: dict[int, Values], key: int) -> Values:
    assert key in store, f"{key} is unknown or was freed before"
    return store.pop(key)


def _encode(values: Values, position_bytes: int) -> bytes:
    """Each number over and over, until its position has its bytes."""
    assert position_bytes % WORD_BYTES == 0, "no room for a number in each position"
    repeats = position_bytes // WORD_BYTES
    return array("Q", (value for value in values for _ in range(repeats))).tobytes()


def _decode(payload: bytes, position_bytes: int) -> Values:
    words = array("Q")
    words.frombytes(payload)
    repeats = position_bytes // WORD_BYTES
    values = words[::repeats]
    for copy in range(1, repeats):
        assert words[copy::repeats] == values, "the payload is damaged"
    return values.tolist()
