"""`verger discover`: the servers on this network, and how each is doing.

All are asked at once. A key is sent only to a server that is pinned and is still the same; without
one the load stays unknown where keys are required.
"""

import sys
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from msgspec import Struct

from verger import paths
from verger.cli import instances
from verger.cli.instances import (
    BROWSE_S,
    WHAT_TO_TRY,
    Candidate,
    InterfacesOption,
    TimeoutOption,
    UrlOption,
    candidate_of,
    candidate_of_url,
    check_identity,
)
from verger.cli.pins import Pin, Pins, load_pins
from verger.connect.address import is_name
from verger.errors import EXIT_CANNOT_START, InstanceError

if TYPE_CHECKING:
    from verger.cli.session import Greeting
    from verger.lan.browse import Found

SCHEMA_VERSION = 1
PROBE_S = 10.0
"""For all servers together, once they are found."""


class Row(Struct, frozen=True, kw_only=True):
    """One server. What is null is not known."""

    name: str
    url: str
    id: str | None
    models: tuple[str, ...]
    needs_key: bool | None
    has_tls: bool
    is_pinned: bool
    """It was used before, and is the same."""
    is_reachable: bool
    is_ready: bool
    running: int | None = None
    queued: int | None = None
    problem: str | None = None


class Unfit(Enum):
    """In place of a row: an advert that is not fit to be shown."""

    UNFIT = "unfit"


UNFIT = Unfit.UNFIT


def discover(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timeout: TimeoutOption = BROWSE_S,
    url: UrlOption = None,
    interfaces: InterfacesOption = "",
) -> None:
    """List the servers on this network: address, models, key, reachability and load."""
    pins = load_pins(paths.pins_file())
    rows, notices = _rows(timeout, url, interfaces, pins)
    if as_json:
        body = {"schema_version": SCHEMA_VERSION, "instances": rows}
        print(msgspec.json.format(msgspec.json.encode(body)).decode())
    else:
        _print_table(rows)
    for notice in notices if rows or notices else [WHAT_TO_TRY]:
        print(f"verger: {notice}", file=sys.stderr)
    if not rows:
        raise typer.Exit(EXIT_CANNOT_START)


def _rows(
    timeout_s: float, url: str | None, interfaces: str, pins: Pins
) -> tuple[list[Row], list[str]]:
    """A row for each server that is fit for one, and what there is to say of the others."""
    # Imported late: httpx takes a tenth of a second.
    from verger.cli.session import all_within

    if url is not None:
        return [_row(candidate_of_url(url), pins)], []
    found = instances.find(timeout_s, interfaces)
    probes = [partial(_row_of_advert, one, pins) for one in found]
    rows = all_within(PROBE_S, probes)
    silent = [one.advert.name for one, row in zip(found, rows, strict=True) if row is None]
    notices = [f"{name} did not answer in time" for name in silent if is_name(name)]
    if strange := sum(row is UNFIT for row in rows):
        notices.append(f"{strange} adverts left out: no usable name or address")
    return [row for row in rows if isinstance(row, Row)], notices


def _row_of_advert(found: "Found", pins: Pins) -> "Row | Unfit":
    candidate = candidate_of(found)
    return UNFIT if candidate is None else _row(candidate, pins)


def _row(candidate: Candidate, pins: Pins) -> Row:
    from verger.cli.session import greet

    pin = pins.find(candidate.name)
    try:
        greeting = greet(candidate.address)
        check_identity(candidate, greeting.id, greeting.session.certificate, pin)
        return _asked(candidate, greeting, pin)
    except InstanceError as error:
        return Row(
            name=candidate.name,
            url=candidate.address.base_url,
            id=candidate.id,
            models=candidate.model_ids,
            needs_key=candidate.needs_key,
            has_tls=candidate.address.is_tls,
            is_pinned=False,
            is_reachable=False,
            is_ready=False,
            problem=str(error),
        )


def _asked(candidate: Candidate, greeting: "Greeting", pin: Pin | None) -> Row:
    """Of a server that is what it was. Raises Unreachable."""
    key = pin.key if pin else None
    cards = greeting.session.models(key)
    load = None if cards is None else greeting.session.load(key)
    needs_key = candidate.needs_key
    if needs_key is None and (cards is None or key is None):
        needs_key = cards is None
    return Row(
        name=candidate.name,
        url=candidate.address.base_url,
        id=greeting.id,
        models=candidate.model_ids if cards is None else tuple(card.id for card in cards),
        needs_key=needs_key,
        has_tls=candidate.address.is_tls,
        is_pinned=pin is not None,
        is_reachable=True,
        is_ready=greeting.is_ready,
        running=load.running if load else None,
        queued=load.waiting + load.queued if load else None,
        problem="it refuses the stored key" if key and cards is None else None,
    )


def _print_table(rows: list[Row]) -> None:
    cells = [["name", "url", "models", "key", "state"], *map(_cells, rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(padded).rstrip())


def _cells(row: Row) -> list[str]:
    if row.needs_key is None:
        key = "?"
    else:
        key = "needed" if row.needs_key else "none"
    return [row.name, row.url, ", ".join(row.models) or "?", key, _state(row)]


def _state(row: Row) -> str:
    if not row.is_reachable:
        return f"unusable: {row.problem}"
    state = "ready" if row.is_ready else "not ready"
    if row.running is not None:
        state += f", {row.running} running, {row.queued} waiting"
    return f"{state}, {row.problem}" if row.problem else state
