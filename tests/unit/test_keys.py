"""Keys: their form, what is stored of them, and the rules of their table."""

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.keys import make_key
from verger.errors import DatabaseError, KeyNameTaken, KeyNotFound
from verger.gateway import keys as module
from verger.gateway.database import database
from verger.gateway.keys import (
    Key,
    add_key,
    all_keys,
    count_keys,
    digest_of,
    has_ever_had_keys,
    keys_in_use,
    new_secret,
    prefix_of,
    revoke_key,
)
from verger.gateway.principal import TENANT, Principal, Priority, RoutePolicy


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with database(tmp_path / "verger.db") as connection:
        yield connection


def add(connection: sqlite3.Connection, name: str, **fields: object) -> str:
    secret = new_secret()
    fields = {"prefix": prefix_of(secret), "name": name, "created_unix_s": 1, **fields}
    add_key(connection, Key(**fields), digest_of(secret))  # type: ignore[arg-type]
    return secret


def names(connection: sqlite3.Connection) -> list[str]:
    return [key.name for key, _ in keys_in_use(connection)]


def test_a_key_is_a_public_prefix_and_256_random_bits() -> None:
    """43 characters of base64 hold them; that two of a thousand are alike has odds of 2⁻²³⁶."""
    secrets = [new_secret() for _ in range(1000)]
    assert all(re.fullmatch(r"vg-[0-9a-f]{8}-[A-Za-z0-9_-]{43}", secret) for secret in secrets)
    assert len({secret[12:] for secret in secrets}) == 1000
    assert prefix_of(secrets[0]) == prefix_of(secrets[0][:11]) == secrets[0][:11]


def test_the_prefix_of_a_key_with_dashes_is_found() -> None:
    assert prefix_of("vg-00112233--a-b-") == "vg-00112233"


def test_what_was_stored_comes_back_whole(connection: sqlite3.Connection) -> None:
    key = Key(
        prefix="vg-00112233",
        name="ada",
        tenant="lab",
        priority=Priority.BATCH,
        rpm=3,
        max_parallel=2,
        is_admin=True,
        created_unix_s=4,
        expires_unix_s=5,
    )
    add_key(connection, key, b"digest")

    assert list(keys_in_use(connection)) == [(key, b"digest")]
    assert all_keys(connection) == [key]
    assert key.principal == Principal(
        "vg-00112233", "ada", "lab", True, Priority.BATCH, RoutePolicy.LOCAL_ONLY, 2
    )


def test_a_key_without_wishes_belongs_to_the_office() -> None:
    key = Key(prefix="p", name="n", created_unix_s=0)
    assert (key.tenant, key.priority, key.route) == (TENANT, "interactive", "local-only")
    assert (key.monthly_budget_usd, key.rpm, key.max_parallel, key.is_admin) == (0, None, None, 0)
    assert key.expires_unix_s is None
    assert not key.has_expired(10**12)


def test_the_secret_is_in_no_file(tmp_path: Path) -> None:
    secret = make_key(tmp_path / "verger.db", "ada")
    with database(tmp_path / "verger.db"):
        stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"ada" in stored
    assert secret[:11].encode() in stored
    assert secret[12:].encode() not in stored
    assert digest_of(secret) in stored


def test_a_name_is_free_again_once_its_key_is_revoked(connection: sqlite3.Connection) -> None:
    add(connection, "ada")
    with pytest.raises(KeyNameTaken, match="verger keys revoke ada"):
        add(connection, "ada")
    assert count_keys(connection) == 1
    revoke_key(connection, "ada", unix_s=7)
    add(connection, "ada")

    assert names(connection) == ["ada"]
    assert [key.revoked_unix_s for key in all_keys(connection)] == [None, 7]


@pytest.mark.parametrize("what", [lambda secret: "ada", prefix_of, str])
def test_a_key_is_revoked_by_name_prefix_or_itself(
    connection: sqlite3.Connection, what: object
) -> None:
    assert callable(what)
    secret = add(connection, "ada")
    add(connection, "bob")
    assert revoke_key(connection, what(secret), unix_s=7).name == "ada"
    assert names(connection) == ["bob"]
    with pytest.raises(KeyNotFound, match="verger keys list") as refused:
        revoke_key(connection, what(secret), unix_s=8)
    assert secret not in str(refused.value)


def test_that_there_were_keys_is_remembered(connection: sqlite3.Connection) -> None:
    assert not has_ever_had_keys(connection)
    add(connection, "ada")
    revoke_key(connection, "ada", unix_s=7)
    assert count_keys(connection) == 0
    assert has_ever_had_keys(connection)


def test_those_in_use_come_first(connection: sqlite3.Connection) -> None:
    for name, unix_s in (("a", 8), ("b", 9), ("d", 0), ("c", 0)):
        add(connection, name)
        if unix_s:
            revoke_key(connection, name, unix_s)
    assert [key.name for key in all_keys(connection)] == ["c", "d", "b", "a"]


def test_there_are_so_many_keys_and_no_more(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEYS", 2)
    add(connection, "a")
    add(connection, "b")
    with pytest.raises(DatabaseError, match="2 keys, the most"):
        add(connection, "c")
    revoke_key(connection, "a", unix_s=7)
    add(connection, "c")
    assert sorted(names(connection)) == ["b", "c"]


def test_a_key_ends_with_its_last_second() -> None:
    key = Key(prefix="p", name="n", created_unix_s=0, expires_unix_s=100)
    assert not key.has_expired(99.9)
    assert key.has_expired(100.0)
