"""The keys as the running server holds them: looked up by prefix, and what each is doing now.

Asked by `authentication` at every request; belongs to the event loop. Changes made by `verger keys`
are seen at the next request: SQLite's data_version says in 2 µs whether anybody has written, and
only then are the keys read again, which takes 5 ms for a thousand. A reader waits for no writer.

    no key was ever made, only this machine can connect → open
    the first key                                       → closed, and stays so
    the last key revoked, the database gone or damaged  → closed
"""

import hmac
import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from verger.errors import DatabaseError, KeysUnavailable, RateLimited
from verger.gateway.database import explained, open_database
from verger.gateway.keys import Key, digest_of, has_ever_had_keys, keys_in_use, prefix_of
from verger.gateway.principal import ANONYMOUS, Principal
from verger.gateway.sliding_window import SlidingWindow

BUSY_S = 0.005
"""The event loop waits no longer, should another process hold the whole database."""
MAX_SECRET_CHARACTERS = 128
RETRY_AFTER_S = 2

_NO_DIGEST = bytes(32)
"""Compared with where no key has the prefix, so that both cases take as long."""


@dataclass(slots=True)
class HeldKey:
    """A key and its requests. `admit` is followed by exactly one `release`."""

    key: Key
    digest: bytes
    window: SlidingWindow | None
    running: int = 0
    requests: int = 0
    """Admitted since the server began."""

    def admit(self, now_s: float) -> None:
        """Count a request that begins; raises RateLimited if a limit of the key is reached."""
        key = self.key
        if key.max_parallel is not None and self.running >= key.max_parallel:
            raise RateLimited(
                f"The key {key.name} has {key.max_parallel} requests under way, the most it may. "
                "Wait until one of them has ended.",
                retry_after_s=RETRY_AFTER_S,
            )
        if self.window is not None:
            if wait_s := self.window.wait_s(now_s):
                raise RateLimited(
                    f"The key {key.name} may make {key.rpm} requests a minute. Try again in "
                    f"{ceil(wait_s)} s.",
                    retry_after_s=ceil(wait_s),
                )
            self.window.note(now_s)
        self.running += 1
        self.requests += 1

    def release(self) -> None:
        """A request has ended, however it did."""
        self.running -= 1
        assert self.running >= 0


class KeyRing:
    """One per process. `file` None: there are no keys."""

    def __init__(
        self,
        file: Path | None,
        *,
        is_loopback: bool,
        is_insecure: bool,
        unix_s: Callable[[], float] = time.time,
    ) -> None:
        self.anonymous: Principal = replace(ANONYMOUS, is_admin=is_loopback)
        """Whoever asks while no key is needed; beyond this machine, nobody is an admin unseen."""
        self._file = file
        self._is_loopback = is_loopback
        self._is_insecure = is_insecure
        self._unix_s = unix_s
        self._database: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._data_version = -1
        self._held: dict[str, HeldKey] = {}
        self._has_had_keys = False
        if file is not None:
            self._open(file)
            self._read()

    @property
    def needs_key(self) -> bool:
        """Whether requests without a key are refused, as of the last `refresh`."""
        return not self._is_insecure and (not self._is_loopback or self._has_had_keys)

    @property
    def held(self) -> list[HeldKey]:
        """All keys in use."""
        return list(self._held.values())

    def refresh(self) -> None:
        """See what other processes have changed; raises KeysUnavailable."""
        if self._file is None:
            return
        try:
            with explained(self._file):
                if self._database is None or _identity(self._file) != self._identity:
                    self._open(self._file)
                self._read()
        except DatabaseError as error:
            raise KeysUnavailable(
                "Keys cannot be checked at the moment; the state database cannot be read. "
                "Try again in a few seconds.",
                retry_after_s=RETRY_AFTER_S,
            ) from error

    def find(self, secret: str) -> HeldKey | None:
        """The key that this is, be it expired; compared in constant time."""
        if len(secret) > MAX_SECRET_CHARACTERS:
            return None
        held = self._held.get(prefix_of(secret))
        expected = _NO_DIGEST if held is None else held.digest
        return held if hmac.compare_digest(digest_of(secret), expected) else None

    def has_expired(self, held: HeldKey) -> bool:
        """Whether its time is over."""
        return held.key.has_expired(self._unix_s())

    def close(self) -> None:
        """Close the database; keys stay as they were."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _open(self, file: Path) -> None:
        """Also when another file has taken the place of ours, as after a restored backup."""
        self.close()
        self._database = open_database(file, BUSY_S)
        self._identity = _identity(file)
        self._data_version = -1

    def _read(self) -> None:
        assert self._database is not None
        # Asked before the keys are read: what is written in between is seen the next time.
        (data_version,) = self._database.execute("PRAGMA data_version").fetchone()
        if data_version == self._data_version:
            return
        self._held = {
            key.prefix: self._hold(key, digest) for key, digest in keys_in_use(self._database)
        }
        self._has_had_keys |= has_ever_had_keys(self._database)
        self._data_version = data_version

    def _hold(self, key: Key, digest: bytes) -> HeldKey:
        """The same as before where nothing has changed: its requests go on counting."""
        held = self._held.get(key.prefix)
        if held is not None and (held.key, held.digest) == (key, digest):
            return held
        return HeldKey(key, digest, None if key.rpm is None else SlidingWindow(key.rpm))


def _identity(file: Path) -> tuple[int, int] | None:
    """Which file it is; None if there is none."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
