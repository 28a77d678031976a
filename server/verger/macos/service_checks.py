"""Can the server be reached, and is its job, its state folder and its clock as they must be?

Checks of `verger doctor`; see power_checks.py. Pure: all facts come from `Machine` and `Facts`.
"""

import re
import shlex
from datetime import UTC, datetime

from verger.macos.findings import Facts, Finding, Level, closed, unanswered
from verger.macos.machine import Machine

FIREWALL = "/usr/libexec/ApplicationFirewall/socketfilterfw"
LOW_DISK_BYTES = 5_000_000_000
NO_DISK_BYTES = 500_000_000
PRIVATE_MODE = 0o077
"""The bits that nobody but the owner may have."""
_RESTART = "sudo verger service restart"
_INSTALL = "sudo verger service install --replace-plist"
RELEASED = datetime(2026, 11, 1, tzinfo=UTC)
"""No right clock says less than this."""


def firewall(machine: Machine, facts: Facts) -> Finding:
    """It refuses what is not signed, silently: the interpreter of a virtual environment is not."""
    state = machine.run([FIREWALL, "--getglobalstate"])
    enabled = re.search(r"State = (\d)", state.output) if state is not None else None
    if enabled is None:
        return unanswered("firewall", f"{FIREWALL} --getglobalstate")
    if enabled[1] == "0":
        return Finding("firewall", Level.OK, "the application firewall is off")
    python = shlex.quote(str(facts.python))
    unblock = f"sudo {FIREWALL} --add {python} && sudo {FIREWALL} --unblockapp {python}"
    if enabled[1] == "2":
        why = "the application firewall blocks all connections from outside"
        return Finding("firewall", Level.FAIL, why, f"sudo {FIREWALL} --setblockall off")
    ran = machine.run([FIREWALL, "--getappblocked", str(facts.python)])
    answer = "" if ran is None else ran.output.lower()
    if "permitted" in answer or "not blocked" in answer:
        return Finding("firewall", Level.OK, f"the application firewall lets {facts.python} in")
    if "blocked" in answer:
        why = f"the application firewall blocks {facts.python}: nobody on the network gets in"
        return Finding("firewall", Level.FAIL, why, unblock)
    why = f"the application firewall does not know {facts.python}, and may refuse it silently"
    return Finding("firewall", Level.WARN, why, unblock)


def local_network(machine: Machine, facts: Facts) -> Finding:
    """No program can ask whether it has the permission."""
    why = (
        "macOS does not say who may reach the local network. The service, Terminal and SSH always "
        "may; on a client, `no route to host` inside VS Code or iTerm means that they may not"
    )
    fix = "System Settings > Privacy & Security > Local Network, on the client"
    return Finding("local network", Level.SKIPPED, why, fix)


def port(machine: Machine, facts: Facts) -> Finding:
    """Free, or ours."""
    if not machine.is_listening(facts.host, facts.port):
        return Finding("port", Level.OK, f"port {facts.port} is free: no server runs there")
    served_id = machine.served_id(facts.host, facts.port)
    if served_id is not None and served_id == facts.instance_id:
        return Finding("port", Level.OK, f"this server answers on port {facts.port}")
    fix = f"lsof -nP -iTCP:{facts.port} -sTCP:LISTEN shows who; end it, or set server.port"
    if served_id is not None:
        why = f"another Verger, with another state folder, has port {facts.port}"
        return Finding("port", Level.WARN, why, fix)
    why = f"something has port {facts.port} that does not answer as a Verger without TLS does"
    return Finding("port", Level.WARN, why, fix)


def clock(machine: Machine, facts: Facts) -> Finding:
    """Keys expire and certificates count by it."""
    now = datetime.fromtimestamp(machine.now_s(), UTC)
    command = "sudo systemsetup -setusingnetworktime on"
    if not machine.is_mac:
        command = "sudo timedatectl set-ntp true"
    if now < RELEASED:
        why = f"the clock says {now:%Y-%m-%d}, which is over: keys and certificates go wrong"
        return Finding("clock", Level.FAIL, why, command)
    if machine.is_mac:
        ran = machine.run(["systemsetup", "-getusingnetworktime"])
        answer = re.search(r"Network Time: (On|Off)", ran.output) if ran is not None else None
    else:
        ran = machine.run(["timedatectl", "show", "-p", "NTPSynchronized", "--value"])
        answer = re.search(r"^(yes|no)$", ran.output, re.MULTILINE) if ran is not None else None
    if answer is None:
        asked = "sudo systemsetup -getusingnetworktime" if machine.is_mac else "timedatectl"
        return unanswered("clock", asked)
    if answer[1] in ("Off", "no"):
        return Finding("clock", Level.WARN, "the clock is not set from the network", command)
    return Finding("clock", Level.OK, "the clock is set from the network")


def disk(machine: Machine, facts: Facts) -> Finding:
    """Keys, ledger and log are written there."""
    free = machine.free_bytes(facts.home)
    if free is None:
        return unanswered("disk", f"df {facts.home}")
    why = f"{free / 1e9:.1f} GB are free where {facts.home} is"
    if free >= LOW_DISK_BYTES:
        return Finding("disk", Level.OK, why)
    level = Level.FAIL if free < NO_DISK_BYTES else Level.WARN
    fix = f"du -sh {shlex.quote(str(facts.home))}/*; cache/ may be deleted while nothing is served"
    return Finding("disk", level, why, fix)


def home(machine: Machine, facts: Facts) -> Finding:
    """Whoever runs the server writes there."""
    if facts.is_service:
        why = f"{facts.home} is the service's; `verger service status` says what is wrong with it"
        return Finding("home", Level.SKIPPED, why)
    if machine.may_write(facts.home):
        return Finding("home", Level.OK, f"{facts.home} can be written")
    folder = shlex.quote(str(facts.home))
    why = f"{facts.home} cannot be written by this user"
    return Finding("home", Level.FAIL, why, f'sudo chown -R "$(id -un)" {folder}')


def secrets(machine: Machine, facts: Facts) -> Finding:
    """Keys of providers and of servers, and the database with everybody's."""
    folder = facts.home / "secrets"
    if facts.is_service and machine.names(folder) is None:
        return closed("secrets")
    files = [folder / name for name in machine.names(folder) or []]
    files += [facts.home / name for name in ("verger.db", "pins.json")]
    modes = {file: mode for file in files if (mode := machine.mode(file)) is not None}
    public = [file for file, mode in modes.items() if mode & PRIVATE_MODE]
    if not public:
        return Finding("secrets", Level.OK, f"files with secrets, their owner's only: {len(modes)}")
    names = " ".join(shlex.quote(str(file)) for file in public)
    why = f"others on this machine can read {', '.join(file.name for file in public)}"
    return Finding("secrets", Level.FAIL, why, f"chmod 600 {names}")


def job(machine: Machine, facts: Facts) -> Finding:
    """What launchd runs, not what the plist says: one of another type computes at an eighth."""
    target = f"system/{facts.label}"
    ran = machine.run(["launchctl", "print", target])
    if ran is None:
        return unanswered("job", f"launchctl print {target}")
    raw = machine.read(facts.plist)
    if ran.status and raw is None:
        why = "the service is not installed: nothing starts when this Mac does"
        return Finding("job", Level.SKIPPED, why, "sudo verger service install")
    if ran.status:
        why = "the service is stopped, until the next boot"
        return Finding("job", Level.WARN, why, "sudo verger service start")
    found = re.search(r"spawn type = (\w+)", ran.output)
    if found is None:
        return unanswered("job", f"launchctl print {target}")
    if found[1] != "interactive":
        why = f"launchd runs the service as {found[1]}, which slows it several times"
        is_edited = raw is not None and facts.plist_problems(raw, facts.plist.name)
        return Finding("job", Level.FAIL, why, _INSTALL if is_edited else _RESTART)
    return Finding("job", Level.OK, "launchd runs the service as interactive, at full speed")


def plist(machine: Machine, facts: Facts) -> Finding:
    """Somebody may have edited it."""
    raw = machine.read(facts.plist)
    if raw is None:
        return Finding("plist", Level.SKIPPED, f"there is no {facts.plist}, or it cannot be read")
    problems = facts.plist_problems(raw, facts.plist.name)
    if problems:
        why = f"{facts.plist} is not as it was installed: {'; '.join(problems)}"
        return Finding("plist", Level.FAIL, why, _INSTALL)
    return Finding("plist", Level.OK, f"{facts.plist} is as it must be")
