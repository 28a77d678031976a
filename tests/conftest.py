"""What holds for every test: a state folder of its own, and no network beyond this machine."""

import ipaddress
import sys
from pathlib import Path

import pytest

from tests.command_line import Outcome, Verger, run_verger

FOLDER = Path(__file__).parent
SLOW_FOLDERS = frozenset({"contract", "lan", "mlx", "process"})


def _refuse_outbound(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook sees every Python-level connect; an exception raised here refuses it."""
    if event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo"):
        return
    address = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
    host = address[0] if isinstance(address, tuple) else address
    if not _is_local(host):
        raise PermissionError(f"a test reached out to {host!r}: only loopback is allowed")


def _is_local(host: object) -> bool:
    if not isinstance(host, str) or host in ("", "localhost") or host.startswith("/"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def pytest_configure() -> None:
    sys.addaudithook(_refuse_outbound)


# First, for the choice by markers to see them.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole folders are slow: what they start, real processes and models, takes its time."""
    for item in items:
        if item.path.relative_to(FOLDER).parts[0] in SLOW_FOLDERS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def verger_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """VERGER_HOME in a temporary folder, so that no test reads or writes the user's state."""
    home = tmp_path / "home"
    monkeypatch.setenv("VERGER_HOME", str(home))
    return home


@pytest.fixture
def verger(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verger:
    """Runs one command of `verger` in this process."""

    def run(*arguments: str) -> Outcome:
        return run_verger(monkeypatch, capsys, *arguments)

    return run
