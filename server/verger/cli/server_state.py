"""Keys and ledger, as the commands see them: through a running server, else in the files.

A server that runs answers on its admin socket, also to people who cannot read its files. The first
socket that answers is asked: that of the own state folder, then, on a Mac and unless VERGER_HOME
says whose state is meant, that of the service.
"""

import socket
import sys
import time
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from verger import paths
from verger.errors import InstanceError, StartupError, Unreachable
from verger.gateway.admin_wire import REFUSED, NewKey, Refusal, Revocation
from verger.gateway.database import database
from verger.gateway.keys import Key, add_key, all_keys, revoke_key
from verger.gateway.ledger_report import Group, Usage, read_usage

ANSWER_S = 30.0
T = TypeVar("T")


class ServerState(Protocol):
    """What the commands do with it. Each raises a StartupError."""

    def add_key(self, key: Key, digest: bytes) -> None:
        """Add it, unless the name is taken."""

    def keys(self) -> list[Key]:
        """All of them."""

    def revoke_key(self, name: str) -> Key:
        """The key that is refused from now on."""

    def usage(self, by: Group | None, since_ms: int, until_ms: int) -> Usage:
        """What the ledger adds up to."""


def server_state() -> ServerState:
    """The running server, else the files. Raises InstanceError where it may not be asked."""
    if sys.platform != "win32":
        for file in paths.admin_sockets():
            if _is_answered(file):
                return _Running(file)
    return _Files(paths.database_file())


def _is_answered(file: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(ANSWER_S)
        try:
            probe.connect(str(file))
        except PermissionError:
            raise InstanceError(
                f"only administrators of this machine may manage the server at {file}"
            ) from None
        except OSError:
            return False
    return True


class _Files:
    """No server runs."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def add_key(self, key: Key, digest: bytes) -> None:
        with database(self._file) as connection:
            add_key(connection, key, digest)

    def keys(self) -> list[Key]:
        with database(self._file) as connection:
            return all_keys(connection)

    def revoke_key(self, name: str) -> Key:
        with database(self._file) as connection:
            return revoke_key(connection, name, int(time.time()))

    def usage(self, by: Group | None, since_ms: int, until_ms: int) -> Usage:
        return read_usage(self._file, by, since_ms, until_ms)


class _Running:
    """A server answers on this socket."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def add_key(self, key: Key, digest: bytes) -> None:
        self._ask("POST", "/keys", Key, NewKey(key, digest))

    def keys(self) -> list[Key]:
        return self._ask("GET", "/keys", list[Key])

    def revoke_key(self, name: str) -> Key:
        return self._ask("POST", "/keys/revoke", Key, Revocation(name))

    def usage(self, by: Group | None, since_ms: int, until_ms: int) -> Usage:
        grouped = "" if by is None else f"&by={by.value}"
        query = f"since_ms={since_ms}&until_ms={until_ms}{grouped}"
        return self._ask("GET", f"/usage?{query}", Usage)

    def _ask(self, method: str, route: str, kind: type[T], body: object = None) -> T:
        # Imported late: it costs other commands a tenth of a second.
        import httpx

        content = b"" if body is None else msgspec.json.encode(body)
        try:
            transport = httpx.HTTPTransport(uds=str(self._file))
            with httpx.Client(transport=transport, timeout=ANSWER_S, trust_env=False) as client:
                answer = client.request(method, f"http://verger{route}", content=content)
            if answer.status_code == REFUSED:
                raise StartupError(msgspec.json.decode(answer.content, type=Refusal).message)
            if not answer.is_success:
                raise Unreachable(f"the server at {self._file} says {answer.status_code}")
            return msgspec.json.decode(answer.content, type=kind)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            raise Unreachable(
                f"the server at {self._file} does not answer as it should ({error}); is it of "
                "another version? Restart it"
            ) from None
