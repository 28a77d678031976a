"""The ledger as the event loop sees it: one thread writes, and only who must waits for the disk.

Called by `accounting`. A request that costs no cash is recorded in passing. A call that may cost
some is reserved first, which is awaited, and settled or released at its end, which need not be:
until that is on disk the reservation stands, and counts as spent.

Bounds: MAX_WAITING_ROWS rows wait for the thread, and one more is lost, with a line in the log;
MAX_OPEN_RESERVATIONS calls are under way, and one more is refused.
"""

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from verger.errors import BudgetExhausted, LedgerUnavailable
from verger.gateway.ledger_store import (
    Budget,
    LedgerRow,
    LedgerStore,
    Reservation,
    Spending,
)
from verger.log import key_values

logger = logging.getLogger("verger.gateway")

MAX_WAITING_ROWS = 10_000
MAX_OPEN_RESERVATIONS = 1_024

T = TypeVar("T")


class Ledger:
    """Belongs to the event loop; `open` and `close` frame its life."""

    def __init__(
        self,
        file: Path | None = None,
        *,
        max_waiting_rows: int = MAX_WAITING_ROWS,
        max_open: int = MAX_OPEN_RESERVATIONS,
        connect: Callable[[Path | None], LedgerStore] = LedgerStore,
    ) -> None:
        """Without a file it is kept in memory: for tests."""
        self._file = file
        self._connect = connect
        self._places = threading.BoundedSemaphore(max_waiting_rows)
        self._max_open = max_open
        self._open = 0
        self._store: LedgerStore | None = None
        self._writer: ThreadPoolExecutor | None = None

    def open(self) -> None:
        """Once; again is nothing. Raises LedgerError."""
        if self._store is None:
            self._store = self._connect(self._file)
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="verger-ledger")

    async def close(self) -> None:
        """Everything that was handed over is written first."""
        writer, self._writer = self._writer, None
        store, self._store = self._store, None
        if writer is not None and store is not None:
            await asyncio.to_thread(writer.shutdown, wait=True)
            store.close()

    def record(self, row: LedgerRow) -> None:
        """Hand over a row that nothing was reserved for. Never waits, never fails the caller."""
        if self._writer is None or self._store is None:
            _lost(row, "the ledger is closed")
        elif not self._places.acquire(blocking=False):
            _lost(row, "too many rows wait to be written")
        else:
            self._writer.submit(self._record, self._store, row)

    async def reserve(self, reservation: Reservation, budget: Budget) -> None:
        """Take the worst case out of the budgets; it is on disk when this returns.

        Raises BudgetExhausted or LedgerUnavailable. Then, and if cancelled, nothing is reserved.
        """
        if self._open >= self._max_open:
            raise LedgerUnavailable(
                f"{self._max_open} requests are with cloud providers already. Try again later."
            )
        writing = self._submit(lambda store: store.reserve(reservation, budget))
        self._open += 1
        try:
            await writing
        except asyncio.CancelledError:
            # It is written all the same; the release comes after it in the thread's queue.
            self.release(reservation)
            raise
        except BudgetExhausted:
            self._open -= 1
            raise
        except sqlite3.Error as error:
            self._open -= 1
            raise LedgerUnavailable(
                f"The ledger cannot be written ({error}), so nothing is spent. Tell whoever runs "
                "this server; local requests still work."
            ) from None

    def settle(self, reservation: Reservation, row: LedgerRow) -> asyncio.Future[bool]:
        """What the call really cost. Await it to learn whether that is on disk; if not, the
        reservation goes on counting as spent."""
        return self._end(reservation, lambda store: store.settle(reservation, row))

    def release(self, reservation: Reservation) -> asyncio.Future[bool]:
        """The call was not made, or surely cost nothing. As `settle` otherwise."""
        return self._end(reservation, lambda store: store.release(reservation))

    async def spending(self, key_id: str | None, provider: str, unix_ms: int) -> Spending:
        """What the month has cost so far. Raises LedgerUnavailable."""
        try:
            return await self._submit(lambda store: store.spending(key_id, provider, unix_ms))
        except sqlite3.Error as error:
            raise LedgerUnavailable(f"The ledger cannot be read ({error}).") from None

    def _record(self, store: LedgerStore, row: LedgerRow) -> None:
        try:
            store.record(row)
        except sqlite3.Error as error:
            _lost(row, str(error))
        finally:
            self._places.release()

    def _end(
        self, reservation: Reservation, work: Callable[[LedgerStore], None]
    ) -> asyncio.Future[bool]:
        """Bounded by what was reserved, so it always finds room."""
        self._open -= 1

        def end(store: LedgerStore) -> bool:
            try:
                work(store)
            except sqlite3.Error as error:
                _unsettled(reservation, str(error))
                return False
            return True

        try:
            return self._submit(end)
        except LedgerUnavailable as closed:
            _unsettled(reservation, closed.message)
            unwritten = asyncio.get_running_loop().create_future()
            unwritten.set_result(False)
            return unwritten

    def _submit(self, work: Callable[[LedgerStore], T]) -> asyncio.Future[T]:
        """A caller that is cancelled does not take the work out of the thread's queue."""
        writer, store = self._writer, self._store
        if writer is None or store is None:
            raise LedgerUnavailable("The ledger is closed: Verger is shutting down.")
        return asyncio.shield(asyncio.wrap_future(writer.submit(work, store)))


def _unsettled(reservation: Reservation, reason: str) -> None:
    logger.error(key_values(event="settlement_lost", id=reservation.request_id, reason=reason))


def _lost(row: LedgerRow, reason: str) -> None:
    logger.error(key_values(event="ledger_row_lost", id=row.request_id, reason=reason))
