"""What `verger bench fallback` makes of its times, refuses and prints."""

import pytest

from verger.bench.fallback_report import FallbackReport, flow_of, latency_of
from verger.cli import bench_fallback, bench_shared
from verger.errors import StartupError


def test_what_is_added_is_of_each_pair() -> None:
    found = latency_of([0.001, 0.005, 0.002], [0.003, 0.006, 0.009])
    assert found.direct_p50_ms == pytest.approx(2)
    assert found.through_p50_ms == pytest.approx(6)
    assert found.added_p50_ms == pytest.approx(2)
    assert found.added_p99_ms == pytest.approx(7)


def test_cpu_is_told_for_a_round_number_of_tokens() -> None:
    flow = flow_of(2_000, direct_s=0.5, through_s=2.0, cpu_s=0.1, pace_tok_s=None)
    assert (flow.direct_tok_s, flow.through_tok_s) == (4_000, 1_000)
    assert flow.gateway_cpu_s == pytest.approx(5)


def test_without_the_engine_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_shared, "has_engine", lambda: False)
    with pytest.raises(StartupError, match=r"verger\[engine\]"):
        bench_fallback.fallback()


def test_the_tables_hold_latency_throughput_and_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    flows = [
        flow_of(32_000, direct_s=1.0, through_s=2.0, cpu_s=1.6, pace_tok_s=None),
        flow_of(32_000, direct_s=10.0, through_s=10.0, cpu_s=3.2, pace_tok_s=50),
    ]
    latency = latency_of([0.001], [0.004])
    bench_fallback.print_report(FallbackReport(1, "a Mac", 8, 1, 64, latency, flows))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ms", "1.0", "1.0", "4.0", "4.0", "3.0", "3.0"] in rows
    assert ["32000", "any", "32000", "16000", "5.0"] in rows
    assert ["32000", "50", "3200", "3200", "10.0"] in rows
