"""The admin socket: keys and usage of the running server, for who may open VERGER_HOME/admin.sock.

Run by `server` beside the gateway itself, with an app of its own: nothing of it can be reached over
the network. Who may use it is the file's mode, 0660 with the group admin where there is one. It
does what the commands would do to the files, as the server's own account; see admin_wire.
"""

import asyncio
import grp
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from verger.errors import StartupError
from verger.gateway.admin_wire import REFUSED, NewKey, Refusal, Revocation
from verger.gateway.database import database
from verger.gateway.keys import Key, add_key, all_keys, revoke_key
from verger.gateway.ledger_report import Group, Usage, read_usage
from verger.log import key_values

logger = logging.getLogger("verger.gateway")

MODE = 0o660
GROUP = "admin"
BACKLOG = 16
MAX_CONNECTIONS = 16
MAX_BODY_BYTES = 64 * 1024
STOP_S = 2
BAD_REQUEST, TOO_LARGE = 400, 413

T = TypeVar("T")


def create_admin_app(file: Path) -> Starlette:
    """Of the state database `file`."""
    admin = _Admin(file)
    return Starlette(
        routes=[
            Route("/keys", admin.all, methods=["GET"]),
            Route("/keys", admin.add, methods=["POST"]),
            Route("/keys/revoke", admin.revoke, methods=["POST"]),
            Route("/usage", admin.usage, methods=["GET"]),
        ]
    )


class AdminServer(uvicorn.Server):
    """Serves until it is stopped; signals are the gateway's."""

    def __init__(self, file: Path, database_file: Path) -> None:
        self._file = file
        self.is_serving = asyncio.Event()
        super().__init__(
            uvicorn.Config(
                create_admin_app(database_file),
                log_config=None,
                access_log=False,
                lifespan="off",
                # uvicorn refuses from this one on.
                limit_concurrency=MAX_CONNECTIONS + 1,
                proxy_headers=False,
                timeout_graceful_shutdown=STOP_S,
                ws="none",
            )
        )

    async def run_beside(self) -> None:
        """Until `stop`. A socket that cannot be made costs a warning: the gateway goes on."""
        try:
            listener = listen(self._file)
        except OSError as error:
            reason = error.strerror or str(error)
            logger.warning(key_values(event="no_admin_socket", path=self._file, reason=reason))
            return
        try:
            await self.serve(sockets=[listener])
        finally:
            listener.close()
            self._file.unlink(missing_ok=True)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, and then it is told."""
        await super().startup(sockets)
        self.is_serving.set()

    def stop(self) -> None:
        """Let the requests that run end, and be done."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None of them."""
        yield


def listen(file: Path) -> socket.socket:
    """A socket that listens, in the place of one that a killed server left. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if file.exists():
            _remove_stale(file)
        listener.bind(str(file))
        # Nobody can connect before it listens.
        with suppress(KeyError, PermissionError):
            os.chown(file, -1, grp.getgrnam(GROUP).gr_gid)
        file.chmod(MODE)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _remove_stale(file: Path) -> None:
    if not file.is_socket():
        raise FileExistsError(None, "something that is no socket stands there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        with suppress(ConnectionRefusedError):
            probe.connect(str(file))
            raise FileExistsError(None, "another server uses this state folder")
    file.unlink()


class _Admin:
    """The routes; what they do to files happens in threads."""

    def __init__(self, file: Path) -> None:
        self._file = file

    async def all(self, request: Request) -> Response:
        """All keys."""
        return await _answer(self._all)

    async def add(self, request: Request) -> Response:
        """Add a key that the asking command has made."""
        asked = await _body(request, NewKey)
        return asked if isinstance(asked, Response) else await _answer(lambda: self._add(asked))

    async def revoke(self, request: Request) -> Response:
        """Revoke a key."""
        asked = await _body(request, Revocation)
        if isinstance(asked, Response):
            return asked
        return await _answer(lambda: self._revoke(asked.name))

    async def usage(self, request: Request) -> Response:
        """What the ledger adds up to."""
        asked = request.query_params
        try:
            by = Group(asked["by"]) if "by" in asked else None
            since_ms, until_ms = int(asked["since_ms"]), int(asked["until_ms"])
        except (KeyError, ValueError):
            return _refusal(BAD_REQUEST, "usage takes by, since_ms and until_ms")
        return await _answer(lambda: self._usage(by, since_ms, until_ms))

    def _all(self) -> list[Key]:
        with database(self._file) as connection:
            return all_keys(connection)

    def _add(self, asked: NewKey) -> Key:
        with database(self._file) as connection:
            add_key(connection, asked.key, asked.digest)
        return asked.key

    def _revoke(self, name: str) -> Key:
        with database(self._file) as connection:
            return revoke_key(connection, name, int(time.time()))

    def _usage(self, by: Group | None, since_ms: int, until_ms: int) -> Usage:
        return read_usage(self._file, by, since_ms, until_ms)


async def _body(request: Request, kind: type[T]) -> "T | Response":
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return _refusal(TOO_LARGE, f"the body is longer than {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        return _refusal(BAD_REQUEST, str(error))


async def _answer(act: Callable[[], object]) -> Response:
    try:
        done = await asyncio.to_thread(act)
    except StartupError as error:
        return _refusal(REFUSED, str(error))
    return Response(msgspec.json.encode(done), media_type="application/json")


def _refusal(status: int, message: str) -> Response:
    body = msgspec.json.encode(Refusal(message))
    return Response(body, status_code=status, media_type="application/json")
