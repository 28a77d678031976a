"""From times to rates and ratios."""

import json

import msgspec
import pytest

from verger.bench.report import (
    SCHEMA_VERSION,
    Connections,
    CpuPerToken,
    Pair,
    Rates,
    Report,
    rates,
    summarise,
)
from verger.timings import StreamTimes


def pair(http_tok_s: float, bare_tok_s: float, http_tokens: int = 10) -> Pair:
    return Pair(Rates(http_tokens, http_tok_s, http_tok_s), Rates(10, bare_tok_s, bare_tok_s / 2))


def test_the_window_opens_when_the_last_stream_has_its_first_token() -> None:
    early = StreamTimes(prompt_tokens=5, tokens=4, token_s=[1.0, 2.0, 3.0, 4.0], ended_s=4.0)
    late = StreamTimes(prompt_tokens=5, tokens=3, token_s=[3.0, 4.0, 5.0], ended_s=5.0)
    # Three of the early and one of the late are there at 3.0; the other three take two seconds.
    assert rates([early, late]) == Rates(tokens=7, decode_tok_s=1.5, whole_tok_s=1.4)


def test_tokens_that_are_never_seen_count_as_well() -> None:
    """A client sees no markup, so that fewer tokens arrive than are sampled."""
    stream = StreamTimes(prompt_tokens=5, tokens=9, token_s=[1.0, 2.0, 3.0], ended_s=3.0)
    assert rates([stream]) == Rates(tokens=9, decode_tok_s=4.0, whole_tok_s=3.0)


def test_a_ratio_is_the_median_of_the_pairs_ratios() -> None:
    """Not the ratio of the medians: a slow moment hits both sides of a pair."""
    pairs = [pair(9.0, 10.0), pair(4.0, 5.0), pair(10.0, 20.0)]
    stream = StreamTimes(prompt_tokens=5, tokens=10, token_s=[1.0], ended_s=2.0)
    report = summarise("2", 0.85, [stream, stream], pairs, CpuPerToken(50.0, 500.0))
    assert report.decode_ratio == msgspec.convert(
        {"median": 0.8, "low": 0.5, "high": 0.9}, type(report.decode_ratio)
    )
    assert report.whole_ratio.median == pytest.approx(1.6)
    assert (report.http_decode_tok_s, report.bare_decode_tok_s) == (9.0, 10.0)
    assert (report.streams, report.prompt_tokens) == (2, 10)


@pytest.mark.parametrize(("http_tokens", "expected"), [(10, True), (11, False)])
def test_different_amounts_of_work_are_reported(http_tokens: int, expected: bool) -> None:
    pairs = [pair(1.0, 1.0), pair(1.0, 1.0, http_tokens)]
    stream = StreamTimes(prompt_tokens=5, tokens=10, token_s=[1.0], ended_s=2.0)
    report = summarise("1", 0.85, [stream], pairs, CpuPerToken(1.0, 1.0))
    assert report.are_tokens_equal is expected


def test_the_json_carries_its_schema_version() -> None:
    report = Report(SCHEMA_VERSION, "nano", "a Mac", 8, 1.5, [], Connections(64, 64, 2.0))
    body = json.loads(msgspec.json.encode(report))
    assert body["schema_version"] == 1
    assert body["connections"] == {"opened": 64, "served": 64, "elapsed_s": 2.0}
