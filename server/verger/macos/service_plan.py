"""What to do so that the service is installed, newer, or gone: plans, from what is there already.

Called by the CLI, which has them carried out or printed. Pure: what is right already is no step, so
a second install has none. The old version runs until the new one is complete and has read the
configuration; then the job is stopped, the link moves, and it has to answer.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from verger.errors import PlistError
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
SQLITE = "/usr/bin/sqlite3"
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
    switched = _switch_steps(layout, facts, wanted, plist)
    start = start_steps(layout, wanted.url, has_model=facts.has_model)
    if not facts.is_loaded:
        return [*prepared, *switched, *start]
    if not (prepared or switched):
        return []
    return [
        *prepared,
        *stop_steps(layout),
        *_database_copy(layout, facts),
        *switched,
        *start,
        *_leftovers(layout, facts, wanted),
    ]


def uninstall_steps(layout: Layout, facts: Facts, *, is_purge: bool) -> list[Step]:
    """Take away all that an install has made; without `is_purge` keys, models and settings stay.

    What stays belongs to root: the account's id may one day be somebody else's.
    """
    removed = (layout.plist, layout.current, layout.environments, layout.interpreters)
    steps = stop_steps(layout) if facts.is_loaded else []
    steps += [Remove(path=path) for path in (*removed, layout.record) if path in facts.present]
    if is_purge:
        steps += [Remove(path=layout.folder)] if layout.folder in facts.present else []
    elif layout.home in facts.present:
        unkept = (path for path in facts.present if path.parent == layout.home)
        steps += [Remove(path=path) for path in sorted(unkept) if not _is_kept(path)]
        if facts.folders.get(layout.home) != FolderFacts(0o700, ROOT_OWNER):
            steps += [_owned_by(layout.home, ROOT_OWNER)]
            steps += [MakeFolder(path=layout.home, mode=0o700, owner=ROOT_OWNER)]
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
        yield _owned_by(layout.home, STATE_OWNER, undo=(_owned_by(layout.home, ROOT_OWNER),))
    modes = {layout.home: 0o750, layout.log: 0o750}
    modes |= {layout.home / "models": 0o755, layout.home / "secrets": 0o700}
    for path, mode in modes.items():
        if facts.folders.get(path) != FolderFacts(mode, STATE_OWNER):
            yield MakeFolder(path=path, mode=mode, owner=STATE_OWNER)


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
        argv = as_service(layout, environment, "config", "--json")
        yield Run(what="have it read the configuration", argv=argv, expect="schema_version")
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


def _switch_steps(layout: Layout, facts: Facts, wanted: Wanted, plist: bytes) -> list[Step]:
    name = wanted.source.environment
    record = Record(version=wanted.source.version, environment=name, plist_sha256=digest_of(plist))
    steps: list[Step] = []
    if facts.current != name:
        steps += [MoveLink(path=layout.current, target=f"env/{name}")]
    if facts.plist != plist:
        steps += [WriteFile(path=layout.plist, content=plist, mode=0o644, owner=ROOT_OWNER)]
    if facts.record != record:
        content = encode_record(record)
        steps += [WriteFile(path=layout.record, content=content, mode=0o644, owner=ROOT_OWNER)]
    return steps


def _database_copy(layout: Layout, facts: Facts) -> Iterator[Step]:
    """A newer version may change the database so that the older one cannot read it any more."""
    file = layout.home / "verger.db"
    if file not in facts.present:
        return
    copy = _copy_of(file)
    partial = copy.with_name(f"{copy.name}.partial")
    yield Remove(path=copy)
    yield WriteFile(path=partial, content=b"", mode=0o600, owner=STATE_OWNER)
    yield Run(
        what=f"copy {file}",
        argv=("/usr/bin/sudo", "-u", USER, SQLITE, str(file), f".backup '{partial}'"),
        timeout_s=COPY_TIMEOUT_S,
    )
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


def _leftovers(layout: Layout, facts: Facts, wanted: Wanted) -> Iterator[Step]:
    """The copy, and all environments but the new one and the one before, kept to go back to."""
    if (file := layout.home / "verger.db") in facts.present:
        yield Remove(path=_copy_of(file))
    kept = {wanted.source.environment, facts.current}
    for name in sorted(set(facts.environments) - kept):
        yield Remove(path=layout.environment(name))


def _copy_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.before-upgrade")


def _is_kept(path: Path) -> bool:
    return path.name in KEPT_STATE or path.name.startswith("verger.db-")
