"""The checks of `verger doctor` that need no model, in the order in which they are shown.

Called by the CLI, which adds those that need the catalogue.
"""

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
