"""Watts from what powermetrics prints, with a stand-in that prints as it is said to."""

import json
import os
import plistlib
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scripts.hour.parts import Fail, Skip
from scripts.hour.power import (
    MIN_SAMPLES,
    Sample,
    is_within,
    measure,
    measure_here,
    report,
    samples_of,
)
from scripts.hour.run import beside, run_command
from tests.process.stand_ins import POWERMETRICS, write_program

pytestmark = pytest.mark.process

LOAD = """
import pathlib, sys
while not pathlib.Path(sys.argv[1], "sampling").exists(): pass
print(sys.argv[2])
"""
"""A bench whose decoding lies in the middle of what the stand-in tells."""
RATES = {"decode": [{"batch": 8, "tok_s": 200.0, "runs": [{"began_s": 1000.5, "ended_s": 1010.5}]}]}


def sample(at_s: float, chip_w: float = 40.0, gpu_w: float | None = 30.0) -> Sample:
    return Sample(at_s, 1.0, chip_w, gpu_w)


def printed(**told: object) -> bytes:
    first = {
        "elapsed_ns": 10**9,
        "timestamp": datetime.fromtimestamp(1000, UTC).replace(tzinfo=None),
    }
    return plistlib.dumps(first | told)


def load(folder: Path, rates: object) -> tuple[str, ...]:
    return (sys.executable, "-c", LOAD, str(folder), json.dumps(rates))


def test_watts_and_joules_per_token_are_of_the_time_of_decoding(tmp_path: Path) -> None:
    write_program(tmp_path / "powermetrics", POWERMETRICS)
    program = str(tmp_path / "powermetrics")
    answer = measure(program, load(tmp_path, RATES), run_command, beside, limit_s=60.0)
    assert (answer["idle_w"], answer["active_w"], answer["active_gpu_w"]) == (4.0, 40.0, 30.0)
    assert (answer["j_per_token"], answer["j_per_token_above_idle"]) == (0.2, 0.18)
    # From 1002 on, whose second began after 1000.5, to 1009, which had ended by 1010.5.
    assert (answer["idle_samples"], answer["active_samples"]) == (10, 8)


def test_a_load_that_fails_is_a_failure(tmp_path: Path) -> None:
    write_program(tmp_path / "powermetrics", POWERMETRICS)
    command = (sys.executable, "-c", "import sys; sys.exit('verger: no such model')")
    with pytest.raises(Fail, match="no such model"):
        measure(str(tmp_path / "powermetrics"), command, run_command, beside, limit_s=60.0)


@pytest.mark.parametrize(
    ("at_s", "expected"), [(1001, False), (1002, True), (1009, True), (1010, False)]
)
def test_only_samples_that_surely_lie_within_count(at_s: float, expected: bool) -> None:
    assert is_within(sample(at_s), 1000.5, 1010.5) is expected


def test_too_few_samples_are_no_figure() -> None:
    idle = [sample(990.0, 4.0)] * MIN_SAMPLES
    enough = [sample(1002.0 + second) for second in range(MIN_SAMPLES)]
    assert report(idle, enough, RATES)["active_w"] == 40.0
    with pytest.raises(Skip, match="3 samples idle and 2 in the 10.0 s of decoding"):
        report(idle, enough[1:], RATES)
    with pytest.raises(Skip, match="2 samples idle"):
        report(idle[1:], enough, RATES)
    with pytest.raises(Skip, match="measured no decoding"):
        report(idle, enough, {"decode": []})


def test_what_is_not_said_is_not_made_up() -> None:
    with pytest.raises(Skip, match=r"and in processor \['package_watts'\]"):
        samples_of(printed(processor={"package_watts": 5.0}))
    (without_gpu,) = samples_of(printed(processor={"combined_power": 5000}))
    assert without_gpu == Sample(1000.0, 1.0, 5.0, None)
    idle = [sample(990.0, 4.0)] * MIN_SAMPLES
    active = [sample(1002.0 + second, gpu_w=None) for second in range(MIN_SAMPLES)]
    assert report(idle, active, RATES)["active_gpu_w"] is None


def test_a_sample_that_is_cut_off_is_left_out() -> None:
    whole = printed(processor={"combined_power": 5000, "gpu_power": 1000})
    assert samples_of(b"") == []
    assert len(samples_of(whole + b"\0\n" + whole + b"\0" + whole[: len(whole) // 2])) == 2


def test_without_root_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Skip, match="only a Mac has it"):
        measure_here(("true",), run_command, beside, 5.0)
    write_program(tmp_path / "powermetrics", POWERMETRICS)
    monkeypatch.setattr(os, "geteuid", lambda: 501)
    with pytest.raises(Skip, match="sudo scripts/first_hour --only power"):
        measure_here(("true",), run_command, beside, 5.0)


def test_a_powermetrics_that_fails_is_quoted(tmp_path: Path) -> None:
    write_program(tmp_path / "powermetrics", "import sys; sys.exit('unrecognized sampler')")
    with pytest.raises(Skip, match="powermetrics failed: unrecognized sampler"):
        measure(str(tmp_path / "powermetrics"), ("true",), run_command, beside, 5.0)
