"""The admin socket: who may open it, what it does, and that only one server has it."""

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import httpx
import msgspec
import pytest

from tests.command_line import Verger
from tests.keys import make_key
from verger import paths
from verger.gateway.admin import MAX_BODY_BYTES, MAX_CONNECTIONS, AdminServer, listen


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short path: that of a UNIX socket may have some hundred bytes."""
    with tempfile.TemporaryDirectory(prefix="vg") as name:
        yield Path(name)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Path]:
    server = AdminServer(folder / "admin.sock", folder / "verger.db")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run_beside())
        await asyncio.wait_for(server.is_serving.wait(), 10)
        try:
            yield folder / "admin.sock"
        finally:
            server.stop()


def test_it_is_for_owner_and_group_and_gone_at_the_end(folder: Path) -> None:
    async def look() -> None:
        async with running(folder) as file:
            assert file.is_socket()
            assert file.stat().st_mode & 0o777 == 0o660
        assert not file.exists()

    asyncio.run(look())


def test_what_a_killed_server_left_is_replaced_and_a_living_ones_is_not(folder: Path) -> None:
    file = folder / "admin.sock"
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(file))
    with closing(listen(file)):
        with pytest.raises(FileExistsError, match="another server"):
            listen(file)
        assert file.exists()
    file.unlink()
    file.write_text("mine")
    with pytest.raises(FileExistsError, match="no socket"):
        listen(file)
    assert file.read_text() == "mine"


def test_without_a_socket_the_gateway_goes_on(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = AdminServer(folder / ("x" * 200), folder / "verger.db")
    asyncio.run(asyncio.wait_for(server.run_beside(), 10))
    assert "event=no_admin_socket" in caplog.text


async def asked(file: Path, method: str, route: str, content: bytes = b"") -> httpx.Response:
    transport = httpx.AsyncHTTPTransport(uds=str(file))
    async with httpx.AsyncClient(transport=transport) as client:
        return await client.request(method, f"http://verger{route}", content=content)


@pytest.mark.parametrize(
    ("method", "route", "content", "status"),
    [
        ("GET", "/keys", b"", 200),
        ("POST", "/keys", b"{", 400),
        ("POST", "/keys", b'{"key": {}, "digest": ""}', 400),
        ("POST", "/keys/revoke", b'{"name": "nobody"}', 409),
        ("POST", "/keys/revoke", b'{"name": 1}', 400),
        ("POST", "/keys/revoke", b'{"name": "x", "more": 1}', 400),
        ("POST", "/keys/revoke", b" " * (MAX_BODY_BYTES - 13) + b'{"name": "x"}', 409),
        ("POST", "/keys/revoke", b" " * (MAX_BODY_BYTES - 12) + b'{"name": "x"}', 413),
        ("GET", "/usage?since_ms=0&until_ms=1", b"", 200),
        ("GET", "/usage?since_ms=0&until_ms=1&by=hour", b"", 400),
        ("GET", "/usage", b"", 400),
        ("DELETE", "/keys", b"", 405),
        ("GET", "/v1/models", b"", 404),
    ],
)
def test_each_question_has_its_answer(
    folder: Path, method: str, route: str, content: bytes, status: int
) -> None:
    async def ask() -> None:
        async with running(folder) as file:
            answer = await asked(file, method, route, content)
            assert answer.status_code == status
            if status in (400, 409, 413):
                assert msgspec.json.decode(answer.content)["message"]

    asyncio.run(ask())


@pytest.mark.parametrize(("others", "status"), [(MAX_CONNECTIONS - 1, 200), (MAX_CONNECTIONS, 503)])
def test_it_has_a_bound_of_connections(folder: Path, others: int, status: int) -> None:
    async def ask() -> None:
        async with running(folder) as file:
            idle = [await asyncio.open_unix_connection(str(file)) for _ in range(others)]
            assert (await asked(file, "GET", "/keys")).status_code == status
            for _, writer in idle:
                writer.close()
                await writer.wait_closed()

    asyncio.run(ask())


def test_the_commands_go_through_a_running_server(
    folder: Path, verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As somebody would who cannot read its files."""
    make_key(folder / "verger.db", "ada")
    monkeypatch.setattr(paths, "admin_sockets", lambda: (folder / "admin.sock",))

    async def manage(check: Callable[[], None]) -> None:
        async with running(folder):
            await asyncio.to_thread(check)

    def check() -> None:
        assert "ada" in verger("keys", "list").out
        made = verger("keys", "add", "bob", "--rpm", "5")
        assert (made.status, made.out.startswith("vg-")) == (0, True)
        again = verger("keys", "add", "bob")
        assert (again.status, again.err.count("\n")) == (3, 1)
        assert again.err.startswith("verger: there is a key named bob already")
        assert verger("keys", "revoke", "ada").out.startswith("Revoked the key of ada")
        assert verger("keys", "revoke", "nobody").status == 3
        assert verger("usage").status == 0
        assert not paths.database_file().exists()

    asyncio.run(manage(check))
    # It has ended: now the files are asked, and this person's have no keys.
    assert "There are no keys yet" in verger("keys", "list").out


def test_a_server_that_may_not_be_asked_is_told(
    folder: Path, verger: Verger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: socket.socket, address: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(paths, "admin_sockets", lambda: (folder / "admin.sock",))
    monkeypatch.setattr(socket.socket, "connect", refused)
    outcome = verger("keys", "list")
    assert (outcome.status, outcome.err.count("\n")) == (3, 1)
    assert "only administrators" in outcome.err
