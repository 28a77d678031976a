"""The checks of `verger doctor` that need no model, in the order in which they are shown.

Called by the CLI, which adds those that need the catalogue. Until `verger service` says what its
plist must hold, `plist_problems` asks only what costs most when it is wrong.
"""

import plistlib
from xml.parsers.expat import ExpatError

from verger.macos import power_checks, service_checks
from verger.macos.findings import Check, Facts, Finding, only_on_a_mac
from verger.macos.machine import Machine

CHECKS: dict[str, Check] = {
    "sleep": only_on_a_mac("sleep", power_checks.sleep),
    "autorestart": only_on_a_mac("autorestart", power_checks.autorestart),
    "filevault": only_on_a_mac("filevault", power_checks.filevault),
    "power mode": only_on_a_mac("power mode", power_checks.power_mode),
    "wired limit": only_on_a_mac("wired limit", power_checks.wired_limit),
    "last panic": only_on_a_mac("last panic", power_checks.last_panic),
    "firewall": only_on_a_mac("firewall", service_checks.firewall),
    "local network": only_on_a_mac("local network", service_checks.local_network),
    "job": only_on_a_mac("job", service_checks.job),
    "plist": only_on_a_mac("plist", service_checks.plist),
    "port": service_checks.port,
    "clock": service_checks.clock,
    "disk": service_checks.disk,
    "home": service_checks.home,
    "secrets": service_checks.secrets,
}


def examine(machine: Machine, facts: Facts) -> list[Finding]:
    """Every check's finding."""
    return [check(machine, facts) for check in CHECKS.values()]


def plist_problems(raw: bytes, file_name: str) -> list[str]:
    """What keeps a job from starting, or slows it."""
    try:
        job = plistlib.loads(raw)
    except (ValueError, ExpatError, AttributeError):
        return ["it is no property list"]
    if not isinstance(job, dict):
        return ["it describes no job"]
    problems = []
    if f"{job.get('Label')}.plist" != file_name:
        problems.append(f"Label is {job.get('Label')}")
    if job.get("ProcessType") != "Interactive":
        problems.append(f"ProcessType is {job.get('ProcessType')}, not Interactive")
    if job.get("KeepAlive") is not True:
        problems.append("KeepAlive is not true")
    if job.get("Nice", 0) or job.get("LowPriorityIO", False):
        problems.append("Nice or LowPriorityIO slows it down")
    return problems
