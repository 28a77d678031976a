"""What `verger bench overhead` refuses, and what it prints."""

from pathlib import Path

import pytest
import typer

from tests.model_folders import TENSOR_BYTES, write_model_folder
from verger.bench.report import Connections, CpuPerToken, Pair, Rates, Report, summarise
from verger.cli import bench, bench_shared
from verger.cli.machine import has_engine
from verger.errors import StartupError
from verger.timings import StreamTimes


def test_without_the_engine_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_shared, "has_engine", lambda: False)
    with pytest.raises(StartupError, match=r"verger\[engine\]"):
        bench.overhead()


@pytest.mark.skipif(not has_engine(), reason="without the engine this is what it says first")
def test_streams_that_make_no_sense_are_a_usage_error() -> None:
    with pytest.raises(typer.BadParameter, match="two is neither"):
        bench.overhead(streams="1,two")


@pytest.mark.skipif(not has_engine(), reason="without the engine this is what it says first")
def test_a_model_that_does_not_fit_twice_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model_folder(tmp_path / "model")
    monkeypatch.setattr(bench, "memory_bytes", lambda: TENSOR_BYTES)
    with pytest.raises(StartupError, match="the bench loads model twice"):
        bench.overhead(model=str(folder))


def test_the_table_holds_ratios_targets_and_differences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs = [Pair(Rates(10, 900.0, 700.0), Rates(11, 1000.0, 1000.0))]
    stream = StreamTimes(prompt_tokens=5, tokens=10, token_s=[1.0], ended_s=2.0)
    scenarios = [
        summarise("16", 0.85, [stream], pairs, CpuPerToken(69.4, 1736.0)),
        summarise("15+1 long", 1.3, [stream], pairs, CpuPerToken(69.4, 1736.0)),
    ]
    connections = Connections(opened=64, served=64, elapsed_s=4.1)
    bench.print_report(Report(1, "nano", "a Mac", 8, 1.31, scenarios, connections))
    printed = capsys.readouterr().out
    rows = [line.split() for line in printed.splitlines()]
    cells = ["900", "1000", "0.90", "0.90–0.90"]
    assert ["16", *cells, "0.85", "met", "0.70", "69", "1736"] in rows
    assert ["15+1", "long", *cells, "1.30", "missed", "0.70", "69", "1736"] in rows
    assert "16: the two sides generated different numbers of tokens" in printed
    assert "start to /readyz: 1.31 s" in printed
    assert "64 of 64 served" in printed
