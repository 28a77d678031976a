"""`verger keys`: make, list and revoke API keys.

Asks the running server through its admin socket, else works on the state database; a server sees
every change at its next request. A key is printed once, when it is made, and is stored nowhere.
"""

import re
import sys
import time
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import Annotated

import msgspec
import typer

from verger.cli.server_state import server_state
from verger.config import MAX_BUDGET_USD
from verger.gateway.keys import (
    MAX_PARALLEL,
    MAX_RPM,
    START,
    Key,
    digest_of,
    new_secret,
    prefix_of,
)
from verger.gateway.principal import TENANT, Priority, RoutePolicy

SCHEMA_VERSION = 1
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}"

keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


def _checked_name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name) or name.startswith(START):
        raise typer.BadParameter(
            f"{name!r}: use up to 64 letters, digits and . _ @ -, beginning with a letter or "
            f"digit, and not with {START}"
        )
    return name


def _parsed_expiry(text: str) -> int:
    """The end of a day of this machine's time, given as a date or as a number of days."""
    try:
        in_days = re.fullmatch(r"(\d{1,4})d", text)
        today = datetime.now(UTC).astimezone().date()
        last_day = today + timedelta(int(in_days[1])) if in_days else date.fromisoformat(text)
        end = datetime.combine(last_day + timedelta(1), time_of_day()).astimezone()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{text!r}: write a date, 2027-01-31, or days, 90d") from None
    if end.timestamp() <= time.time():
        raise typer.BadParameter(f"{text!r} is over already")
    return int(end.timestamp())


def _checked_budget(budget_usd: float) -> float:
    # Not a number is neither below nor above anything.
    if not 0 <= budget_usd <= MAX_BUDGET_USD:
        raise typer.BadParameter(f"write US dollars a month, from 0 to {MAX_BUDGET_USD:,.0f}")
    return budget_usd


@keys.command()
def add(
    name: Annotated[
        str, typer.Argument(callback=_checked_name, metavar="NAME", help="Whose key it is.")
    ],
    tenant: Annotated[
        str,
        typer.Option(callback=_checked_name, help="Keys of one tenant share cached prefixes."),
    ] = TENANT,
    priority: Annotated[
        Priority, typer.Option("--class", help="batch gives way to interactive requests.")
    ] = Priority.INTERACTIVE,
    route: Annotated[
        RoutePolicy, typer.Option(help="Where requests may be served.")
    ] = RoutePolicy.LOCAL_ONLY,
    budget: Annotated[
        float,
        typer.Option(callback=_checked_budget, help="US dollars a month, for cloud providers."),
    ] = 0.0,
    rpm: Annotated[
        int | None, typer.Option(min=1, max=MAX_RPM, help="Requests in any 60 seconds.")
    ] = None,
    max_parallel: Annotated[
        int | None, typer.Option(min=1, max=MAX_PARALLEL, help="Requests at once.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="The last day: 2027-01-31, or 90d from now.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="May see what others do.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a key and print it, this once."""
    secret = new_secret()
    key = Key(
        prefix=prefix_of(secret),
        name=name,
        tenant=tenant,
        priority=priority,
        route=route,
        monthly_budget_usd=budget,
        rpm=rpm,
        max_parallel=max_parallel,
        is_admin=admin,
        created_unix_s=int(time.time()),
        expires_unix_s=None if expires is None else _parsed_expiry(expires),
    )
    server_state().add_key(key, digest_of(secret))
    if as_json:
        _print_json({"secret": secret, "key": key})
        return
    print(secret)
    print(
        f"\nThis is the key of {name}. It is not shown again: only its hash is kept.\n"
        "Next: where the client runs, export OPENAI_API_KEY=THE_KEY",
        file=sys.stderr,
    )


@keys.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List all keys, those in use first; never the keys themselves."""
    found = server_state().keys()
    if as_json:
        _print_json({"keys": found})
        return
    if not found:
        print("There are no keys yet. Make one: verger keys add NAME")
        return
    heading = (
        *("name", "prefix", "tenant", "class", "route", "budget"),
        *("rpm", "parallel", "made", "state"),
    )
    rows = [heading, *map(_cells, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        print("  ".join(cell.ljust(width) for cell, width in cells).rstrip())


@keys.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME|PREFIX", help="As `verger keys list` says.")],
) -> None:
    """Refuse a key from now on; what it asked before is still answered."""
    key = server_state().revoke_key(name)
    print(f"Revoked the key of {key.name} ({key.prefix}).")


def _cells(key: Key) -> tuple[str, ...]:
    return (
        key.name,
        key.prefix,
        key.tenant,
        key.priority.value,
        key.route.value,
        f"${key.monthly_budget_usd:.2f}",
        _limit(key.rpm),
        _limit(key.max_parallel),
        _day(key.created_unix_s),
        _state(key),
    )


def _state(key: Key) -> str:
    if key.revoked_unix_s is not None:
        return f"revoked {_day(key.revoked_unix_s)}"
    if key.has_expired(time.time()):
        return "expired"
    # It ends with a day: the second before is of the last one.
    until = "" if key.expires_unix_s is None else f" until {_day(key.expires_unix_s - 1)}"
    return f"{'admin' if key.is_admin else 'in use'}{until}"


def _day(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).astimezone().date().isoformat()


def _limit(limit: int | None) -> str:
    return "-" if limit is None else str(limit)


def _print_json(fields: dict[str, object]) -> None:
    body = {"schema_version": SCHEMA_VERSION, **fields}
    print(msgspec.json.format(msgspec.json.encode(body)).decode())
