"""A device without arrays for the prefix cache's tests: it remembers which ids every span, window
and row was computed from, and checks every edit against the contract in `engine/steps.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from verger.engine.steps import (
    Close,
    Edit,
    FreeSpan,
    FreeWindow,
    Import,
    KVGeometry,
    Move,
    Open,
    Place,
    Running,
    Split,
    Stored,
)
from verger.messages import Submit

PLACE = Place(0, 0, 1, 1 << 20)
GEOMETRY = KVGeometry(token_bytes=10, sliding_token_bytes=7, window=4, max_rows=8)


@dataclass(frozen=True, slots=True)
class Prefix:
    """What KV was computed from: all ids before its end. The salt stands for the tenant."""

    salt: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """The KV of the last positions of a prefix, from `start` on."""

    prefix: Prefix
    start: int

    @property
    def tokens(self) -> int:
        return len(self.prefix.ids) - self.start


@dataclass(slots=True)
class Row:
    """An open row: what it has computed."""

    salt: str
    ids: list[int]

    def prefix(self, stop: int) -> Prefix:
        assert stop <= len(self.ids)
        return Prefix(self.salt, tuple(self.ids[:stop]))


@dataclass(slots=True)
class PrefixDevice:
    """Give `apply` to the cache as `emit`; tell it by hand what rows compute."""

    geometry: KVGeometry = GEOMETRY
    spans: dict[int, Span] = field(default_factory=dict)
    windows: dict[int, Prefix] = field(default_factory=dict)
    rows: dict[int, Row] = field(default_factory=dict)
    payloads: dict[bytes, tuple[Span, Prefix | None]] = field(default_factory=dict)
    freed_windows: list[Prefix] = field(default_factory=list)
    opened: list[Open] = field(default_factory=list)
    closed: list[Close] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)

    @property
    def held_bytes(self) -> int:
        spans = sum(span.tokens for span in self.spans.values()) * self.geometry.token_bytes
        return spans + sum(map(self.geometry.window_bytes, map(_length, self.windows.values())))

    def apply(self, edit: Edit) -> None:
        self.edits.append(edit)
        match edit:
            case Open():
                self._open(edit)
            case Close():
                self._close(edit)
            case Split():
                self._split(edit)
            case FreeSpan(span_id=span_id):
                del self.spans[span_id]
            case FreeWindow(window_id=window_id):
                self.freed_windows.append(self.windows.pop(window_id))
            case Import():
                self._import(edit)
            case Move():
                raise AssertionError("the cache moves nothing")

    def compute(self, request_id: int, ids: Sequence[int]) -> None:
        self.rows[request_id].ids.extend(ids)

    def cut(self, request_id: int, window_id: int, at: int) -> None:
        assert window_id not in self.windows
        self.windows[window_id] = self.rows[request_id].prefix(at)

    def fork(self, request_id: int, source_id: int) -> None:
        assert not self.rows[request_id].ids
        self.rows[request_id].ids = list(self.rows[source_id].ids)

    def export(self, source: Stored | Running, window_id: int | None) -> bytes:
        span = self._exported(source)
        window = None if window_id is None else self.windows[window_id]
        nbytes = span.tokens * self.geometry.token_bytes
        nbytes += 0 if window is None else self.geometry.window_bytes(_length(window))
        payload = f"{len(self.payloads):010}".encode().ljust(nbytes)
        self.payloads[payload] = (span, window)
        return payload

    def _exported(self, source: Stored | Running) -> Span:
        if isinstance(source, Stored):
            return self.spans[source.span_id]
        return Span(self.rows[source.request_id].prefix(source.stop), source.start)

    def check_single_copies(self) -> None:
        """No position of a prefix lies in two spans."""
        held = [
            (span.prefix.salt, span.prefix.ids[: position + 1])
            for span in self.spans.values()
            for position in range(span.start, len(span.prefix.ids))
        ]
        assert len(set(held)) == len(held)

    def _open(self, edit: Open) -> None:
        submit = edit.submit
        assert submit.request_id not in self.rows
        self.opened.append(edit)
        position = 0
        for source in edit.sources:
            assert source.start == position < source.stop
            position = source.stop
            self._check_source(source, _prefix_of(submit, position))
        assert (edit.window_id is None) == (position == 0)
        if edit.window_id is not None:
            assert self.windows[edit.window_id] == _prefix_of(submit, position)
        self.rows[submit.request_id] = Row(submit.cache_salt, submit.prompt[:position])

    def _check_source(self, source: Stored | Running, prefix: Prefix) -> None:
        if isinstance(source, Running):
            assert self.rows[source.request_id].prefix(source.stop) == prefix
        else:
            assert self.spans.pop(source.span_id) == Span(prefix, source.start)

    def _close(self, edit: Close) -> None:
        row = self.rows.pop(edit.request_id)
        self.closed.append(edit)
        stops = [0, *(kept.stop for kept in edit.kept)]
        for kept, before in zip(edit.kept, stops, strict=False):
            assert before <= kept.start < kept.stop
            assert kept.span_id not in self.spans
            self.spans[kept.span_id] = Span(row.prefix(kept.stop), kept.start)
        if edit.window is not None:
            assert len(row.ids) - 1 <= edit.window.at <= len(row.ids)
            assert edit.window.window_id not in self.windows
            self.windows[edit.window.window_id] = row.prefix(edit.window.at)

    def _split(self, edit: Split) -> None:
        span = self.spans[edit.span_id]
        assert 0 < edit.tokens < span.tokens
        assert edit.upper_id not in self.spans
        middle = span.start + edit.tokens
        upper = Prefix(span.prefix.salt, span.prefix.ids[:middle])
        self.spans[edit.upper_id] = Span(upper, span.start)
        self.spans[edit.span_id] = Span(span.prefix, middle)

    def _import(self, edit: Import) -> None:
        span, window = self.payloads[edit.payload]
        assert edit.payload_tokens == span.tokens
        window_tokens = 0 if window is None else min(_length(window), self.geometry.window - 1)
        assert edit.window_tokens == window_tokens
        assert 0 <= edit.first < edit.stop <= span.tokens
        stop = span.start + edit.stop
        assert edit.span_id not in self.spans
        ids = span.prefix.ids[:stop]
        self.spans[edit.span_id] = Span(Prefix(span.prefix.salt, ids), span.start + edit.first)
        if edit.window_id is not None:
            assert window is not None
            assert edit.stop == span.tokens
            assert edit.window_id not in self.windows
            self.windows[edit.window_id] = window


def _prefix_of(submit: Submit, stop: int) -> Prefix:
    return Prefix(submit.cache_salt, tuple(submit.prompt[:stop]))


def _length(prefix: Prefix) -> int:
    return len(prefix.ids)
