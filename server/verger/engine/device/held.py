"""Everything that the device holds of KV, and the edits of it: rows, spans and windows.

Owned by the runner, on its one thread; knows the edits of `steps.py`, but neither tokens nor
sampling. Copies go layer by layer, and what is moved is let go of layer by layer, so a prefix of
any length moves in and out of a row within little more memory than it takes once.

    Stored, Running ──Open──► row ──Close──► spans, a window
                              ▲  └──Move──► a larger place

Who waits: MLX writes in place only where no pending work reads, so edits that write into a block or
the ring wait for the step under way. Those that only read are handed to the device behind it.
"""

from collections.abc import Callable, Sequence

import mlx.core as mx

from verger.engine.device.kv import KVStore, RowKV
from verger.engine.device.spans import Piece, cut_ring, fill_ring, layer_groups, piece_from
from verger.engine.steps import Cut, Import, Kept, Open, Place, Running, Split, Stored

RowOf = Callable[[int], RowKV]


class HeldKV:
    """Rows' blocks, spans and windows."""

    def __init__(self, store: KVStore) -> None:
        self.store = store
        self._spans: dict[int, Piece] = {}
        self._windows: dict[int, Piece] = {}
        self._is_copying = False
        """Whether an edit's copies may be under way: only one edit's are at a time."""

    @property
    def kv_bytes(self) -> int:
        """All of it, taken or not."""
        pieces = [*self._spans.values(), *self._windows.values()]
        return self.store.kv_bytes + sum(piece.kv_bytes for piece in pieces)

    def new_window(self, cut: Cut) -> Piece:
        """An empty window, which the forward fills."""
        piece = Piece(self.store.sliding, min(cut.at, self.store.ring.capacity - 1))
        _put(self._windows, cut.window_id, piece)
        return piece

    def submitted(self) -> None:
        """A step was submitted, which happens after all copies."""
        self._is_copying = False

    def open(self, edit: Open, row_of: RowOf) -> RowKV:
        """Place a row and fill it with its prefix."""
        row = self.store.open(edit.place)
        if not edit.sources:
            mx.async_eval(*row.block.arrays())
            return row
        assert edit.window_id is not None
        assert edit.cached_tokens <= edit.place.capacity
        self._wait_to_write()
        for layers in layer_groups(self.store.full, edit.cached_tokens):
            self._fill(row, edit.sources, layers, row_of)
        for source in edit.sources:
            if isinstance(source, Stored):
                del self._spans[source.span_id]
        fill_ring(self.store, row, edit.cached_tokens, self._windows[edit.window_id])
        row.length = row.restored = edit.cached_tokens
        return row

    def move(self, row: RowKV, place: Place) -> None:
        """Copy what a row has computed to a larger place."""
        self._wait_to_write()
        assert row.length <= place.capacity
        old = self.store.replace(row, place)
        is_alone = self.store.is_alone(old)
        for layers in layer_groups(self.store.full, old.block.capacity):
            for layer in layers:
                _write(row, layer, 0, *_positions(old, layer, 0, row.length))
                if is_alone:
                    old.block.drop(layer)
            _submit(row, layers)
        self.store.release(old)

    def close(self, row: RowKV, kept: Sequence[Kept], window: Cut | None) -> None:
        """Free a row, after copying out what is to be kept."""
        if kept or window is not None:
            self._wait_to_copy()
        if window is not None:
            _put(self._windows, window.window_id, cut_ring(self.store, row, window.at))
        self._copy_out(row, kept)
        self.store.close(row)

    def split(self, edit: Split) -> None:
        """Divide a span."""
        self._wait_to_copy()
        upper, lower = self._spans.pop(edit.span_id).split(edit.tokens)
        _put(self._spans, edit.upper_id, upper)
        _put(self._spans, edit.span_id, lower)

    def free_span(self, span_id: int) -> None:
        """Forget a span."""
        del self._spans[span_id]

    def free_window(self, window_id: int) -> None:
        """Forget a window."""
        del self._windows[window_id]

    def export(self, source: Stored | Running, window_id: int | None, row_of: RowOf) -> bytes:
        """Some positions and, behind them, a window; the layout is said in `spans.py`. Waits, so
        that no copy is pending when the next step writes."""
        pieces = [self._piece(source, row_of)]
        if window_id is not None:
            pieces.append(self._windows[window_id])
        return b"".join(part for piece in pieces for part in piece.exported())

    def import_(self, edit: Import) -> None:
        """Part of an exported span, and its window."""
        self._wait_to_copy()
        full, sliding = self.store.full, self.store.sliding
        payload = memoryview(edit.payload)
        span_bytes = edit.payload_tokens * full.token_bytes
        span = piece_from(payload[:span_bytes], full, edit.payload_tokens, edit.first, edit.stop)
        _put(self._spans, edit.span_id, span)
        if edit.window_id is not None:
            tokens = edit.window_tokens
            window = piece_from(payload[span_bytes:], sliding, tokens, 0, tokens)
            _put(self._windows, edit.window_id, window)

    def _piece(self, source: Stored | Running, row_of: RowOf) -> Piece:
        if isinstance(source, Stored):
            return self._spans[source.span_id]
        row, full = row_of(source.request_id), self.store.full
        assert source.stop <= row.length
        positions = (_positions(row, n, source.start, source.stop) for n in range(full.layers))
        copies = [mx.concatenate(both) for both in positions]
        return Piece(full, source.stop - source.start, copies)

    def _fill(
        self, row: RowKV, sources: Sequence[Stored | Running], layers: range, row_of: RowOf
    ) -> None:
        """Write a prefix into some layers of a row, letting go of stored ones."""
        for source in sources:
            for layer in layers:
                if isinstance(source, Stored):
                    both = self._spans[source.span_id].take(layer)
                else:
                    both = _from_row(row_of(source.request_id), row, layer, source)
                assert both.shape[2] == source.stop - source.start
                _write(row, layer, source.start, both[:1], both[1:])
        _submit(row, layers)

    def _copy_out(self, row: RowKV, kept: Sequence[Kept]) -> None:
        """Make spans of a row; if it is alone, its block goes layer by layer as they come."""
        if not kept:
            return
        assert all(part.stop <= row.length for part in kept)
        pieces = [Piece(self.store.full, part.stop - part.start) for part in kept]
        is_alone = self.store.is_alone(row)
        for layers in layer_groups(self.store.full, sum(piece.tokens for piece in pieces)):
            for layer in layers:
                for piece, part in zip(pieces, kept, strict=True):
                    positions = _positions(row, layer, part.start, part.stop)
                    piece.layers.append(mx.concatenate(positions))
                del positions
                if is_alone:
                    row.block.drop(layer)
            mx.async_eval([piece.layers[layers.start :] for piece in pieces])
        for piece, part in zip(pieces, kept, strict=True):
            _put(self._spans, part.span_id, piece)

    def _wait_to_write(self) -> None:
        mx.synchronize()
        self._is_copying = True

    def _wait_to_copy(self) -> None:
        if self._is_copying:
            mx.synchronize()
        self._is_copying = True


def _put(pieces: dict[int, Piece], piece_id: int, piece: Piece) -> None:
    assert piece_id not in pieces
    pieces[piece_id] = piece


def _positions(row: RowKV, layer: int, start: int, stop: int) -> list[mx.array]:
    """Keys and values of some of a row's positions, each (1, kv heads, n, head_dim); views."""
    at = slice(row.block_row, row.block_row + 1)
    arrays = (row.block.keys[layer], row.block.values[layer])
    return [array[at, :, start:stop] for array in arrays]


def _from_row(source: RowKV, row: RowKV, layer: int, part: Running) -> mx.array:
    """Positions of an open row, (2, kv heads, positions, head_dim)."""
    assert part.stop <= source.length
    both = mx.concatenate(_positions(source, layer, part.start, part.stop))
    if source.block is row.block:
        # While a copy is pending that reads the block, a write would copy all of the block.
        mx.eval(both)
    return both


def _write(row: RowKV, layer: int, start: int, keys: mx.array, values: mx.array) -> None:
    """Put positions, (1, kv heads, positions, head_dim), into a row's place from `start` on."""
    stop = start + keys.shape[2]
    # A slice of one row: with the row's number as index MLX would copy what is written once more.
    at = slice(row.block_row, row.block_row + 1)
    row.block.keys[layer][at, :, start:stop] = keys
    row.block.values[layer][at, :, start:stop] = values


def _submit(row: RowKV, layers: range) -> None:
    """Start computing some layers of a row's block."""
    part = slice(layers.start, layers.stop)
    mx.async_eval(row.block.keys[part], row.block.values[part])
