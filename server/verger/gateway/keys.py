"""Keys: what one looks like, what is stored of it, and the table of all of them.

    vg-1f0c9a3e-G5r…43 characters…      the prefix is public: it names the key in lists
    └─ prefix ─┘└ 256 random bits ┘     only the SHA-256 of the whole is stored

So many random bits need no slow hash. Called by `verger keys` and by `key_ring`; must not know HTTP
or what a request may do. Nothing here ever prints a key.
"""

import hashlib
import secrets
import sqlite3
from collections.abc import Iterator

import msgspec
from msgspec import Struct, field

from verger.errors import DatabaseError, KeyNameTaken, KeyNotFound
from verger.gateway.database import transaction
from verger.gateway.principal import TENANT, Principal, Priority, RoutePolicy

MAX_KEYS = 1_000
"""In use; the server holds them all in memory."""
MAX_RPM = 10_000
MAX_PARALLEL = 1_000
PREFIX_BYTES = 4
SECRET_BYTES = 32
START = "vg-"


class Key(Struct, frozen=True, kw_only=True):
    """All that is known of a key; never the key itself, nor its hash."""

    prefix: str
    name: str
    tenant: str = TENANT
    priority: Priority = field(default=Priority.INTERACTIVE, name="class")
    route: RoutePolicy = RoutePolicy.LOCAL_ONLY
    monthly_budget_usd: float = 0.0
    rpm: int | None = None
    """Requests in any 60 seconds; None: no limit."""
    max_parallel: int | None = None
    """Requests at once; None: no limit."""
    is_admin: bool = False
    created_unix_s: int
    expires_unix_s: int | None = None
    revoked_unix_s: int | None = None

    @property
    def principal(self) -> Principal:
        """Who a request with this key is from."""
        return Principal(
            self.prefix,
            self.name,
            self.tenant,
            self.is_admin,
            self.priority,
            self.route,
            self.max_parallel,
            self.monthly_budget_usd,
        )

    def has_expired(self, unix_s: float) -> bool:
        """Whether it is refused from now on."""
        return self.expires_unix_s is not None and unix_s >= self.expires_unix_s


def new_secret() -> str:
    """A key, to be shown once."""
    return f"{START}{secrets.token_hex(PREFIX_BYTES)}-{secrets.token_urlsafe(SECRET_BYTES)}"


def prefix_of(text: str) -> str:
    """The public part of a key; of a prefix, itself."""
    return "-".join(text.split("-", 2)[:2])


def digest_of(secret: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode()).digest()


def add_key(connection: sqlite3.Connection, key: Key, digest: bytes) -> None:
    """Raises KeyNameTaken, or DatabaseError when there are too many."""
    with transaction(connection):
        taken = connection.execute(
            "SELECT 1 FROM keys WHERE name = ? AND revoked_unix_s IS NULL", (key.name,)
        )
        if taken.fetchone():
            raise KeyNameTaken(
                f"there is a key named {key.name} already; choose another name, or first revoke "
                f"that one: verger keys revoke {key.name}"
            )
        if count_keys(connection) >= MAX_KEYS:
            raise DatabaseError(f"there are {MAX_KEYS} keys, the most there can be; revoke some")
        connection.execute(
            "INSERT INTO keys VALUES (:prefix, :digest, :name, :tenant, :class, :route,"
            " :monthly_budget_usd, :rpm, :max_parallel, :is_admin, :created_unix_s,"
            " :expires_unix_s, :revoked_unix_s)",
            {**msgspec.to_builtins(key), "digest": digest},
        )


def revoke_key(connection: sqlite3.Connection, name_or_prefix: str, unix_s: int) -> Key:
    """The key that is now revoked; raises KeyNotFound."""
    revoked = connection.execute(
        "UPDATE keys SET revoked_unix_s = :now WHERE revoked_unix_s IS NULL"
        " AND (name = :name OR prefix = :prefix) RETURNING *",
        {"now": unix_s, "name": name_or_prefix, "prefix": prefix_of(name_or_prefix)},
    ).fetchall()
    if not revoked:
        raise KeyNotFound("no key in use has this name or prefix; verger keys list shows them")
    return _key(revoked[0])


def all_keys(connection: sqlite3.Connection) -> list[Key]:
    """Those in use first, by name; then those that were revoked, the last one first."""
    rows = connection.execute(
        "SELECT * FROM keys ORDER BY revoked_unix_s IS NOT NULL, revoked_unix_s DESC, name"
    )
    return [_key(row) for row in rows]


def count_keys(connection: sqlite3.Connection) -> int:
    """How many are in use: not revoked, though perhaps expired."""
    rows = connection.execute("SELECT count(*) FROM keys WHERE revoked_unix_s IS NULL")
    return int(rows.fetchone()[0])


def keys_in_use(connection: sqlite3.Connection) -> Iterator[tuple[Key, bytes]]:
    """Each with its digest."""
    rows = connection.execute(
        "SELECT * FROM keys WHERE revoked_unix_s IS NULL LIMIT ?", (MAX_KEYS,)
    )
    return ((_key(row), row["digest"]) for row in rows)


def has_ever_had_keys(connection: sqlite3.Connection) -> bool:
    """Whether there is any key, be it revoked."""
    return bool(connection.execute("SELECT EXISTS (SELECT 1 FROM keys)").fetchone()[0])


def _key(row: sqlite3.Row) -> Key:
    return msgspec.convert(dict(row), Key, strict=False)
