"""The ledger beside an event loop: bounds, cancellation, a disk that fails, and who waits."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.ledgers import NOVEMBER_MS, RICH, cloud_row, local_row, reservation
from verger.errors import BudgetExhausted, LedgerUnavailable
from verger.gateway.ledger import Ledger
from verger.gateway.ledger_store import Budget, LedgerRow, LedgerStore, Reservation

pytestmark = pytest.mark.anyio

TIGHT = Budget(key_micro_usd=100, total_micro_usd=100)


class HeldStore(LedgerStore):
    """Its disk answers only while `gate` is open, and fails while `failure` is set."""

    def __init__(self, file: Path | None) -> None:
        super().__init__(file)
        self.gate = threading.Event()
        self.gate.set()
        self.failure: sqlite3.Error | None = None

    def record(self, row: LedgerRow) -> None:
        self._wait()
        super().record(row)

    def reserve(self, reservation: Reservation, budget: Budget) -> None:
        self._wait()
        super().reserve(reservation, budget)

    def settle(self, reservation: Reservation, row: LedgerRow) -> None:
        self._wait()
        super().settle(reservation, row)

    def rows(self) -> list[str]:
        return [name for (name,) in self._execute("SELECT request_id FROM ledger ORDER BY 1")]

    def _wait(self) -> None:
        assert self.gate.wait(30)
        if self.failure is not None:
            raise self.failure


@asynccontextmanager
async def opened(**bounds: Any) -> AsyncIterator[tuple[Ledger, HeldStore]]:
    stores: list[HeldStore] = []

    def connect(file: Path | None) -> LedgerStore:
        stores.append(HeldStore(file))
        return stores[-1]

    ledger = Ledger(connect=connect, **bounds)
    ledger.open()
    ledger.open()
    (store,) = stores
    try:
        yield ledger, store
    finally:
        store.gate.set()
        await ledger.close()


async def spent(ledger: Ledger) -> int:
    """Asked after all that was handed over before."""
    return (await ledger.spending("alice", "acme", NOVEMBER_MS)).total_micro_usd


async def test_a_call_is_reserved_then_settled() -> None:
    async with opened() as (ledger, store):
        taken = reservation("a")
        await ledger.reserve(taken, TIGHT)
        assert await spent(ledger) == 100
        assert await ledger.settle(taken, cloud_row(taken, 30))
        assert await spent(ledger) == 30
        assert store.rows() == ["a"]


async def test_a_settlement_need_not_be_awaited() -> None:
    async with opened() as (ledger, _):
        kept, given_back = reservation("a"), reservation("b")
        for taken in (kept, given_back):
            await ledger.reserve(taken, RICH)
        ledger.settle(kept, cloud_row(kept, 30))
        ledger.release(given_back)
        assert await spent(ledger) == 30


async def test_a_slow_disk_holds_up_nobody_but_those_who_reserve() -> None:
    async with opened() as (ledger, store):
        store.gate.clear()
        ledger.record(local_row("a"))
        reserving = asyncio.create_task(ledger.reserve(reservation("b"), RICH))
        await asyncio.sleep(0)
        assert store.rows() == []
        assert not reserving.done()
        store.gate.set()
        await reserving
        assert store.rows() == ["a"]


async def test_rows_wait_up_to_the_bound_and_one_more_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened(max_waiting_rows=3) as (ledger, store):
        store.gate.clear()
        for name in "abc":
            ledger.record(local_row(name))
        assert caplog.messages == []
        ledger.record(local_row("d"))
        (line,) = caplog.messages
        assert line == 'event=ledger_row_lost id=d reason="too many rows wait to be written"'
        store.gate.set()
        await spent(ledger)
        assert store.rows() == ["a", "b", "c"]
        ledger.record(local_row("e"))
        await spent(ledger)
        assert store.rows() == ["a", "b", "c", "e"]


async def test_calls_are_under_way_up_to_the_bound_and_one_more_is_refused() -> None:
    async with opened(max_open=2) as (ledger, _):
        first, second, third = (reservation(name) for name in "abc")
        await ledger.reserve(first, RICH)
        await ledger.reserve(second, RICH)
        with pytest.raises(LedgerUnavailable, match="2 requests"):
            await ledger.reserve(third, RICH)
        assert await ledger.settle(first, cloud_row(first, 1))
        await ledger.reserve(third, RICH)


async def test_what_was_refused_is_not_under_way() -> None:
    async with opened(max_open=1) as (ledger, _):
        for _ in range(3):
            with pytest.raises(BudgetExhausted):
                await ledger.reserve(reservation("a"), Budget())
        await ledger.reserve(reservation("a"), RICH)


async def test_a_caller_that_is_cancelled_leaves_nothing_reserved() -> None:
    async with opened(max_open=1) as (ledger, store):
        store.gate.clear()
        reserving = asyncio.create_task(ledger.reserve(reservation("a"), RICH))
        await asyncio.sleep(0)
        reserving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reserving
        store.gate.set()
        assert await spent(ledger) == 0
        await ledger.reserve(reservation("b"), RICH)


async def test_a_settlement_is_written_though_its_caller_is_cancelled() -> None:
    async with opened() as (ledger, store):
        taken = reservation("a")
        await ledger.reserve(taken, RICH)
        store.gate.clear()
        ledger.record(local_row("before"))

        async def settle() -> None:
            await ledger.settle(taken, cloud_row(taken, 30))

        settling = asyncio.create_task(settle())
        await asyncio.sleep(0)
        settling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await settling
        store.gate.set()
        assert await spent(ledger) == 30


async def test_a_disk_that_fails_spends_nothing_and_loses_no_reservation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened() as (ledger, store):
        taken = reservation("a")
        await ledger.reserve(taken, RICH)
        store.failure = sqlite3.OperationalError("database or disk is full")
        with pytest.raises(LedgerUnavailable, match="disk is full"):
            await ledger.reserve(reservation("b"), RICH)
        assert not await ledger.settle(taken, cloud_row(taken, 30))
        ledger.record(local_row("c"))
        assert await spent(ledger) == 100
        assert [line.split()[0] for line in caplog.messages] == [
            "event=settlement_lost",
            "event=ledger_row_lost",
        ]


async def test_closing_writes_what_was_handed_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "verger.db")
    ledger.open()
    taken = reservation("open")
    await ledger.reserve(taken, RICH)
    for number in range(100):
        ledger.record(local_row(str(number)))
    await ledger.close()
    await ledger.close()
    reading = sqlite3.connect(tmp_path / "verger.db")
    assert reading.execute("SELECT count(*) FROM ledger").fetchone() == (100,)
    reading.close()


async def test_after_the_end_nothing_is_spent_and_what_is_lost_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ledger = Ledger()
    ledger.open()
    taken = reservation("a")
    await ledger.reserve(taken, RICH)
    await ledger.close()
    with pytest.raises(LedgerUnavailable, match="closed"):
        await ledger.reserve(reservation("b"), RICH)
    assert not await ledger.settle(taken, cloud_row(taken, 30))
    ledger.record(local_row("c"))
    assert [line.split()[:2] for line in caplog.messages] == [
        ["event=settlement_lost", "id=a"],
        ["event=ledger_row_lost", "id=c"],
    ]
