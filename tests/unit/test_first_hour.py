"""scripts/first_hour with commands that only pretend."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from scripts.first_hour import BENCHES, carry_out, main, parts, run_command


def test_a_part_that_fails_is_recorded_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: Sequence[str], limit_s: float) -> tuple[int, str, str]:
        if "overhead" in command:
            return 3, "", "first\nverger: no memory\n"
        if "doctor" in command:
            return 7, '{"findings": []}', ""
        return 0, '{"schema_version": 1}', ""

    assert main(["--quick", "--out", str(tmp_path)], run) == 1
    body = json.loads((tmp_path / "first-hour.json").read_text())
    states = {part["name"]: part["state"] for part in body["parts"]}
    assert body["schema_version"] == 1
    assert states["overhead"] == "failed"
    assert {states[name] for name in (*BENCHES[1:], "machine and panics", "fit")} == {"done"}
    assert {states[name] for name in ("bonjour", "power", "process type")} == {"skipped"}
    assert "| overhead | failed |" in (tmp_path / "first-hour.md").read_text()
    assert "verger: no memory" in capsys.readouterr().out


def test_each_part_is_bounded_in_time_or_says_what_to_run() -> None:
    for part in parts("nano", is_quick=True):
        assert part.limit_s > 0 if part.command else part.reason


def test_a_command_that_takes_too_long_is_ended() -> None:
    status, _, why = run_command(["/bin/sleep", "30"], 0.05)
    assert (status, why) == (124, "it took longer than 0.05 s")


def test_what_is_no_json_is_a_failure() -> None:
    part = parts("nano", is_quick=True)[0]
    assert carry_out(part, lambda command, limit_s: (0, "text", "")).state == "failed"
