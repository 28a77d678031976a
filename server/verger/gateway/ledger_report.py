"""Sums over the ledger, read beside a running server: what `verger usage` shows.

Called by the command line. Reads only; a ledger that is not there is an empty one.
"""

import sqlite3
from enum import Enum
from pathlib import Path

from msgspec import Struct

from verger.errors import LedgerError

BUSY_TIMEOUT_S = 5.0


class Group(Enum):
    """By what rows are added up."""

    KEY = "key"
    MODEL = "model"
    PROVIDER = "provider"
    DAY = "day"


class Sums(Struct, frozen=True):
    """Of some requests. Money is in millionths of a US dollar."""

    name: str
    requests: int
    uncached_tokens: int
    cached_tokens: int
    output_tokens: int
    cash_micro_usd: int
    baseline_micro_usd: int
    gpu_ms: int
    energy_mwh: int

    @property
    def avoided_micro_usd(self) -> int:
        """List prices that did not have to be paid, less what was paid instead."""
        return self.baseline_micro_usd - self.cash_micro_usd


class Usage(Struct, frozen=True):
    """A period of the ledger."""

    first_ms: int | None
    """When the ledger's very first request arrived; None: there is none in the period."""
    total: Sums
    groups: list[Sums]
    model: str | None
    """What this machine answered with most often; None: it has answered nothing."""


_SUMS = """
SELECT
  CASE :by
    WHEN 'key' THEN coalesce(key_id, '(no key)')
    WHEN 'model' THEN model
    WHEN 'provider' THEN coalesce(provider, 'this Mac')
    WHEN 'day' THEN date(unix_ms / 1000, 'unixepoch')
    ELSE 'total'
  END AS name,
  count(DISTINCT request_id), coalesce(sum(uncached_tokens), 0), coalesce(sum(cached_tokens), 0),
  coalesce(sum(output_tokens), 0), coalesce(sum(cost_micro_usd), 0),
  coalesce(sum(baseline_micro_usd), 0), coalesce(sum(gpu_ms), 0), coalesce(sum(energy_mwh), 0)
FROM ledger WHERE unix_ms >= :since_ms AND unix_ms < :until_ms
GROUP BY name ORDER BY name
"""
_FIRST = "SELECT min(unix_ms) FROM ledger"
_MODEL = """
SELECT model FROM ledger
WHERE route = 'local' AND unix_ms >= :since_ms AND unix_ms < :until_ms
GROUP BY model ORDER BY count(*) DESC, model LIMIT 1
"""
_NOTHING = Usage(None, Sums("total", 0, 0, 0, 0, 0, 0, 0, 0), [], None)


def read_usage(file: Path, by: Group | None, since_ms: int, until_ms: int) -> Usage:
    """From `since_ms` on, before `until_ms`. Raises LedgerError for a database that is none."""
    if not file.exists():
        return _NOTHING
    try:
        connection = sqlite3.connect(f"{file.as_uri()}?mode=ro", BUSY_TIMEOUT_S, uri=True)
        try:
            return _read(connection, by, {"since_ms": since_ms, "until_ms": until_ms})
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise LedgerError(f"cannot read the ledger {file}: {error}") from None


def _read(connection: sqlite3.Connection, by: Group | None, within: dict[str, int]) -> Usage:
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'ledger'").fetchone():
        return _NOTHING
    totals = connection.execute(_SUMS, {**within, "by": None}).fetchall()
    if not totals:
        return _NOTHING
    groups = connection.execute(_SUMS, {**within, "by": by.value}).fetchall() if by else []
    (first_ms,) = connection.execute(_FIRST).fetchone()
    model = connection.execute(_MODEL, within).fetchone()
    return Usage(
        first_ms=first_ms,
        total=Sums(*totals[0]),
        groups=[Sums(*group) for group in groups],
        model=model[0] if model else None,
    )
