"""Carries cached prefixes between the device's memory and the disk tier.

Owned by the loop, asked by the KV budget what reading would cost. Which prefix deserves a file and
which file must go is decided by the index (`prefix_files.py`), how files are written by the tier
(`disk.py`). Must not know tokens' meaning, sockets or MLX: a span's bytes come from `export`.

    evict, reuse, idle ─► SaveOrder ─► export ─► tier.write ─► Written ─► index: it has a file
    a request's prefix ─► read ─► tier.read ─► ReadDone ─► room is made ─► Import
"""

import math
from collections.abc import Callable

from msgspec.structs import replace

from verger.engine.disk import DiskTier, ReadDone, ReadFailed, WriteFailed, Written
from verger.engine.kv_budget import KVBudget
from verger.engine.prefix_files import SaveOrder
from verger.engine.steps import Running, Stored
from verger.messages import CacheStats

POLL_S = 0.02
"""Between two looks while the disk works and nothing else happens."""
SAVE_INTERVAL_S = 0.5
"""Between two looks for prefixes that are worth a file."""
MAX_SAVES = 2
"""In one look: exporting a span holds up the next step."""
FILE_OVERHEAD_SHARE = 0.02
"""Of the limit, kept free for headers and checksums."""
LAST_SAVES_S = 5.0
"""How long is still saved when the engine ends."""

Export = Callable[[Stored | Running, int | None], bytes]


class CacheDisk:
    """Belongs to the loop's thread."""

    def __init__(
        self, tier: DiskTier, kv: KVBudget, export: Export, clock: Callable[[], float]
    ) -> None:
        self._tier = tier
        self._kv = kv
        self._export = export
        self._clock = clock
        self._next_save_s = clock()

    @property
    def is_busy(self) -> bool:
        """Whether `poll` may soon have something to do."""
        return self._tier.pending > 0

    def open(self) -> None:
        """Find what an earlier engine has left; blocks while headers are read."""
        headers = self._tier.scan()
        for name in self._kv.cache.files.adopt(headers, self._clock()):
            self._tier.remove(name)
        self._kv.disk = self

    def poll(self) -> None:
        """Take in what the disk has done; now and then look for what it should do."""
        for event in self._tier.poll():
            match event:
                case Written(name):
                    self._kv.cache.files.saved(name, ok=True)
                case WriteFailed(name):
                    self._kv.cache.files.saved(name, ok=False)
                case ReadDone(name, _, payload):
                    self._kv.take_file(name, payload, self._clock())
                case ReadFailed(name):
                    self._kv.lose_file(name)
        if self._clock() >= self._next_save_s:
            self._next_save_s = self._clock() + SAVE_INTERVAL_S
            self._kv.order_saves(self._clock(), MAX_SAVES)
            self._remove_excess()

    def save(self, order: SaveOrder) -> bool:
        """Queue a file for what is still on the device; whether the tier takes it."""
        payload = self._export(order.source, order.window_id)
        is_taken = self._tier.write(order.header, payload)
        if not is_taken:
            self._kv.cache.files.saved(order.header.name, ok=False)
        return is_taken

    # What the KV budget asks.

    @property
    def may_save(self) -> bool:
        """Whether a save has a chance."""
        return self._tier.off_reason is None

    @property
    def savable_bytes(self) -> int:
        """How much can be queued to be written now."""
        return self._tier.savable_bytes

    def read(self, name: str) -> bool:
        """Queue a read; False: do without."""
        return self._tier.read(name)

    def read_s(self, nbytes: int) -> float:
        """How long reading takes."""
        return self._tier.read_seconds(nbytes)

    def stats(self, cache: CacheStats) -> CacheStats:
        """The same, with what is known of the disk."""
        return replace(
            cache,
            disk_files=self._tier.files,
            disk_bytes=self._tier.stored_bytes,
            disk_written_bytes=self._tier.written_bytes,
            disk_read_bytes=self._tier.read_bytes,
            disk_off_reason=self._tier.off_reason or "",
        )

    def close(self, wait: Callable[[float], None]) -> None:
        """Save what is not on disk yet, for a bounded time, and let go of the folder."""
        deadline_s = self._clock() + LAST_SAVES_S
        while (self._save_more() or self._tier.pending) and self._clock() < deadline_s:
            self._tier.poll()
            wait(POLL_S)
        self._tier.close()

    def _save_more(self) -> bool:
        """Queue what is in memory only, as much as the tier takes now; whether there was any."""
        orders = self._kv.cache.files.to_save(math.inf, 1)
        while orders and self._tier.off_reason is None and self.save(orders[0]):
            orders = self._kv.cache.files.to_save(math.inf, 1)
        return bool(orders) and self._tier.pending > 0

    def _remove_excess(self) -> None:
        limit_bytes = int(self._tier.limit_bytes * (1 - FILE_OVERHEAD_SHARE))
        for name in self._kv.cache.files.over(limit_bytes):
            self._tier.remove(name)
