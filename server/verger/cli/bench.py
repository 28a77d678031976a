"""`verger bench`: measures this machine; the table and the JSON show the same report."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from verger import paths
from verger.catalogue import GB, ModelChoice, load_catalogue, resolve_model
from verger.cli.machine import has_engine, memory_bytes, model_places
from verger.errors import StartupError

if TYPE_CHECKING:
    from verger.bench.plan import Plan, Scenario
    from verger.bench.report import Report, ScenarioReport

STREAMS, TOKENS, REPEATS = "1,8,16,15+1", 128, 5
QUICK_STREAMS, QUICK_TOKENS, QUICK_REPEATS = "1,16", 32, 1
HEADINGS = (
    "streams",
    "HTTP\ntok/s",
    "bare\ntok/s",
    "ratio",
    "spread",
    "target",
    "with\nprefill",
    "gateway\nµs/tok",
    "engine\nµs/tok",
)

bench = typer.Typer(help="Measure what Verger costs on this machine.", no_args_is_help=True)


@bench.callback()
def _group() -> None:
    """Keeps `overhead` a command of its own while it is the only one."""


@bench.command()
def overhead(
    model: Annotated[str, typer.Option(help="A model of `verger models`, or a folder.")] = "nano",
    streams: Annotated[
        str | None,
        typer.Option(help=f"Equal streams at once, 15+1: and a long one. By default {STREAMS}."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=16, help=f"Tokens per stream, by default {TOKENS}.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help=f"Pairs per scenario, by default {REPEATS}.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="A rough look in under a minute: other defaults, "
            f"--streams {QUICK_STREAMS} --tokens {QUICK_TOKENS} --repeats {QUICK_REPEATS}.",
        ),
    ] = False,
    json: Annotated[
        Path | None, typer.Option(help="Also write JSON to this file; - prints it instead.")
    ] = None,
) -> None:
    """Tokens per second through HTTP and SSE ÷ those of mlx-lm's bare batch loop."""
    if not has_engine():
        raise StartupError(
            "the engine is not installed: run scripts/bench, or pip install 'verger[engine]'"
        )
    # Imported late: no other command needs the tokenizer.
    from verger.bench.plan import Plan

    plan = Plan(
        requested=model,
        choice=_choose(model),
        scenarios=_scenarios(streams or (QUICK_STREAMS if quick else STREAMS)),
        tokens=tokens or (QUICK_TOKENS if quick else TOKENS),
        repeats=repeats or (QUICK_REPEATS if quick else REPEATS),
    )
    try:
        report = asyncio.run(_measure(plan))
    except asyncio.CancelledError:
        raise typer.Abort from None
    _show(report, json)


async def _measure(plan: "Plan") -> "Report":
    """SIGTERM does what Ctrl-C does: the measurement unwinds and ends its children."""
    from verger.bench.overhead import measure

    measuring = asyncio.current_task()
    assert measuring is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, measuring.cancel)
    return await measure(plan, _notify)


def _scenarios(text: str) -> "list[Scenario]":
    from verger.bench.plan import parse_scenario

    try:
        return [parse_scenario(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{error} is neither a number of streams, such as 16, nor short ones and a long one, "
            "such as 15+1",
            param_hint="--streams",
        ) from None


def _choose(model: str) -> ModelChoice:
    """The model is loaded twice, by the server and by the loop it is compared with."""
    memory = memory_bytes()
    choice = resolve_model(
        model,
        load_catalogue(paths.catalogue_dir()),
        model_places(),
        memory_bytes=memory,
        is_loopback=True,
    )
    needed = 2 * choice.folder.weight_bytes
    if needed > memory:
        raise StartupError(
            f"the bench loads {choice.id} twice: that needs {needed / GB:.0f} GB of memory, this "
            f"machine has {memory / GB:.1f} GB"
        )
    return choice


def _notify(text: str) -> None:
    print(f"verger: {text} ...", file=sys.stderr)


def _show(report: "Report", file: Path | None) -> None:
    encoded = msgspec.json.format(msgspec.json.encode(report))
    if file == Path("-"):
        print(encoded.decode())
        return
    print_report(report)
    if file is not None:
        file.write_bytes(encoded + b"\n")
        print(f"Written to {file}")


def print_report(report: "Report") -> None:
    """The table, what it means, and what has no place in it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"{report.model} on {report.machine}, {report.cores} cores"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for scenario in report.scenarios:
        table.add_row(*row(scenario))
    Console().print(table)
    print("ratio: tokens per second through HTTP ÷ bare loop, once all streams have begun")
    for scenario in report.scenarios:
        if not scenario.are_tokens_equal:
            print(f"{scenario.name}: the two sides generated different numbers of tokens")
    connections = report.connections
    print(f"start to /readyz: {report.ready_s:.2f} s")
    print(
        f"simultaneous connections: {connections.served} of {connections.opened} served "
        f"in {connections.elapsed_s:.2f} s"
    )


def row(scenario: "ScenarioReport") -> list[str]:
    """One line of the table."""
    ratio, cpu = scenario.decode_ratio, scenario.cpu_per_token
    verdict = "met" if ratio.median >= scenario.target_ratio else "missed"
    return [
        scenario.name,
        f"{scenario.http_decode_tok_s:.0f}",
        f"{scenario.bare_decode_tok_s:.0f}",
        f"{ratio.median:.2f}",
        f"{ratio.low:.2f}–{ratio.high:.2f}",
        f"{scenario.target_ratio:.2f} {verdict}",
        f"{scenario.whole_ratio.median:.2f}",
        f"{cpu.gateway_us:.0f}",
        f"{cpu.engine_us:.0f}",
    ]
