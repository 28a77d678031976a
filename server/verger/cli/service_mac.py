"""The Mac that `verger service` works on: whether it is one, and what the plans need to know of it.

Called by `service`; tests put a stand-in in the place of `this_mac`. Changes nothing.
"""

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from verger import paths
from verger.catalogue import ModelChoice, ModelPlaces, find_model, load_catalogue
from verger.cli.machine import machine_memory
from verger.config import Config, load_config
from verger.errors import ConfigError, InstallError, ModelFolderError, NotAMac
from verger.macos.executor import Executor
from verger.macos.launchd import LAUNCHCTL
from verger.macos.layout import TEMPLATE_NAME, Layout
from verger.macos.lock import alone
from verger.macos.programs import Runner, run_command
from verger.macos.service_plan import Wanted, service_interpreter
from verger.macos.source import source_of, this_interpreter
from verger.macos.survey import Facts, survey

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 (looked up, not listened on)


@dataclass(frozen=True, slots=True)
class Mac:
    """Where the service goes, and how commands are run there."""

    layout: Layout = field(default_factory=Layout)
    run: Runner = run_command
    executor: Executor = field(default_factory=Executor)
    is_root: Callable[[], bool] = lambda: os.geteuid() == 0

    def facts(self) -> Facts:
        """What is there. Raises InstallError or ServiceDrift."""
        interpreter = service_interpreter(self.layout, this_interpreter()).executable
        return survey(
            self.layout,
            self.run,
            interpreter,
            has_keys=_has_keys(self.layout.home / "verger.db"),
            has_model=self._has_model(),
        )

    def url(self) -> str:
        """Where the service answers on its own Mac. Raises InstallError or ConfigError."""
        server = self.config().server
        host = _EVERY_ADDRESS.get(server.host, server.host)
        scheme = "https" if server.tls_cert else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{server.port}"

    def wanted(self, source: Path | None) -> Wanted:
        """What an install would put there. Raises InstallError."""
        template = (paths.data_dir() / "launchd" / TEMPLATE_NAME).read_bytes()
        return Wanted(source_of(source), this_interpreter(), template, self.url())

    def places(self) -> ModelPlaces:
        """Where the service looks for models."""
        return ModelPlaces(models_dir=self.layout.home / "models", nano_dir=paths.nano_dir())

    @contextmanager
    def alone(self, command: str) -> Iterator[None]:
        """For what changes the service. Raises InstallError unless as root, and one at a time."""
        if not self.is_root():
            raise InstallError(f"only root can do that: sudo {sys.argv[0]} {command}")
        with alone(self.layout.lock, command):
            yield

    def config(self) -> Config:
        """The service's own. Raises InstallError or ConfigError."""
        file = self.layout.home / "config.toml"
        try:
            return load_config(environ={}, file=file if file.exists() else Path(os.devnull))
        except PermissionError:
            raise InstallError(f"cannot read {file}: use sudo") from None

    def _has_model(self) -> bool:
        try:
            return _has_model(self.config(), self.layout.home / "models")
        except ConfigError:
            # What starts the service asks for the configuration again; what stops it need not.
            return False


def this_mac() -> Mac:
    """Raises NotAMac."""
    if sys.platform != "darwin":
        raise NotAMac(
            "`verger service` is for Macs; run `verger serve` here, or see with --dry-run what it "
            "would do"
        )
    if shutil.which(LAUNCHCTL) is None:
        raise NotAMac(f"there is no {LAUNCHCTL}: this is not a whole macOS")
    return Mac()


def _has_model(config: Config, models_dir: Path) -> bool:
    """Whether the service would find what it shall serve: asked as it asks itself."""
    try:
        found = find_model(
            config.engine.model,
            load_catalogue(paths.catalogue_dir()),
            ModelPlaces(models_dir=models_dir, nano_dir=paths.nano_dir()),
            memory=machine_memory(),
            is_trial=False,
        )
    except ModelFolderError:
        return False
    return isinstance(found, ModelChoice)


def _has_keys(file: Path) -> bool:
    """Asked without opening it for writing: the version that runs may be an older one.

    Only the service and root can read it; for others, where there is a database there are keys.
    """
    if not file.exists():
        return False
    if not os.access(file, os.R_OK):
        return True
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute("SELECT count(*) FROM keys WHERE revoked_unix_s IS NULL")
            return bool(rows.fetchone()[0])
    except sqlite3.Error as error:
        if "no such table" in str(error):
            return False
        raise InstallError(f"cannot read the state database {file}: {error}") from None
