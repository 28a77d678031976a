"""The disk tier with its real thread and real files: what it keeps, counts and refuses."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.disk_tiers import (
    Desk,
    file_bytes_for,
    header_for,
    payload_for,
    put,
    settle,
    words,
)
from verger.engine import disk_format
from verger.engine.disk import READ_TIMEOUT_S, ReadDone
from verger.engine.disk_counts import Bounds


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "cache")
    yield desk
    desk.close()


def test_a_file_is_written_found_after_a_restart_and_read_back(desk: Desk) -> None:
    tier = desk.tier()
    assert tier.scan() == []
    child, parent = header_for("c1", b"child", start=3), header_for("d2", b"parent")
    assert tier.write(child, b"child")
    assert tier.write(parent, b"parent")
    assert words(settle(tier)) == ["written c1", "written d2"]
    tier.close()

    tier = desk.tier()
    assert tier.scan() == [parent, child]
    assert tier.read("c1")
    assert tier.read("d2")
    assert settle(tier) == [ReadDone("c1", child, b"child"), ReadDone("d2", parent, b"parent")]
    assert tier.files == 2
    sizes = [path.stat().st_size for path in desk.path.glob("*.prefix")]
    assert tier.stored_bytes == tier.read_bytes == sum(sizes)
    assert tier.written_bytes == 0


def test_files_and_folder_are_the_owners_alone(desk: Desk) -> None:
    desk.path.mkdir(mode=0o755)
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    settle(tier)
    assert stat.S_IMODE(desk.path.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in desk.path.iterdir()}
    assert modes == {"a1.prefix": 0o600, "lock": 0o600, "written.json": 0o600}


def test_a_removed_file_is_gone_and_its_bytes_are_free_at_once(desk: Desk) -> None:
    size = file_bytes_for("a1")
    tier = desk.tier(limit_bytes=size)
    tier.scan()
    assert put(tier, "a1")
    settle(tier)
    tier.remove("a1")
    tier.remove("a1")
    tier.remove("b1")
    assert (tier.files, tier.stored_bytes) == (0, 0)
    assert put(tier, "b1")
    assert words(settle(tier)) == ["written b1"]
    assert [path.name for path in desk.path.glob("*.prefix")] == ["b1.prefix"]


def test_a_write_removed_while_queued_fails_and_leaves_nothing(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    desk.folder.gate.clear()
    assert put(tier, "a1")
    tier.remove("a1")
    assert not put(tier, "a1")
    desk.folder.gate.set()
    put(tier, "b1")
    assert words(settle(tier)) == ["unwritten a1", "written b1"]
    assert not desk.file("a1").exists()
    assert (tier.files, tier.stored_bytes) == (1, file_bytes_for("b1"))


def test_a_file_is_replaced_by_one_of_its_name(desk: Desk) -> None:
    tier = desk.tier(limit_bytes=file_bytes_for("a1", 2000), bounds=Bounds(files=1))
    tier.scan()
    put(tier, "a1", 1000)
    settle(tier)
    desk.folder.gate.clear()
    assert put(tier, "a1", 2000)
    assert tier.stored_bytes == file_bytes_for("a1", 2000)
    desk.folder.gate.set()
    assert words(settle(tier)) == ["written a1"]
    assert (tier.files, tier.stored_bytes) == (1, file_bytes_for("a1", 2000))
    tier.read("a1")
    [event] = settle(tier)
    assert isinstance(event, ReadDone)
    assert event.payload == payload_for("a1", 2000)


def test_reads_overtake_writes_but_not_the_write_of_their_own_file(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    settle(tier)
    desk.folder.gate.clear()
    desk.folder.is_waiting.clear()
    put(tier, "b1")
    assert desk.folder.is_waiting.wait(60)
    put(tier, "c1")
    tier.read("c1")
    tier.remove("a1")
    assert tier.read("b1")
    put(tier, "a2")
    desk.folder.gate.set()
    assert sorted(words(settle(tier))) == sorted(
        ["written b1", "read b1", "written c1", "read c1", "written a2"]
    )
    order = [line for line in desk.folder.log if line != "write a1"]
    assert order == ["write b1", "write c1", "read c1", "remove a1", "read b1", "write a2"]


def test_a_read_of_a_stored_file_goes_first(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    settle(tier)
    desk.folder.gate.clear()
    desk.folder.is_waiting.clear()
    put(tier, "b1")
    assert desk.folder.is_waiting.wait(60)
    put(tier, "c1")
    tier.read("a1")
    tier.remove("a1")
    desk.folder.gate.set()
    assert words(settle(tier)) == ["written b1", "read a1", "written c1"]


def test_an_unknown_or_unsafe_name_is_unread_and_nothing_outside_is_touched(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    outside = desk.path.parent / "a1.prefix"
    outside.write_bytes(b"not ours")
    for name in ("../a1", "a/b", "", "A1", "00"):
        assert tier.read(name)
        tier.remove(name)
    assert words(settle(tier)) == [
        "unread ../a1",
        "unread a/b",
        "unread ",
        "unread A1",
        "unread 00",
    ]
    for name in ("../b1", "a/b", "/tmp/b1", "", "B1"):
        assert not put(tier, name)
    assert tier.pending == 0
    assert outside.read_bytes() == b"not ours"
    assert not (desk.path.parent / "b1.prefix").exists()


def test_a_header_beyond_its_limit_is_not_written(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = desk.tier()
    tier.scan()
    monkeypatch.setattr(disk_format, "MAX_HEADER_BYTES", 10)
    assert not put(tier, "a1")
    assert (tier.pending, tier.stored_bytes, tier.written_today_bytes) == (0, 0, 0)


def test_the_size_limit_holds_at_the_byte(desk: Desk) -> None:
    limit = file_bytes_for("a1", 1000) + file_bytes_for("b1", 500)
    tier = desk.tier(limit_bytes=limit)
    tier.scan()
    assert put(tier, "a1", 1000)
    assert not put(tier, "b1", 501)
    assert put(tier, "b1", 500)
    assert not put(tier, "c1", 0)
    assert tier.stored_bytes == limit
    settle(tier)
    assert sum(path.stat().st_size for path in desk.path.glob("*.prefix")) == limit


def test_the_daily_limit_holds_over_removals_and_restarts_until_the_day_changes(desk: Desk) -> None:
    size = file_bytes_for("a1")
    tier = desk.tier(daily_bytes=2 * size)
    tier.scan()
    assert put(tier, "a1")
    settle(tier)
    tier.remove("a1")
    tier.close()

    tier = desk.tier(daily_bytes=2 * size)
    tier.scan()
    assert tier.written_today_bytes == size
    assert put(tier, "b1")
    assert not put(tier, "c1")
    assert tier.off_reason is None
    settle(tier)
    tier.close()

    tier = desk.tier(daily_bytes=2 * size)
    tier.scan()
    assert not put(tier, "c1")
    desk.day = "2026-11-24"
    assert tier.written_today_bytes == 0
    assert put(tier, "c1")
    settle(tier)
    assert tier.written_today_bytes == tier.written_bytes == size


def test_the_daily_limit_holds_at_the_byte(desk: Desk) -> None:
    tier = desk.tier(daily_bytes=file_bytes_for("a1", 1000) + file_bytes_for("b1", 500))
    tier.scan()
    assert put(tier, "a1", 1000)
    assert not put(tier, "b1", 501)
    assert put(tier, "b1", 500)


def test_a_damaged_note_of_the_days_bytes_counts_as_none(desk: Desk) -> None:
    desk.path.mkdir()
    (desk.path / "written.json").write_bytes(b'{"day": "2026-')
    tier = desk.tier()
    tier.scan()
    assert tier.off_reason is None
    assert tier.written_today_bytes == 0
    assert put(tier, "a1")


def test_the_write_queue_holds_its_bound_and_no_byte_more(desk: Desk) -> None:
    queued = file_bytes_for("a1", 1000) + file_bytes_for("b1", 500)
    tier = desk.tier(bounds=Bounds(queued_bytes=queued))
    tier.scan()
    desk.folder.gate.clear()
    assert put(tier, "a1", 1000)
    assert not put(tier, "b1", 501)
    assert put(tier, "b1", 500)
    assert tier.written_today_bytes == queued
    desk.folder.gate.set()
    settle(tier)
    assert put(tier, "c1", 1000)


def test_the_write_queue_holds_so_many_files_and_no_more(desk: Desk) -> None:
    tier = desk.tier(bounds=Bounds(queued_writes=2))
    tier.scan()
    desk.folder.gate.clear()
    assert [put(tier, name) for name in ("a1", "b1", "c1")] == [True, True, False]
    desk.folder.gate.set()
    settle(tier)
    assert put(tier, "c1")


def test_the_folder_holds_so_many_files_and_no_more(desk: Desk) -> None:
    tier = desk.tier(bounds=Bounds(files=2))
    tier.scan()
    assert [put(tier, name) for name in ("a1", "b1", "c1")] == [True, True, False]
    settle(tier)
    assert not put(tier, "c1")
    tier.close()
    tier = desk.tier(bounds=Bounds(files=1))
    assert [header.name for header in tier.scan()] == ["a1"]
    assert not desk.file("b1").exists()


def test_the_read_queue_holds_its_bounds_and_no_more(desk: Desk) -> None:
    pair = file_bytes_for("a1", 1000) + file_bytes_for("b1", 500)
    tier = desk.tier(bounds=Bounds(queued_reads=2, queued_bytes=pair))
    tier.scan()
    for name, size in (("a1", 1000), ("b1", 500), ("b2", 501)):
        assert put(tier, name, size)
        settle(tier)
    desk.folder.gate.clear()
    assert [tier.read(name) for name in ("a1", "b2", "b1", "a1", "00")] == [
        True, False, True, True, False,
    ]  # fmt: skip
    desk.folder.gate.set()
    assert sorted(words(settle(tier))) == ["read a1", "read b1"]
    assert tier.read("b2")
    assert tier.read("00")
    assert not tier.read("01")
    settle(tier)


def test_a_file_larger_than_the_read_queue_is_read_alone(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1", 5000)
    settle(tier)
    tier.close()
    tier = desk.tier(bounds=Bounds(queued_bytes=100))
    tier.scan()
    assert tier.read("a1")
    assert words(settle(tier)) == ["read a1"]


def test_a_read_that_hangs_fails_in_time_and_its_file_goes(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    put(tier, "b1")
    settle(tier)
    desk.folder.gate.clear()
    tier.read("a1")
    desk.now_s += READ_TIMEOUT_S - 1
    assert tier.poll() == []
    desk.now_s += 1
    assert words(tier.poll()) == ["unread a1"]
    assert tier.poll() == []
    assert not tier.read("b1")
    desk.folder.gate.set()
    put(tier, "c1")
    assert words(settle(tier)) == ["written c1"]
    assert not desk.file("a1").exists()
    assert tier.read("b1")
    assert words(settle(tier)) == ["read b1"]


def test_the_speed_of_reads_is_learned(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    assert tier.read_seconds(2_000_000_000) == pytest.approx(2.0)
    put(tier, "a1")
    settle(tier)
    desk.folder.gate.clear()
    desk.folder.is_waiting.clear()
    tier.read("a1")
    assert desk.folder.is_waiting.wait(60)
    desk.now_s += 1
    desk.folder.gate.set()
    settle(tier)
    assert tier.read_seconds(file_bytes_for("a1")) > 1e-5


def test_closing_abandons_what_is_queued_and_refuses_the_rest(desk: Desk) -> None:
    tier = desk.tier()
    assert not put(tier, "a1")
    tier.scan()
    desk.folder.gate.clear()
    desk.folder.is_waiting.clear()
    put(tier, "a1")
    put(tier, "b1")
    assert desk.folder.is_waiting.wait(60)
    tier.close(timeout_s=0)
    assert tier.off_reason == "closed"
    assert (tier.pending, tier.poll()) == (0, [])
    assert not put(tier, "c1")
    assert tier.read("a1")
    assert words(settle(tier)) == ["unread a1"]
    second = desk.tier()
    second.scan()
    assert second.off_reason == "another engine uses the folder"

    desk.folders[0].gate.set()
    tier.close()
    third = desk.tier()
    assert [header.name for header in third.scan()] == ["a1"]
    assert third.off_reason is None
    assert not os.path.exists(desk.file("b1"))
