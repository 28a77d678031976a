"""`verger bench`: measures this machine; the table and the JSON show the same report."""

from typing import TYPE_CHECKING, Annotated

import typer

from verger.catalogue import GB, ModelChoice
from verger.cli.bench_fallback import fallback
from verger.cli.bench_rates import rates
from verger.cli.bench_replay import replay
from verger.cli.bench_shared import (
    JsonOption,
    choose,
    notify,
    place,
    print_table,
    require_engine,
    run,
    show,
    verdict,
)
from verger.cli.bench_soak import soak
from verger.cli.bench_stall import stall
from verger.cli.machine import memory_bytes
from verger.errors import StartupError

if TYPE_CHECKING:
    from verger.bench.plan import Scenario
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


bench.command()(replay)
bench.command()(stall)
bench.command()(rates)
bench.command()(fallback)
bench.command()(soak)


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
    json: JsonOption = None,
) -> None:
    """Tokens per second through HTTP and SSE ÷ those of mlx-lm's bare batch loop."""
    require_engine()
    # Imported late: no other command needs the tokenizer.
    from verger.bench.overhead import measure
    from verger.bench.plan import Plan

    plan = Plan(
        requested=model,
        choice=_choose(model),
        scenarios=_scenarios(streams or (QUICK_STREAMS if quick else STREAMS)),
        tokens=tokens or (QUICK_TOKENS if quick else TOKENS),
        repeats=repeats or (QUICK_REPEATS if quick else REPEATS),
    )
    show(run(lambda: measure(plan, notify)), json, print_report)


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
    memory, choice = memory_bytes(), choose(model)
    needed = 2 * choice.folder.weight_bytes
    if needed > memory:
        raise StartupError(
            f"the bench loads {choice.id} twice: that needs {needed / GB:.0f} GB of memory, this "
            f"machine has {memory / GB:.1f} GB"
        )
    return choice


def print_report(report: "Report") -> None:
    """The table, what it means, and what has no place in it."""
    title = f"{report.model} on {place(None, report.machine, report.cores)}"
    print_table(title, HEADINGS, [row(scenario) for scenario in report.scenarios])
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
    return [
        scenario.name,
        f"{scenario.http_decode_tok_s:.0f}",
        f"{scenario.bare_decode_tok_s:.0f}",
        f"{ratio.median:.2f}",
        f"{ratio.low:.2f}–{ratio.high:.2f}",
        f"{scenario.target_ratio:.2f} {verdict(ratio.median >= scenario.target_ratio)}",
        f"{scenario.whole_ratio.median:.2f}",
        f"{cpu.gateway_us:.0f}",
        f"{cpu.engine_us:.0f}",
    ]
