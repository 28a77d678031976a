"""Where the service lives on a Mac, and under which names. Pure: paths and values, no I/O.

/Library/LaunchDaemons/com.verger.server.plist    launchd's copy of the job     root
/Library/Application Support/Verger/              nothing that runs can write   root
  service.json                                    what was installed
  env/VERSION/  current → env/VERSION             one virtual environment per version
  previous → env/VERSION                          the one before, to go back to
  python/NAME/                                    the interpreter, if its own was in a home
  home/                                           VERGER_HOME                   _verger
/var/run/com.verger.server.lock                   held by who changes all that  root
"""

from dataclasses import dataclass
from pathlib import Path

LABEL = "com.verger.server"
TARGET = f"system/{LABEL}"
"""The job's name to launchctl."""
TEMPLATE_NAME = f"{LABEL}.plist"
USER = GROUP = "_verger"
STATE_GROUP = "admin"
"""A Mac's administrators may read the state; what is made in a folder inherits its group there."""
ROOT_OWNER = "root:wheel"
STATE_OWNER = f"{USER}:{STATE_GROUP}"


@dataclass(frozen=True, slots=True)
class Layout:
    """All paths of the service. Tests put another folder in place of the root."""

    root: Path = Path("/")

    @property
    def folder(self) -> Path:
        """Everything but launchd's copy of the job."""
        return self.root / "Library" / "Application Support" / "Verger"

    @property
    def plist(self) -> Path:
        """What launchd reads at boot."""
        return self.root / "Library" / "LaunchDaemons" / f"{LABEL}.plist"

    @property
    def record(self) -> Path:
        """What the last install has put there."""
        return self.folder / "service.json"

    @property
    def environments(self) -> Path:
        """One folder per version."""
        return self.folder / "env"

    def environment(self, version: str) -> Path:
        """The virtual environment of a version."""
        return self.environments / version

    @property
    def current(self) -> Path:
        """A link to the environment that runs; to move it is to upgrade or to go back."""
        return self.folder / "current"

    @property
    def previous(self) -> Path:
        """A link to the environment that ran before; an upgrade leaves it."""
        return self.folder / "previous"

    @property
    def interpreters(self) -> Path:
        """Copies of interpreters that were in somebody's home."""
        return self.folder / "python"

    @property
    def home(self) -> Path:
        """The service's VERGER_HOME."""
        return self.folder / "home"

    @property
    def log(self) -> Path:
        """Where the server keeps its log, and launchd puts what a crash prints."""
        return self.home / "log"

    @property
    def server_log(self) -> Path:
        """What the server says, rotated by itself."""
        return self.log / "verger.log"

    @property
    def crash_log(self) -> Path:
        """The job's standard error."""
        return self.log / "stderr.log"

    @property
    def lock(self) -> Path:
        """Where it can be before there is anything of Verger, and where no service can write."""
        return self.root / "var" / "run" / f"{LABEL}.lock"

    def job_values(self) -> dict[str, str]:
        """What the template leaves open."""
        return {
            "LABEL": LABEL,
            "USER": USER,
            "GROUP": GROUP,
            "HOME": str(self.home),
            "LOG": str(self.log),
            "CURRENT": str(self.current),
        }
