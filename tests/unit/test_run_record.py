"""Why a server was started, from what the run before it has left behind."""

import os
from pathlib import Path

import msgspec
import pytest

from verger import __version__
from verger.errors import ConfigError
from verger.gateway.run_record import Run, RunRecord, Start, StartReason, read_boot_id, start_of


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        (None, StartReason.FIRST),
        (Run("1", "here", 7), StartReason.CRASH),
        (Run("1", "before", 7), StartReason.POWER),
        (Run("0", "before", 7), StartReason.POWER),
        (Run("0", "here", 7), StartReason.UPDATE),
        (Run("0", "here", 7, exit_code=0), StartReason.UPDATE),
        (Run("1", "here", 7, exit_code=0), StartReason.CLEAN),
        (Run("1", "before", 7, exit_code=0), StartReason.CLEAN),
        (Run("1", "here", 7, exit_code=3), StartReason.FAILED),
        (Run("1", "before", 7, exit_code=3), StartReason.FAILED),
        (Run("1", "", 7), StartReason.CRASH),
    ],
)
def test_the_run_before_says_why_this_one_begins(before: Run | None, reason: StartReason) -> None:
    assert start_of(before, "1", "here").reason is reason


def test_where_the_system_does_not_name_its_boots_nothing_is_a_power_failure() -> None:
    assert start_of(Run("1", "before", 7), "1", "") == Start(StartReason.CRASH)


@pytest.mark.parametrize(
    ("before", "is_cautious"),
    [
        (Run("1", "before", 7), True),
        (Run("1", "here", 7), False),
        (Run("1", "here", 7, is_cautious=True), True),
        (Run("1", "here", 7, is_cautious=True, exit_code=3), True),
        (Run("1", "here", 7, is_cautious=True, exit_code=0), False),
    ],
)
def test_caution_lasts_until_a_run_has_ended_cleanly(before: Run, is_cautious: bool) -> None:
    assert start_of(before, "1", "here").is_cautious is is_cautious


def test_a_run_is_noted_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    file = tmp_path / "home" / "run.json"
    record = RunRecord(file)

    assert record.begin("one").reason is StartReason.FIRST
    assert msgspec.json.decode(file.read_bytes(), type=Run) == Run(__version__, "one", os.getpid())
    assert record.begin("one").reason is StartReason.CRASH
    record.end(0)
    assert record.begin("two").reason is StartReason.CLEAN
    assert record.begin("three") == Start(StartReason.POWER, is_cautious=True)
    record.end(0)
    assert record.begin("three") == Start(StartReason.CLEAN, is_cautious=False)
    assert sorted(path.name for path in file.parent.iterdir()) == ["run.json", "run.lock"]


def test_of_a_second_server_nothing_is_kept(tmp_path: Path) -> None:
    """It would look like a crash of the first, and its end like that one's."""
    file = tmp_path / "run.json"
    first, second = RunRecord(file), RunRecord(file)
    first.begin("one")
    assert second.begin("one") == Start(StartReason.BESIDE)
    second.end(0)
    assert msgspec.json.decode(file.read_bytes(), type=Run).exit_code is None
    first.end(0)
    assert msgspec.json.decode(file.read_bytes(), type=Run).exit_code == 0


def test_the_end_of_another_process_is_not_noted(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    theirs = msgspec.json.encode(Run(__version__, "one", os.getpid() + 1))
    record = RunRecord(file)
    record.begin("one")
    file.write_bytes(theirs)
    record.end(0)
    assert file.read_bytes() == theirs


def test_a_damaged_record_is_as_good_as_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run.json").write_text('{"version":')
    assert RunRecord(tmp_path / "run.json").begin("one").reason is StartReason.FIRST
    assert "event=run_record_unreadable" in caplog.text


def test_a_state_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    with pytest.raises(ConfigError, match=r"cannot keep .*run.json: .*; give the state folder"):
        RunRecord(tmp_path / "home" / "run.json").begin("one")


def _stand_in(folder: Path, script: str) -> str:
    program = folder / "sysctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


def test_a_mac_names_its_boots_by_a_uuid(tmp_path: Path) -> None:
    asked = 'test "$1 $2" = "-n kern.bootsessionuuid" && echo 7E0C-11'
    assert read_boot_id(tmp_path / "absent", _stand_in(tmp_path, asked)) == "7E0C-11"


def test_linux_names_its_boots_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("9f-22\n")
    assert read_boot_id(tmp_path / "boot_id", str(tmp_path / "absent")) == "9f-22"


@pytest.mark.parametrize("script", ["echo what; exit 1", None])
def test_a_system_that_does_not_say_has_no_name_for_its_boots(
    tmp_path: Path, script: str | None
) -> None:
    sysctl = str(tmp_path / "absent") if script is None else _stand_in(tmp_path, script)
    assert read_boot_id(tmp_path / "absent", sysctl) == ""
