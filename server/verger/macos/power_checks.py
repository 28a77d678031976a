"""Does the Mac stay awake, come back after a power failure, and give the GPU what it asks for?

Checks of `verger doctor`. They read what Apple's tools print, as their manuals and releases up to
macOS 26 show it; what they cannot read they skip. Pure: all facts come from `Machine`.
"""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from verger.macos.findings import Facts, Finding, Level, unanswered
from verger.macos.machine import Machine

SSH_UNLOCK_RELEASE = 26
"""The first macOS that lets somebody unlock FileVault over SSH before it has started."""
RESERVED_BYTES = 8 << 30
"""What macOS needs beside what is wired."""
RECENT_PANIC = timedelta(days=7)
REPORTS = Path("/Library/Logs/DiagnosticReports")
FULL_SPEED = 100


def sleep(machine: Machine, facts: Facts) -> Finding:
    """A sleeping Mac answers nobody."""
    minutes = _setting(machine, "sleep")
    if minutes is None:
        return unanswered("sleep", "pmset -g")
    if minutes:
        why = f"this Mac goes to sleep after {minutes} minutes without use, and then serves nobody"
        return Finding("sleep", Level.FAIL, why, "sudo pmset -a sleep 0")
    return Finding("sleep", Level.OK, "this Mac does not go to sleep")


def autorestart(machine: Machine, facts: Facts) -> Finding:
    """After a power failure nobody may be there to press a button."""
    is_set = _setting(machine, "autorestart")
    if is_set is None:
        return unanswered("autorestart", "pmset -g")
    if not is_set:
        why = "after a power failure this Mac stays off"
        return Finding("autorestart", Level.WARN, why, "sudo pmset -a autorestart 1")
    return Finding("autorestart", Level.OK, "after a power failure this Mac starts by itself")


def power_mode(machine: Machine, facts: Facts) -> Finding:
    """Low power mode, or heat."""
    modes = [_setting(machine, name) for name in ("lowpowermode", "powermode")]
    if 1 in modes:
        why = "low power mode is on: the GPU computes at a fraction of its speed"
        return Finding("power mode", Level.WARN, why, "sudo pmset -a lowpowermode 0")
    ran = machine.run(["pmset", "-g", "therm"])
    if ran is None or ran.status:
        return unanswered("power mode", "pmset -g therm")
    limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", ran.output)
    if limit and int(limit[1]) < FULL_SPEED:
        why = f"this Mac is too hot and runs at {limit[1]} % of its speed"
        return Finding("power mode", Level.WARN, why, "give it air: see `pmset -g thermlog`")
    return Finding("power mode", Level.OK, "neither low power mode nor heat slows this Mac")


def filevault(machine: Machine, facts: Facts) -> Finding:
    """Nothing of ours can run before the disk is unlocked."""
    ran = machine.run(["fdesetup", "status"])
    if ran is None or "FileVault is O" not in ran.output:
        return unanswered("filevault", "fdesetup status")
    if "FileVault is Off" in ran.output:
        why = "FileVault is off: after a restart the service begins without anybody"
        return Finding("filevault", Level.OK, why)
    on = "FileVault is on: after a restart nothing runs until somebody unlocks the disk"
    planned = "sudo fdesetup authrestart"  # A planned restart, which unlocks by itself.
    release = machine.release.partition(".")[0]
    if not release.isdigit() or int(release) < SSH_UNLOCK_RELEASE:
        why = f"{on}, at its keyboard; a planned restart can do without"
        return Finding("filevault", Level.WARN, why, planned)
    ssh = machine.run(["launchctl", "print", "system/com.openssh.sshd"])
    if ssh is not None and ssh.status == 0:
        why = f"{on}; with Remote Login, which is on, `ssh USER@THIS-MAC` does it"
        return Finding("filevault", Level.OK, why, planned)
    why = f"{on}, at its keyboard; with Remote Login on, this macOS lets you do it over SSH"
    return Finding("filevault", Level.WARN, why, "sudo systemsetup -setremotelogin on")


def wired_limit(machine: Machine, facts: Facts) -> Finding:
    """What somebody lets the GPU hold."""
    limit_mib = _number(machine, "iogpu.wired_limit_mb")
    memory_bytes = _number(machine, "hw.memsize")
    if limit_mib is None or memory_bytes is None:
        return unanswered("wired limit", "sysctl iogpu.wired_limit_mb hw.memsize")
    if not limit_mib:
        return Finding("wired limit", Level.OK, "macOS decides what the GPU may hold")
    ceiling_mib = (memory_bytes - RESERVED_BYTES) >> 20
    if limit_mib > ceiling_mib:
        why = (
            f"the GPU may hold {limit_mib} MB, which leaves macOS too little: at most {ceiling_mib}"
        )
        fix = f"sudo sysctl iogpu.wired_limit_mb={max(0, ceiling_mib)}"
        return Finding("wired limit", Level.FAIL, why, fix)
    why = f"the GPU may hold {limit_mib} MB, until the next restart"
    return Finding("wired limit", Level.OK, why)


def last_panic(machine: Machine, facts: Facts) -> Finding:
    """Kernel panics leave a report; those of the GPU's memory name IOGPU."""
    names = machine.names(REPORTS)
    if names is None:
        return unanswered("last panic", f"ls {REPORTS}")
    now = datetime.fromtimestamp(machine.now_s(), UTC)
    reports = [(when, name) for name in names if (when := _panicked(name)) is not None]
    when, name = max(reports, default=(None, ""))
    if when is None or now - when > RECENT_PANIC:
        return Finding("last panic", Level.OK, f"none within {RECENT_PANIC.days} days")
    report = machine.read(REPORTS / name)
    if report is not None and b"IOGPU" in report:
        why = f"macOS panicked on {when:%F %R}, in the GPU's memory: too much of it was in use"
        fix = "lower engine.max_rows, or set engine.kv_gib; and install macOS's updates"
        return Finding("last panic", Level.WARN, why, fix)
    why = f"macOS panicked on {when:%F %R}"
    return Finding("last panic", Level.WARN, why, f"sudo less {REPORTS / name}")


def _panicked(name: str) -> datetime | None:
    """When, from the report's name, such as Kernel-2026-11-20-101500.panic; read as UTC."""
    stamp = re.search(r"(\d{4}-\d\d-\d\d-\d{6})", name)
    if stamp is None or not name.endswith(".panic"):
        return None
    try:
        return datetime.strptime(stamp[1], "%Y-%m-%d-%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def _setting(machine: Machine, name: str) -> int | None:
    """Of those in use now; a remark may follow the number."""
    ran = machine.run(["pmset", "-g"])
    if ran is None or ran.status:
        return None
    found = re.search(rf"^\s*{name}\s+(\d+)\b", ran.output, re.MULTILINE)
    return int(found[1]) if found else None


def _number(machine: Machine, name: str) -> int | None:
    ran = machine.run(["sysctl", "-n", name])
    text = "" if ran is None or ran.status else ran.output.strip()
    return int(text) if text.isdigit() else None
