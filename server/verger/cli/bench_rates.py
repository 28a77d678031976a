"""`verger bench rates`: how fast a server loads, prefills and decodes."""

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
)

if TYPE_CHECKING:
    from verger.bench.rates_report import DecodeRate, PrefillRate, RatesReport, Skipped

CONTEXTS, BATCHES, TOKENS, REPEATS = "1000,8000,32000", "1,4,8,16", 128, 3
QUICK_CONTEXTS, QUICK_BATCHES, QUICK_TOKENS, QUICK_REPEATS = "500,2000", "1,4", 32, 1
PREFILL_HEADINGS = ("context", "prompt\ntokens", "first token\ns", "prefill\ntok/s", "spread")
DECODE_HEADINGS = (
    "context",
    "streams",
    "all\ntok/s",
    "spread",
    "each\ntok/s",
    "between tokens\nms",
)


def rates(
    model: ModelOption = None,
    url: UrlOption = None,
    key_file: KeyFileOption = None,
    tokenizer: TokenizerOption = None,
    contexts: Annotated[
        str | None, typer.Option(help=f"Tokens of the prompts, by default {CONTEXTS}.")
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help=f"Streams that decode at once, by default {BATCHES}.")
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=16, max=4096, help=f"That each stream decodes, by default {TOKENS}."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, max=100, help=f"Runs of each, by default {REPEATS}.")
    ] = None,
    seed: SeedOption = 1,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Other defaults: --contexts {QUICK_CONTEXTS} --batches {QUICK_BATCHES} "
            f"--tokens {QUICK_TOKENS} --repeats {QUICK_REPEATS}.",
        ),
    ] = False,
    json: JsonOption = None,
) -> None:
    """Load time, prefill rate by context, decode rate by batch and context."""
    from verger.bench.rates_report import MAX_BATCH, MAX_CONTEXT_TOKENS, RatesPlan

    lengths = _counts(
        contexts or (QUICK_CONTEXTS if quick else CONTEXTS), MAX_CONTEXT_TOKENS, "--contexts"
    )
    counts = _counts(batches or (QUICK_BATCHES if quick else BATCHES), MAX_BATCH, "--batches")
    asked = subject(url, model, key_file, tokenizer, rows=max(counts))
    from verger.bench.rates import measure

    plan = RatesPlan(
        own=asked.own,
        running=asked.running,
        model=asked.model,
        vocabulary=asked.vocabulary,
        has_models_vocabulary=asked.has_models_vocabulary,
        seed=seed,
        contexts=lengths,
        batches=counts,
        tokens=tokens or (QUICK_TOKENS if quick else TOKENS),
        repeats=repeats or (QUICK_REPEATS if quick else REPEATS),
    )
    show(run(lambda: measure(plan, notify)), json, print_report)


def _counts(text: str, most: int, flag: str) -> list[int]:
    from verger.bench.rates_report import parse_counts

    try:
        return parse_counts(text, most)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None


def print_report(report: "RatesReport") -> None:
    """Load, prefill, decode, and what was left out."""
    print(f"{report.model} on {place(report.url, report.machine, report.cores)}")
    if report.prefill:
        print_table("prefill", PREFILL_HEADINGS, list(map(prefill_row, report.prefill)))
    if report.decode:
        print_table("decode", DECODE_HEADINGS, list(map(decode_row, report.decode)))
    if load := report.load:
        engine = "" if load.engine_s is None else f", of it {load.engine_s:.2f} s in the engine"
        print(f"start to /readyz: {load.ready_s:.2f} s{engine}")
    print(f"medians of {report.repeats}; decode: once all streams run, {report.tokens} tokens each")
    for one in report.skipped:
        print(skipped_line(one))


def prefill_row(one: "PrefillRate") -> list[str]:
    """One line of the table."""
    return [
        str(one.context_tokens),
        str(one.prompt_tokens),
        f"{one.ttft_s:.2f}",
        f"{one.tok_s:.0f}",
        f"{min(one.runs_tok_s):.0f}–{max(one.runs_tok_s):.0f}",
    ]


def decode_row(one: "DecodeRate") -> list[str]:
    """One line of the table."""
    runs = [run.tok_s for run in one.runs]
    return [
        str(one.context_tokens),
        str(one.batch),
        f"{one.tok_s:.0f}",
        f"{min(runs):.0f}–{max(runs):.0f}",
        f"{one.stream_tok_s:.1f}",
        f"{one.itl_ms:.1f}",
    ]


def skipped_line(one: "Skipped") -> str:
    """What there is no row of."""
    plural = "" if one.batch == 1 else "s"
    streams = "" if one.batch is None else f" {one.batch} stream{plural} behind"
    return f"skipped:{streams} {one.context_tokens} tokens: {one.reason}"
