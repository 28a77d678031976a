"""Each check of `verger doctor` against what the tools of a Mac print."""

import shlex
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fake_machine import NOW, FakeMachine
from verger.macos.doctor import CHECKS, examine
from verger.macos.findings import Facts, Level
from verger.macos.plist_rules import problems
from verger.macos.power_checks import REPORTS
from verger.macos.programs import Done
from verger.macos.service_checks import FIREWALL, LOW_DISK_BYTES, NO_DISK_BYTES

HOME = Path("/Library/Application Support/Verger")
PYTHON = Path("/opt/verger/bin/python3.13")
PLIST = Path("/Library/LaunchDaemons/com.verger.server.plist")
FACTS = Facts(HOME, False, "127.0.0.1", 8374, "id-1", PYTHON, "com.verger.server", PLIST, problems)
PMSET = """System-wide power settings:
Currently in use:
 standby              0
 Sleep On Power Button 1
 powernap             1
 disksleep            10
 sleep                {sleep}
 displaysleep         10
 lowpowermode         {low}
 womp                 1
 autorestart          {restart}
"""
GOOD_PMSET = PMSET.format(sleep="0 (sleep prevented by powerd)", low=0, restart=1)
NO_HEAT = "Note: No thermal warning level has been recorded\n"
HOT = "CPU Power notify\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= {}\n"
SSHD = "launchctl print system/com.openssh.sshd"
JOB = "launchctl print system/com.verger.server"
JOB_OUTPUT = "system/com.verger.server = {{\n\tstate = running\n\tspawn type = {} (4)\n}}\n"
STATE, APP = f"{FIREWALL} --getglobalstate", f"{FIREWALL} --getappblocked {PYTHON}"
ON = "Firewall is enabled. (State = 1)\n"
WIRED, MEMORY = "sysctl -n iogpu.wired_limit_mb", "sysctl -n hw.memsize"
MIB_64 = 64 * 1024
GOOD_PLIST = (Path(__file__).parents[1] / "golden" / "com.verger.server.plist").read_bytes()
PANIC = "panic-full-{:%Y-%m-%d}-080000.0002.panic"

OK, WARN, FAIL, SKIPPED = Level.OK, Level.WARN, Level.FAIL, Level.SKIPPED


def outputs(**changes: Any) -> dict[str, Any]:
    """The PMSET text with changed values."""
    return {"pmset -g": PMSET.format(**{"sleep": 0, "low": 0, "restart": 1, **changes})}


@pytest.mark.parametrize(
    ("check", "printed", "level", "why", "fix"),
    [
        ("sleep", {"pmset -g": GOOD_PMSET}, OK, "does not go to sleep", None),
        ("sleep", outputs(sleep=10), FAIL, "after 10 minutes", "sudo pmset -a sleep 0"),
        ("sleep", {}, SKIPPED, "`pmset -g` did not say", None),
        ("sleep", {"pmset -g": Done(1, GOOD_PMSET)}, SKIPPED, "did not say", None),
        ("sleep", {"pmset -g": "something else"}, SKIPPED, "did not say", None),
        ("autorestart", outputs(), OK, "starts by itself", None),
        ("autorestart", outputs(restart=0), WARN, "stays off", "sudo pmset -a autorestart 1"),
        ("autorestart", {}, SKIPPED, "did not say", None),
        ("power mode", {**outputs(), "pmset -g therm": NO_HEAT}, OK, "neither", None),
        ("power mode", {**outputs(), "pmset -g therm": HOT.format(100)}, OK, "neither", None),
        ("power mode", {**outputs(), "pmset -g therm": HOT.format(60)}, WARN, "60 %", "thermlog"),
        ("power mode", outputs(low=1), WARN, "low power mode", "pmset -a lowpowermode 0"),
        ("power mode", outputs(), SKIPPED, "`pmset -g therm` did not say", None),
        ("filevault", {"fdesetup status": "FileVault is Off.\n"}, OK, "is off", None),
        (
            "filevault",
            {"fdesetup status": "FileVault is On.\n", SSHD: "state = waiting"},
            OK,
            "`ssh USER@THIS-MAC` does it",
            "authrestart",
        ),
        (
            "filevault",
            {"fdesetup status": "FileVault is On.\n", SSHD: Done(113, "Could not find service")},
            WARN,
            "at its keyboard; with Remote Login on",
            "sudo systemsetup -setremotelogin on",
        ),
        ("filevault", {"fdesetup status": "Error"}, SKIPPED, "did not say", None),
        ("wired limit", {WIRED: "0\n", MEMORY: str(64 << 30)}, OK, "macOS decides", None),
        (
            "wired limit",
            {WIRED: str(MIB_64 - 8192), MEMORY: str(64 << 30)},
            OK,
            "until the next restart",
            None,
        ),
        (
            "wired limit",
            {WIRED: str(MIB_64 - 8191), MEMORY: str(64 << 30)},
            FAIL,
            "leaves macOS too little",
            "sudo sysctl iogpu.wired_limit_mb=57344",
        ),
        ("wired limit", {WIRED: "unknown oid"}, SKIPPED, "did not say", None),
        ("firewall", {STATE: "Firewall is disabled. (State = 0)\n"}, OK, "is off", None),
        ("firewall", {STATE: ON, APP: "Incoming connection is permitted"}, OK, "lets", None),
        ("firewall", {STATE: ON, APP: "The application is not blocked"}, OK, "lets", None),
        (
            "firewall",
            {STATE: ON, APP: "Incoming connection to the application is blocked"},
            FAIL,
            f"blocks {PYTHON}",
            f"--unblockapp {PYTHON}",
        ),
        ("firewall", {STATE: ON, APP: "not part of the firewall"}, WARN, "not know", "--add"),
        ("firewall", {STATE: ON}, WARN, "does not know", f"--add {PYTHON}"),
        ("firewall", {STATE: "(State = 2)"}, FAIL, "blocks all", "--setblockall off"),
        ("firewall", {}, SKIPPED, "did not say", None),
        ("local network", {}, SKIPPED, "VS Code", "Privacy & Security > Local Network"),
        ("job", {JOB: JOB_OUTPUT.format("interactive")}, OK, "as interactive", None),
        ("job", {JOB: JOB_OUTPUT.format("background")}, FAIL, "as background", "service restart"),
        ("job", {JOB: Done(113, "Could not find service")}, SKIPPED, "not installed", "install"),
        ("job", {JOB: "another format"}, SKIPPED, "did not say", None),
        ("job", {}, SKIPPED, "did not say", None),
        ("clock", {"systemsetup -getusingnetworktime": "Network Time: On\n"}, OK, "is set", None),
        (
            "clock",
            {"systemsetup -getusingnetworktime": "Network Time: Off\n"},
            WARN,
            "is not set",
            "sudo systemsetup -setusingnetworktime on",
        ),
        (
            "clock",
            {"systemsetup -getusingnetworktime": "You need administrator access"},
            SKIPPED,
            "`sudo systemsetup -getusingnetworktime` did not say",
            None,
        ),
    ],
)
def test_what_a_tool_prints_becomes_a_finding(
    check: str, printed: dict[str, str | Done], level: Level, why: str, fix: str | None
) -> None:
    finding = CHECKS[check](FakeMachine(outputs=printed), FACTS)
    assert (finding.check, finding.level) == (check, level)
    assert why in finding.why
    assert (finding.fix is None) == (fix is None)
    assert (fix or "") in (finding.fix or "")


@pytest.mark.parametrize("release", ["15.7", "", "unknown"])
def test_before_macos_26_filevault_is_unlocked_at_the_keyboard(release: str) -> None:
    printed = {"fdesetup status": "FileVault is On.\n", SSHD: "state = waiting"}
    finding = CHECKS["filevault"](FakeMachine(release=release, outputs=printed), FACTS)
    assert finding.level is WARN
    assert finding.fix == "sudo fdesetup authrestart"


def test_nobody_is_told_to_turn_protection_off() -> None:
    """Neither FileVault nor the whole firewall."""
    for printed in ({"fdesetup status": "FileVault is On."}, {STATE: ON}, {STATE: "State = 2"}):
        for finding in examine(FakeMachine(outputs=printed), FACTS):
            assert "fdesetup disable" not in (finding.fix or "")
            assert "setglobalstate off" not in (finding.fix or "")


@pytest.mark.parametrize(
    ("listener", "level", "why"),
    [
        (None, OK, "is free"),
        ("id-1", OK, "this server answers"),
        ("id-2", WARN, "another Verger"),
        ("", WARN, "does not answer as a Verger"),
    ],
)
def test_the_port_is_free_or_ours(listener: str | None, level: Level, why: str) -> None:
    finding = CHECKS["port"](FakeMachine(is_mac=False, listener=listener), FACTS)
    assert (finding.level, why in finding.why) == (level, True)


def test_no_instance_id_is_not_the_id_of_whatever_listens() -> None:
    facts = replace(FACTS, instance_id=None)
    assert CHECKS["port"](FakeMachine(listener=""), facts).level is WARN


@pytest.mark.parametrize(
    ("free", "level"),
    [
        (None, SKIPPED),
        (LOW_DISK_BYTES, OK),
        (LOW_DISK_BYTES - 1, WARN),
        (NO_DISK_BYTES, WARN),
        (NO_DISK_BYTES - 1, FAIL),
    ],
)
def test_a_full_disk(free: int | None, level: Level) -> None:
    assert CHECKS["disk"](FakeMachine(free=free), FACTS).level is level


def test_a_home_that_cannot_be_written_names_a_command_that_a_shell_takes() -> None:
    finding = CHECKS["home"](FakeMachine(is_writable=False), FACTS)
    assert finding.level is FAIL
    assert finding.fix is not None
    assert shlex.split(finding.fix)[-1] == str(HOME)
    assert CHECKS["home"](FakeMachine(), FACTS).level is OK


def test_a_service_that_is_stopped_is_not_one_that_is_missing() -> None:
    gone = {JOB: Done(113, "Could not find service")}
    finding = CHECKS["job"](FakeMachine(outputs=gone, files={PLIST: GOOD_PLIST}), FACTS)
    assert (finding.level, finding.fix) == (WARN, "sudo verger service start")


@pytest.mark.parametrize(
    ("content", "fix"),
    [
        (GOOD_PLIST, "sudo verger service restart"),
        (
            GOOD_PLIST.replace(b"Interactive", b"Background"),
            "sudo verger service install --replace-plist",
        ),
    ],
)
def test_a_throttled_job_is_loaded_again_or_written_again(content: bytes, fix: str) -> None:
    throttled = {JOB: JOB_OUTPUT.format("background")}
    finding = CHECKS["job"](FakeMachine(outputs=throttled, files={PLIST: content}), FACTS)
    assert (finding.level, finding.fix) == (FAIL, fix)


def test_secrets_are_their_owners_only() -> None:
    folders = {HOME / "secrets": ["groq", "openai"]}
    modes = {HOME / "secrets" / "groq": 0o600, HOME / "secrets" / "openai": 0o400}
    good = FakeMachine(folders=folders, modes={**modes, HOME / "verger.db": 0o600})
    assert CHECKS["secrets"](good, FACTS).level is OK
    for mode in (0o640, 0o604, 0o620):
        bad = FakeMachine(folders=folders, modes={**modes, HOME / "secrets" / "groq": mode})
        finding = CHECKS["secrets"](bad, FACTS)
        assert finding.level is FAIL
        assert finding.fix == f"chmod 600 {shlex.quote(str(HOME / 'secrets' / 'groq'))}"
    assert CHECKS["secrets"](FakeMachine(), FACTS).level is OK


@pytest.mark.parametrize(
    ("days", "report", "level", "why"),
    [
        (2, b"panic(cpu 4): completeMemory() @IOGPUMemory.cpp:550", WARN, "in the GPU's memory"),
        (2, b"panic(cpu 4): something", WARN, "macOS panicked on 2026-11-22"),
        (8, b"IOGPU", OK, "none within 7 days"),
    ],
)
def test_a_recent_panic_is_remembered(days: int, report: bytes, level: Level, why: str) -> None:
    name = PANIC.format(NOW - timedelta(days=days))
    old = PANIC.format(NOW - timedelta(days=90))
    names = ["other.ips", "panic-full-2026-99-99-080000.panic", old, name]
    machine = FakeMachine(folders={REPORTS: names}, files={REPORTS / name: report})
    finding = CHECKS["last panic"](machine, FACTS)
    assert (finding.level, why in finding.why) == (level, True)


def test_reports_that_cannot_be_listed_are_no_good_news() -> None:
    assert CHECKS["last panic"](FakeMachine(), FACTS).level is SKIPPED


@pytest.mark.parametrize(
    ("content", "level", "why"),
    [
        (GOOD_PLIST, OK, "as it must be"),
        (GOOD_PLIST.replace(b"Interactive", b"Background"), FAIL, "ProcessType"),
        (b"\xff\xfe", FAIL, ""),
        (None, SKIPPED, "there is no"),
    ],
)
def test_an_edited_plist_is_noticed(content: bytes | None, level: Level, why: str) -> None:
    files = {} if content is None else {PLIST: content}
    finding = CHECKS["plist"](FakeMachine(files=files), FACTS)
    assert (finding.level, why in finding.why) == (level, True)


@pytest.mark.parametrize(
    ("printed", "level"),
    [("yes\n", OK), ("no\n", WARN), ("Failed to connect to bus", SKIPPED)],
)
def test_the_clock_of_linux(printed: str, level: Level) -> None:
    asked = "timedatectl show -p NTPSynchronized --value"
    machine = FakeMachine(is_mac=False, outputs={asked: printed})
    assert CHECKS["clock"](machine, FACTS).level is level


def test_a_clock_that_is_years_behind_fails() -> None:
    finding = CHECKS["clock"](FakeMachine(now=NOW - timedelta(days=900)), FACTS)
    assert finding.level is FAIL
    assert finding.fix == "sudo systemsetup -setusingnetworktime on"


def test_elsewhere_than_on_a_mac_its_checks_are_skipped_with_the_reason() -> None:
    findings = examine(FakeMachine(is_mac=False), FACTS)
    assert [finding.check for finding in findings] == list(CHECKS)
    skipped = [finding.check for finding in findings if finding.why == "only a Mac has this"]
    assert skipped == list(CHECKS)[:10]
    assert not [finding for finding in findings if finding.level is FAIL]
