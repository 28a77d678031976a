"""kill -9 while the disk tier writes, in a real process: what is left is whole, or swept."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.disk_tiers import Desk, file_bytes_for, payload_for, put, settle
from verger.engine.disk import ReadDone

pytestmark = pytest.mark.process

KILLED_WRITER = """
import os, sys
from pathlib import Path
from tests.process.disk_tiers import Desk, FaultyFolder, put, settle

class HalfWay(FaultyFolder):
    def _write_all(self, fd, rest):
        if len(rest) > 100_000 and "cc" in self.log[-1]:
            super()._write_all(fd, rest[: len(rest) // 2])
            print("half way", flush=True)
            sys.stdin.read()
        super()._write_all(fd, rest)

desk = Desk(Path(sys.argv[1]))
desk._make_folder = lambda *place: desk.folders.append(HalfWay(*place)) or desk.folders[-1]
tier = desk.tier()
tier.scan()
for name in ("aa", "bb", "cc", "dd"):
    put(tier, name, 4_000_000)
settle(tier)
"""
ENDLESS_WRITER = """
import sys
from pathlib import Path
from tests.process.disk_tiers import Desk, put, settle

desk = Desk(Path(sys.argv[1]))
tier = desk.tier()
tier.scan()
for number in range(200):
    put(tier, f"{number:02x}", 1_000_000)
    settle(tier)
    print(number, flush=True)
"""


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "cache")
    yield desk
    desk.close()


def start(program: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def kill(writer: subprocess.Popen[str]) -> None:
    writer.kill()
    writer.communicate()


def test_a_writer_killed_in_the_middle_of_a_file_leaves_nothing_that_is_believed(
    desk: Desk,
) -> None:
    writer = start(KILLED_WRITER, desk.path)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "half way\n"
    kill(writer)
    [partial] = desk.path.glob("*.partial")
    assert 0 < partial.stat().st_size < 4_000_000

    tier = desk.tier()
    assert [header.name for header in tier.scan()] == ["aa", "bb"]
    assert tier.written_today_bytes == 3 * file_bytes_for("aa", 4_000_000)
    left = {path.name for path in desk.path.iterdir()}
    assert left == {"aa.prefix", "bb.prefix", "lock", "written.json"}


@pytest.mark.parametrize("written", [1, 4])
def test_whatever_a_writer_killed_at_any_moment_leaves_is_whole(desk: Desk, written: int) -> None:
    writer = start(ENDLESS_WRITER, desk.path)
    assert writer.stdout is not None
    for _ in range(written):
        writer.stdout.readline()
    kill(writer)

    tier = desk.tier()
    names = [header.name for header in tier.scan()]
    assert len(names) >= written
    for name in names:
        tier.read(name)
        [event] = settle(tier)
        assert isinstance(event, ReadDone)
        assert event.payload == payload_for(name, 1_000_000)
    assert not list(desk.path.glob("*.partial"))
    assert put(tier, "ff")
