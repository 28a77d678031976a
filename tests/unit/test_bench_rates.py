"""Windows of streams, rates, what cannot be measured and why, and what is printed."""

import json
from pathlib import Path

import msgspec
import pytest
import typer

from verger.bench.chat import Answer
from verger.bench.client import Endpoint
from verger.bench.rates import load_of
from verger.bench.rates_report import (
    MIN_WINDOW_TOKENS,
    PROMPT_ROOM_TOKENS,
    ROW_ROOM_TOKENS,
    SCHEMA_VERSION,
    Decoded,
    DecodeRate,
    Limits,
    Load,
    RatesReport,
    Skipped,
    TooShort,
    decode_rate,
    decode_run,
    parse_counts,
    prefill_rate,
    why_not,
)
from verger.bench.served import Started
from verger.cli import bench_rates
from verger.formats.conversation import Message, Role


def steady(first_s: float, itl_s: float, tokens: int) -> Decoded:
    return Decoded(100, [first_s + number * itl_s for number in range(tokens)])


def answer(prompt_tokens: int, cached_tokens: int, ttft_s: float) -> Answer:
    return Answer(Message(Role.ASSISTANT, "x"), prompt_tokens, cached_tokens, 5.0, 5 + ttft_s, 99.0)


def test_only_what_all_decode_at_once_counts() -> None:
    """The first stream has the machine for itself until the second begins, and is faster then."""
    alone = [0.1 * number for number in range(20)]
    together = [2.0 + 0.5 * number for number in range(20)]
    run = decode_run([Decoded(100, alone + together), steady(2.0, 0.5, 20)], epoch_s=1000.0)
    assert run.tok_s == pytest.approx(4.0)
    assert run.stream_tok_s == pytest.approx(2.0)
    assert run.itl_ms == pytest.approx(500.0)
    assert (run.began_s, run.ended_s) == (1002.0, 1011.5)


def test_what_is_decoded_after_the_first_has_ended_does_not_count() -> None:
    long = [0.5 * number for number in range(11)] + [5.01 + 0.01 * number for number in range(99)]
    run = decode_run([Decoded(100, long), steady(0.0, 0.5, 11)], epoch_s=0.0)
    assert run.tok_s == pytest.approx(4.0)


def test_tokens_that_come_in_one_event_share_the_time_before_it() -> None:
    pairs = [moment for number in range(10) for moment in [number * 1.0] * 2]
    run = decode_run([Decoded(100, pairs)], epoch_s=0.0)
    assert run.tok_s == pytest.approx(2.0)
    assert run.itl_ms == pytest.approx(500.0)


def test_a_window_of_too_few_tokens_is_none() -> None:
    enough = steady(0.0, 1.0, MIN_WINDOW_TOKENS + 1)
    assert decode_run([enough], epoch_s=0.0).tok_s == pytest.approx(1.0)
    for streams in (
        [steady(0.0, 1.0, MIN_WINDOW_TOKENS)],
        [enough, steady(50.0, 1.0, 30)],
        [enough, Decoded(100, [])],
        [Decoded(100, [1.0] * 30)],
    ):
        with pytest.raises(TooShort):
            decode_run(streams, epoch_s=0.0)


def test_the_prefill_rate_is_of_what_was_not_cached() -> None:
    answers = [answer(1060, 60, 2.0), answer(1060, 60, 1.0), answer(1060, 60, 4.0)]
    rate = prefill_rate(1000, answers)
    assert (rate.prompt_tokens, rate.ttft_s, rate.tok_s) == (1060, 2.0, 500.0)
    assert rate.runs_tok_s == [500.0, 1000.0, 250.0]


@pytest.mark.parametrize("text", ["", "1,x", "0", "65", "4,4", ",".join(map(str, range(1, 18)))])
def test_numbers_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_counts(text, 64)


def test_numbers_keep_their_order() -> None:
    assert parse_counts("64,1,8", 64) == [64, 1, 8]
    assert len(parse_counts(",".join(map(str, range(1, 17))), 64)) == 16


def test_what_the_server_cannot_hold_is_known_beforehand() -> None:
    needed = 1000 + PROMPT_ROOM_TOKENS + 128
    assert why_not(1000, 1, 128, Limits(needed)) is None
    assert (
        why_not(1000, 1, 128, Limits(needed - 1)) == f"the model's context is {needed - 1} tokens"
    )
    assert why_not(1000, 16, 128, Limits(rows=16)) is None
    assert why_not(1000, 17, 128, Limits(rows=16)) == "the server has 16 rows"
    row_bytes = (needed + ROW_ROOM_TOKENS) * 1024
    fits = Limits(kv_bytes=4 * row_bytes, token_bytes=1024)
    assert why_not(1000, 4, 128, fits) is None
    assert why_not(1000, 5, 128, fits) == "5 rows need 9 MiB for KV, of 7 MiB"
    assert why_not(131_072, 64, 4096, Limits()) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('event=ready model=m device="Apple M4 Pro" load_s=7.250', (7.25, "Apple M4 Pro")),
        ("event=ready model=m device=cpu load_s=0.500", (0.5, "cpu")),
        ("event=started reason=first", (None, None)),
    ],
)
def test_the_engines_part_of_the_start_is_read_from_the_log(
    tmp_path: Path, line: str, expected: tuple[float | None, str | None]
) -> None:
    log = tmp_path / "server.log"
    log.write_text(f"2026-11-20 INFO verger {line}\nanother line\n")
    load = load_of(Started(Endpoint("127.0.0.1", 1, "/v1"), 1, 9.0, log))
    assert (load.ready_s, load.engine_s, load.device) == (9.0, *expected)


def report(url: str | None = None) -> RatesReport:
    return RatesReport(
        schema_version=SCHEMA_VERSION,
        model="nano",
        url=url,
        machine="a Mac",
        cores=8,
        seed=1,
        tokens=128,
        repeats=2,
        load=None if url else Load(ready_s=9.0, engine_s=7.25, device="M4"),
        prefill=[prefill_rate(1000, [answer(1060, 60, 2.0), answer(1060, 60, 1.0)])],
        decode=[_decode_rate()],
        skipped=[
            Skipped(context_tokens=8000, batch=16, reason="the server has 8 rows"),
            Skipped(context_tokens=32000, batch=None, reason="the model's context is 16384 tokens"),
        ],
    )


def _decode_rate() -> DecodeRate:
    runs = [decode_run([steady(0.0, itl_s, 40)] * 4, epoch_s=0.0) for itl_s in (0.02, 0.025)]
    return decode_rate(1000, 1090, 4, runs)


def test_the_tables_hold_rates_and_what_was_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    bench_rates.print_report(report())
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    assert ["1000", "1060", "1.50", "750", "500–1000"] in rows
    assert ["1000", "4", "180", "160–200", "45.0", "22.5"] in rows
    assert "start to /readyz: 9.00 s, of it 7.25 s in the engine" in printed
    assert "skipped: 16 streams behind 8000 tokens: the server has 8 rows" in printed
    assert "skipped: 32000 tokens: the model's context is 16384 tokens" in printed


def test_the_json_carries_its_schema_version_and_every_run() -> None:
    body = json.loads(msgspec.json.encode(report(url="http://localhost:1/v1")))
    assert (body["schema_version"], body["load"]) == (1, None)
    assert len(body["decode"][0]["runs"]) == 2
    assert body["decode"][0]["runs"][0]["began_s"] == 0.0
    assert body["prefill"][0]["runs_tok_s"] == [500.0, 1000.0]


@pytest.mark.parametrize("options", [{"contexts": "1,no"}, {"batches": "65"}])
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, str]) -> None:
    with pytest.raises(typer.BadParameter):
        bench_rates.rates(**options)  # type: ignore[arg-type]
