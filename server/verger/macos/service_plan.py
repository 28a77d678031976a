"""What to do so that the service is installed, newer, or gone: plans, from what is there already.

Called by the CLI, which has them carried out or printed. Pure: what is right already is no step, so
a second install has none. The old version runs until the new one is complete and has read the
configuration; then the job is stopped, the link moves, and it has to answer. So it is on the way
back, to the version before.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from verger.errors import InstallError, PlistError
from verger.macos.account import account_removal, account_steps
from verger.macos.executor import CHOWN
from verger.macos.launchd import start_steps, stop_steps
from verger.macos.layout import ROOT_OWNER, STATE_OWNER, USER, Layout
from verger.macos.plist import render_job
from verger.macos.plist_rules import problems
from verger.macos.record import Record, digest_of, encode_record
from verger.macos.source import Interpreter, Source
from verger.macos.steps import MakeFolder, MoveLink, Remove, Run, Step, WriteFile
from verger.macos.survey import COMPLETE, Facts, FolderFacts

PIP_TIMEOUT_S = 1800.0
COPY_TIMEOUT_S = 300.0
PULL_TIMEOUT_S = 24 * 3600.0
"""63 GB at 6 Mbit/s; the same command goes on from there."""
SQLITE, FIND = "/usr/bin/sqlite3", "/usr/bin/find"
FIRST_KEY = "admin"
CONFIG = b"""\
# Made by `verger service install`, which will not touch it again.
# After a change: sudo verger service restart
[server]
host = "0.0.0.0"
"""
KEPT_STATE = ("config.toml", "instance_id", "models", "secrets", "tls", "verger.db")
"""What an uninstall leaves, in the service's VERGER_HOME."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall be installed."""

    source: Source
    interpreter: Interpreter
    template: bytes
    url: str
    """Where the service answers on its own Mac."""


def service_interpreter(layout: Layout, interpreter: Interpreter) -> Interpreter:
    """The one that the service will use: no other account can read one in a home."""
    if not interpreter.is_in_a_home:
        return interpreter
    return interpreter.moved_to(layout.interpreters / interpreter.prefix.name)


def install_steps(layout: Layout, facts: Facts, wanted: Wanted) -> list[Step]:
    """From what is there to the installed, running service. Raises PlistError or InstallError."""
    plist = render_job(wanted.template, layout.job_values())
    if broken := problems(plist, layout.plist.name):
        raise PlistError(f"the template of the service breaks its rules: {'; '.join(broken)}")
    prepared = [
        *_folder_steps(layout, facts),
        *account_steps(layout, facts.account),
        *_state_folder_steps(layout, facts),
        *_interpreter_steps(layout, facts, wanted.interpreter),
        *_environment_steps(layout, facts, wanted),
        *_state_steps(layout, facts, wanted),
    ]
    name = wanted.source.environment
    record = Record(version=wanted.source.version, environment=name, plist_sha256=digest_of(plist))
    changes = [*prepared, *_switch_steps(layout, facts, record, plist)]
    if facts.is_loaded and not changes:
        return []
    switched = _switched(layout, facts, record, plist, wanted.url)
    return [*prepared, *switched, *_old_environments(layout, facts, name)]


def back_steps(layout: Layout, facts: Facts, url: str) -> list[Step]:
    """From the version that runs to the one before, if that one can read what is there now.

    Raises InstallError where none was kept.
    """
    if facts.before is None:
        raise InstallError("there is no version to go back to: an upgrade keeps the one before it")
    record, plist = facts.before.record, facts.before.plist
    environment = layout.environment(record.environment)
    return [
        _reading_of_config(layout, environment),
        *_reading_of_database(layout, facts, environment),
        *_switched(layout, facts, record, plist, url),
    ]


def uninstall_steps(layout: Layout, facts: Facts, *, is_purge: bool) -> list[Step]:
    """Take away all that an install has made; without `is_purge` keys, models and settings stay.

    What stays belongs to root: the account's id may one day be somebody else's.
    """
    links, folders = (layout.current, layout.previous), (layout.environments, layout.interpreters)
    removed = (layout.plist, *links, *folders, layout.record)
    steps = stop_steps(layout) if facts.is_loaded else []
    steps += [Remove(path=path) for path in removed if path in facts.present]
    if is_purge:
        steps += [Remove(path=layout.folder)] if layout.folder in facts.present else []
    elif layout.home in facts.present:
        unkept = (path for path in facts.present if path.parent == layout.home)
        steps += [Remove(path=path) for path in sorted(unkept) if not _is_kept(path)]
        if not _is_closed(layout, facts):
            steps += [*_closed(layout), _owned_by(layout.home, ROOT_OWNER)]
    return [*steps, *account_removal(facts.account)]


def as_service(
    layout: Layout,
    environment: Path,
    *arguments: str,
    more_variables: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """A command of Verger, run by the service's account on the service's state."""
    home = str(layout.home)
    variables = {"HOME": home, "VERGER_HOME": home, "PATH": "/usr/bin:/bin"}
    variables |= more_variables or {}
    settings = ("-i", *(f"{name}={value}" for name, value in variables.items()))
    python = (str(environment / "bin" / "python"), "-P", "-m", "verger.cli.main")
    return ("/usr/bin/sudo", "-u", USER, "/usr/bin/env", *settings, *python, *arguments)


def pull_step(layout: Layout, model_id: str, variables: Mapping[str, str]) -> Run:
    """Fetch a model into the service's home; what has come stays, whatever happens.

    It is loaded by the service only: beside one that is served already it might not fit.
    """
    arguments = ("pull", model_id, "--no-load")
    return Run(
        what=f"fetch {model_id} into {layout.home / 'models'}",
        argv=as_service(layout, layout.current, *arguments, more_variables=variables),
        timeout_s=PULL_TIMEOUT_S,
        is_live=True,
    )


def _folder_steps(layout: Layout, facts: Facts) -> Iterator[Step]:
    for path in (layout.folder, layout.environments, layout.interpreters):
        if facts.folders.get(path) != FolderFacts(0o755, ROOT_OWNER):
            yield MakeFolder(path=path, mode=0o755, owner=ROOT_OWNER)


def _state_folder_steps(layout: Layout, facts: Facts) -> Iterator[Step]:
    present = facts.folders.get(layout.home)
    if present is not None and present.owner == ROOT_OWNER:
        # An uninstall has left it.
        yield from _closed(layout)
        yield _owned_by(layout.home, STATE_OWNER, undo=(_owned_by(layout.home, ROOT_OWNER),))
    modes = {layout.home: 0o750, layout.log: 0o750}
    modes |= {layout.home / "models": 0o755, layout.home / "secrets": 0o700}
    for path, mode in modes.items():
        if facts.folders.get(path) != FolderFacts(mode, STATE_OWNER):
            yield MakeFolder(path=path, mode=mode, owner=STATE_OWNER)


def _closed(layout: Layout) -> Iterator[Step]:
    """The state folder, so that giving all in it away gives away nothing else.

    The service's account could have given a file of somebody else a second name in there, and to
    chown either is to chown both. Nobody but root gets into the folder while it is looked through
    and given away: only a process that outlived its service, with a folder in there still open that
    all may write in, could add such a name in between.
    """
    yield MakeFolder(path=layout.home, mode=0o700, owner=ROOT_OWNER)
    yield Run(
        what=f"see that no file in {layout.home} has a second name",
        argv=(FIND, "-P", str(layout.home), "-type", "f", "-links", "+1", "-print"),
        is_silent=True,
        advice="this file has another name, perhaps in somebody else's folder, and would change "
        "hands there too: remove it, or replace it by a copy, then run the command again",
        timeout_s=COPY_TIMEOUT_S,
    )


def _is_closed(layout: Layout, facts: Facts) -> bool:
    """Whether an uninstall has been through with the state folder."""
    home = layout.home
    inner = (found for path, found in facts.folders.items() if path.parent == home)
    is_roots = all(found.owner == ROOT_OWNER for found in inner)
    return is_roots and facts.folders.get(home) == FolderFacts(0o700, ROOT_OWNER)


def _owned_by(folder: Path, owner: str, undo: tuple[Step, ...] = ()) -> Run:
    """-P: links are not followed."""
    argv = (CHOWN, "-h", "-R", "-P", owner, str(folder))
    what = f"{folder}, with all in it, to {owner}"
    return Run(what=what, argv=argv, undo=undo, timeout_s=COPY_TIMEOUT_S)


def _interpreter_steps(layout: Layout, facts: Facts, interpreter: Interpreter) -> Iterator[Step]:
    placed = service_interpreter(layout, interpreter)
    if placed == interpreter or facts.has_interpreter:
        return
    partial = placed.prefix.with_name(f".{placed.prefix.name}.partial")
    yield Remove(path=partial)
    yield Run(
        what=f"copy the interpreter out of {interpreter.prefix}",
        argv=("/bin/cp", "-R", str(interpreter.prefix), str(partial)),
        undo=(Remove(path=partial),),
        timeout_s=COPY_TIMEOUT_S,
    )
    yield _owned_by(partial, ROOT_OWNER)
    program = "import ctypes, sqlite3, ssl, sys; print(sys.base_prefix)"
    yield Run(
        what=f"interpreter {placed.prefix}",
        argv=("/bin/mv", str(partial), str(placed.prefix)),
        check=(str(placed.executable), "-I", "-c", program),
        expect=str(placed.prefix),
        undo=(Remove(path=placed.prefix),),
    )


def _environment_steps(layout: Layout, facts: Facts, wanted: Wanted) -> Iterator[Step]:
    source, folder = wanted.source, layout.environment(wanted.source.environment)
    if facts.environments.get(source.environment):
        return
    if source.environment in facts.environments:
        # It was cut off in the middle.
        yield Remove(path=folder)
    python = str(folder / "bin" / "python")
    base = str(service_interpreter(layout, wanted.interpreter).executable)
    yield Run(
        what=f"environment {folder}",
        argv=(base, "-I", "-m", "venv", str(folder)),
        undo=(Remove(path=folder),),
        timeout_s=COPY_TIMEOUT_S,
    )
    pip = (python, "-I", "-m", "pip", "install", "--quiet", "--no-input")
    for arguments in source.pip:
        yield Run(
            what=f"install {arguments[-1]}",
            argv=(*pip, "--disable-pip-version-check", *arguments),
            timeout_s=PIP_TIMEOUT_S,
        )
    yield Run(
        what="ask it for its version",
        argv=(python, "-I", "-m", "verger.cli.main", "--version"),
        expect=f"verger {source.version}\n",
    )
    yield WriteFile(path=folder / COMPLETE, content=b"", mode=0o644, owner=ROOT_OWNER)


def _state_steps(layout: Layout, facts: Facts, wanted: Wanted) -> Iterator[Step]:
    environment = layout.environment(wanted.source.environment)
    if not facts.has_config:
        file = layout.home / "config.toml"
        yield WriteFile(path=file, content=CONFIG, mode=0o640, owner=STATE_OWNER)
    if facts.current != wanted.source.environment:
        yield _reading_of_config(layout, environment)
    if not facts.has_keys:
        yield Run(
            what=f"make the first key, {FIRST_KEY}",
            argv=as_service(layout, environment, "keys", "add", FIRST_KEY, "--admin"),
            expect="vg-",
            undo=(
                Run(
                    what="revoke it",
                    argv=as_service(layout, environment, "keys", "revoke", FIRST_KEY),
                ),
            ),
            is_shown=True,
        )


def _reading_of_config(layout: Layout, environment: Path) -> Run:
    argv = as_service(layout, environment, "config", "--json")
    return Run(what="have it read the configuration", argv=argv, expect="schema_version")


def _reading_of_database(layout: Layout, facts: Facts, environment: Path) -> Iterator[Step]:
    """An older version refuses what a newer one has changed: asked of a copy, while that one runs.

    A copy from before the upgrade is no way out: keys that were revoked since would be let in.
    """
    file, trial = layout.home / "verger.db", layout.home / ".going-back"
    if file not in facts.present:
        return
    yield MakeFolder(path=trial, mode=0o700, owner=STATE_OWNER)
    yield _copying(file, trial / file.name)
    variables = {"VERGER_HOME": str(trial)}
    yield Run(
        what=f"have {environment.name} read a copy of the database",
        argv=as_service(layout, environment, "keys", "list", "--json", more_variables=variables),
        expect="schema_version",
        advice="what runs now has changed it; to go back stop the service, `verger restore` a "
        "backup from before the upgrade, then try again",
    )
    yield Remove(path=trial)


def _switched(
    layout: Layout, facts: Facts, record: Record, plist: bytes, url: str
) -> Iterator[Step]:
    """What runs is stopped, and the other one started in its place."""
    is_other = record.environment != facts.current
    if facts.is_loaded:
        yield from stop_steps(layout)
    if is_other:
        yield from _database_copy(layout, facts)
    yield from _switch_steps(layout, facts, record, plist)
    yield from start_steps(layout, url, has_model=facts.has_model)
    if is_other and (file := layout.home / "verger.db") in facts.present:
        yield Remove(path=_copy_of(file))


def _switch_steps(layout: Layout, facts: Facts, record: Record, plist: bytes) -> list[Step]:
    steps: list[Step] = []
    if facts.current != record.environment:
        steps += _kept_steps(layout, facts)
        steps += [MoveLink(path=layout.current, target=f"env/{record.environment}")]
    if facts.plist != plist:
        steps += [WriteFile(path=layout.plist, content=plist, mode=0o644, owner=ROOT_OWNER)]
    if facts.record != record:
        content = encode_record(record)
        steps += [WriteFile(path=layout.record, content=content, mode=0o644, owner=ROOT_OWNER)]
    return steps


def _kept_steps(layout: Layout, facts: Facts) -> Iterator[Step]:
    """What runs now can be gone back to, with what launchd was told of it."""
    name = facts.current
    if name is None or facts.record is None or facts.plist is None:
        return
    files = {layout.record.name: encode_record(facts.record), layout.plist.name: facts.plist}
    for file, content in files.items():
        path = layout.environment(name) / file
        yield WriteFile(path=path, content=content, mode=0o644, owner=ROOT_OWNER)
    yield MoveLink(path=layout.previous, target=f"env/{name}")


def _database_copy(layout: Layout, facts: Facts) -> Iterator[Step]:
    """A newer version may change the database so that the older one cannot read it any more."""
    file = layout.home / "verger.db"
    if file not in facts.present:
        return
    copy = _copy_of(file)
    partial = copy.with_name(f"{copy.name}.partial")
    yield Remove(path=copy)
    yield WriteFile(path=partial, content=b"", mode=0o600, owner=STATE_OWNER)
    yield _copying(file, partial)
    # A step that fails is undone too: what is put back has this name only once it is whole.
    yield Run(
        what=f"keep {copy}",
        argv=("/bin/mv", str(partial), str(copy)),
        undo=(
            Run(what=f"put {file} back", argv=("/bin/mv", str(copy), str(file))),
            Remove(path=file.with_name(f"{file.name}-wal")),
            Remove(path=file.with_name(f"{file.name}-shm")),
        ),
    )


def _copying(file: Path, copy: Path) -> Run:
    """A database, also while somebody writes it."""
    argv = ("/usr/bin/sudo", "-u", USER, SQLITE, str(file), f".backup '{copy}'")
    return Run(what=f"copy {file}", argv=argv, timeout_s=COPY_TIMEOUT_S)


def _old_environments(layout: Layout, facts: Facts, name: str) -> Iterator[Step]:
    """All but the one that runs now and the one to go back to."""
    before = facts.before.record.environment if facts.before else None
    kept = {name, facts.current if facts.current != name else before}
    for old in sorted(set(facts.environments) - kept):
        yield Remove(path=layout.environment(old))


def _copy_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.before-upgrade")


def _is_kept(path: Path) -> bool:
    return path.name in KEPT_STATE or path.name.startswith("verger.db-")
