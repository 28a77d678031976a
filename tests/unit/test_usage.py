"""`verger usage`: the ledger's sums, three numbers of them, and what an empty one says."""

import csv
import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import Verger
from tests.ledgers import DECEMBER_MS, RICH, cloud_row, local_row, reservation
from tests.prices import MINI
from verger.costs.balance import balance
from verger.costs.formulas import amortisation_usd_per_h, energy_usd_per_h
from verger.errors import LedgerError
from verger.gateway.ledger_report import Group, Usage, read_usage
from verger.gateway.ledger_store import LedgerRow, LedgerStore

DAY_MS = 86_400_000


@pytest.fixture
def file(verger_home: Path) -> Path:
    return verger_home / "verger.db"


def fill(file: Path, *rows: LedgerRow) -> None:
    store = LedgerStore(file)
    for row in rows:
        store.record(row)
    store.close()


def everything(file: Path, by: Group | None = None) -> Usage:
    return read_usage(file, by, 0, 2 * DECEMBER_MS)


def test_a_ledger_that_is_not_there_is_empty(file: Path) -> None:
    usage = everything(file)
    assert (usage.first_ms, usage.total.requests, usage.groups) == (None, 0, [])
    assert not file.exists()


def test_cash_and_avoided_are_added_up_apart(file: Path) -> None:
    store = LedgerStore(file)
    taken = reservation("c")
    store.reserve(taken, RICH)
    store.settle(taken, cloud_row(taken, 40, baseline_micro_usd=100))
    store.record(local_row("a", baseline_micro_usd=50))
    store.record(local_row("b", baseline_micro_usd=None))
    store.close()
    total = everything(file).total
    assert (total.requests, total.cash_micro_usd, total.baseline_micro_usd) == (3, 40, 150)
    assert total.avoided_micro_usd == 110


def test_a_cloud_call_that_costs_more_than_the_list_avoids_less_than_nothing(file: Path) -> None:
    store = LedgerStore(file)
    taken = reservation("c")
    store.reserve(taken, RICH)
    store.settle(taken, cloud_row(taken, 40, baseline_micro_usd=30))
    store.close()
    assert everything(file).total.avoided_micro_usd == -10


def test_what_was_interrupted_is_cash(file: Path) -> None:
    store = LedgerStore(file)
    store.reserve(reservation("c", worst=70), RICH)
    store.close()
    LedgerStore(file).close()
    assert everything(file).total.cash_micro_usd == 70


@pytest.mark.parametrize(
    ("by", "names"),
    [
        (Group.KEY, {"(no key)": 1, "alice": 2}),
        (Group.MODEL, {"gpt-oss-120b": 1, "gpt-oss-20b": 2}),
        (Group.PROVIDER, {"acme": 1, "this Mac": 2}),
        (Group.DAY, {"2026-11-21": 2, "2026-12-03": 1}),
    ],
)
def test_rows_are_added_up_by_group(by: Group, names: dict[str, int], file: Path) -> None:
    fill(
        file,
        local_row("a"),
        local_row("b", key_id=None, model="gpt-oss-120b"),
        local_row("c", unix_ms=DECEMBER_MS, route="cloud", provider="acme"),
    )
    groups = everything(file, by).groups
    assert {group.name: group.requests for group in groups} == names
    assert sum(group.output_tokens for group in groups) == 60


def test_several_attempts_are_one_request(file: Path) -> None:
    fill(file, *(local_row("a", attempt=attempt) for attempt in (1, 2)))
    total = everything(file).total
    assert (total.requests, total.output_tokens) == (1, 40)


def test_a_period_begins_with_its_first_moment_and_ends_before_its_last(file: Path) -> None:
    fill(file, *(local_row(str(ms), unix_ms=ms) for ms in (1_000, 2_000, 3_000)))
    usage = read_usage(file, Group.DAY, 1_000, 3_000)
    assert usage.total.requests == 2
    assert [group.requests for group in usage.groups] == [2]
    assert read_usage(file, None, 3_001, 9_000).total.requests == 0


def test_the_model_is_the_one_that_this_machine_answered_with_most(file: Path) -> None:
    fill(
        file,
        local_row("a", model="gpt-oss-20b"),
        local_row("b", model="gpt-oss-120b"),
        local_row("c", model="gpt-oss-120b"),
        *(local_row(str(number), model="gpt-5-mini", route="cloud") for number in range(5)),
    )
    assert everything(file).model == "gpt-oss-120b"


def test_a_file_that_is_no_database_is_refused_by_name(file: Path, verger: Verger) -> None:
    file.parent.mkdir()
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match=r"verger\.db"):
        everything(file)
    assert verger("usage").status == 3


def test_a_database_without_a_ledger_is_empty(file: Path) -> None:
    file.parent.mkdir()
    file.touch()
    assert everything(file).first_ms is None


def test_the_net_is_what_worth_and_electricity_leave_of_the_avoided() -> None:
    """Ten hours, one of them busy: 60 Wh beyond idling."""
    known = balance(MINI, hours=10, avoided_usd=2.0, gpu_s=3_600, energy_wh=60)
    assert known.amortisation_usd == pytest.approx(10 * amortisation_usd_per_h(MINI))
    assert known.energy_usd == pytest.approx(10 * energy_usd_per_h(MINI, 0) + 0.012)
    assert known.net_usd == pytest.approx(2.0 - known.amortisation_usd - known.energy_usd)
    assert known.busy == pytest.approx(0.1)
    assert known.is_paying_off


def test_at_the_projected_utilisation_nothing_is_lost_or_won() -> None:
    """What a busy hour avoided, 0.20, would have to come more often."""
    known = balance(MINI, hours=10, avoided_usd=0.20, gpu_s=3_600, energy_wh=60)
    assert not known.is_paying_off
    assert known.break_even_busy is not None
    busy_h = 10 * known.break_even_busy
    even = balance(MINI, 10, 0.20 * busy_h, 3_600 * busy_h, 60 * busy_h)
    assert even.net_usd == pytest.approx(0)


def test_a_machine_that_computed_nothing_has_no_projection() -> None:
    assert balance(MINI, 10, 0.0, 0.0, 0.0).break_even_busy is None


def test_the_command_says_when_the_ledger_is_empty(verger: Verger, file: Path) -> None:
    outcome = verger("usage")
    assert (outcome.status, outcome.out) == (
        0,
        f"The ledger has no requests in that time ({file}).\n",
    )


def recent(name: str, **changes: Any) -> LedgerRow:
    """An hour ago."""
    return local_row(name, unix_ms=round(time.time() * 1000) - 3_600_000, **changes)


def test_the_command_prints_three_numbers_and_a_verdict(verger: Verger, file: Path) -> None:
    fill(file, recent("a", baseline_micro_usd=20_000, gpu_ms=60_000, energy_mwh=1_000))
    text = verger("usage", "--by", "key").out
    lines = [line.split() for line in text.splitlines()]
    assert ["cash", "0.0000", "USD"] in [line[:3] for line in lines]
    assert ["avoided", "0.0200", "USD"] in [line[:3] for line in lines]
    (net,) = [line for line in lines if line[:1] == ["net"]]
    assert float(net[1]) == pytest.approx(0.02 - 0.0634 - 0.001 - 0.0002, abs=2e-4)
    assert "Not paying off: it computed 1.67% of the time;" in text
    assert "it does from 5% on" in text
    assert ["alice", "1", "30", "10", "20", "0.0000", "0.0200"] in lines


def test_the_command_says_when_it_pays_off(verger: Verger, file: Path) -> None:
    fill(file, recent("a", baseline_micro_usd=900_000, gpu_ms=60_000, energy_mwh=1_000))
    assert "\nPaying off: " in verger("usage").out


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [
        ({"baseline_micro_usd": None, "gpu_ms": 60_000}, "never would: the electricity costs more"),
        ({"baseline_micro_usd": 1_000, "gpu_ms": 60_000}, "never would (134%)"),
        ({"baseline_micro_usd": None, "gpu_ms": 0}, "nothing was computed"),
    ],
)
def test_the_command_says_never(
    figures: dict[str, Any], sentence: str, verger: Verger, file: Path
) -> None:
    fill(file, recent("a", **figures))
    assert sentence in verger("usage").out


def test_the_net_of_a_model_that_no_mac_is_assumed_for_is_not_known(
    verger: Verger, file: Path
) -> None:
    fill(file, recent("a", model="nano", baseline_micro_usd=None))
    text = verger("usage").out
    assert "unknown" in text
    body = json.loads(verger("usage", "--json").out)
    assert (body["net_usd"], body["balance"], body["cash_usd"]) == (None, None, 0)


def test_the_command_as_json(verger: Verger, file: Path) -> None:
    fill(file, recent("a"), recent("b", key_id="bob"))
    body = json.loads(verger("usage", "--json", "--by", "key").out)
    assert (body["schema_version"], body["by"]) == (1, "key")
    assert [row["name"] for row in body["rows"]] == ["alice", "bob"]
    assert body["avoided_usd"] == pytest.approx(0.0001)
    assert body["net_usd"] < 0
    assert body["balance"]["hours"] == pytest.approx(1, abs=0.01)


def test_the_command_as_csv(verger: Verger, file: Path) -> None:
    fill(file, recent("a"), recent("b", key_id="bob, the second"))
    rows = list(csv.DictReader(io.StringIO(verger("usage", "--csv", "--by", "key").out)))
    assert [row["key"] for row in rows] == ["alice", "bob, the second"]
    assert rows[0]["avoided_usd"] == "0.000050"
    (total,) = csv.DictReader(io.StringIO(verger("usage", "--csv").out))
    assert (total["period"], total["requests"]) == ("total", "2")


def test_json_and_csv_exclude_each_other(verger: Verger) -> None:
    assert verger("usage", "--json", "--csv").status == 2


def test_days_are_whole_and_the_mac_is_charged_from_the_first_on(
    verger: Verger, file: Path
) -> None:
    """The ledger began two days before, so all of the two days asked for counts."""
    day = round(datetime(2026, 1, 26, tzinfo=UTC).timestamp() * 1000)
    fill(file, local_row("z", unix_ms=day - 2 * DAY_MS))
    for number, unix_ms in enumerate((day - 1, day, day + 2 * DAY_MS - 1, day + 2 * DAY_MS)):
        fill(file, local_row(str(number), unix_ms=unix_ms))
    body = json.loads(
        verger("usage", "--json", "--since", "2026-01-26", "--until", "2026-01-27").out
    )
    assert body["total"]["requests"] == 2
    assert body["balance"]["hours"] == 48
