"""`verger service`: Verger as a system service of a Mac; and `verger upgrade`.

What is there is looked at, a plan is made, and the plan is printed (--dry-run) or carried out.
Without launchd only --dry-run works, as for a Mac that never had the service.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from msgspec import Struct

from verger.cli import service_mac
from verger.cli.service_mac import Mac
from verger.errors import ConfigError, InstallError, NotAMac, ServiceDrift
from verger.macos.launchd import await_answer, probe, start_steps, stop_steps
from verger.macos.layout import USER
from verger.macos.plist_rules import problems
from verger.macos.service_plan import FIRST_KEY, back_steps, install_steps, uninstall_steps
from verger.macos.steps import Step, transcript
from verger.macos.survey import Facts

SCHEMA_VERSION = 1
MAX_LOG_LINES = 10_000
LOG_BYTES_PER_LINE = 400
FRESH = Facts()
"""A Mac that never had the service: what --dry-run takes another machine for."""

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print every file and command.")]
FromSource = Annotated[
    Path | None, typer.Option(help="A checkout or a wheel; else what this command is part of.")
]
ReplacePlist = Annotated[bool, typer.Option(help="Replace a plist that was edited by hand.")]

service = typer.Typer(help="Run Verger as a system service of a Mac.", no_args_is_help=True)


@service.command()
def install(
    dry_run: DryRun = False, source: FromSource = None, replace_plist: ReplacePlist = False
) -> None:
    """Install the service, or bring it to this version; does nothing if it is."""
    with changing("service install", is_dry=dry_run) as (mac, facts):
        steps = plan_install(mac, facts, source, "service install", is_replaced=replace_plist)
        _install(mac, facts, steps, dry_run)


def upgrade(
    dry_run: DryRun = False,
    source: FromSource = None,
    replace_plist: ReplacePlist = False,
    back: Annotated[
        bool, typer.Option("--back", help="To the version before; once more: forward again.")
    ] = False,
) -> None:
    """Bring the installed service to this version; back to the old one if it does not answer."""
    if back and source is not None:
        raise typer.BadParameter("--back goes to the version that was kept", param_hint="--source")
    with changing("upgrade", is_dry=dry_run) as (mac, facts):
        if back:
            _go_back(mac, facts, dry_run, is_replaced=replace_plist)
            return
        if not dry_run and facts.record is None:
            raise InstallError("there is no service to upgrade: sudo verger service install")
        steps = plan_install(mac, facts, source, "upgrade", is_replaced=replace_plist)
        _install(mac, facts, steps, dry_run)


@service.command()
def uninstall(
    dry_run: DryRun = False,
    purge: Annotated[bool, typer.Option(help="Models, keys and settings as well.")] = False,
) -> None:
    """Stop the service and remove all that its installation made; keeps models and keys."""
    with changing("service uninstall", is_dry=dry_run) as (mac, facts):
        steps = uninstall_steps(mac.layout, facts, is_purge=purge)
        if dry_run:
            print(transcript(steps) or "# nothing to do")
            return
        mac.executor.carry_out(steps, is_undone=False)
    left = sorted(path for path in mac.layout.home.glob("*"))
    if not left:
        print("Verger's service is gone; nothing is left of it.")
        return
    print("Verger's service is gone. Left, for root to read; --purge removes it:")
    print("\n".join(f"  {path}" for path in left))


@service.command()
def start(dry_run: DryRun = False) -> None:
    """Start the service, and wait until it is ready; without a model, until it runs."""
    with changing("service start", is_dry=dry_run) as (mac, facts):
        _require_whole(facts, dry_run)
        steps = [_answer(mac, facts)] if facts.is_loaded else _start(mac, facts)
        _carry_out(mac, steps, dry_run, _how_it_runs(mac, facts))


@service.command()
def stop(dry_run: DryRun = False) -> None:
    """Let running answers finish, and stop the service until `start` or the next boot."""
    with changing("service stop", is_dry=dry_run) as (mac, facts):
        _require_whole(facts, dry_run)
        steps = stop_steps(mac.layout) if facts.is_loaded else []
        _carry_out(mac, steps, dry_run, "The service is stopped.")


@service.command()
def restart(dry_run: DryRun = False) -> None:
    """Stop the service, start it, and wait until it is ready; without a model, until it runs."""
    with changing("service restart", is_dry=dry_run) as (mac, facts):
        _require_whole(facts, dry_run)
        steps = stop_steps(mac.layout) if facts.is_loaded else []
        _carry_out(mac, [*steps, *_start(mac, facts)], dry_run, _how_it_runs(mac, facts))


class Status(Struct, frozen=True, kw_only=True):
    """What `verger service status` says."""

    schema_version: int = SCHEMA_VERSION
    is_installed: bool
    version: str | None
    environment: str | None
    previous: str | None
    """The environment that `verger upgrade --back` goes to."""
    is_loaded: bool
    is_alive: bool
    is_ready: bool
    has_model: bool
    url: str | None
    """None where the configuration is wrong."""
    home: str
    problems: list[str]


@service.command()
def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Say whether the service is installed, runs and answers, and what is wrong with it."""
    mac = service_mac.this_mac()
    found = _status(mac, mac.facts())
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        _print_status(found, _pull_command(mac))
    if found.problems:
        raise typer.Exit(ServiceDrift.exit_code)
    if not found.is_ready:
        raise typer.Exit(InstallError.exit_code)


@service.command()
def logs(
    lines: Annotated[int, typer.Option("-n", min=1, max=MAX_LOG_LINES, help="How many.")] = 50,
) -> None:
    """Print the last lines of the service's log; before there is one, of what it died of."""
    layout = service_mac.this_mac().layout
    for log in (layout.server_log, layout.crash_log):
        try:
            with log.open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size - lines * LOG_BYTES_PER_LINE))
                found = file.read().decode(errors="replace").splitlines()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InstallError(f"cannot read {log}: {error.strerror}; use sudo") from None
        print("\n".join(found[-lines:]))
        return
    raise InstallError(f"there is no log yet: {layout.crash_log}")


def _install(mac: Mac, facts: Facts, steps: Sequence[Step], is_dry: bool) -> None:
    if not (steps or is_dry):
        print("Nothing to do: it is installed and loaded.")
        steps = [_answer(mac, facts)]
    _carry_out(mac, steps, is_dry, _how_it_runs(mac, facts))
    if not is_dry and not facts.has_keys:
        print(f"The key {FIRST_KEY} is printed above, this once.")


def plan_install(
    mac: Mac, facts: Facts, source: Path | None, command: str, *, is_replaced: bool = False
) -> list[Step]:
    """Raises ServiceDrift for a plist that somebody edited; `command` then replaces it."""
    _require_unedited(mac, facts, command, is_replaced=is_replaced)
    return install_steps(mac.layout, facts, mac.wanted(source))


def _go_back(mac: Mac, facts: Facts, is_dry: bool, *, is_replaced: bool) -> None:
    _require_whole(facts, is_dry)
    steps = back_steps(mac.layout, facts, mac.url())
    _require_unedited(mac, facts, "upgrade --back", is_replaced=is_replaced)
    assert facts.before is not None
    record = facts.before.record
    print(f"# back to version {record.version} ({record.environment}), from {facts.current}")
    forward = "`verger upgrade --back` once more goes forward again."
    _carry_out(mac, steps, is_dry, f"{_how_it_runs(mac, facts)} {forward}")


def _require_unedited(mac: Mac, facts: Facts, command: str, *, is_replaced: bool) -> None:
    if facts.is_edited and not is_replaced:
        raise ServiceDrift(
            f"{mac.layout.plist} is not what Verger has written: somebody edited it, or an "
            f"installation was cut off; look at it, then: sudo {sys.argv[0]} {command} "
            "--replace-plist"
        )


def _start(mac: Mac, facts: Facts) -> list[Step]:
    return start_steps(mac.layout, mac.url(), has_model=facts.has_model)


def _answer(mac: Mac, facts: Facts) -> Step:
    return await_answer(mac.layout, mac.url(), has_model=facts.has_model)


def _how_it_runs(mac: Mac, facts: Facts) -> str:
    if facts.has_model:
        return "The service runs."
    return (
        f"The service runs, but is not ready: there is no model in {mac.layout.home / 'models'} "
        "yet. Next: fetch one of `verger models` as the service's account; it is then loaded by "
        f"itself: {_pull_command(mac)}"
    )


def _pull_command(mac: Mac) -> str:
    return (
        f"sudo -u {USER} env VERGER_HOME='{mac.layout.home}' "
        f"'{mac.layout.current}/bin/verger' pull MODEL"
    )


def _carry_out(mac: Mac, steps: Sequence[Step], is_dry: bool, ending: str) -> None:
    if is_dry:
        print(transcript(steps) or "# nothing to do")
        return
    mac.executor.carry_out(steps)
    print(ending if steps else f"Nothing to do. {ending}")


@contextmanager
def changing(command: str, *, is_dry: bool) -> Iterator[tuple[Mac, Facts]]:
    """This Mac as it is, and stays as long as nobody but this command changes it."""
    with nullcontext() if is_dry else service_mac.this_mac().alone(command):
        yield looked_at(is_dry)


def looked_at(is_dry: bool) -> tuple[Mac, Facts]:
    """This Mac; for --dry-run elsewhere, one that never had the service."""
    try:
        mac = service_mac.this_mac()
    except NotAMac:
        if not is_dry:
            raise
        return Mac(), FRESH
    return mac, mac.facts()


def _require_whole(facts: Facts, is_dry: bool) -> None:
    if is_dry and facts is FRESH:
        return
    if facts.record is None and not facts.missing:
        raise InstallError("the service is not installed: sudo verger service install")
    if facts.missing:
        raise ServiceDrift(_half_there(facts))


def _half_there(facts: Facts) -> str:
    missing = ", ".join(facts.missing)
    return f"half installed, without {missing}; sudo verger service install puts it right"


def _status(mac: Mac, facts: Facts) -> Status:
    found = [_half_there(facts)] if facts.missing else []
    try:
        url = mac.url()
    except ConfigError as error:
        url = None
        found += [str(error)]
    if facts.plist is not None:
        found += problems(facts.plist, mac.layout.plist.name)
    if facts.is_edited and facts.record is not None:
        found += [
            f"{mac.layout.plist} was edited by hand; sudo verger service install --replace-plist "
            "writes it again"
        ]
    return Status(
        is_installed=facts.record is not None and not facts.missing,
        version=facts.record.version if facts.record else None,
        environment=facts.current,
        previous=facts.before.record.environment if facts.before else None,
        is_loaded=facts.is_loaded,
        is_alive=_answers(mac, url, "livez"),
        is_ready=_answers(mac, url, "readyz"),
        has_model=facts.has_model,
        url=url,
        home=str(mac.layout.home),
        problems=found,
    )


def _answers(mac: Mac, url: str | None, route: str) -> bool:
    return url is not None and mac.run(probe(f"{url}/{route}")).status == 0


def _print_status(status: Status, pull_command: str) -> None:
    for problem in status.problems:
        print(f"problem: {problem}")
    if not status.is_installed:
        print("The service is not installed. Next: sudo verger service install")
        return
    state = "stopped; start it: sudo verger service start"
    if status.is_loaded:
        state = "running, not answering: verger service logs"
    if status.is_loaded and status.is_alive:
        state = "running, not ready yet: verger service logs"
    if status.is_loaded and status.is_alive and not status.has_model:
        state = f"running, without a model yet; fetch one of `verger models`: {pull_command}"
    if status.is_loaded and status.is_ready:
        state = "ready"
    print(f"service      {state}\nversion      {status.version} ({status.environment})")
    if status.previous is not None:
        print(f"before it    {status.previous}; verger upgrade --back goes there")
    print(f"address      {status.url or 'unknown'}\nstate folder {status.home}")
