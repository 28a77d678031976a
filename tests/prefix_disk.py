"""A disk for the prefix cache's tests: every write succeeds at once, nothing is checked."""

import math

from tests.prefix_device import GEOMETRY, PLACE, PrefixDevice
from verger.engine.prefix_cache import Kind, PrefixCache, SaveOrder
from verger.engine.prefix_files import SAVE_IDLE_S, FileHeader
from verger.messages import Submit

LATER_S = SAVE_IDLE_S
"""All that was computed at 0 has been idle for long enough to be saved."""


def recompute_s(start: int, stop: int) -> float:
    return float(stop - start)


def reload_s(nbytes: int, unsaved_bytes: int) -> float:
    """Much less than recomputing."""
    return nbytes / 1000 if not unsaved_bytes else math.inf


class Disk:
    """A cache on a device double, and a disk on which every write succeeds at once."""

    def __init__(self, fingerprint: str = "model", saves_first: bool = False) -> None:
        self.device = PrefixDevice()
        self.files: dict[str, tuple[FileHeader, bytes]] = {}
        self.cache = PrefixCache(
            GEOMETRY,
            recompute_s,
            self.device.apply,
            fingerprint=fingerprint,
            save=self.export if saves_first else None,
            reload_s=reload_s,
        )
        self.requests = 0

    def run(
        self,
        prompt: list[int],
        *cuts: int,
        salt: str = "",
        end: Kind = Kind.END,
        now_s: float = 0.0,
    ) -> None:
        self.requests += 1
        request_id = self.requests
        tokens = self.cache.match(salt, prompt, len(prompt) - 1).tokens
        self.cache.open(Submit(request_id, prompt, 1, [], cache_salt=salt), PLACE, tokens, now_s)
        self.device.compute(request_id, prompt[tokens:])
        for at in cuts:
            window_id = None
            if self.cache.needs_window(request_id, prompt, at):
                window_id = self.cache.new_window_id()
                self.device.cut(request_id, window_id, at)
            self.cache.extend(request_id, prompt, at, window_id, Kind.GRID, now_s)
        self.cache.close(request_id, prompt, end, now_s)
        self.check()

    def export(self, order: SaveOrder) -> bool:
        payload = self.device.export(order.source, order.window_id)
        self.files[order.header.name] = order.header, payload
        return True

    def save(self, now_s: float = LATER_S, limit: int = 99) -> list[FileHeader]:
        orders = self.cache.files.to_save(now_s, limit)
        for order in orders:
            self.export(order)
            self.cache.files.saved(order.header.name, ok=True)
        self.check()
        return [order.header for order in orders]

    def read(self, *names: str) -> None:
        for name in names:
            self.cache.files.read(name, self.files[name][1], 0.0)
            self.check()

    def evict_all(self) -> None:
        self.cache.evict(self.cache.bytes, LATER_S)
        self.check()
        assert self.cache.bytes == 0

    def restarted(self, fingerprint: str = "model") -> "Disk":
        disk = Disk(fingerprint)
        disk.device.payloads = self.device.payloads
        disk.files = dict(self.files)
        headers = [header for header, _ in self.files.values()]
        for name in disk.cache.files.adopt(reversed(headers)):
            del disk.files[name]
        disk.check()
        return disk

    def check(self) -> None:
        self.cache.check_integrity()
        assert self.cache.bytes == self.device.held_bytes


def ids(start: int, stop: int) -> list[int]:
    return list(range(start, stop))
