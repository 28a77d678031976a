"""A Mac in a folder: dscl, launchctl, chown and the others that an installation runs, as a runner.

It refuses what a Mac would refuse (to load a job twice, to start what is not loaded) and anything
it does not know. `fail_at` makes one call fail, by its number.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from verger.cli.service_mac import Mac
from verger.errors import StepFailed
from verger.macos.executor import Executor
from verger.macos.layout import LABEL, Layout
from verger.macos.plist_rules import problems
from verger.macos.programs import Done
from verger.macos.source import Interpreter, Source

NO_RECORD = Done(56, err="<dscl_cmd> DS Error: -14136 (eDSRecordNotFound)")


def source(name: str = "1", version: str = "0.1.0") -> Source:
    return Source(version, f"{version}-{name}", (("-r", "lock"), ("--no-deps", "--", "here")))


@dataclass
class FakeMac:
    root: Path
    records: dict[str, dict[str, str]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    is_loaded: bool = False
    is_enabled: bool = True
    dead: set[str] = field(default_factory=set)
    """Environments that never answer."""
    outdated: set[str] = field(default_factory=set)
    """Environments of versions that do not know the database any more."""
    has_model: bool = True
    is_port_taken: bool = False
    """Another Verger answers there."""
    lingering: int = 0
    """How often print still finds a job after bootout."""
    fail_at: int | None = None
    calls: list[tuple[str, ...]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    _going: int = 0

    def __post_init__(self) -> None:
        self.layout.plist.parent.mkdir(parents=True)
        self.layout.folder.parent.mkdir(parents=True)
        self.layout.lock.parent.mkdir(parents=True)
        base = self.root / "Users" / "ada" / "python" / "cpython-3.13"
        (base / "bin").mkdir(parents=True)
        (base / "bin" / "python3.13").touch()
        self.private_python = Interpreter(base / "bin" / "python3.13", base)

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    @property
    def executor(self) -> Executor:
        return Executor(self, self.pauses.append, self.said.append, live=self, own=self.own)

    def own(self, descriptor: int, path: Path, owner: str) -> None:
        """As a call that can fail like the others."""
        done = self(("chown", owner, str(path)))
        if done.status != 0:
            raise StepFailed(done.err)

    def mac(self) -> Mac:
        return Mac(self.layout, self, self.executor, is_root=lambda: True)

    def changes(self) -> list[tuple[str, ...]]:
        """The calls that change something, without folders of programs."""
        asked = {"stat", "curl", "print", "version", "-read", "-list"}
        short = [(Path(call[0]).name, *call[1:]) for call in self.calls]
        return [call for call in short if not asked & set(call[:3])]

    def verbs(self) -> list[str]:
        return [call[1] for call in self.calls if call[0] == "/bin/launchctl"]

    def snapshot(self) -> object:
        """All that an installation changes."""
        files = {
            str(path): (
                path.lstat().st_mode,
                _content(path),
                self.owners.get(str(path), "root:wheel"),
            )
            for path in self.root.rglob("*")
            if path != self.layout.lock
        }
        return files, self.records, self.is_loaded

    def __call__(self, argv: Sequence[str], timeout_s: float = 0) -> Done:
        self.calls.append(tuple(argv))
        if self.fail_at is not None and len(self.calls) == self.fail_at + 1:
            return Done(1, err="it failed")
        program, arguments = Path(argv[0]).name, list(argv[1:])
        known: dict[str, Callable[[list[str]], Done]] = {
            "dscl": self._dscl,
            "launchctl": self._launchctl,
            "curl": self._curl,
            "chown": self._chown,
            "stat": lambda a: Done(0, f"{self.owners.get(a[-1], 'root:wheel')}\n"),
            "cp": _copy,
            "find": _find,
            "mv": self._move,
            "sudo": self._sudo,
        }
        if program in known:
            return known[program](arguments)
        assert program.startswith("python"), argv
        return self._python(Path(argv[0]), arguments)

    def _dscl(self, arguments: list[str]) -> Done:
        assert arguments.pop(0) == "."
        verb, record, *rest = arguments
        if verb == "-list":
            numbers = {
                name: fields[rest[0]] for name, fields in self.records.items() if rest[0] in fields
            }
            lines = [f"{Path(name).name}   {number}" for name, number in numbers.items()]
            return Done(0, "\n".join([*lines, "root  0", "ada  501", "nobody  -2"]) + "\n")
        if verb == "-create":
            fields = self.records.setdefault(record, {})
            fields |= {rest[0]: rest[1]} if rest else {}
            return Done(0)
        if record not in self.records:
            return NO_RECORD
        if verb == "-delete":
            del self.records[record]
            return Done(0)
        assert verb == "-read", arguments
        found = self.records[record]
        return Done(0, "".join(_attribute(n, v) for n, v in found.items() if not rest or n in rest))

    def _launchctl(self, arguments: list[str]) -> Done:
        verb = arguments[0]
        if verb == "print":
            self._going = max(0, self._going - 1)
            return (
                Done(0)
                if self.is_loaded or self._going
                else Done(113, err="Could not find service")
            )
        if verb in ("enable", "disable"):
            self.is_enabled = verb == "enable"
        elif verb == "bootstrap":
            assert arguments[1] == "system"
            plist = Path(arguments[2])
            if self.is_loaded or self._going or not self.is_enabled or not plist.exists():
                return Done(5, err="Bootstrap failed: 5: Input/output error")
            assert not problems(plist.read_bytes(), f"{LABEL}.plist")
            self.is_loaded = True
        elif verb == "bootout":
            if not self.is_loaded:
                return Done(3, err="Boot-out failed: 3: No such process")
            self.is_loaded, self._going = False, self.lingering + 1
        elif verb == "kickstart":
            return Done(0 if self.is_loaded else 113)
        else:
            assert verb == "version", arguments
        return Done(0)

    def _curl(self, arguments: list[str]) -> Done:
        if self.is_port_taken:
            return Done(0)
        current = self.layout.current
        answers = current.is_symlink() and current.readlink().name not in self.dead
        if not (self.is_loaded and answers):
            return Done(7, err="curl: (7) refused")
        is_ready = self.has_model or arguments[-1].endswith("/livez")
        return Done(0) if is_ready else Done(22, err="curl: (22) 503")

    def _chown(self, arguments: list[str]) -> Done:
        owner, place = arguments[-2], arguments[-1]
        if "_verger" in owner and "/Users/_verger" not in self.records:
            return Done(1, err="chown: _verger: illegal user name")
        places = [Path(place), *(Path(place).rglob("*") if "-R" in arguments else ())]
        self.owners |= {str(path): owner for path in places}
        return Done(0)

    def _move(self, arguments: list[str]) -> Done:
        os.replace(*arguments)
        if owner := self.owners.pop(arguments[0], None):
            self.owners[arguments[1]] = owner
        return Done(0)

    def _sudo(self, arguments: list[str]) -> Done:
        assert arguments[:2] == ["-u", "_verger"]
        if arguments[2].endswith("sqlite3"):
            source, target = arguments[3], arguments[4].split("'")[1]
            Path(target).write_bytes(Path(source).read_bytes())
            return Done(0)
        command = arguments[arguments.index("verger.cli.main") + 1 :]
        if command[0] == "config":
            return Done(0, '{"schema_version": 1}')
        if command[:2] == ["keys", "add"]:
            return Done(0, "vg-1f0c9a3e-secret\n")
        if command[:2] == ["keys", "list"]:
            return self._keys_list(arguments)
        assert command[:2] == ["keys", "revoke"], command
        return Done(0)

    def _keys_list(self, arguments: list[str]) -> Done:
        (home,) = [text[12:] for text in arguments if text.startswith("VERGER_HOME=")]
        assert (Path(home) / "verger.db").exists()
        python = Path(arguments[arguments.index("verger.cli.main") - 3])
        if python.parents[1].name in self.outdated:
            return Done(3, err="verger: a newer Verger has written the state database")
        return Done(0, '{"schema_version": 1}')

    def _python(self, python: Path, arguments: list[str]) -> Done:
        assert python.exists(), python
        assert arguments[0] == "-I"
        if arguments[1] == "-c":
            return Done(0, f"{python.parents[1]}\n")
        if arguments[2] == "venv":
            folder = Path(arguments[3])
            (folder / "bin").mkdir(parents=True)
            (folder / "bin" / "python").touch()
        elif arguments[2] == "verger.cli.main":
            return Done(0, f"verger {python.parents[1].name.split('-')[0]}\n")
        else:
            assert arguments[2:4] == ["pip", "install"], arguments
        return Done(0)


def _attribute(name: str, value: str) -> str:
    native = "dsAttrTypeNative:" if name == "IsHidden" else ""
    return f"{native}{name}:\n {value}\n" if " " in value else f"{native}{name}: {value}\n"


def _copy(arguments: list[str]) -> Done:
    shutil.copytree(arguments[1], arguments[2])
    return Done(0)


def _find(arguments: list[str]) -> Done:
    assert arguments[0] == "-P"
    assert arguments[2:] == ["-type", "f", "-links", "+1", "-print"]
    found = (path for path in Path(arguments[1]).rglob("*") if not path.is_symlink())
    twice = [str(path) for path in found if path.is_file() and path.stat().st_nlink > 1]
    return Done(0, "".join(f"{path}\n" for path in twice))


def _content(path: Path) -> object:
    if path.is_symlink():
        return os.readlink(path)
    return path.read_bytes() if path.is_file() else None
