"""The ledger's tables in SQLite: a row per request, what is reserved, what a month has cost so far.

Used by `ledger`, whose one thread is the only one that calls it; reports read beside it. Money is
whole millionths of a US dollar and time whole milliseconds: no floats. No text of any prompt.

    reserve ──► open ──► settle: the row, with what it really cost
                  ├────► release: nothing was spent
                  └────► the process died: at the next start, a row with the worst case

Reservations and settlements are on disk before the call returns; rows of what cost no cash only
survive the process, which is a thousandth of the work.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct
from msgspec.structs import asdict

from verger.errors import BudgetExhausted, LedgerError
from verger.gateway.database import connect

INTERRUPTED = "interrupted"
"""How a request finished that was under way when the process died."""
LOCAL, CLOUD = "local", "cloud"
"""Routes."""
BUSY_TIMEOUT_S = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (
  request_id TEXT NOT NULL, attempt INTEGER NOT NULL,
  unix_ms INTEGER NOT NULL, month TEXT NOT NULL,
  key_id TEXT, model_asked TEXT, model TEXT NOT NULL,
  route TEXT NOT NULL, provider TEXT, reason TEXT, finish TEXT NOT NULL,
  uncached_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL,
  output_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL,
  ttft_ms INTEGER, wall_ms INTEGER NOT NULL, gpu_ms INTEGER, energy_mwh INTEGER,
  cost_micro_usd INTEGER NOT NULL, price_id TEXT,
  baseline_id TEXT, baseline_micro_usd INTEGER,
  PRIMARY KEY (request_id, attempt)
) STRICT;
CREATE INDEX IF NOT EXISTS ledger_by_time ON ledger (unix_ms);
CREATE INDEX IF NOT EXISTS ledger_spending
  ON ledger (month, key_id, provider, cost_micro_usd) WHERE cost_micro_usd > 0;
CREATE TABLE IF NOT EXISTS reservations (
  request_id TEXT NOT NULL, attempt INTEGER NOT NULL,
  unix_ms INTEGER NOT NULL, month TEXT NOT NULL,
  key_id TEXT, model TEXT NOT NULL, provider TEXT NOT NULL, worst_micro_usd INTEGER NOT NULL,
  PRIMARY KEY (request_id, attempt)
) STRICT;
"""
_INSERT_ROW = """
INSERT OR REPLACE INTO ledger VALUES (
  :request_id, :attempt, :unix_ms, :month, :key_id, :model_asked, :model, :route, :provider,
  :reason, :finish, :uncached_tokens, :cached_tokens, :output_tokens, :reasoning_tokens, :ttft_ms,
  :wall_ms, :gpu_ms, :energy_mwh, :cost_micro_usd, :price_id, :baseline_id, :baseline_micro_usd)
"""
_INSERT_RESERVATION = """
INSERT INTO reservations VALUES (
  :request_id, :attempt, :unix_ms, :month, :key_id, :model, :provider, :worst_micro_usd)
"""
_DELETE_RESERVATION = (
    "DELETE FROM reservations WHERE request_id = :request_id AND attempt = :attempt"
)
_DELETE_INTERRUPTED = """
DELETE FROM ledger
WHERE request_id = :request_id AND attempt = :attempt AND finish = 'interrupted'
"""
_SETTLE_INTERRUPTED = """
INSERT OR REPLACE INTO ledger
SELECT request_id, attempt, unix_ms, month, key_id, NULL, model, 'cloud', provider, NULL,
  'interrupted', 0, 0, 0, 0, NULL, 0, NULL, NULL, worst_micro_usd, NULL, NULL, NULL
FROM reservations
"""
_SPENDING = """
SELECT
  coalesce(sum(micro_usd) FILTER (WHERE key_id IS :key_id), 0),
  coalesce(sum(micro_usd) FILTER (WHERE provider = :provider), 0),
  coalesce(sum(micro_usd), 0)
FROM (
  SELECT key_id, provider, cost_micro_usd AS micro_usd FROM ledger
    WHERE month = :month AND cost_micro_usd > 0
  UNION ALL
  SELECT key_id, provider, worst_micro_usd FROM reservations WHERE month = :month)
"""


class LedgerRow(Struct, frozen=True, kw_only=True):
    """One request, or one of several attempts that may each have cost something."""

    request_id: str
    attempt: int = 1
    unix_ms: int
    """When it arrived."""
    key_id: str | None = None
    model_asked: str | None = None
    model: str
    """What answered."""
    route: str
    provider: str | None = None
    reason: str | None = None
    finish: str
    """How it ended: finish reasons, or the code of an error."""
    uncached_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    """Part of the output."""
    ttft_ms: int | None = None
    wall_ms: int = 0
    gpu_ms: int | None = None
    """Estimated from its tokens and the machine's rates, as is the energy (in mWh)."""
    energy_mwh: int | None = None
    cost_micro_usd: int = 0
    price_id: str | None = None
    """The file that the cost was counted by; None where the provider said it, or none arose."""
    baseline_id: str | None = None
    """The file and model that the list cost is of."""
    baseline_micro_usd: int | None = None
    """What it would have cost by that list; None: nobody sells the like, or it failed."""


class Reservation(Struct, frozen=True, kw_only=True):
    """The most that a call can cost, taken out of the budgets before it is made."""

    request_id: str
    attempt: int = 1
    unix_ms: int
    key_id: str | None
    model: str
    provider: str
    worst_micro_usd: int


class Budget(Struct, frozen=True):
    """The most per calendar month (UTC), in millionths of a US dollar. Nothing unless said."""

    key_micro_usd: int = 0
    total_micro_usd: int = 0
    provider_micro_usd: int | None = None
    """None: the provider has no limit of its own."""


class Spending(Struct, frozen=True):
    """What a month has cost so far, open reservations included at their worst."""

    key_micro_usd: int
    provider_micro_usd: int
    total_micro_usd: int


class LedgerStore:
    """One connection. Errors are sqlite3's own, but for BudgetExhausted and those of opening."""

    def __init__(self, file: Path | None) -> None:
        """Opens or makes the database, in memory without a file; what was under way when the last
        process died becomes spent. Raises LedgerError."""
        try:
            self._connection = _connect(file)
            with self._transaction(is_durable=True):
                self._execute(_SETTLE_INTERRUPTED)
                self._execute("DELETE FROM reservations")
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(
                f"cannot keep the ledger in {file}: {error}. Make room, or restore the file; "
                "without it nothing can be accounted for"
            ) from None

    def record(self, row: LedgerRow) -> None:
        """A row that nothing was reserved for."""
        with self._transaction(is_durable=False):
            self._insert(row)

    def reserve(self, reservation: Reservation, budget: Budget) -> None:
        """Raises BudgetExhausted where the worst case exceeds what is left."""
        with self._transaction(is_durable=True):
            spent = self.spending(reservation.key_id, reservation.provider, reservation.unix_ms)
            _check(reservation, budget, spent)
            self._execute(_INSERT_RESERVATION, _columns(reservation))

    def settle(self, reservation: Reservation, row: LedgerRow) -> None:
        """The row takes the place of what was reserved, in the same month."""
        with self._transaction(is_durable=True):
            self._execute(_DELETE_RESERVATION, asdict(reservation))
            self._insert(row, reservation.unix_ms)

    def release(self, reservation: Reservation) -> None:
        """Nothing was spent."""
        with self._transaction(is_durable=True):
            self._execute(_DELETE_RESERVATION, asdict(reservation))
            self._execute(_DELETE_INTERRUPTED, asdict(reservation))

    def spending(self, key_id: str | None, provider: str, unix_ms: int) -> Spending:
        """In the month of that moment."""
        place = {"key_id": key_id, "provider": provider, "month": month_of(unix_ms)}
        return Spending(*self._execute(_SPENDING, place).fetchone())

    def close(self) -> None:
        """What was written is in the file itself, not only in its journal."""
        self._connection.close()

    def _insert(self, row: LedgerRow, month_ms: int | None = None) -> None:
        self._execute(_INSERT_ROW, _columns(row, month_ms))

    def _execute(
        self, statement: str, values: Mapping[str, object] | None = None
    ) -> sqlite3.Cursor:
        return self._connection.execute(statement, values or {})

    @contextmanager
    def _transaction(self, *, is_durable: bool) -> Iterator[None]:
        """All or nothing; a durable one waits for the disk."""
        self._execute(f"PRAGMA synchronous = {'FULL' if is_durable else 'NORMAL'}")
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.rollback()


def month_of(unix_ms: int) -> str:
    """The calendar month whose budget pays, as 2026-11."""
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m")


def _connect(file: Path | None) -> sqlite3.Connection:
    if file is None:
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    else:
        connection = connect(file, BUSY_TIMEOUT_S, any_thread=True)
    # On a Mac, fsync alone leaves the data in the drive's cache.
    connection.execute("PRAGMA fullfsync = ON")
    connection.executescript(_SCHEMA)
    return connection


def _columns(row: LedgerRow | Reservation, month_ms: int | None = None) -> Mapping[str, object]:
    return {**asdict(row), "month": month_of(row.unix_ms if month_ms is None else month_ms)}


def _check(reservation: Reservation, budget: Budget, spent: Spending) -> None:
    limits = [
        ("the whole server", budget.total_micro_usd, spent.total_micro_usd),
        ("this key", budget.key_micro_usd, spent.key_micro_usd),
        (
            f"the provider {reservation.provider}",
            budget.provider_micro_usd,
            spent.provider_micro_usd,
        ),
    ]
    for whose, limit, used in limits:
        # What surely costs nothing is beyond no budget, not even one that was made smaller.
        if reservation.worst_micro_usd == 0:
            continue
        if limit is not None and used + reservation.worst_micro_usd > limit:
            raise BudgetExhausted(
                f"The cloud budget of {whose} for {month_of(reservation.unix_ms)} is "
                f"${limit / 1e6:.2f}; ${used / 1e6:.2f} of it is spent or reserved, and this "
                f"request may cost up to ${reservation.worst_micro_usd / 1e6:.4f}. Ask for a "
                "larger budget, or send it with x-verger-route: local-only."
            )
