"""`verger bench soak`: many unlike requests at once, and what is left of them afterwards."""

from typing import TYPE_CHECKING, Annotated

import typer

from verger.cli.bench_shared import (
    JsonOption,
    KeyFileOption,
    ModelOption,
    UrlOption,
    notify,
    place,
    print_table,
    run,
    show,
    subject,
    verdict,
)

if TYPE_CHECKING:
    from verger.bench.soak_memory import Growth, Memory
    from verger.bench.soak_report import SoakReport

REQUESTS, AT_ONCE = 250, 40
QUICK_REQUESTS, QUICK_AT_ONCE = 60, 16
MAX_MINUTES = 24 * 60
MIB = 2**20
HEADINGS = ("requests", "answered", "left", "overloaded", "failed", "malformed", "lost", "s")
MEMORY_HEADINGS = ("MiB", "1st", "2nd", "3rd", "4th", "peak", "growth", "bounded", "rest")


def soak(
    model: ModelOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    requests: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help=f"By default {REQUESTS}.")
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(min=1, max=256, help=f"Clients, by default {AT_ONCE}.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, max=MAX_MINUTES, help="So long, instead of --requests."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of all that is asked.")] = 1,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Other defaults: --requests {QUICK_REQUESTS} --at-once {QUICK_AT_ONCE}.",
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Many unlike requests at once, a quarter given up: is every reply sound, is nothing kept?"""
    if minutes and requests:
        raise typer.BadParameter(
            "a soak ends after --requests or after --minutes", param_hint="--minutes"
        )
    asked = subject(url, model, key_file, None, rows=0)
    from verger.bench.soak import measure
    from verger.bench.soak_report import SoakPlan

    plan = SoakPlan(
        own=asked.own,
        running=asked.running,
        model=asked.model,
        seed=seed,
        at_once=at_once or (QUICK_AT_ONCE if quick else AT_ONCE),
        requests=None if minutes else requests or (QUICK_REQUESTS if quick else REQUESTS),
        minutes=minutes,
    )
    show(run(lambda: measure(plan, notify)), json, print_report)


def print_report(report: "SoakReport") -> None:
    """What became of the requests, and of the server."""
    where, counts = place(report.url, report.machine, report.cores), report.counts
    title = f"{report.model} on {where}: {report.at_once} clients at once"
    cells = [report.requests, counts.answered, counts.left, counts.overloaded]
    cells += [counts.failed, counts.malformed, counts.lost]
    print_table(title, HEADINGS, [[*map(str, cells), f"{report.elapsed_s:.0f}"]])
    print("of them " + ", ".join(f"{count} {name}" for name, count in report.features.items()))
    for example in report.examples:
        print(f"  {example}")
    print(f"no reply malformed, lost or failed: {verdict(report.is_sound)}")
    if report.are_copies_met is not None:
        fair = report.copies - report.own_mistakes
        print(
            f"of {fair} copies that nano gets right alone {fair - report.wrong_copies} were right, "
            f"at least {report.target_copied:.1%}: {verdict(report.are_copies_met)} "
            f"(and {report.own_mistakes} that it gets wrong)"
        )
    print(f"afterwards all is as before: {verdict(report.is_restored)}")
    for one in report.remains:
        print(f"  {one}")
    if report.memory is None:
        print(f"memory: skipped, {report.memory_skipped}")
    else:
        print_memory(report.memory)


def print_memory(memory: "Memory") -> None:
    """Of both processes."""
    rows = [memory_row("gateway", memory.gateway), memory_row("engine", memory.engine)]
    print_table("Memory", MEMORY_HEADINGS, rows)
    print("medians of each quarter; growth from the second to the last; bounded: KV, free buffers")
    if memory.is_met is not None:
        print(
            f"growth of the rest at most {memory.target_growth_ratio:.0%}: {verdict(memory.is_met)}"
        )


def memory_row(name: str, growth: "Growth") -> list[str]:
    """One line of the table."""
    amounts = [*growth.quarter_bytes, growth.peak_bytes]
    return [
        name,
        *(f"{amount / MIB:.1f}" for amount in amounts),
        *(f"{amount / MIB:+.1f}" for amount in (growth.growth_bytes, growth.bounded_bytes)),
        f"{growth.growth_ratio:+.1%}",
    ]
