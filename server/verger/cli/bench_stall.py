"""`verger bench stall`: what streams feel of a long prompt beside them, and it of them."""

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
    from verger.bench.stall_report import Gaps, StallReport, StallRun

STREAMS, PROMPT_TOKENS, REPEATS, TARGET_ITL_MS = 8, 8_000, 5, 250.0
QUICK_STREAMS, QUICK_PROMPT_TOKENS, QUICK_REPEATS = 4, 2_000, 1
HEADINGS = (
    "run",
    "prompt\ntokens",
    "alone\ns",
    "beside\ns",
    "rate\nratio",
    "undisturbed\nms",
    "disturbed\nmedian ms",
    "disturbed\nlongest ms",
    "begun\nanew",
)


def stall(
    model: ModelOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    tokenizer: TokenizerOption = None,
    streams: Annotated[
        int | None, typer.Option(min=1, max=64, help=f"By default {STREAMS}.")
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(min=100, max=120_000, help=f"Of the prompt, by default {PROMPT_TOKENS}."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, max=100, help=f"Runs, by default {REPEATS}.")
    ] = None,
    target_itl_ms: Annotated[
        float,
        typer.Option(min=10, max=10_000, help="The promise; set where the server is our own."),
    ] = TARGET_ITL_MS,
    seed: SeedOption = 1,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Other defaults: --streams {QUICK_STREAMS} --prompt-tokens "
            f"{QUICK_PROMPT_TOKENS} --repeats {QUICK_REPEATS}.",
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """The longest gaps of running streams while a long prompt is prefilled, and its rate."""
    streams = streams or (QUICK_STREAMS if quick else STREAMS)
    # A row for the long prompt, and one for a stream that is begun anew before it has left.
    asked = subject(url, model, key_file, tokenizer, rows=streams + 2)
    from verger.bench.stall import measure
    from verger.bench.stall_report import StallPlan

    plan = StallPlan(
        own=asked.own,
        running=asked.running,
        model=asked.model,
        vocabulary=asked.vocabulary,
        has_models_vocabulary=asked.has_models_vocabulary,
        seed=seed,
        streams=streams,
        prompt_tokens=prompt_tokens or (QUICK_PROMPT_TOKENS if quick else PROMPT_TOKENS),
        target_itl_ms=target_itl_ms,
        repeats=repeats or (QUICK_REPEATS if quick else REPEATS),
    )
    show(run(lambda: measure(plan, notify)), json, print_report)


def print_report(report: "StallReport") -> None:
    """The runs, the distributions, and the two verdicts."""
    where = place(report.url, report.machine, report.cores)
    title = f"{report.model} on {where}: {report.streams} streams beside a prompt"
    rows = [run_row(number, one) for number, one in enumerate(report.runs, 1)]
    print_table(title, HEADINGS, rows)
    print("The longest gap of each stream, in ms:")
    print(f"  undisturbed  {_distribution(report.undisturbed)}")
    print(f"  disturbed    {_distribution(report.disturbed)}")
    print(
        f"p99 disturbed {report.disturbed.p99_ms:.0f} ms, at most {report.allowed_ms:.0f} ms: "
        f"{verdict(report.is_gap_met)} (1.2 × {report.target_itl_ms:g} ms + the longest "
        "undisturbed gap)"
    )
    print(
        f"prefill rate beside the streams ÷ alone {report.rate_ratio:.2f}, at least "
        f"{report.target_rate_ratio:.2f}: {verdict(report.is_rate_met)}"
    )


def run_row(number: int, one: "StallRun") -> list[str]:
    """One line of the table."""
    disturbed = sorted(one.disturbed_ms)
    return [
        str(number),
        str(one.prompt_tokens),
        f"{one.alone_s:.2f}",
        f"{one.beside_s:.2f}",
        f"{one.rate_ratio:.2f}",
        f"{max(one.undisturbed_ms):.0f}",
        f"{disturbed[len(disturbed) // 2]:.0f}",
        f"{disturbed[-1]:.0f}",
        str(one.restarts),
    ]


def _distribution(gaps: "Gaps") -> str:
    return (
        f"median {gaps.median_ms:.0f}, p90 {gaps.p90_ms:.0f}, p99 {gaps.p99_ms:.0f}, "
        f"longest {gaps.longest_ms:.0f}"
    )
