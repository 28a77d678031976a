"""`verger bench fallback`: what reaching a cloud provider through Verger adds."""

from typing import TYPE_CHECKING, Annotated

import typer

from verger.cli.bench_shared import (
    JsonOption,
    notify,
    place,
    print_table,
    require_engine,
    run,
    show,
)

if TYPE_CHECKING:
    from verger.bench.fallback_report import FallbackReport, Flow

PAIRS, STREAMS, TOKENS = 500, 64, 500
QUICK_PAIRS, QUICK_TOKENS = 50, 100
HEADINGS = (
    "",
    "direct\np50",
    "direct\np99",
    "through\np50",
    "through\np99",
    "added\np50",
    "added\np99",
)
FLOW_HEADINGS = (
    "tokens",
    "a stream's\ntok/s",
    "direct\ntok/s",
    "through\ntok/s",
    "CPU s per\n100k tokens",
)


def fallback(
    pairs: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help=f"Requests by either way, by default {PAIRS}."),
    ] = None,
    streams: Annotated[int, typer.Option(min=1, max=256, help="At once.")] = STREAMS,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help=f"Of each stream, by default {TOKENS}."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Other defaults: --pairs {QUICK_PAIRS} --tokens {QUICK_TOKENS}.",
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """A provider on loopback, asked directly and through the gateway."""
    require_engine()
    from verger.bench.fallback import measure
    from verger.bench.fallback_report import FallbackPlan

    plan = FallbackPlan(
        pairs=pairs or (QUICK_PAIRS if quick else PAIRS),
        streams=streams,
        tokens=tokens or (QUICK_TOKENS if quick else TOKENS),
    )
    show(run(lambda: measure(plan, notify)), json, print_report)


def print_report(report: "FallbackReport") -> None:
    """Latency, then throughput and CPU."""
    at, found = place(None, report.machine, report.cores), report.latency
    title = f"A provider on loopback, on {at}: ms to the first token, {report.pairs} pairs"
    cells = [
        *(found.direct_p50_ms, found.direct_p99_ms, found.through_p50_ms),
        *(found.through_p99_ms, found.added_p50_ms, found.added_p99_ms),
    ]
    print_table(title, HEADINGS, [["ms", *(f"{cell:.1f}" for cell in cells)]])
    print_table(f"{report.streams} streams at once", FLOW_HEADINGS, list(map(row, report.flows)))
    print("CPU s: of the gateway's process alone")


def row(flow: "Flow") -> list[str]:
    """One line of the table."""
    return [
        str(flow.tokens),
        "any" if flow.pace_tok_s is None else str(flow.pace_tok_s),
        f"{flow.direct_tok_s:.0f}",
        f"{flow.through_tok_s:.0f}",
        f"{flow.gateway_cpu_s:.1f}",
    ]
