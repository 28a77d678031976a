"""Random operations on the prefix cache with a disk: writes that fail, files that are lost or
removed, restarts; against a dictionary of files and the device double."""

from collections.abc import Callable

import msgspec
import pytest

from tests.prefix_device import GEOMETRY, PrefixDevice
from tests.unit.test_prefix_cache_random import SALTS, Play, recompute_s
from verger.engine.prefix_cache import PrefixCache, SaveOrder
from verger.engine.prefix_files import FileHeader

OPERATIONS = 250
UNLIMITED_BYTES = 1 << 50


class DiskPlay(Play):
    """What is on disk is known to the model by header; a file not needed is removed at once."""

    def __init__(self, seed: int) -> None:
        self.disk: dict[str, tuple[FileHeader, bytes]] = {}
        self.writing: dict[str, tuple[FileHeader, bytes]] = {}
        self.reads = 0
        self.found_after_restart = 0
        super().__init__(seed)

    def new_cache(self) -> PrefixCache:
        return PrefixCache(
            GEOMETRY, recompute_s, self.device.apply, self.min_tokens, "model", self.write
        )

    def operations(self) -> dict[Callable[[], None], int]:
        rows = {operation: 4 * weight for operation, weight in super().operations().items()}
        files = {self.save: 16, self.finish: 24, self.read: 16, self.remove: 1, self.lose: 1}
        return {**rows, **files, self.restart: 1, self.evict: 6}

    def check(self) -> None:
        for name in self.cache.files.over(UNLIMITED_BYTES):
            self.disk.pop(name, None)
            if self.writing.pop(name, None):
                self.cache.files.saved(name, ok=True)
        super().check()
        files = {**self.disk, **self.writing}
        assert self.cache.files.count == len(files)
        assert self.cache.files.file_bytes == sum(h.payload_bytes for h, _ in files.values())

    def write(self, order: SaveOrder) -> bool:
        """What is written is exactly what the header says; some writes are refused."""
        header = order.header
        payload = self.device.export(order.source, order.window_id)
        assert len(payload) == header.payload_bytes
        span, window = self.device.payloads[payload]
        assert (span.prefix.salt, span.start) == (header.salt, header.start)
        assert list(span.prefix.ids[span.start :]) == header.tokens
        assert (window is None) == (header.window_tokens == 0)
        if self.random.random() < 0.1:
            return False
        self.writing[header.name] = header, payload
        return True

    def save(self) -> None:
        limit = self.random.randint(0, 5)
        orders = self.cache.files.to_save(self.now_s, limit)
        assert len(orders) <= limit
        for order in orders:
            if not self.write(order):
                self.cache.files.saved(order.header.name, ok=False)
        assert len({order.header.name for order in orders}) == len(orders)

    def finish(self) -> None:
        if self.writing:
            name = next(iter(self.writing))
            written = self.writing.pop(name)
            ok = self.random.random() < 0.85
            if ok:
                self.disk[name] = written
            self.cache.files.saved(name, ok=ok)

    def readable(self, salt: str, prompt: list[int], limit: int) -> int:
        """How far the prompt is known, from the dictionaries alone."""
        ends = {(p.salt, p.ids) for p in self.checkpoints}
        held: set[tuple[str, tuple[int, ...]]] = set()
        for span in self.device.spans.values():
            held |= {(span.prefix.salt, span.prefix.ids[: n + 1]) for n in range(span.start, 99)}
        for request_id, request in self.requests.items():
            row = self.device.rows[request_id]
            held |= {(row.salt, tuple(row.ids[: n + 1])) for n in range(request.known_tokens)}
        for header, payload in [*self.disk.values(), *self.writing.values()]:
            span, window = self.device.payloads[payload]
            held |= {(header.salt, span.prefix.ids[: n + 1]) for n in range(span.start, 99)}
            if window is not None:
                ends.add((window.salt, window.ids))
        known = 0
        for tokens in range(1, min(limit, len(prompt)) + 1):
            if (salt, tuple(prompt[:tokens])) not in held:
                break
            if (salt, tuple(prompt[:tokens])) in ends:
                known = tokens
        return known

    def read(self) -> None:
        """Read what a match says, and it is there."""
        prompt, salt = self.prompt(), self.random.choice(SALTS)
        if self.disk and self.random.random() < 0.7:
            header, payload = self.random.choice(list(self.disk.values()))
            salt, prompt = header.salt, [*self.device.payloads[payload][0].prefix.ids, 0]
        limit = len(prompt) - 1
        hit = self.cache.match(salt, prompt, limit)
        assert hit.tokens == self.longest(salt, prompt, limit)
        assert hit.file_tokens == self.readable(salt, prompt, limit)
        assert (hit.file_tokens > hit.tokens) == bool(hit.files)
        if self.random.random() < 0.3:
            self.cache.want(self.random.randint(1000, 1003), salt, prompt)
        before = len(self.device.edits)
        for name in hit.files[: self.random.choice([99, 1])]:
            if name in self.writing:
                self.disk[name] = self.writing.pop(name)
                self.cache.files.saved(name, ok=True)
            self.cache.files.read(name, self.disk[name][1], self.now_s)
            self.reads += 1
            self.checkpoints |= set(self.device.windows.values())
            self.check()
        if len(self.device.edits) > before and len(hit.files) == 1:
            assert self.cache.match(salt, prompt, limit).tokens == hit.file_tokens

    def lose(self) -> None:
        if self.disk:
            name = self.random.choice(list(self.disk))
            del self.disk[name]
            self.cache.files.lost(name)
        self.cache.files.lost("unknown")

    def remove(self) -> None:
        files = self.cache.files
        limit = max(0, files.file_bytes - self.random.randint(0, 150))
        names = files.over(limit)
        assert len(set(names)) == len(names)
        for name in names:
            self.disk.pop(name, None)
            if self.writing.pop(name, None):
                files.saved(name, ok=True)
        assert files.file_bytes <= limit or self.writing

    def restart(self) -> None:
        """Everything that is on disk with all that is before it is found, and nothing else."""
        for request_id in list(self.requests):
            self.device.rows.pop(request_id)
        self.requests.clear()
        self.checkpoints.clear()
        self.writing.clear()
        payloads = self.device.payloads
        self.device = PrefixDevice(payloads=payloads)
        self.cache = self.new_cache()
        headers = [header for header, _ in self.disk.values()]
        self.random.shuffle(headers)
        foreign = [msgspec.structs.replace(h, name="0" * 40) for h in headers[:1]]
        refused = self.cache.files.adopt([*headers, *foreign], self.now_s)
        assert len(set(refused)) == len(refused)
        assert (not foreign) or "0" * 40 in refused
        for name in refused:
            self.disk.pop(name, None)
        self.check()
        for header, payload in list(self.disk.values()):
            span, window = self.device.payloads[payload]
            hit = self.cache.match(header.salt, span.prefix.ids, header.stop)
            assert hit.file_tokens == self.readable(header.salt, list(span.prefix.ids), header.stop)
            if window is not None:
                assert hit.file_tokens == header.stop
                self.found_after_restart += 1

    def run_out(self) -> None:
        super().run_out()
        self.writing.clear()
        self.cache.files.over(0)


@pytest.mark.slow
@pytest.mark.parametrize("first_seed", range(1000, 1100, 20))
def test_what_is_on_disk_is_found_and_restored_exactly(first_seed: int) -> None:
    reads = found = 0
    for seed in range(first_seed, first_seed + 20):
        play = DiskPlay(seed)
        for _ in range(OPERATIONS):
            play.operate()
        play.run_out()
        assert play.cache.bytes == 0
        reads += play.reads
        found += play.found_after_restart
    assert reads > 10
    assert found > 5
