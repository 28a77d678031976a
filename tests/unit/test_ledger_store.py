"""The ledger's tables: what a month has cost, what is refused, what a crash leaves."""

import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.ledgers import DECEMBER_MS, NOVEMBER_MS, RICH, cloud_row, local_row, reservation
from verger.errors import BudgetExhausted, LedgerError
from verger.gateway.ledger_store import Budget, LedgerStore, Spending, month_of


@pytest.fixture
def store() -> Iterator[LedgerStore]:
    store = LedgerStore(None)
    yield store
    store.close()


def spent(store: LedgerStore, unix_ms: int = NOVEMBER_MS) -> int:
    return store.spending("alice", "acme", unix_ms).total_micro_usd


def test_a_budget_is_zero_unless_somebody_says_otherwise(store: LedgerStore) -> None:
    with pytest.raises(BudgetExhausted, match=r"of the whole server for 2026-11 is \$0\.00"):
        store.reserve(reservation("a", worst=1), Budget())
    store.reserve(reservation("b", worst=0), Budget())


@pytest.mark.parametrize(
    ("budget", "whose"),
    [
        (Budget(key_micro_usd=300, total_micro_usd=10**6), "this key"),
        (Budget(key_micro_usd=10**6, total_micro_usd=300), "the whole server"),
        (Budget(10**6, 10**6, provider_micro_usd=300), "the provider acme"),
    ],
)
def test_a_budget_is_used_up_to_its_last_millionth_and_not_beyond(
    budget: Budget, whose: str, store: LedgerStore
) -> None:
    first = reservation("a", worst=200)
    store.reserve(first, budget)
    store.settle(first, cloud_row(first, 100))
    store.reserve(reservation("b", worst=200), budget)
    with pytest.raises(BudgetExhausted, match=whose):
        store.reserve(reservation("c", worst=1), budget)
    assert spent(store) == 300


def test_what_is_left_of_the_worst_case_can_be_spent_again(store: LedgerStore) -> None:
    budget = Budget(key_micro_usd=100, total_micro_usd=100)
    for number in range(10):
        taken = reservation(str(number), worst=91)
        store.reserve(taken, budget)
        store.settle(taken, cloud_row(taken, 1))
    assert spent(store) == 10
    with pytest.raises(BudgetExhausted):
        store.reserve(reservation("b", worst=91), budget)


def test_what_is_released_was_not_spent(store: LedgerStore) -> None:
    taken = reservation("a", worst=100)
    store.reserve(taken, Budget(100, 100))
    store.release(taken)
    assert spent(store) == 0
    store.reserve(reservation("b", worst=100), Budget(100, 100))


def test_keys_and_providers_have_sums_of_their_own(store: LedgerStore) -> None:
    for name, key, provider in (("a", "alice", "acme"), ("b", "bob", "acme"), ("c", None, "zoo")):
        taken = reservation(name, worst=100, key_id=key, provider=provider)
        store.reserve(taken, RICH)
        if name == "b":
            store.settle(taken, cloud_row(taken, 40))
    assert store.spending("alice", "acme", NOVEMBER_MS) == Spending(100, 140, 240)
    assert store.spending("bob", "zoo", NOVEMBER_MS) == Spending(40, 100, 240)
    assert store.spending(None, "zoo", NOVEMBER_MS) == Spending(100, 100, 240)


def test_a_new_month_has_a_new_budget(store: LedgerStore) -> None:
    assert (month_of(NOVEMBER_MS), month_of(DECEMBER_MS)) == ("2026-11", "2026-12")
    store.reserve(reservation("a", worst=100), Budget(100, 100))
    store.reserve(reservation("b", worst=100, unix_ms=DECEMBER_MS), Budget(100, 100))
    assert spent(store) == spent(store, DECEMBER_MS) == 100


def test_the_month_that_reserved_is_the_month_that_pays(store: LedgerStore) -> None:
    taken = reservation("a", worst=100)
    store.reserve(taken, RICH)
    store.settle(taken, cloud_row(taken, 60, unix_ms=DECEMBER_MS))
    assert (spent(store), spent(store, DECEMBER_MS)) == (60, 0)


def test_attempts_of_one_request_are_counted_each(store: LedgerStore) -> None:
    for attempt in (1, 2):
        taken = reservation("a", worst=100, attempt=attempt)
        store.reserve(taken, RICH)
        store.settle(taken, cloud_row(taken, 10))
    assert spent(store) == 20


def test_a_provider_that_charges_more_than_the_worst_case_is_believed(store: LedgerStore) -> None:
    taken = reservation("a", worst=100)
    store.reserve(taken, Budget(100, 100))
    store.settle(taken, cloud_row(taken, 150))
    assert spent(store) == 150


def test_local_requests_cost_nothing_of_a_budget(store: LedgerStore) -> None:
    store.record(local_row("a"))
    assert spent(store) == 0


def test_what_was_under_way_when_the_process_died_is_spent(tmp_path: Path) -> None:
    file = tmp_path / "verger.db"
    store = LedgerStore(file)
    done, open_one = reservation("done", worst=100), reservation("open", worst=100)
    for taken in (done, open_one):
        store.reserve(taken, RICH)
    store.settle(done, cloud_row(done, 30))
    store.close()

    for _ in range(2):  # Once, however often it is opened.
        store = LedgerStore(file)
        assert spent(store) == 130
        store.close()
    with sqlite3.connect(file) as reading:
        rows = reading.execute("SELECT request_id, finish, cost_micro_usd, route FROM ledger")
        assert set(rows) == {("done", "stop", 30, "cloud"), ("open", "interrupted", 100, "cloud")}
    reading.close()


def test_a_call_that_ends_after_another_server_gave_it_up_counts_once(tmp_path: Path) -> None:
    """Two servers in one state folder: the second takes the first's calls for interrupted."""
    first = LedgerStore(tmp_path / "verger.db")
    settled, released = reservation("a", worst=100), reservation("b", worst=100)
    for taken in (settled, released):
        first.reserve(taken, RICH)
    second = LedgerStore(tmp_path / "verger.db")
    assert spent(second) == 200
    first.settle(settled, cloud_row(settled, 30))
    first.release(released)
    assert spent(second) == 30
    first.close()
    second.close()


def test_two_servers_share_a_budget(tmp_path: Path) -> None:
    stores = [LedgerStore(tmp_path / "verger.db") for _ in range(2)]
    stores[0].reserve(reservation("a", worst=100), Budget(150, 150))
    with pytest.raises(BudgetExhausted):
        stores[1].reserve(reservation("b", worst=100), Budget(150, 150))
    for store in stores:
        store.close()


def test_a_refused_reservation_leaves_the_ledger_usable(store: LedgerStore) -> None:
    with pytest.raises(BudgetExhausted):
        store.reserve(reservation("a"), Budget())
    store.reserve(reservation("b"), RICH)
    with pytest.raises(sqlite3.IntegrityError):
        store.reserve(reservation("b"), RICH)
    store.record(local_row("c"))
    assert spent(store) == 100


def test_no_column_holds_a_float(store: LedgerStore) -> None:
    """STRICT tables refuse what is not a whole number; the type checker would too."""
    wrong = replace(local_row("a"), baseline_micro_usd=0.5)
    with pytest.raises(sqlite3.IntegrityError):
        store.record(wrong)


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_only_the_owner_reads_the_database_and_its_journal(tmp_path: Path) -> None:
    store = LedgerStore(tmp_path / "state" / "verger.db")
    store.record(local_row("a"))
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "state").iterdir()}
    assert modes == {0o600}
    store.close()


def test_a_database_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "verger.db"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match=r"verger\.db: file is not a database"):
        LedgerStore(file)
    with pytest.raises(LedgerError, match="cannot keep the ledger"):
        LedgerStore(tmp_path)
