"""The comparison of ProcessTypes against a stand-in for launchctl that really runs the jobs."""

import os
import plistlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.hour.parts import Fail, Skip
from scripts.hour.process_type import (
    GONE_TRIES,
    KINDS,
    Launchd,
    compare,
    compare_here,
    decode_ratio,
)
from scripts.hour.run import Done, run_command
from tests.process.stand_ins import LAUNCHCTL, write_program

pytestmark = pytest.mark.process

COUNTS = """
import json, os, pathlib, sys
file = pathlib.Path(sys.argv[1])
turn = int(file.read_text()) if file.exists() else 0
file.write_text(str(turn + 1))
row = {"batch": 1, "context_tokens": 500, "tok_s": [80.0, 20.0, 10.0][turn]}
print(json.dumps({"decode": [row], "home": os.environ["VERGER_HOME"]}))
"""
"""A bench that finds 80 tok/s at first, then 20, then 10."""
FAILS = "import sys; sys.exit('verger: no such model')"
HANGS = "import time; time.sleep(300)"


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a stand-in for launchctl; temporary folders lie beside it."""
    write_program(tmp_path / "mac" / "launchctl", LAUNCHCTL)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "mac"


def launchd(mac: Path, uid: int = 501, pauses: list[float] | None = None) -> Launchd:
    kept: list[float] = [] if pauses is None else pauses
    return Launchd(run_command, str(mac / "launchctl"), uid, limit_s=5.0, pause=kept.append)


def compared(asked: Launchd, mac: Path, program: str = COUNTS) -> dict[str, object]:
    command = (sys.executable, "-c", program, str(mac / "turn"))
    return compare(asked, command, {"VERGER_HOME": "/a home", "PATH": os.environ["PATH"]})


def verbs(mac: Path) -> list[str]:
    return [line.split()[0] for line in (mac / "verbs").read_text().splitlines()]


def is_clean(mac: Path) -> bool:
    """No job is loaded, and no file of ours is left."""
    return not list(mac.glob("*.pid")) and not list((mac.parent / "temporary").iterdir())


def test_each_process_type_runs_once_and_the_rates_are_compared(mac: Path) -> None:
    answer = compared(launchd(mac), mac)
    assert answer["domain"] == "gui/501"
    assert answer["interactive_to_none"] == 4.0
    assert answer["interactive_to_background"] == 8.0
    assert verbs(mac) == ["print", *["bootstrap", "bootout", "print"] * len(KINDS)]
    assert is_clean(mac)
    jobs = [plistlib.loads(path.read_bytes()) for path in sorted(mac.glob("*.plist"))]
    assert [job.get("ProcessType") for job in jobs] == ["Background", "Interactive", None]
    for job in jobs:
        assert job["Label"].startswith("com.verger.first-hour.")
        assert job["LimitLoadToSessionType"] == ["Aqua", "Background"]
        assert job["EnvironmentVariables"]["VERGER_HOME"] == "/a home"


def test_root_uses_the_systems_domain_and_whoever_is_not_logged_in_the_users(mac: Path) -> None:
    assert launchd(mac, uid=0).domain() == "system"
    assert launchd(mac, uid=502).domain() == "user/502"


def test_a_job_of_the_system_is_for_no_session(mac: Path) -> None:
    def run(command: Sequence[str], limit_s: float) -> Done:
        if command[1] == "bootstrap":
            job = plistlib.loads(Path(command[3]).read_bytes())
            assert "LimitLoadToSessionType" not in job
        return Done(5, err="Bootstrap failed: 5: Input/output error")

    with pytest.raises(Fail, match="launchctl bootstrap system: Bootstrap failed: 5"):
        compare(Launchd(run, "launchctl", 0, 5.0), ("true",), {})


def test_a_job_that_fails_is_quoted_and_booted_out(mac: Path) -> None:
    with pytest.raises(Fail, match="^verger: no such model$"):
        compared(launchd(mac), mac, FAILS)
    assert verbs(mac) == ["print", "bootstrap", "bootout", "print"]
    assert is_clean(mac)


def test_a_job_that_does_not_end_is_given_up_and_booted_out(mac: Path) -> None:
    (mac / "hangs").touch()
    pauses: list[float] = []
    with pytest.raises(Fail, match="did not end within 5 s"):
        compared(launchd(mac, pauses=pauses), mac, HANGS)
    assert pauses == [1.0] * 5
    assert verbs(mac) == ["print", "bootstrap", "bootout", "print"]
    assert is_clean(mac)


def test_a_job_that_is_refused_is_booted_out_all_the_same(mac: Path) -> None:
    (mac / "refuses").touch()
    with pytest.raises(Fail, match="bootstrap gui/501: Bootstrap failed: 5: Input/output error"):
        compared(launchd(mac), mac)
    assert verbs(mac) == ["print", "bootstrap", "bootout", "print"]
    assert is_clean(mac)


def test_a_job_that_stays_is_named_with_the_command_that_ends_it() -> None:
    def run(command: Sequence[str], limit_s: float) -> Done:
        return Done(5 if command[1] == "bootstrap" else 0)

    pauses: list[float] = []
    with pytest.raises(Fail, match="is still loaded: launchctl bootout gui/501/com.verger.first"):
        compare(Launchd(run, "launchctl", 501, 5.0, pauses.append), ("true",), {})
    assert len(pauses) == GONE_TRIES


def test_without_launchctl_it_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Skip, match="only a Mac has it"):
        compare_here(("true",), run_command, 5.0)


def test_the_ratio_is_the_median_over_what_both_have() -> None:
    def report(**rates: float) -> dict[str, object]:
        rows = [{"batch": int(n[1:]), "context_tokens": 1, "tok_s": r} for n, r in rates.items()]
        return {"decode": rows}

    one = report(b1=10.0, b2=30.0, b4=90.0, b8=5.0)
    assert decode_ratio(one, report(b1=10.0, b2=10.0, b4=10.0)) == 3.0
    assert decode_ratio(one, report(b16=1.0)) is None
