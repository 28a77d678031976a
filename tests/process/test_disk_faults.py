"""The disk tier when the disk, its files or another engine misbehave: no error, no wrong byte."""

import errno
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.process.disk_tiers import (
    FINGERPRINT,
    GIB,
    Desk,
    file_bytes_for,
    header_for,
    put,
    settle,
    words,
)
from verger.engine.disk import free_bytes
from verger.engine.disk_counts import RESERVE_BYTES
from verger.engine.disk_format import DIGEST_BYTES, encode_head, payload_digest

FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "cache")
    yield desk
    desk.close()


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="verger.engine")


def flip(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def cut(file: Path, at: int) -> None:
    os.truncate(file, at % file.stat().st_size)


def vanish(file: Path, at: int) -> None:
    file.unlink()


def become_a_link(file: Path, at: int) -> None:
    file.rename(file.with_suffix(".elsewhere"))
    file.symlink_to(file.with_suffix(".elsewhere"))


def become_a_pipe(file: Path, at: int) -> None:
    file.unlink()
    os.mkfifo(file)


PLACES = [0, 9, 13, 20, 60, -1000, -500, -33, -32, -1]
"""Magic, version, length, header, its checksum, payload (three times), checksum (twice)."""


@pytest.mark.parametrize("at", PLACES)
@pytest.mark.parametrize("damage", [flip, cut])
def test_a_file_damaged_while_we_run_fails_and_is_removed(
    desk: Desk, damage: Callable[[Path, int], None], at: int
) -> None:
    check_damage(desk, damage, at)


@pytest.mark.parametrize("damage", [vanish, become_a_link, become_a_pipe])
def test_a_file_that_is_no_file_any_more_fails_and_is_removed(
    desk: Desk, damage: Callable[[Path, int], None]
) -> None:
    check_damage(desk, damage, 0)


def check_damage(desk: Desk, damage: Callable[[Path, int], None], at: int) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    put(tier, "b1")
    settle(tier)
    damage(desk.file("a1"), at)
    tier.read("a1")
    tier.read("b1")
    assert words(settle(tier)) == ["unread a1", "read b1"]
    assert (tier.files, tier.stored_bytes) == (1, file_bytes_for("b1"))
    tier.remove("b1")
    settle(tier)
    assert not os.path.lexists(desk.file("a1"))
    assert put(tier, "a1")
    assert words(settle(tier)) == ["written a1"]
    assert tier.off_reason is None


@pytest.mark.parametrize(
    ("damage", "at"), [(flip, at) for at in PLACES[:5]] + [(cut, at) for at in PLACES]
)
def test_a_scan_removes_what_its_header_does_not_vouch_for(
    desk: Desk, damage: Callable[[Path, int], None], at: int
) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    put(tier, "b1")
    settle(tier)
    tier.close()
    damage(desk.file("a1"), at)
    tier = desk.tier()
    assert [header.name for header in tier.scan()] == ["b1"]
    assert not desk.file("a1").exists()
    assert tier.stored_bytes == file_bytes_for("b1")


def test_a_scan_removes_files_of_another_model_or_name_and_keeps_what_is_not_ours(
    desk: Desk,
) -> None:
    tier = desk.tier(fingerprint="other")
    tier.scan()
    put(tier, "a1")
    settle(tier)
    tier.close()
    desk.file("a1").with_name("b1.prefix").write_bytes(desk.file("a1").read_bytes())
    unsafe = encode_head(header_for("no digest", b""), FINGERPRINT) or b""
    desk.file("no digest").write_bytes(unsafe + payload_digest(unsafe[-DIGEST_BYTES:], b""))
    (desk.path / "c1.prefix.partial").write_bytes(b"half")
    (desk.path / "notes.txt").write_bytes(b"the owner's")
    desk.file("folder").mkdir()

    tier = desk.tier()
    assert tier.scan() == []
    assert tier.off_reason is None
    left = {path.name for path in desk.path.iterdir()}
    assert left == {"folder.prefix", "lock", "notes.txt", "written.json"}


def refuse_write(desk: Desk, error: OSError | None) -> None:
    desk.folder.write_error = error


def refuse_half_way(desk: Desk, error: OSError | None) -> None:
    desk.folder.chunk_error = error


def refuse_after_the_rename(desk: Desk, error: OSError | None) -> None:
    desk.folder.flush_error = error


def refuse_note(desk: Desk, error: OSError | None) -> None:
    desk.folder.note_error = error


@pytest.mark.parametrize(
    "refuse", [refuse_write, refuse_half_way, refuse_after_the_rename, refuse_note]
)
@pytest.mark.parametrize("error", [FULL, READ_ONLY, OSError(errno.EDQUOT, "Disk quota exceeded")])
def test_a_disk_that_refuses_writes_turns_writing_off_until_the_next_day(
    desk: Desk,
    refuse: Callable[[Desk, OSError | None], None],
    error: OSError,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    settle(tier)
    refuse(desk, error)
    desk.folder.gate.clear()
    assert put(tier, "b1")
    assert put(tier, "c1")
    desk.folder.gate.set()
    assert words(settle(tier)) == ["unwritten b1", "unwritten c1"]
    assert tier.off_reason == error.strerror
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "event=disk_tier_off" in caplog.text
    left = {path.name for path in desk.path.iterdir()}
    assert left == {"a1.prefix", "lock", "written.json"}

    refuse(desk, None)
    assert not put(tier, "b1")
    tier.read("a1")
    assert words(settle(tier)) == ["read a1"]
    desk.day = "2026-11-24"
    assert put(tier, "b1")
    assert tier.off_reason is None
    assert words(settle(tier)) == ["written b1"]
    assert tier.stored_bytes == file_bytes_for("a1") + file_bytes_for("b1")


def test_the_reserve_stays_free_to_the_byte(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    desk.free_bytes = RESERVE_BYTES + file_bytes_for("a1")
    put(tier, "a1")
    assert words(settle(tier)) == ["written a1"]
    desk.free_bytes -= 1
    put(tier, "b1")
    assert words(settle(tier)) == ["unwritten b1"]
    assert tier.off_reason is not None
    assert str(RESERVE_BYTES) in tier.off_reason
    assert free_bytes(desk.path) > 0


def test_a_file_that_cannot_be_removed_still_counts_and_turns_writing_off(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    put(tier, "b1")
    settle(tier)
    flip(desk.file("a1"), -1)
    desk.folder.remove_error = READ_ONLY
    tier.remove("b1")
    tier.read("a1")
    assert words(settle(tier)) == ["unread a1"]
    while tier.off_reason is None:
        tier.poll()
    tier.close()
    assert desk.file("a1").exists()

    tier = desk.tier()
    desk.folder.remove_error = READ_ONLY
    flip(desk.file("a1"), 0)
    assert [header.name for header in tier.scan()] == ["b1"]
    assert tier.off_reason is not None
    assert tier.stored_bytes == file_bytes_for("a1") + file_bytes_for("b1")
    assert not put(tier, "c1")
    assert tier.read("b1")
    tier.remove("b1")
    assert words(settle(tier)) == ["read b1"]
    desk.folder.remove_error = None
    tier.close()
    assert len(caplog.records) == 2


def test_an_unremoved_file_counts_again(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    settle(tier)
    desk.folder.remove_error = READ_ONLY
    tier.remove("a1")
    assert tier.stored_bytes == 0
    assert settle(tier) == []
    assert tier.off_reason == READ_ONLY.strerror
    assert tier.stored_bytes == file_bytes_for("a1")


@pytest.mark.parametrize("method", ["sweep", "read_written"])
def test_a_folder_that_cannot_be_tidied_at_the_start_is_only_read(desk: Desk, method: str) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    settle(tier)
    tier.close()
    tier = desk.tier()
    setattr(desk.folder, f"{method}_error", READ_ONLY)
    assert [header.name for header in tier.scan()] == ["a1"]
    assert tier.off_reason == str(READ_ONLY)
    assert not put(tier, "b1")
    tier.read("a1")
    assert words(settle(tier)) == ["read a1"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_read(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    settle(tier)
    tier.close()
    (desk.path / "lock").chmod(0o400)
    desk.path.chmod(0o500)
    try:
        tier = desk.tier()
        assert [header.name for header in tier.scan()] == ["a1"]
        put(tier, "b1")
        tier.read("a1")
        assert sorted(words(settle(tier))) == ["read a1", "unwritten b1"]
        assert tier.off_reason == "Permission denied"
        tier.close()
    finally:
        desk.path.chmod(0o700)


def test_a_folder_that_cannot_be_made_turns_the_tier_off(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.path.write_bytes(b"a file in its place")
    tier = desk.tier()
    assert tier.scan() == []
    assert tier.off_reason is not None
    desk.day = "2026-11-24"
    assert not put(tier, "a1")
    tier.read("a1")
    tier.remove("a1")
    assert words(settle(tier)) == ["unread a1"]
    assert len(caplog.records) == 1


def test_two_engines_do_not_share_a_folder(desk: Desk) -> None:
    first, second = desk.tier(), desk.tier()
    first.scan()
    put(first, "a1")
    settle(first)
    (desk.path / "b1.prefix.partial").write_bytes(b"being written")
    assert second.scan() == []
    assert second.off_reason == "another engine uses the folder"
    desk.day = "2026-11-24"
    assert not put(second, "b1")
    assert (desk.path / "b1.prefix.partial").exists()
    second.close()
    first.close()
    third = desk.tier()
    assert len(third.scan()) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_the_thread_leaves_nothing_pending(desk: Desk) -> None:
    tier = desk.tier()
    tier.scan()
    put(tier, "a1")
    settle(tier)
    desk.folder.read_error = RuntimeError("a defect")
    desk.folder.gate.clear()
    tier.read("a1")
    put(tier, "b1")
    desk.folder.gate.set()
    assert sorted(words(settle(tier))) == ["unread a1", "unwritten b1"]
    assert tier.off_reason == "the disk thread ended"
    desk.day = "2026-11-24"
    assert not put(tier, "c1")
    tier.close()
    assert len(desk.tier(limit_bytes=GIB).scan()) == 1
