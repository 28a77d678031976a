"""What is there already: read-only questions, from which the plans follow.

Called by the CLI before a plan is made; changes nothing. Commands go through the injected runner.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from verger.errors import InstallError
from verger.macos import account
from verger.macos.account import AccountFacts
from verger.macos.executor import owner_of
from verger.macos.launchd import LAUNCHCTL, PRINT
from verger.macos.layout import Layout
from verger.macos.programs import Runner
from verger.macos.record import Record, digest_of, read_record

COMPLETE = "complete"
"""The file that is written last into an environment: without it, it was cut off."""
_NO_RECORD = "eDSRecordNotFound"


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A folder's mode and `user:group`."""

    mode: int
    owner: str


@dataclass(frozen=True, slots=True)
class Before:
    """The version that ran before: its record, and what launchd was told of it."""

    record: Record
    plist: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A Mac as far as the service is concerned; as it stands here, one that never had it."""

    account: AccountFacts = AccountFacts({}, {})
    present: frozenset[Path] = frozenset()
    """What there is in the service's folder and in its home, and launchd's plist."""
    folders: Mapping[Path, FolderFacts] = field(default_factory=dict)
    record: Record | None = None
    plist: bytes | None = None
    current: str | None = None
    """The environment that the link names."""
    environments: Mapping[str, bool] = field(default_factory=dict)
    """Whether each is complete."""
    before: Before | None = None
    """What there is to go back to."""
    has_interpreter: bool = False
    has_config: bool = False
    has_keys: bool = False
    has_model: bool = False
    is_loaded: bool = False

    @property
    def is_edited(self) -> bool:
        """Whether the plist is not what an install has written."""
        if self.plist is None:
            return False
        return self.record is None or digest_of(self.plist) != self.record.plist_sha256

    @property
    def missing(self) -> list[str]:
        """The parts of an installed service that are not there; empty if it is whole, or absent."""
        if self.record is None and self.plist is None and self.current is None:
            return []
        parts = {
            "service.json": self.record is not None,
            "the plist": self.plist is not None,
            "the link current": self.current is not None,
            "its environment": bool(self.environments.get(self.current or "")),
            "its account": bool(self.account.user and self.account.group),
        }
        return [name for name, is_there in parts.items() if not is_there]


def survey(
    layout: Layout, run: Runner, interpreter: Path, *, has_keys: bool, has_model: bool
) -> Facts:
    """Look at everything once. Raises InstallError, or ServiceDrift for a damaged record."""
    if run((LAUNCHCTL, "version")).status != 0:
        raise InstallError(f"{LAUNCHCTL} does not work here: this Mac's launchd cannot be reached")
    return Facts(
        account=_account(run),
        present=_present(layout),
        folders=_folders(layout, run),
        record=read_record(layout.record),
        plist=layout.plist.read_bytes() if layout.plist.exists() else None,
        current=layout.current.readlink().name if layout.current.is_symlink() else None,
        environments=_environments(layout),
        before=_before(layout),
        has_interpreter=interpreter.exists(),
        has_config=(layout.home / "config.toml").exists(),
        has_keys=has_keys,
        has_model=has_model,
        is_loaded=run(PRINT).status == 0,
    )


def _account(run: Runner) -> AccountFacts:
    users, groups = run(account.LIST_USER_IDS), run(account.LIST_GROUP_IDS)
    for done in (users, groups):
        if done.status != 0:
            raise InstallError(f"cannot list this Mac's accounts: {done.reason}")
    return AccountFacts(
        user=_attributes(run, account.READ_USER),
        group=_attributes(run, account.READ_GROUP),
        used_ids=account.parse_ids(users.out) | account.parse_ids(groups.out),
    )


def _attributes(run: Runner, command: tuple[str, ...]) -> dict[str, str]:
    done = run(command)
    if done.status == 0:
        return account.parse_record(done.out)
    if _NO_RECORD in done.out + done.err:
        return {}
    raise InstallError(f"cannot read {command[-1]}: {done.reason}")


def _present(layout: Layout) -> frozenset[Path]:
    places = (layout.plist, layout.folder, *layout.folder.glob("*"), *layout.home.glob("*"))
    return frozenset(path for path in places if path.exists() or path.is_symlink())


def _folders(layout: Layout, run: Runner) -> dict[Path, FolderFacts]:
    found = (path for path in _present(layout) if path.is_dir() and not path.is_symlink())
    return {path: FolderFacts(path.stat().st_mode & 0o7777, owner_of(run, path)) for path in found}


def _environments(layout: Layout) -> dict[str, bool]:
    if not layout.environments.is_dir():
        return {}
    return {path.name: (path / COMPLETE).exists() for path in layout.environments.iterdir()}


def _before(layout: Layout) -> Before | None:
    """None where no upgrade has left one, or it is not whole any more."""
    folder = layout.previous.resolve()
    record, plist = read_record(folder / layout.record.name), folder / layout.plist.name
    if record is None or not plist.exists() or not (folder / COMPLETE).exists():
        return None
    return Before(record, plist.read_bytes())
