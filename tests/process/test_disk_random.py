"""The disk tier under random operations: every byte counted, every accepted write answered once."""

import errno
import random
from collections import Counter
from pathlib import Path

import pytest

from tests.process.disk_tiers import Desk, file_bytes_for, payload_for, put, settle
from verger.engine.disk import DiskEvent, DiskTier, ReadDone, ReadFailed, WriteFailed, Written
from verger.engine.disk_counts import Bounds

NAMES = [f"{number:02x}" for number in range(12)]
SIZES = {name: 200 + 150 * number for number, name in enumerate(NAMES)}
LIMIT_BYTES = sum(file_bytes_for(name, size) for name, size in SIZES.items()) // 2
DAILY_BYTES = LIMIT_BYTES * 4
FULL = OSError(errno.ENOSPC, "No space left on device")


class Owner:
    """Does what the prefix cache does, and knows what the tier owes it."""

    def __init__(self, desk: Desk, seed: int) -> None:
        self.desk = desk
        self.random = random.Random(seed)
        self.awaited: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.reads = 0
        self.tier = self.opened()

    def opened(self) -> DiskTier:
        bounds = Bounds(queued_bytes=LIMIT_BYTES // 2, queued_reads=3)
        tier = self.desk.tier(limit_bytes=LIMIT_BYTES, daily_bytes=DAILY_BYTES, bounds=bounds)
        for header in tier.scan():
            assert header.name in SIZES
        return tier

    def act(self) -> None:
        name = self.random.choice(NAMES)
        verbs = {"write": 8, "read": 6, "remove": 3, "poll": 4, "settle": 3, "damage": 1}
        verbs |= {"restart": 1, "day": 1, "fault": 1}
        match self.random.choices(list(verbs), list(verbs.values()))[0]:
            case "write":
                self.awaited[name] += put(self.tier, name, SIZES[name])
            case "read":
                self.tier.read(name)
            case "remove":
                self.tier.remove(name)
            case "poll":
                self.take(self.tier.poll())
            case "settle":
                self.check()
            case "damage" if self.desk.file(name).exists():
                self.check()
                self.damage(name)
            case "restart":
                self.check()
                self.tier.close()
                self.tier = self.opened()
            case "day":
                self.desk.day = f"2026-{self.random.randrange(10, 99)}"
            case "fault":
                self.desk.folder.chunk_error = self.random.choice([None, FULL])

    def damage(self, name: str) -> None:
        file = self.desk.file(name)
        if file.exists():
            content = bytearray(file.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            file.write_bytes(content)

    def take(self, events: list[DiskEvent]) -> None:
        for event in events:
            match event:
                case Written(name) | WriteFailed(name):
                    self.seen[name] += 1
                case ReadDone(name, header, payload):
                    self.reads += 1
                    assert header.name == name
                    assert payload == payload_for(name, SIZES[name])
                case ReadFailed():
                    pass

    def check(self) -> None:
        """Nothing is pending: what the tier says is what the disk says."""
        self.take(settle(self.tier))
        assert self.seen == self.awaited
        assert self.tier.stored_bytes <= LIMIT_BYTES
        assert self.tier.written_today_bytes <= DAILY_BYTES


@pytest.mark.parametrize("seed", range(8))
def test_random_operations_leave_no_byte_uncounted(tmp_path: Path, seed: int) -> None:
    desk = Desk(tmp_path / "cache")
    owner = Owner(desk, seed)
    for _ in range(120):
        owner.act()
    owner.check()
    assert owner.reads > 0
    bytes_said, files_said = owner.tier.stored_bytes, owner.tier.files
    owner.tier.close()
    desk.close()
    sizes = [path.stat().st_size for path in desk.path.glob("*.prefix")]
    assert (sum(sizes), len(sizes)) == (bytes_said, files_said)
    assert not list(desk.path.glob("*.partial"))
