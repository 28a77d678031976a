"""The first hour on this machine, as far as it goes: real benches, and what only a Mac has."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.hour.parts import VERGER, at
from scripts.hour.process_type import Launchd, compare
from scripts.hour.run import run_command
from tests.process.stand_ins import LAUNCHCTL, write_program
from verger.cli.machine import has_engine

pytestmark = [
    pytest.mark.process,
    pytest.mark.mlx,
    pytest.mark.skipif(not has_engine(), reason="the benches need the engine"),
]
ROOT = Path(__file__).parents[2]
SMALL = ("--contexts", "100", "--batches", "1", "--tokens", "16", "--repeats", "1", "--json", "-")


@pytest.mark.timeout(600)
def test_nano_has_a_first_hour_in_which_nothing_fails(tmp_path: Path) -> None:
    only = "fit,doctor,rates,process-type,power,bonjour,panics"
    command = [sys.executable, "-m", "scripts.first_hour", "--quick", "--only", only]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout
    body = json.loads((tmp_path / "first-hour.json").read_text())
    states = {part["name"]: part["state"] for part in body["parts"]}
    assert states["fit"] == states["doctor"] == states["rates"] == "done"
    if sys.platform != "darwin":
        skipped = {name for name, state in states.items() if state == "skipped"}
        assert skipped == {"process-type", "power", "bonjour", "panics"}
    rates = next(part["answer"] for part in body["parts"] if part["name"] == "rates")
    assert [row["batch"] for row in rates["decode"]] == [1, 4, 1, 4]
    text = (tmp_path / "first-hour.md").read_text()
    assert "| load: start to /readyz |" in text
    assert "decode, 4 streams behind 2000 tokens" in text
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "first-hour.json",
        "first-hour.md",
    ]


@pytest.mark.timeout(300)
def test_the_real_bench_runs_as_a_job_of_each_process_type(tmp_path: Path) -> None:
    write_program(tmp_path / "launchctl", LAUNCHCTL)
    launchd = Launchd(run_command, str(tmp_path / "launchctl"), 501, limit_s=120.0)
    variables = {name: os.environ[name] for name in ("PATH", "VERGER_HOME") if name in os.environ}
    answer = compare(launchd, (*VERGER, "bench", "rates", *SMALL), variables)
    for kind in ("interactive", "none", "background"):
        assert at(answer, "rates", kind, "decode", 0, "batch") == 1
    for ratio in ("interactive_to_none", "interactive_to_background"):
        found = at(answer, ratio)
        assert isinstance(found, float)
        assert found > 0
    assert not list(tmp_path.glob("*.pid"))


def test_the_script_names_its_parts_where_one_is_unknown() -> None:
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run(
        [bash, str(ROOT / "scripts" / "first_hour"), "--only", "sleep"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "sleep is none of fit, doctor, rates" in done.stderr
