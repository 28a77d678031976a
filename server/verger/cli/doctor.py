"""`verger doctor`: what is wrong with this machine, and the command that mends it.

Exit codes: 0 all is well, or only warned of; EXIT_UNWELL if a check fails.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from verger import paths
from verger.catalogue import AUTO, ModelPlaces, load_catalogue, resolve_model
from verger.cli.assumed import shipped_and_fetched
from verger.cli.machine import has_engine, is_trial, machine_memory
from verger.cli.service_mac import Mac
from verger.config import Config, load_config
from verger.errors import EXIT_UNWELL, StartupError
from verger.gateway.providers import load_kinds, load_providers
from verger.macos.doctor import examine
from verger.macos.findings import Facts, Finding, Level, closed
from verger.macos.layout import LABEL, Layout
from verger.macos.machine import Machine, ThisMachine
from verger.macos.plist_rules import problems
from verger.memory_fit import MachineMemory

SCHEMA_VERSION = 1
ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 (compared with, not listened on)
SEVERITY = (Level.FAIL, Level.WARN, Level.SKIPPED, Level.OK)


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Examine this machine: what is wrong, why it matters, and the command that mends it."""
    machine = ThisMachine()
    home = _home(machine)
    config, found = _configuration(home)
    findings = [found, _engine(), _model(config, home, machine_memory())]
    findings += [_providers(config, home), *examine(machine, facts_of(config, machine, home))]
    if as_json:
        body = {"schema_version": SCHEMA_VERSION, "findings": findings}
        print(msgspec.json.format(msgspec.json.encode(body)).decode())
    else:
        print_findings(findings)
    if any(finding.level is Level.FAIL for finding in findings):
        raise typer.Exit(EXIT_UNWELL)


def facts_of(config: Config, machine: Machine, home: Path) -> Facts:
    """What the checks are told of the installation with that state folder."""
    host = config.server.host
    identity = machine.read(home / paths.instance_id_file().name)
    is_service, python = home == paths.SERVICE_HOME, Layout().current / "bin" / "python"
    if not is_service or machine.mode(python) is None:
        python = Path(sys.executable)
    return Facts(
        home=home,
        is_service=is_service,
        host="127.0.0.1" if host in ANYWHERE else host,
        port=config.server.port,
        instance_id=None if identity is None else identity.decode(errors="replace").strip(),
        python=python.resolve(),
        label=LABEL,
        plist=Layout().plist,
        plist_problems=problems,
    )


def print_findings(findings: Sequence[Finding]) -> None:
    """Problems first, each with what mends it."""
    width = max(len(finding.check) for finding in findings)
    for level in SEVERITY:
        for finding in (finding for finding in findings if finding.level is level):
            print(f"{level:8}{finding.check:{width}}  {finding.why}")
            if finding.fix is not None:
                print(f"{'':{8 + width}}  mend it: {finding.fix}")
    counts = {level: sum(finding.level is level for finding in findings) for level in SEVERITY}
    print("\n" + ", ".join(f"{count} {level}" for level, count in counts.items()))


def _home(machine: Machine) -> Path:
    """Whose is examined: the service's, if this Mac has one and nobody says otherwise."""
    has_service = machine.is_mac and machine.read(Layout().record) is not None
    return paths.SERVICE_HOME if has_service and not paths.is_home_chosen() else paths.home()


def _configuration(home: Path) -> tuple[Config, Finding]:
    """The configuration, or the defaults where it cannot be read."""
    try:
        config = Mac().config() if home == paths.SERVICE_HOME else load_config()
        return config, Finding("configuration", Level.OK, "every setting is understood")
    except StartupError as error:
        fix = f"edit {home / paths.config_file().name}; `verger config` shows what counts"
        return load_config(environ={}, file=Path(os.devnull)), Finding(
            "configuration", Level.FAIL, str(error), fix
        )


def _engine() -> Finding:
    if has_engine():
        return Finding("engine", Level.OK, "the engine is installed")
    why = "the engine is not installed: this machine is a client only"
    return Finding("engine", Level.WARN, why, "pip install 'verger[engine]'")


def _model(config: Config, home: Path, memory: MachineMemory) -> Finding:
    """As `verger serve` would choose it."""
    requested = config.engine.model
    places = ModelPlaces(home / paths.models_dir().name, paths.nano_dir())
    try:
        choice = resolve_model(
            requested,
            load_catalogue(paths.catalogue_dir()),
            places,
            memory=memory,
            is_trial=is_trial(config, home),
        )
    except StartupError as error:
        return Finding("model", Level.FAIL, str(error), "verger models")
    if choice.notice is not None:
        return Finding("model", Level.WARN, choice.notice, "verger models")
    how = "the largest that is here and fits" if requested == AUTO else "as configured"
    return Finding("model", Level.OK, f"{choice.id} is whole and fits: {how}")


def _providers(config: Config, home: Path) -> Finding:
    """Whether they are configured well; asking them costs money, and is another command."""
    if not config.providers:
        return Finding("providers", Level.SKIPPED, "no cloud provider is configured")
    if home == paths.SERVICE_HOME and not os.access(home / "secrets", os.X_OK):
        return closed("providers")
    try:
        load_providers(
            config.providers,
            load_kinds(paths.providers_dir()),
            home,
            shipped_and_fetched(),
        )
    except StartupError as error:
        return Finding(
            "providers", Level.FAIL, str(error), f"edit {home / paths.config_file().name}"
        )
    names = ", ".join(provider.name for provider in config.providers)
    why = f"configured: {names}; `verger providers check` asks them"
    return Finding("providers", Level.OK, why)
