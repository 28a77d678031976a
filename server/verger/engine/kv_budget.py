"""One budget for all KV: running rows, their rings, cached spans and windows.

Owned by the scheduler; holds the places of rows and the index of cached prefixes, and emits what
has to happen on the device. Nothing that is cached is safe from a row that needs its bytes, so
cached prefixes never stand in the way of a request. Pure; must not know whose turn it is.

    places × token_bytes + ring + spans + windows ≤ limit
"""

import math
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Protocol

from verger.engine.places import BLOCK_TOKENS, GROWTH_TOKENS, Places
from verger.engine.prefix_cache import Kind, PrefixCache, RecomputeS
from verger.engine.prefix_files import SaveOrder
from verger.engine.sequence import Checkpoint, Sequence
from verger.engine.steps import Cut, Edit, FreeWindow, KVGeometry, Move, Place, Running
from verger.messages import Submit

HEADROOM_TOKENS = 64
"""A row is opened with room for its prompt and this much of its answer, then it grows."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The places of a row and of its forks; the row begins with so many cached positions."""

    places: list[Place]
    cached_tokens: int


class Disk(Protocol):
    """What is asked of the disk tier (`cache_disk.py`)."""

    @property
    def may_save(self) -> bool: ...

    def read(self, name: str) -> bool: ...

    def read_s(self, nbytes: int) -> float: ...


class KVBudget:
    """Bytes are counted as soon as their edit is emitted."""

    def __init__(
        self,
        geometry: KVGeometry,
        limit_bytes: int,
        recompute_s: RecomputeS,
        *,
        caches: bool,
        fingerprint: str = "",
    ) -> None:
        self.geometry = geometry
        self.limit_bytes = limit_bytes
        self.caches = caches
        self.disk: Disk | None = None
        """Set once what is on it has been found."""
        self.cache = PrefixCache(
            geometry, recompute_s, self._emit, fingerprint=fingerprint, save=self._save
        )
        self._recompute_s = recompute_s
        self._awaited_files: set[str] = set()
        self._places = Places(geometry.max_rows)
        self._edits: list[Edit | SaveOrder] = []
        self._late_edits: list[Edit | SaveOrder] = []
        self._uncut: set[int] = set()
        """Windows that the plan being made will cut: they cannot be freed or saved before."""
        self._uncomputed: set[int] = set()
        """Rows whose prefix that plan will lengthen: nothing of them can be saved before."""

    @property
    def used_bytes(self) -> int:
        """What the device holds once all edits are applied."""
        places = self._places.tokens * self.geometry.token_bytes
        return places + self.geometry.ring_bytes + self.cache.bytes

    @property
    def has_edits(self) -> bool:
        """Whether anything was emitted since it was last taken."""
        return bool(self._edits or self._late_edits)

    def take_edits(self) -> tuple[Edit | SaveOrder, ...]:
        """What was emitted since the last call."""
        edits = tuple(self._edits)
        self._edits, self._late_edits = self._late_edits, []
        self._uncut.clear()
        self._uncomputed.clear()
        return edits

    def match(self, sequence: Sequence) -> int:
        """How many positions of the prompt could be restored."""
        if not self.caches:
            return 0
        salt, prompt = sequence.submit.cache_salt, sequence.submit.prompt
        return self.cache.match(salt, prompt, sequence.reusable_tokens).tokens

    def want(self, sequence: Sequence) -> None:
        """Somebody waits who will use what is cached of this prompt."""
        if self.caches:
            submit = sequence.submit
            self.cache.want(sequence.request_id, submit.cache_salt, submit.prompt)

    def unwant(self, sequence: Sequence) -> None:
        """It waits no longer."""
        if self.caches:
            self.cache.unwant(sequence.request_id)

    def open(
        self, sequence: Sequence, forks: Ids[Submit], now_s: float, is_impatient: bool
    ) -> Opened | None:
        """Rows for a sequence, beginning with what is known of its prompt, and for its forks.

        None if there is no room, or only at the expense of others who will soon be back: unless
        `is_impatient`.
        """
        places = [self._places.take(self._room(sequence)) for _ in range(1 + len(forks))]
        tokens = self._make_room_for(sequence, now_s, is_impatient)
        if tokens is None:
            for place in places:
                self._places.release(place)
            return None
        self.cache.open(sequence.submit, places[0], tokens, now_s)
        for fork, place in zip(forks, places[1:], strict=True):
            self.cache.open(fork, place, 0, now_s)
        return Opened(places, tokens)

    def grow(self, sequence: Sequence, tokens: int, now_s: float) -> Place | None:
        """A larger place for a row, or None if there is no room even without the cache."""
        assert sequence.place is not None
        place = self._places.take(tokens)
        # A row with a block of its own is moved layer by layer, so it is never there twice.
        is_alone = sequence.place.block_rows == 1
        freed = sequence.place.capacity * self.geometry.token_bytes if is_alone else 0
        if not self._evict_to(self.limit_bytes + freed, now_s):
            self._places.release(place)
            return None
        self._emit(Move(sequence.request_id, place))
        self._places.release(sequence.place)
        return place

    def cut(self, sequence: Sequence, checkpoint: Checkpoint, now_s: float) -> Cut | None:
        """Note that the row has computed its prompt up to a checkpoint, by a plan that is being
        made; the window that the plan has to cut there, if one is wanted and there is room."""
        if not self.caches:
            return None
        request_id, prompt = sequence.request_id, sequence.submit.prompt
        window_id = None
        if self.cache.needs_window(request_id, prompt, checkpoint.at):
            room = self.limit_bytes - self.geometry.window_bytes(checkpoint.at)
            if not self._evict_to(room, now_s):
                return None
            window_id = self.cache.new_window_id()
            self._uncut.add(window_id)
        self._uncomputed.add(request_id)
        self.cache.extend(request_id, prompt, checkpoint.at, window_id, checkpoint.kind, now_s)
        return None if window_id is None else Cut(window_id, checkpoint.at)

    def fork(self, sequence: Sequence, leader: Sequence) -> None:
        """A fork's row now begins with all that its leader's holds."""
        if self.caches:
            self._uncomputed.add(sequence.request_id)
            self.cache.fork(sequence.request_id, leader.request_id)

    def close(
        self, sequence: Sequence, kind: Kind, now_s: float, *, will_resume: bool = False
    ) -> None:
        """Free a row; what a later prompt can begin with stays as far as there is room."""
        assert sequence.place is not None
        prefix = sequence.reusable_prefix(will_resume) if self.caches else []
        self.cache.close(sequence.request_id, prefix, kind, now_s)
        self._places.release(sequence.place)
        self._evict_to(self.limit_bytes, now_s)

    # The disk.

    def awaits_files(self, sequence: Sequence) -> bool:
        """Whether parts of its prompt are being read back; asked again and again, it has them read
        the first time, if that is faster than computing."""
        if self.disk is None:
            return False
        if sequence.files is None:
            names = self._files_worth_reading(sequence, self.disk)
            sequence.files = {name for name in names if self.disk.read(name)}
            self._awaited_files |= sequence.files
        return not sequence.files.isdisjoint(self._awaited_files)

    def take_file(self, name: str, payload: bytes, now_s: float) -> None:
        """What was read comes back to memory, if there is room for it."""
        self._awaited_files.discard(name)
        if self._evict_to(self.limit_bytes - len(payload), now_s):
            self.cache.files.read(name, payload)

    def lose_file(self, name: str) -> None:
        """It could not be read."""
        self._awaited_files.discard(name)
        self.cache.files.lost(name)

    def order_saves(self, now_s: float, limit: int) -> None:
        """Have what deserves a file written."""
        if self.disk is not None and self.disk.may_save:
            self._edits += self.cache.files.to_save(now_s, limit)

    def _files_worth_reading(self, sequence: Sequence, disk: Disk) -> tuple[str, ...]:
        submit = sequence.submit
        hit = self.cache.match(submit.cache_salt, submit.prompt, sequence.reusable_tokens)
        if hit.file_tokens == hit.tokens:
            return ()
        nbytes = (hit.file_tokens - hit.tokens) * self.geometry.token_bytes
        is_faster = disk.read_s(nbytes) < self._recompute_s(hit.tokens, hit.file_tokens)
        return hit.files if is_faster else ()

    def _save(self, order: SaveOrder) -> bool:
        is_there = order.window_id not in self._uncut and not (
            isinstance(order.source, Running) and order.source.request_id in self._uncomputed
        )
        if self.disk is None or not self.disk.may_save or not is_there:
            return False
        self._edits.append(order)
        return True

    def longest_row(self) -> int:
        """How many positions fit when one row is all there is."""
        free = self.limit_bytes - self.geometry.ring_bytes
        tokens = max(0, free // self.geometry.token_bytes)
        if tokens < BLOCK_TOKENS + GROWTH_TOKENS:
            return BLOCK_TOKENS if tokens >= BLOCK_TOKENS else 0
        return tokens // GROWTH_TOKENS * GROWTH_TOKENS

    def check_integrity(self, taken: list[Place]) -> None:
        """Assert that the places add up and the limit holds; for randomised tests."""
        self._places.check_integrity(taken)
        self.cache.check_integrity()
        assert self.used_bytes <= self.limit_bytes

    def _emit(self, edit: Edit) -> None:
        is_late = isinstance(edit, FreeWindow) and edit.window_id in self._uncut
        (self._late_edits if is_late else self._edits).append(edit)

    def _room(self, sequence: Sequence) -> int:
        wanted = sequence.prompt_tokens + min(HEADROOM_TOKENS, sequence.max_tokens)
        return min(wanted, max(sequence.prompt_tokens, self.longest_row()))

    def _make_room_for(self, sequence: Sequence, now_s: float, is_impatient: bool) -> int | None:
        """With its place already taken: how many cached positions the row can begin with."""
        salt, prompt = sequence.submit.cache_salt, sequence.submit.prompt
        while True:
            tokens = self.match(sequence)
            # What the row takes over is not held twice.
            moved = self.cache.moved_bytes(salt, prompt, tokens) if tokens else 0
            short = self.used_bytes - moved - self.limit_bytes
            if short <= 0:
                return tokens
            price_s = self.cache.price(short, now_s)
            if price_s == math.inf or (price_s > 0 and not is_impatient):
                return None
            self.cache.evict(short, now_s)

    def _evict_to(self, bytes_: int, now_s: float) -> bool:
        short = self.used_bytes - bytes_
        return short <= 0 or self.cache.evict(short, now_s) >= short
