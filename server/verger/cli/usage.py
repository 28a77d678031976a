"""`verger usage`: what was spent, what was not, and what remains of that; read from the ledger.

Three numbers, never one. Days and months are UTC's.
"""

import csv
import math
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import typer
from msgspec import Struct

from verger import paths
from verger.cli.assumed import assumed_mac
from verger.config import load_config
from verger.costs.balance import Balance, balance
from verger.costs.formulas import MICROS

if TYPE_CHECKING:
    from verger.gateway.ledger_report import Sums, Usage

SCHEMA_VERSION = 1
MS_PER_HOUR = 3_600_000


class Row(Struct, frozen=True):
    """One line of the table, or the total."""

    name: str
    requests: int
    uncached_tokens: int
    cached_tokens: int
    output_tokens: int
    cash_usd: float
    avoided_usd: float


class Report(Struct, frozen=True, kw_only=True):
    """All that is shown; `net_usd` is null where nothing is known of the machine."""

    schema_version: int = SCHEMA_VERSION
    since: str | None
    until: str
    total: Row
    by: str | None
    rows: Sequence[Row]
    cash_usd: float
    avoided_usd: float
    net_usd: float | None
    balance: Balance | None
    machine: str | None


def usage(
    by: Annotated[
        Literal["key", "model", "provider", "day"] | None,
        typer.Option(help="Add up by this."),
    ] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="First day, in UTC.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day, in UTC.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table as CSV.")] = False,
) -> None:
    """Show cash spent, list prices avoided, and the net of hardware and electricity."""
    from verger.cli.server_state import server_state
    from verger.gateway.ledger_report import Group

    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv exclude each other")
    now_ms = round(time.time() * 1000)
    since_ms = 0 if since is None else _ms(since)
    until_ms = now_ms if until is None else min(now_ms, _ms(until + timedelta(days=1)))
    group = None if by is None else Group(by)
    found = server_state().usage(group, since_ms, until_ms)
    # The Mac lost worth from the period's first day on, but not before it was in use.
    start_ms = None if found.first_ms is None else max(found.first_ms, since_ms)
    report = _report(found, by, start_ms, until_ms)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(report)).decode())
    elif as_csv:
        _print_csv(report)
    elif report.since is None:
        print(f"The ledger has no requests in that time ({paths.database_file()}).")
    else:
        _print(report)


def _ms(day: datetime) -> int:
    return round(day.replace(tzinfo=UTC).timestamp() * 1000)


def _report(usage: "Usage", by: str | None, start_ms: int | None, until_ms: int) -> Report:
    total = _row(usage.total)
    mac = assumed_mac(load_config(), usage.model) if usage.model is not None else None
    computed = None
    if mac is not None and start_ms is not None and until_ms > start_ms:
        computed = balance(
            mac.assumed.machine(),
            hours=(until_ms - start_ms) / MS_PER_HOUR,
            avoided_usd=total.avoided_usd,
            gpu_s=usage.total.gpu_ms / 1000,
            energy_wh=usage.total.energy_mwh / 1000,
        )
    return Report(
        since=None if start_ms is None else _time(start_ms),
        until=_time(until_ms),
        total=total,
        by=by,
        rows=[_row(group) for group in usage.groups],
        cash_usd=total.cash_usd,
        avoided_usd=total.avoided_usd,
        net_usd=None if computed is None else computed.net_usd,
        balance=computed,
        machine=None if mac is None else mac.machine,
    )


def _row(sums: "Sums") -> Row:
    return Row(
        name=sums.name,
        requests=sums.requests,
        uncached_tokens=sums.uncached_tokens,
        cached_tokens=sums.cached_tokens,
        output_tokens=sums.output_tokens,
        cash_usd=sums.cash_micro_usd / MICROS,
        avoided_usd=sums.avoided_micro_usd / MICROS,
    )


def _time(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _print_csv(report: Report) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([report.by or "period", *Row.__struct_fields__[1:]])
    for row in report.rows if report.by else [report.total]:
        *counts, cash_usd, avoided_usd = msgspec.structs.astuple(row)
        writer.writerow([*counts, f"{cash_usd:.6f}", f"{avoided_usd:.6f}"])


def _print(report: Report) -> None:
    print(f"{report.since} to {report.until}: {report.total.requests} requests\n")
    print(f"cash     {report.cash_usd:12.4f} USD  paid to cloud providers")
    print(f"avoided  {report.avoided_usd:12.4f} USD  by their lists, less that cash")
    if report.balance is None:
        print(f"net      {'unknown':>12}      for this model no Mac is assumed: see verger cost")
    else:
        _print_net(report.balance)
        print(f"Assumed: {report.machine}, and what verger cost lists.")
    if report.by:
        _print_rows(report)


def _print_net(known: Balance) -> None:
    print(
        f"net      {known.net_usd:12.4f} USD  avoided, less {known.amortisation_usd:.4f} of the "
        f"Mac's worth and {known.energy_usd:.4f} of electricity\n"
    )
    verdict = "Paying off" if known.is_paying_off else "Not paying off"
    print(f"{verdict}: it computed {known.busy:.2%} of the time; {_needed(known)}.")


def _needed(known: Balance) -> str:
    needed = known.break_even_busy
    if needed is None:
        return "nothing was computed"
    if math.isinf(needed):
        return "at what a busy hour avoids it never would: the electricity costs more"
    if needed > 1:
        return f"at what a busy hour avoids it never would ({needed:.0%})"
    return f"at what a busy hour avoids it does from {needed:.0%} on"


def _print_rows(report: Report) -> None:
    width = max(len(report.by or ""), *(len(row.name) for row in report.rows))
    columns = ("requests", "uncached", "cached", "output", "cash USD", "avoided USD")
    print(f"\n{report.by:{width}}" + "".join(f"{column:>13}" for column in columns))
    for row in report.rows:
        counts = (row.requests, row.uncached_tokens, row.cached_tokens, row.output_tokens)
        print(
            f"{row.name:{width}}"
            + "".join(f"{count:13,}" for count in counts)
            + f"{row.cash_usd:13.4f}{row.avoided_usd:13.4f}"
        )
