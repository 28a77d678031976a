"""`verger setup`: from a fresh Mac to an answer that came in over the office network.

    judge ─► install and start ─► fetch ─► wait until it is loaded ─► ask over the LAN

Each part looks first whether it is done. An install that fails undoes itself, what was fetched
stays, and the same command goes on from there. The parts are those of `service`, `doctor`, `pull`.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from verger import paths
from verger.catalogue import (
    AUTO,
    GB,
    Catalogue,
    Model,
    fitting_models,
    load_catalogue,
    require_fit,
)
from verger.cli.doctor import facts_of, print_findings
from verger.cli.machine import machine_memory
from verger.cli.models import State, model_row
from verger.cli.pull import SPARE_BYTES, free_bytes
from verger.cli.service import FRESH, DryRun, FromSource, looked_at, plan_install
from verger.cli.service_mac import Mac
from verger.errors import InstallError, ModelFolderError, StepFailed
from verger.macos.doctor import examine
from verger.macos.findings import Level
from verger.macos.launchd import await_ready, start_steps, stop_steps
from verger.macos.machine import ThisMachine
from verger.macos.service_plan import FIRST_KEY, as_service, pull_step
from verger.macos.steps import Step, transcript
from verger.macos.survey import Facts
from verger.memory_fit import GIB, MachineMemory, smallest_mac_gib

CHECK_KEY = "setup-check"
"""Made for one question where the first key is known to its owner only; then revoked."""
PUT_RIGHT = frozenset({"job", "plist", "home", "secrets"})
"""What doctor examines and an install makes, or mends."""


def setup(
    model: Annotated[
        str | None, typer.Option(help="A model of `verger models`; else the largest that fits.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Go on although a check of the machine fails.")
    ] = False,
    dry_run: DryRun = False,
    source: FromSource = None,
) -> None:
    """From a fresh Mac to an answer over the office network: install, fetch a model, ask."""
    mac, facts = looked_at(dry_run)
    catalogue = load_catalogue(paths.catalogue_dir())
    memory = _memory(catalogue, is_assumed=facts is FRESH)
    chosen = _chosen(model, mac, catalogue, memory)
    _say_choice(mac, chosen, memory)
    if dry_run:
        print(_plan(mac, facts, chosen, source))
        return
    with mac.alone("setup"):
        _require_space(mac, chosen, memory)
        _judge(mac, is_yes=yes)
        secret = _install(mac, source)
        _fetch(mac, chosen)
        mac.executor.carry_out([await_ready(mac.layout, mac.url())], is_undone=False)
        _show_answer(mac, chosen, secret)


def _memory(catalogue: Catalogue, *, is_assumed: bool) -> MachineMemory:
    """This machine's; for --dry-run on one too small for any model, that of the smallest Mac."""
    memory = machine_memory()
    if not is_assumed or fitting_models(catalogue, memory):
        return memory
    sizes = [smallest_mac_gib(model.need) for model in catalogue.values() if model.repository]
    return MachineMemory.of(min(size for size in sizes if size) * GIB)


def _chosen(requested: str | None, mac: Mac, catalogue: Catalogue, memory: MachineMemory) -> Model:
    """What the service shall serve: refused, before anything is done, is what it could not."""
    configured, file = mac.config().engine.model, mac.layout.home / "config.toml"
    if requested and configured not in (AUTO, requested):
        raise InstallError(
            f"{file} says that the service serves {configured}: change it there, or leave out "
            "--model"
        )
    real = [model for model in catalogue.values() if model.repository]
    fitting = fitting_models(catalogue, memory)
    present = [model for model in fitting if mac.places().is_complete(model)]
    name = requested or configured
    if name == AUTO:
        if not fitting:
            require_fit(real[0], catalogue, memory)
        return (present or fitting)[0]
    if name not in [model.id for model in real]:
        known = " or ".join(model.id for model in real)
        raise ModelFolderError(f"there is no model {name!r} to set up: take {known}")
    chosen = catalogue[name]
    require_fit(chosen, catalogue, memory)
    if configured == AUTO and present and present[0].weight_bytes > chosen.weight_bytes:
        raise InstallError(
            f"the service would serve {present[0].id}, the largest that is there and fits: write "
            f'[engine] and under it model = "{name}" into {file}, then: sudo verger setup'
        )
    return chosen


def _say_choice(mac: Mac, chosen: Model, memory: MachineMemory) -> None:
    row = model_row(chosen, mac.places(), memory)
    print(
        f"# {memory.total_bytes / GIB:.0f} GiB of memory, {memory.usable_bytes / GIB:.1f} of them "
        f"for a model: {chosen.id} {row.fit} ({row.state} here)"
    )


def _plan(mac: Mac, facts: Facts, chosen: Model, source: Path | None) -> str:
    """All that would be done, as far as it can be known before."""
    from verger.cli import setup_answer

    parts = [transcript(plan_install(mac, facts, source, "service install"))]
    if not mac.places().is_complete(chosen):
        restart = _restart_for(mac) if facts.has_model else []
        parts += [transcript([pull_step(mac.layout, chosen.id, paths.hub_variables()), *restart])]
    parts += [
        transcript([await_ready(mac.layout, mac.url())]),
        f"# ask {chosen.id} over this Mac's own address on the office network, at most "
        f"{setup_answer.ANSWER_LIMIT_S:g} s: POST /v1/chat/completions",
    ]
    return "\n".join(part for part in parts if part)


def _require_space(mac: Mac, chosen: Model, memory: MachineMemory) -> None:
    """Asked before the install: `pull` would say so only after it."""
    row = model_row(chosen, mac.places(), memory)
    missing = 0 if row.state is State.PRESENT else max(0, chosen.weight_bytes - row.held_bytes)
    folder = next(path for path in (mac.layout.home, *mac.layout.home.parents) if path.exists())
    free = free_bytes(folder)
    if missing and missing + SPARE_BYTES > free:
        raise InstallError(
            f"{missing / GB:.1f} GB of {chosen.id} are still to come and {SPARE_BYTES / GB:.0f} GB "
            f"must stay free, but {free / GB:.1f} GB are left on the disk of {folder}: make room, "
            "or take a smaller model, then: sudo verger setup"
        )


def _judge(mac: Mac, *, is_yes: bool) -> None:
    """What fails on this machine is its owner's to mend, or to live with."""
    machine = ThisMachine()
    facts = facts_of(mac.config(), machine, mac.layout.home)
    findings = [found for found in examine(machine, facts) if found.check not in PUT_RIGHT]
    told = [found for found in findings if found.level in (Level.FAIL, Level.WARN)]
    if told:
        print_findings(told)
    failing = [found.check for found in told if found.level is Level.FAIL]
    if not failing or is_yes:
        return
    names = ", ".join(failing)
    if not sys.stdin.isatty():
        raise InstallError(
            f"this machine fails {names} (above): mend it, or go on all the same with --yes"
        )
    if not typer.confirm(f"This machine fails {names}. Go on all the same?"):
        raise InstallError("stopped; nothing was changed. Mend it, then: sudo verger setup")


def _install(mac: Mac, source: Path | None) -> str | None:
    """The install as far as it is not done. Returns the first key, if it was made now."""
    steps = plan_install(mac, mac.facts(), source, "service install")
    if not steps:
        print(f"The service is installed already, in {mac.layout.folder}.")
    shown = mac.executor.carry_out(steps)
    return shown[0] if shown else None


def _fetch(mac: Mac, chosen: Model) -> None:
    if mac.places().is_complete(chosen):
        print(f"{chosen.id} is there already, in {mac.places().folder(chosen)}.")
        return
    is_serving = mac.facts().has_model
    pull = pull_step(mac.layout, chosen.id, paths.hub_variables())
    try:
        mac.executor.carry_out([pull], is_undone=False)
    except StepFailed as error:
        raise StepFailed(
            f"{error}. What has come of the model is kept; next: sudo verger setup"
        ) from None
    if is_serving:
        mac.executor.carry_out(_restart_for(mac))


def _restart_for(mac: Mac) -> list[Step]:
    """A service that waits for its model loads it by itself; one that serves another does not."""
    return [*stop_steps(mac.layout), *start_steps(mac.layout, mac.url(), has_model=True)]


def _show_answer(mac: Mac, chosen: Model, secret: str | None) -> None:
    from verger.cli import setup_answer

    address = setup_answer.lan_address(mac.config())
    instance_id = (mac.layout.home / paths.instance_id_file().name).read_text().strip()
    with _key(mac, secret) as key:
        said = setup_answer.ask(address, key, chosen.id, instance_id)
    print(f"\n{chosen.id} answered over {address.root_url}: {said}")
    if secret is not None:
        print(f"The key of {FIRST_KEY}, shown this once: {secret}")
    print(
        f"\nFor each colleague make a key:\n  verger keys add NAME\n"
        "and on the colleague's laptop:\n  pip install verger\n"
        f"  verger env --url {address.root_url} --key -      # asks for the key, once\n"
        f'  eval "$(verger env --url {address.root_url})"    # for this shell\n'
        f"  verger connect opencode --url {address.root_url} --write"
    )


@contextmanager
def _key(mac: Mac, secret: str | None) -> Iterator[str]:
    """The first key, else one that is revoked again."""
    if secret is not None:
        yield secret
        return
    revoke = as_service(mac.layout, mac.layout.current, "keys", "revoke", CHECK_KEY)
    # One may be left of a run that was cut off.
    mac.run(revoke)
    argv = as_service(mac.layout, mac.layout.current, "keys", "add", CHECK_KEY, "--expires", "1d")
    try:
        done = mac.run(argv)
        if done.status != 0:
            raise InstallError(f"the service runs, but makes no key: {done.reason}")
        yield done.out.strip()
    finally:
        mac.run(revoke)
