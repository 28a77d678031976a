"""What `verger bench replay` and `verger bench stall` refuse, and what they print."""

from pathlib import Path

import pytest
import typer

from tests.harmony_text import byte_vocabulary
from verger.bench.replay_report import ReplayReport, ScenarioReport, SecondTurnReport
from verger.bench.served import Own
from verger.bench.stall_report import StallPlan, StallRun, stall_report
from verger.cli import bench_replay, bench_shared, bench_stall
from verger.cli.machine import has_engine
from verger.errors import StartupError

URL = "http://localhost:8374/v1"
NO_ENGINE = "without the engine this is what it says first"


def scenario(
    name: str = "fits", is_met: bool = True, failed: int = 0, limit_bytes: int | None = None
) -> ScenarioReport:
    return ScenarioReport(
        name=name,
        kv_limit_bytes=limit_bytes,
        requests=176,
        failed_requests=failed,
        first_failure="503: full" if failed else None,
        substituted_answers=2,
        prompt_tokens=5000,
        rendered_tokens=5000,
        least_tokens=1000,
        distinct_tokens=1200,
        computed_tokens=1040,
        background_tokens=30,
        ratio=1.04,
        target_ratio=1.05,
        is_met=is_met,
        hit_ratio=0.9,
        mean_ttft_s=0.25,
        elapsed_s=9.0,
        evictions=5,
        preemptions=6,
    )


def report(*scenarios: ScenarioReport, url: str | None = None) -> ReplayReport:
    turns = [
        SecondTurnReport(
            prompt_tokens=tokens,
            cold_ttft_s=10.0,
            second_ttft_s=0.4,
            ratio=0.04,
            target_ratio=target,
            is_met=None if target is None else True,
        )
        for tokens, target in ((1000, None), (8000, 0.05))
    ]
    return ReplayReport(
        schema_version=1,
        model="nano",
        url=url,
        machine="a Mac",
        cores=8,
        scale="nano",
        seed=1,
        agents=8,
        keys=8,
        steps=20,
        working_set_bytes=64 * 2**20,
        scenarios=scenarios,
        second_turns=turns,
    )


def rows(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


def test_the_table_holds_ratios_and_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    missed = scenario("half", is_met=False, failed=1, limit_bytes=40 * 2**20)
    bench_replay.print_report(report(scenario(), missed))
    printed = capsys.readouterr().out
    cells = ["176", "1000", "1040", "1.040", "1.05"]
    assert ["fits", *cells, "met", "0.900", "250"] in rows(printed)
    assert ["half", *cells, "missed", "0.900", "250"] in rows(printed)
    assert ["1000", "10000", "400", "0.040", "–"] in rows(printed)
    assert ["8000", "10000", "400", "0.040", "0.05", "met"] in rows(printed)
    assert "working set: 64 MiB" in printed
    assert "half: a request failed: 503: full" in printed
    assert "40 MiB for cache and rows" in printed
    assert "2 answers replaced by scripted ones, 30 tokens in the background" in printed


def test_the_stall_table_holds_runs_and_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    plan = StallPlan(
        own=Own("nano", 16),
        running=None,
        model="nano",
        vocabulary=byte_vocabulary(),
        has_models_vocabulary=True,
        seed=1,
        streams=3,
        prompt_tokens=8000,
        target_itl_ms=250.0,
        repeats=1,
    )
    run = StallRun(
        prompt_tokens=8010,
        alone_s=10.0,
        beside_s=14.0,
        rate_ratio=0.714,
        undisturbed_ms=[20.0, 40.0, 30.0],
        disturbed_ms=[100.0, 300.0, 200.0],
        restarts=4,
    )
    bench_stall.print_report(stall_report(plan, [run], "a Mac", 8))
    printed = capsys.readouterr().out
    assert ["1", "8010", "10.00", "14.00", "0.71", "40", "200", "300", "4"] in rows(printed)
    assert "p99 disturbed 300 ms, at most 340 ms: met" in printed
    assert "alone 0.71, at least 0.80: missed" in printed


def test_whoever_does_not_start_the_server_cannot_set_its_memory() -> None:
    with pytest.raises(typer.BadParameter, match="with --url only fits"):
        bench_replay.replay(url=URL, model="m", scenarios="fits,half")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenarios": "half"}, "half needs fits"),
        ({"second_turns": "x"}, "invalid literal"),
        ({"scale": "huge"}, "huge is none of nano, full"),
        ({"url": URL}, "--url needs --model"),
        ({"url": "localhost", "model": "m"}, "localhost is no address"),
        ({"tokenizer": "nano"}, "this needs --url"),
        ({"key_file": Path("key")}, "this needs --url"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(options: dict[str, str], message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        bench_replay.replay(**options)  # type: ignore[arg-type]


def test_without_the_engine_only_a_running_server_can_be_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_shared, "has_engine", lambda: False)
    with pytest.raises(StartupError, match=r"verger\[engine\]"):
        bench_stall.stall()
    asked = bench_shared.subject(URL, "m", None, None, rows=8)
    assert (asked.own, asked.model, asked.has_models_vocabulary) == (None, "m", False)


@pytest.mark.skipif(not has_engine(), reason=NO_ENGINE)
def test_our_own_server_has_a_row_for_everybody() -> None:
    asked = bench_shared.subject(None, None, None, None, rows=40)
    assert asked.own == Own("nano", 40)
    assert bench_shared.subject(None, None, None, None, rows=4).own == Own("nano", 16)
    assert asked.has_models_vocabulary


def test_the_key_is_read_from_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-1\n")
    asked = bench_shared.subject(URL, "m", file, "nano", rows=8)
    assert asked.running is not None
    assert (asked.running.key, asked.has_models_vocabulary) == ("sk-1", True)
    file.write_text("sk-1\r\nx: y")
    with pytest.raises(StartupError, match="does not hold one key"):
        bench_shared.subject(URL, "m", file, None, rows=8)
    with pytest.raises(StartupError, match="cannot read the key"):
        bench_shared.subject(URL, "m", tmp_path / "none", None, rows=8)
