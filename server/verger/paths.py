"""Where Verger's files are: its own data, and the one folder that holds all state.

Imported by every layer; must not know what is in the files. Reads VERGER_HOME and the platform's
own variables (XDG_DATA_HOME, XDG_CONFIG_HOME, LOCALAPPDATA), and passes on those of the hub and of
proxies; creates nothing.
"""

import os
import sys
from pathlib import Path

ADMIN_SOCKET = "admin.sock"
SERVICE_HOME = Path("/Library/Application Support/Verger/home")
"""The state folder of a Mac's service."""
_PACKAGE = Path(__file__).resolve().parent


def data_dir() -> Path:
    """The folder with models/ and launchd/: inside an installed wheel, else the checkout's root.

    The wheel carries both in verger/_data, which an editable install does not have.
    """
    installed = _PACKAGE / "_data"
    return installed if installed.is_dir() else _PACKAGE.parents[1]


def catalogue_dir() -> Path:
    """Holds one TOML file per model."""
    return data_dir() / "models"


def providers_dir() -> Path:
    """Holds one TOML file per kind of cloud provider."""
    return data_dir() / "models" / "providers"


def nano_dir() -> Path:
    """The embedded model's weights and tokenizer."""
    return data_dir() / "models" / "nano"


def home() -> Path:
    """The folder of all state: VERGER_HOME, else the platform's application-data folder."""
    if chosen := os.environ.get("VERGER_HOME"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "Verger"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "Verger"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "verger"


def is_home_chosen() -> bool:
    """Whether VERGER_HOME says whose state is meant."""
    return bool(os.environ.get("VERGER_HOME"))


def in_home(path: str) -> Path:
    """A path as the configuration names it: what is not absolute lies in the state folder."""
    return home() / Path(path).expanduser()


def config_file() -> Path:
    """The configuration that is read when no --config names another."""
    return home() / "config.toml"


def pins_file() -> Path:
    """On a client: the servers that were used, by name, and their keys."""
    return home() / "pins.json"


def user_config_dir() -> Path:
    """Where this user's other programs keep their configuration, on every platform."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def database_file() -> Path:
    """The state that is more than files: keys, and the ledger."""
    return home() / "verger.db"


def admin_socket() -> Path:
    """Where a running server answers the commands that manage it."""
    return home() / ADMIN_SOCKET


def admin_sockets() -> tuple[Path, ...]:
    """Where one may be: here, and on a Mac that of the service, unless VERGER_HOME says whose."""
    if sys.platform == "darwin" and not is_home_chosen():
        return (admin_socket(), SERVICE_HOME / ADMIN_SOCKET)
    return (admin_socket(),)


def run_file() -> Path:
    """Whether the last server that ran has ended, and how."""
    return home() / "run.json"


def cache_dir() -> Path:
    """KV of prefixes that outlives a restart; may be deleted at any time."""
    return home() / "cache"


def instance_id_file() -> Path:
    """The UUID of this server, by which clients know it again."""
    return home() / "instance_id"


def fetched_dir() -> Path:
    """Prices that were fetched since this version of Verger was made."""
    return home() / "fetched"


def hub_variables() -> dict[str, str]:
    """What this shell says of the way to the hub of models; no secrets, others can read it."""
    names = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def models_dir() -> Path:
    """Downloaded models, one folder each, named after the catalogue's id."""
    return home() / "models"
