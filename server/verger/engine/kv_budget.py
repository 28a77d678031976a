"""One budget for all KV: running rows, their rings, cached spans and windows.

Owned by the scheduler; holds the places of rows and the index of cached prefixes, and emits what
has to happen on the device. Nothing that is cached is safe from a row that needs its bytes, so
cached prefixes never stand in the way of a request. Pure; must not know whose turn it is.

    places × token_bytes + ring + spans + windows ≤ limit

What others will soon go on with has a price, though, of which only so much may be spent at a time
(`allowance.py`). An older conversation takes from a newer one for nothing, so that with more of
them than fit some are finished before others go on.
"""

import math
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from verger.engine.allowance import LossAllowance
from verger.engine.pending_edits import PendingEdits
from verger.engine.places import Places, largest_capacity
from verger.engine.prefix_cache import Hit, Kind, PrefixCache, RecomputeS, Taker
from verger.engine.prefix_files import SaveOrder
from verger.engine.prefix_node import ids_of
from verger.engine.readback import Readback
from verger.engine.sequence import Checkpoint, Sequence
from verger.engine.steps import Cut, Edit, KVGeometry, Move, Place
from verger.messages import Submit

HEADROOM_TOKENS = 64
"""A row is opened with room for its prompt and this much of its answer, then it grows."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The places of a row and of its forks; the row begins with so many cached positions."""

    places: list[Place]
    cached_tokens: int


MAX_READS = 3
"""How often a request has its prefix read back, should rows need the memory meanwhile."""
SLACK_DIVISOR = 4
"""A part of the memory that must stay free, or free of cost, when somebody computes much."""
LONG_DIVISOR = 32
"""Computing more than fits into this part of the memory is much."""


class Shortage(Enum):
    """Why there is no row yet."""

    NO_ROOM = "rows hold the memory"
    TOO_DEAR = "others will soon go on with what would have to go"
    READING = "its prefix is being read back, or somebody else's"


class Disk(Protocol):
    """What is asked of the disk tier (`cache_disk.py`)."""

    @property
    def may_save(self) -> bool: ...

    @property
    def savable_bytes(self) -> int: ...

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
        self.allowance = LossAllowance()
        self._edits = PendingEdits()
        self.cache = PrefixCache(
            geometry,
            recompute_s,
            self._edits.emit,
            fingerprint=fingerprint,
            save=self._save,
            reload_s=self._reload_s,
        )
        self._recompute_s = recompute_s
        self._readback: Readback | None = None
        self._places = Places(geometry.max_rows)

    @property
    def used_bytes(self) -> int:
        """What the device holds once all edits are applied."""
        places = self._places.tokens * self.geometry.token_bytes
        return places + self.geometry.ring_bytes + self.cache.bytes

    @property
    def has_edits(self) -> bool:
        """Whether anything was emitted since it was last taken."""
        return bool(self._edits)

    def take_edits(self) -> tuple[Edit | SaveOrder, ...]:
        """What was emitted since the last call."""
        return self._edits.take()

    def match(self, sequence: Sequence) -> int:
        """How many positions of the prompt could be restored."""
        if not self.caches:
            return 0
        salt, prompt = sequence.submit.cache_salt, sequence.prompt_ids
        return self.cache.match(salt, prompt, sequence.reusable_tokens).tokens

    def look_up(self, salt: str, prompt: Ids[int]) -> Hit:
        """What is known of a prompt, though nobody asks for it yet."""
        if not self.caches:
            return Hit(0)
        hit = self.cache.match(salt, ids_of(prompt), len(prompt) - 1)
        return hit if self.disk is not None else Hit(hit.tokens, hit.tokens)

    def want(self, sequence: Sequence) -> None:
        """Somebody waits who will use what is cached of this prompt."""
        if self.caches:
            submit = sequence.submit
            self.cache.want(sequence.request_id, submit.cache_salt, submit.prompt)

    def unwant(self, sequence: Sequence) -> None:
        """It waits no longer."""
        if self.caches:
            self.cache.unwant(sequence.request_id)
        if self._readback is not None and self._readback.sequence is sequence:
            self.stop_reading()

    def open(
        self, sequence: Sequence, forks: Ids[Submit], now_s: float, *, is_first: bool
    ) -> Opened | Shortage:
        """Rows for a sequence, beginning with what is known of its prompt, and for its forks.

        `is_first` says that nobody who waits for savings came before it.
        """
        names = self._files_to_read(sequence)
        if names and self._readback is not None:
            return Shortage.READING
        count = 1 + len(forks)
        places = self._take_places(sequence, count, is_lone=False)
        if self._is_costly_in_common(now_s):
            self._release(places)
            places = self._take_places(sequence, count, is_lone=True)
        limit_s = 0.0 if sequence.is_background else self.allowance.limit_s(is_first)
        # The checkpoint that is read stays, apart from the row.
        window_bytes = self.geometry.window_bytes(sequence.prompt_tokens) if names else 0
        room = self._make_room(sequence, window_bytes, now_s, limit_s)
        if names and not isinstance(room, Shortage):
            row_bytes = sum(place.capacity for place in places) * self.geometry.token_bytes
            self._begin_reading(sequence, names, row_bytes + window_bytes)
            room = Shortage.READING
        if isinstance(room, Shortage):
            self._release(places)
            return room
        self.cache.open(sequence.submit, places[0], room, now_s, is_promoted=sequence.is_promoted)
        for fork, place in zip(forks, places[1:], strict=True):
            self.cache.open(fork, place, 0, now_s)
        return Opened(places, room)

    def grow(self, sequence: Sequence, tokens: int, now_s: float) -> Place | None:
        """A larger place for a row, or None if there is no room even without the cache."""
        assert sequence.place is not None
        place = self._places.take(tokens)
        if self._is_costly_in_common(now_s):
            self._places.release(place)
            place = self._places.take(tokens, is_lone=True)
        # A row with a block of its own is moved layer by layer, so it is never there twice.
        is_alone = sequence.place.block_rows == 1
        freed = sequence.place.capacity * self.geometry.token_bytes if is_alone else 0
        if not self._evict_to(self.limit_bytes + freed, now_s):
            self._places.release(place)
            return None
        self._edits.emit(Move(sequence.request_id, place))
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
            short = self.used_bytes + self.geometry.window_bytes(checkpoint.at) - self.limit_bytes
            is_dear = checkpoint.kind < Kind.TURN and self.cache.price(short, now_s) > 0
            if is_dear or (short > 0 and self.cache.evict(short, now_s) < short):
                return None
            window_id = self.cache.new_window_id()
            self._edits.will_cut(window_id)
        self._edits.will_compute(request_id)
        self.cache.extend(request_id, prompt, checkpoint.at, window_id, checkpoint.kind, now_s)
        return None if window_id is None else Cut(window_id, checkpoint.at)

    def fork(self, sequence: Sequence, leader: Sequence) -> None:
        """A fork's row now begins with all that its leader's holds."""
        if self.caches:
            self._edits.will_compute(sequence.request_id)
            self.cache.fork(sequence.request_id, leader.request_id)

    def shrink_cache(self, most_bytes: int, now_s: float) -> int:
        """Let cached prefixes hold no more, for now; how many bytes that has freed."""
        excess = self.cache.bytes - most_bytes
        return self.cache.evict(excess, now_s) if excess > 0 else 0

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

    def take_file(self, name: str, payload: bytes, now_s: float) -> None:
        """What was read comes back to memory, if there is room for it."""
        readback = self._readback
        if readback is None or not readback.take(name, len(payload)):
            return
        short = self.used_bytes + len(payload) - self.limit_bytes
        if short <= 0 or self.cache.evict(short, now_s) >= short:
            is_last = name == readback.last_name
            self.cache.files.read(name, payload, now_s, with_window=is_last)

    def stop_reading(self) -> bool:
        """Whoever reads his prefix loses his claim to it, and may begin again; whether there was
        somebody."""
        readback, self._readback = self._readback, None
        self.cache.reader = None
        if readback is not None:
            readback.sequence.has_read = readback.sequence.reads >= MAX_READS
        return readback is not None

    def stop_background_reading(self) -> None:
        """Somebody waits, and may need the disk: the background would keep it until nobody does."""
        if self._readback is not None and self._readback.sequence.is_background:
            self.stop_reading()

    def lose_file(self, name: str) -> None:
        """It could not be read."""
        if self._readback is not None:
            self._readback.take(name, 0)
        self.cache.files.lost(name)

    def order_saves(self, now_s: float, limit: int) -> None:
        """Have what deserves a file written; between two plans."""
        if self.disk is not None and self.disk.may_save:
            for order in self.cache.files.to_save(now_s, limit):
                is_saved = self._edits.save(order)
                assert is_saved  # No plan is being made.

    def _files_to_read(self, sequence: Sequence) -> tuple[str, ...]:
        """What is to be read back before the sequence gets a row; empty once that was done, or if
        computing is faster."""
        if self.disk is None or sequence.has_read:
            return ()
        readback = self._readback
        if readback is not None and readback.sequence is sequence:
            readback.ask(self.disk.read)
            sequence.has_read = readback.is_done
            return () if sequence.has_read else (readback.last_name,)
        salt, prompt = sequence.submit.cache_salt, sequence.prompt_ids
        hit = self.cache.match(salt, prompt, sequence.reusable_tokens)
        nbytes = (hit.file_tokens - hit.tokens) * self.geometry.token_bytes
        if not nbytes or self.disk.read_s(nbytes) >= self._recompute_s(hit.tokens, hit.file_tokens):
            return ()
        return hit.files

    def _begin_reading(
        self, sequence: Sequence, names: tuple[str, ...], reserved_bytes: int
    ) -> None:
        assert self.disk is not None
        salt, prompt = sequence.submit.cache_salt, sequence.prompt_ids
        taker = Taker(salt, prompt, len(prompt), sequence.is_background)
        self._readback = Readback(sequence, names, reserved_bytes)
        self._readback.ask(self.disk.read)
        self.cache.reader = taker
        sequence.reads += 1

    def _reload_s(self, nbytes: int, unsaved_bytes: int) -> float:
        """How long it takes to read back what goes, of which so much has to be written first; inf
        if it cannot be written now."""
        if self.disk is None:
            return math.inf
        if unsaved_bytes > 0 and not (
            self.disk.may_save and unsaved_bytes <= self.disk.savable_bytes
        ):
            return math.inf
        return self.disk.read_s(nbytes + unsaved_bytes)

    def _save(self, order: SaveOrder) -> bool:
        return self.disk is not None and self.disk.may_save and self._edits.save(order)

    def longest_row(self) -> int:
        """How many positions fit when one row is all there is."""
        free = self.limit_bytes - self.geometry.ring_bytes
        return largest_capacity(max(0, free // self.geometry.token_bytes))

    def check_integrity(self, taken: list[Place]) -> None:
        """Assert that the places add up and the limit holds; for randomised tests."""
        self._places.check_integrity(taken)
        self.cache.check_integrity()
        assert self.used_bytes <= self.limit_bytes

    def _take_places(self, sequence: Sequence, count: int, *, is_lone: bool) -> list[Place]:
        wanted = sequence.prompt_tokens + min(HEADROOM_TOKENS, sequence.max_tokens)
        tokens = min(wanted, max(sequence.prompt_tokens, self.longest_row()))
        return [self._places.take(tokens, is_lone=is_lone) for _ in range(count)]

    def _is_costly_in_common(self, now_s: float) -> bool:
        """Whether shared blocks, as they are taken now, would cost somebody a prefix: when all
        their rows leave what they hold, and free little."""
        left_bytes = self._places.held_in_common * self.geometry.token_bytes
        return self.cache.price(self.used_bytes + left_bytes - self.limit_bytes, now_s) > 0

    def _release(self, places: Ids[Place]) -> None:
        for place in places:
            self._places.release(place)

    def _make_room(
        self, sequence: Sequence, more_bytes: int, now_s: float, limit_s: float
    ) -> int | Shortage:
        """With its places already taken: how many cached positions the row can begin with. So many
        bytes more than the places take will be free as well."""
        salt, prompt = sequence.submit.cache_salt, sequence.prompt_ids
        has_paid = False
        while True:
            tokens = self.match(sequence)
            # What the row takes over is not held twice.
            moved = self.cache.moved_bytes(salt, prompt, tokens) if tokens else 0
            needed = self.used_bytes + more_bytes + self._reserved_bytes(sequence) - moved
            short = needed - self.limit_bytes
            taker = Taker(salt, prompt, tokens, sequence.is_background)
            price_s = self._price_s(short, taker, now_s)
            if price_s == math.inf:
                return Shortage.NO_ROOM
            if price_s > 0 and not has_paid:
                if price_s > limit_s:
                    return Shortage.TOO_DEAR
                sequence.is_promoted |= self.allowance.spend(price_s)
                has_paid = True
            if short <= 0:
                return tokens
            self.cache.evict(short, now_s, taker)

    def _price_s(self, short: int, taker: Taker, now_s: float) -> float:
        """What it costs others that the taker gets so many bytes. Whoever has much to compute pays
        at least for that, unless there is room for others to grow as well: it would soon be lost
        again."""
        price_s = self.cache.price(short, now_s, taker)
        tokens = len(taker.prompt)
        own_s = self._recompute_s(taker.tokens, tokens) if taker.tokens < tokens else 0.0
        own_bytes = (tokens - taker.tokens) * self.geometry.token_bytes
        is_much = own_bytes * LONG_DIVISOR > self.limit_bytes
        # The background has no savings, and would wait for ever where there is never so much room.
        if taker.is_background or price_s >= own_s or not is_much:
            return price_s
        slack_bytes = self.limit_bytes // SLACK_DIVISOR
        return own_s if self.cache.price(short + slack_bytes, now_s, taker) > 0 else price_s

    def _reserved_bytes(self, sequence: Sequence) -> int:
        """For somebody else, whose prefix is being read."""
        readback = self._readback
        if readback is None or readback.sequence is sequence:
            return 0
        return readback.reserved_bytes

    def _evict_to(self, bytes_: int, now_s: float) -> bool:
        short = self.used_bytes - bytes_
        if short > 0:
            short -= self.cache.evict(short, now_s)
        if short > 0 and self.stop_reading():
            short -= self.cache.evict(short, now_s)
        return short <= 0
