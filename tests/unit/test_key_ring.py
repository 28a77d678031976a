"""What the running server knows of the keys, and when; and the limits of each."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.keys import make_key, revoke
from verger.errors import KeysUnavailable, RateLimited
from verger.gateway.database import database, transaction
from verger.gateway.key_ring import MAX_SECRET_CHARACTERS, HeldKey, KeyRing
from verger.gateway.keys import Key
from verger.gateway.sliding_window import SlidingWindow


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "verger.db"


@contextmanager
def ring_of(file: Path | None, is_loopback: bool = True) -> Iterator[KeyRing]:
    ring = KeyRing(file, is_loopback=is_loopback, is_insecure=False, unix_s=lambda: 50.0)
    try:
        yield ring
    finally:
        ring.close()


def found(ring: KeyRing, secret: str) -> str | None:
    ring.refresh()
    held = ring.find(secret)
    return held.key.name if held else None


def test_changes_are_seen_at_the_next_look(file: Path) -> None:
    first = make_key(file, "first")
    with ring_of(file) as ring:
        assert found(ring, first) == "first"
        second = make_key(file, "second")
        assert found(ring, second) == "second"
        revoke(file, "first")
        assert found(ring, first) is None
        assert found(ring, second) == "second"


def test_only_the_whole_key_is_a_key(file: Path) -> None:
    secret = make_key(file, "ada")
    other = make_key(file, "bob")
    with ring_of(file) as ring:
        for wrong in ("", "vg-", secret[:11], secret[:-1], secret + "x", secret.upper()):
            assert found(ring, wrong) is None
        assert found(ring, secret[:12] + other[12:]) is None
        assert found(ring, "vg-00000000-" + secret[12:]) is None
        assert found(ring, secret + "x" * MAX_SECRET_CHARACTERS) is None
        assert found(ring, secret) == "ada"


def test_the_first_key_closes_an_open_server_for_good(file: Path) -> None:
    with ring_of(file) as ring:
        assert not ring.needs_key
        make_key(file, "ada")
        ring.refresh()
        assert ring.needs_key
        revoke(file, "ada")
        ring.refresh()
        assert ring.needs_key
    with ring_of(file) as restarted:
        assert restarted.needs_key


@pytest.mark.parametrize(("is_insecure", "expected"), [(False, True), (True, False)])
def test_beyond_this_machine_a_key_is_always_needed(
    file: Path, is_insecure: bool, expected: bool
) -> None:
    ring = KeyRing(None, is_loopback=False, is_insecure=is_insecure)
    assert ring.needs_key is expected
    assert not ring.anonymous.is_admin
    assert KeyRing(None, is_loopback=True, is_insecure=False).anonymous.is_admin


def test_another_file_in_its_place_is_read_instead(file: Path, tmp_path: Path) -> None:
    old = make_key(file, "old")
    new = make_key(tmp_path / "backup.db", "new")
    with ring_of(file) as ring:
        assert found(ring, old) == "old"
        for name in ("verger.db-wal", "verger.db-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        os.replace(tmp_path / "backup.db", file)
        assert found(ring, new) == "new"
        assert found(ring, old) is None


def test_a_database_that_is_gone_lets_nobody_in(file: Path, tmp_path: Path) -> None:
    secret = make_key(file, "ada")
    with ring_of(file) as ring:
        for path in tmp_path.iterdir():
            path.unlink()
        assert found(ring, secret) is None
        assert ring.needs_key
        assert found(ring, make_key(file, "bob")) == "bob"


def test_a_database_that_cannot_be_read_is_an_error_until_it_can(file: Path) -> None:
    secret = make_key(file, "ada")
    with ring_of(file) as ring:
        kept = file.read_bytes()
        for path in (file, file.with_name("verger.db-wal"), file.with_name("verger.db-shm")):
            path.unlink(missing_ok=True)
        file.write_bytes(b"no database" * 100)
        for _ in range(2):
            with pytest.raises(KeysUnavailable, match="cannot be read"):
                ring.refresh()
        file.unlink()
        file.write_bytes(kept)
        assert found(ring, secret) == "ada"


def test_a_writer_is_not_waited_for(file: Path) -> None:
    secret = make_key(file, "ada")
    with ring_of(file) as ring, database(file) as connection, transaction(connection):
        connection.execute("UPDATE keys SET revoked_unix_s = 1")
        assert found(ring, secret) == "ada"


def test_what_a_key_does_goes_on_counting_when_others_change(file: Path) -> None:
    secret = make_key(file, "ada", max_parallel=1)
    with ring_of(file) as ring:
        held = ring.find(secret)
        assert held is not None
        held.admit(0.0)
        make_key(file, "bob")
        ring.refresh()
        assert ring.find(secret) is held
        with database(file) as connection:
            connection.execute("UPDATE keys SET max_parallel = 2 WHERE name = 'ada'")
        ring.refresh()
        changed = ring.find(secret)
        assert changed is not None
        assert changed.key.max_parallel == 2


def test_expiry_is_asked_of_the_clock(file: Path) -> None:
    secrets = [make_key(file, str(end), expires_unix_s=end) for end in (50, 51)]
    with ring_of(file) as ring:
        held = [ring.find(secret) for secret in secrets]
        assert [ring.has_expired(key) for key in held if key] == [True, False]


def test_max_parallel_holds_at_the_bound() -> None:
    held = HeldKey(Key(prefix="p", name="ada", created_unix_s=0, max_parallel=2), b"", None)
    held.admit(0.0)
    held.admit(0.0)
    with pytest.raises(RateLimited, match="2 requests under way") as refused:
        held.admit(0.0)
    assert refused.value.retry_after_s
    held.release()
    held.admit(0.0)
    assert (held.running, held.requests) == (2, 3)


def test_rpm_holds_at_the_bound_and_what_was_refused_does_not_count() -> None:
    key = Key(prefix="p", name="ada", created_unix_s=0, rpm=2, max_parallel=2)
    held = HeldKey(key, b"", SlidingWindow(2))
    for now_s in (0.0, 30.0):
        held.admit(now_s)
    with pytest.raises(RateLimited, match="under way"):
        held.admit(59.0)
    held.release()
    for now_s, retry_after_s in ((30.0, 30), (59.5, 1)):
        with pytest.raises(RateLimited, match="2 requests a minute") as refused:
            held.admit(now_s)
        assert refused.value.retry_after_s == retry_after_s
    held.admit(60.0)
    held.release()
    with pytest.raises(RateLimited, match="2 requests a minute"):
        held.admit(89.0)
    held.admit(90.0)


def test_a_window_lets_so_many_pass_in_any_span() -> None:
    window = SlidingWindow(3, window_s=10)
    passed = []
    for now_s in range(40):
        while not window.wait_s(now_s):
            window.note(now_s)
            passed.append(now_s)
    assert len(passed) == 12
    assert max(sum(start <= at < start + 10 for at in passed) for start in range(31)) == 3
