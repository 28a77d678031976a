"""`verger bench replay`: agents' traces, prompt tokens computed ÷ the least possible."""

from typing import TYPE_CHECKING, Annotated

import typer

from verger.cli.bench_shared import (
    JsonOption,
    KeyFileOption,
    ModelOption,
    SeedOption,
    TokenizerOption,
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
    from verger.bench.replay_report import ReplayReport, ScenarioReport, SecondTurnReport
    from verger.bench.trace import Scale

SCENARIOS, SECOND_TURNS, STEPS = "fits,half-disk,half,restart", "1000,4000,8000", 20
QUICK_SCENARIOS, QUICK_SECOND_TURNS, QUICK_STEPS = "fits", "1000", 4
URL_SCENARIOS = "fits"
"""Whoever does not start the server cannot set its memory, nor start it again."""
AGENTS, REPEATS = 8, 3
HEADINGS = (
    "scenario",
    "requests",
    "least\ntokens",
    "computed\ntokens",
    "ratio",
    "target",
    "hit\nratio",
    "TTFT\nms",
)
TURN_HEADINGS = ("prompt\ntokens", "cold\nTTFT ms", "second\nTTFT ms", "ratio", "target")
MIB = 2**20


def replay(
    model: ModelOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    tokenizer: TokenizerOption = None,
    scale: Annotated[str, typer.Option(help="Sizes of the traces: nano or full.")] = "nano",
    agents: Annotated[int, typer.Option(min=1, max=64, help="Agents at once.")] = AGENTS,
    keys: Annotated[
        int | None,
        typer.Option(min=1, max=64, help="Keys that they share; by default each has its own."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, max=100, help=f"Tool calls of each, by default {STEPS}."),
    ] = None,
    scenarios: Annotated[
        str | None,
        typer.Option(help=f"By default {SCENARIOS}; with --url {URL_SCENARIOS}; '' for none."),
    ] = None,
    second_turns: Annotated[
        str | None,
        typer.Option(help=f"Lengths of the prompts, by default {SECOND_TURNS}; '' for none."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=100, help="Of each second turn.")] = REPEATS,
    seed: SeedOption = 1,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Other defaults: --scenarios {QUICK_SCENARIOS} --steps {QUICK_STEPS} "
            f"--second-turns {QUICK_SECOND_TURNS}.",
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Prompt tokens computed ÷ the least possible, by agents that call tools."""
    names = _scenarios(_default_scenarios(url, quick) if scenarios is None else scenarios, url)
    default_lengths = QUICK_SECOND_TURNS if quick else SECOND_TURNS
    lengths = _lengths(default_lengths if second_turns is None else second_turns)
    sizes = _scale(scale)
    asked = subject(url, model, key_file, tokenizer, rows=agents)
    from verger.bench.replay import measure
    from verger.bench.replay_report import ReplayPlan

    plan = ReplayPlan(
        own=asked.own,
        running=asked.running,
        model=asked.model,
        vocabulary=asked.vocabulary,
        has_models_vocabulary=asked.has_models_vocabulary,
        scale=sizes,
        seed=seed,
        agents=agents,
        keys=min(keys or agents, agents),
        steps=steps or (QUICK_STEPS if quick else STEPS),
        scenarios=names,
        second_turn_tokens=lengths,
        repeats=repeats,
    )
    show(run(lambda: measure(plan, notify)), json, print_report)


def _default_scenarios(url: str | None, quick: bool) -> str:
    if url is not None:
        return URL_SCENARIOS
    return QUICK_SCENARIOS if quick else SCENARIOS


def _scenarios(text: str, url: str | None) -> list[str]:
    from verger.bench.replay_report import parse_scenarios

    try:
        names = parse_scenarios(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--scenarios") from None
    if url is not None and set(names) - {URL_SCENARIOS}:
        raise typer.BadParameter(
            f"with --url only {URL_SCENARIOS}: the others set the server's memory or restart it",
            param_hint="--scenarios",
        )
    return names


def _lengths(text: str) -> list[int]:
    from verger.bench.replay_report import parse_lengths

    try:
        return parse_lengths(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--second-turns") from None


def _scale(name: str) -> "Scale":
    from verger.bench.trace import SCALES

    if name not in SCALES:
        raise typer.BadParameter(f"{name} is none of {', '.join(SCALES)}", param_hint="--scale")
    return SCALES[name]


def print_report(report: "ReplayReport") -> None:
    """Both tables, what they mean, and what has no place in them."""
    where = place(report.url, report.machine, report.cores)
    if report.scenarios:
        title = (
            f"{report.model} on {where}: {report.agents} agents, {report.keys} keys, "
            f"{report.steps} calls each"
        )
        print_table(title, HEADINGS, [scenario_row(one) for one in report.scenarios])
        print("ratio: prompt tokens computed ÷ each distinct token of the prompts once")
        _print_notes(report)
    if report.second_turns:
        title = f"{report.model} on {where}: time to first token of a second turn"
        print_table(title, TURN_HEADINGS, [turn_row(one) for one in report.second_turns])
        print("ratio: second turn ÷ cold")


def _print_notes(report: "ReplayReport") -> None:
    if report.working_set_bytes is not None:
        print(f"working set: {report.working_set_bytes / MIB:.0f} MiB")
    for scenario in report.scenarios:
        print(f"{scenario.name}: {', '.join(_notes(scenario))}")
        if scenario.first_failure is not None:
            print(f"{scenario.name}: a request failed: {scenario.first_failure}")
        if scenario.prompt_tokens != scenario.rendered_tokens:
            print(
                f"{scenario.name}: the server counts {scenario.prompt_tokens} prompt tokens where "
                f"the least was counted among {scenario.rendered_tokens}"
            )


def _notes(scenario: "ScenarioReport") -> list[str]:
    """What is no ratio."""
    notes = [
        f"{scenario.failed_requests} requests failed",
        f"{scenario.substituted_answers} answers replaced by scripted ones",
    ]
    if scenario.background_tokens is not None:
        notes.append(f"{scenario.background_tokens} tokens in the background")
    if scenario.evictions is not None:
        notes.append(f"{scenario.evictions} evictions, {scenario.preemptions} preemptions")
    if scenario.kv_limit_bytes is not None:
        notes.append(f"{scenario.kv_limit_bytes / MIB:.0f} MiB for cache and rows")
    return notes


def scenario_row(scenario: "ScenarioReport") -> list[str]:
    """One line of the table."""
    return [
        scenario.name,
        str(scenario.requests),
        str(scenario.least_tokens),
        str(scenario.computed_tokens),
        f"{scenario.ratio:.3f}",
        f"{scenario.target_ratio:.2f} {verdict(scenario.is_met)}",
        f"{scenario.hit_ratio:.3f}",
        f"{scenario.mean_ttft_s * 1000:.0f}",
    ]


def turn_row(turn: "SecondTurnReport") -> list[str]:
    """One line of the second table."""
    target = "–"
    if turn.target_ratio is not None:
        target = f"{turn.target_ratio:.2f} {verdict(bool(turn.is_met))}"
    return [
        str(turn.prompt_tokens),
        f"{turn.cold_ttft_s * 1000:.0f}",
        f"{turn.second_ttft_s * 1000:.0f}",
        f"{turn.ratio:.3f}",
        target,
    ]
