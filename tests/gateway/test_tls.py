"""TLS: what keeps a server from starting, and that all that holds without it holds with it."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tests.certificates import trusting, write_certificate
from tests.gateway.harness import Gateway, PlayedEngine, raw_chat, ready_gateway
from tests.gateway.test_connection import all_of, get
from tests.gateway.test_streams import FINAL, chat_stream, flood
from verger.catalogue import ModelChoice
from verger.cli.server_settings import settings_for
from verger.config import load_config
from verger.errors import ConfigError
from verger.gateway.settings import TlsFiles
from verger.gateway.tls import tls_context
from verger.model_folder import ModelFolder

Served = tuple[Gateway, PlayedEngine]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def secured(tmp_path: Path, authority: trustme.CA) -> AsyncIterator[Served]:
    """A server of its own, which speaks TLS."""
    files = write_certificate(authority, tmp_path)
    async with ready_gateway(tmp_path, trust=trusting(authority), tls=files) as pair:
        yield pair


@asynccontextmanager
async def over_tls(
    gateway: Gateway, authority: trustme.CA
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", gateway.port, ssl=trusting(authority), limit=1_024
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def test_files_that_are_missing_are_named(tmp_path: Path, authority: trustme.CA) -> None:
    files = write_certificate(authority, tmp_path)
    for missing in (files.cert, files.key):
        content = missing.read_bytes()
        missing.unlink()
        with pytest.raises(ConfigError, match=f"cannot read the TLS .* {missing}: No such file"):
            tls_context(files)
        missing.touch(mode=0o600)
        missing.write_bytes(content)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_a_key_that_others_may_read_is_refused(
    tmp_path: Path, authority: trustme.CA, mode: int
) -> None:
    files = write_certificate(authority, tmp_path)
    files.key.chmod(mode)
    with pytest.raises(ConfigError, match=f"{files.key} can be read by others: chmod 600 it"):
        tls_context(files)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path, authority: trustme.CA) -> None:
    (tmp_path / "other").mkdir()
    files = write_certificate(authority, tmp_path)
    other = write_certificate(authority, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"other/key\.pem does not belong to the certificate"):
        tls_context(TlsFiles(files.cert, other.key))


def test_what_is_no_pem_is_refused(tmp_path: Path, authority: trustme.CA) -> None:
    files = write_certificate(authority, tmp_path)
    files.key.write_bytes(b"not a key")
    with pytest.raises(ConfigError, match="unencrypted key, both in PEM"):
        tls_context(files)
    with pytest.raises(ConfigError, match="unencrypted key, both in PEM"):
        tls_context(TlsFiles(files.key, files.key))


def test_an_encrypted_key_is_refused_and_nobody_is_asked(
    tmp_path: Path, authority: trustme.CA
) -> None:
    files = write_certificate(authority, tmp_path)
    key = serialization.load_pem_private_key(files.key.read_bytes(), password=None)
    sealed = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    files.key.write_bytes(sealed)
    with pytest.raises(ConfigError, match="unencrypted key, both in PEM"):
        tls_context(files)


def test_tls_1_2_is_the_oldest(tmp_path: Path, authority: trustme.CA) -> None:
    context = tls_context(write_certificate(authority, tmp_path))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("given", ["tls_cert", "tls_key"])
def test_certificate_and_key_belong_together(verger_home: Path, given: str) -> None:
    choice = ModelChoice("m", ModelFolder(verger_home, 4096, 1), model=None)
    config = load_config({f"server.{given}": "/a"}, environ={})
    with pytest.raises(ConfigError, match="belong together"):
        settings_for(config, choice, fake=None)
    both = load_config({"server.tls_cert": "~/a", "server.tls_key": "/b"}, environ={})
    assert settings_for(both, choice, fake=None).tls == TlsFiles(Path.home() / "a", Path("/b"))


@pytest.mark.anyio
async def test_a_server_with_a_certificate_speaks_tls_and_says_so(secured: Served) -> None:
    gateway, engine = secured
    assert (await gateway.http.get("/v1/status")).json()["tls"] is True
    async with chat_stream(gateway) as events:
        await engine.answer(FINAL + "hi<|return|>")
        assert (await events.rest())[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.anyio
async def test_plain_http_to_a_tls_port_is_cut_off(
    secured: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway, _ = secured
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(get())
    assert await all_of(reader) == b""
    writer.close()
    assert "event=handshake_failed client=127.0.0.1 reason=HTTP_REQUEST" in caplog.text


@pytest.mark.anyio
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_a_handshake_that_does_not_come_is_cut_off_and_its_place_given_back(
    secured: Served, sent: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("verger.gateway.acceptor.HANDSHAKE_TIMEOUT_S", 0.05)
    gateway, _ = secured
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(sent)
    assert await all_of(reader) == b""
    writer.close()
    assert "event=handshake_failed" in caplog.text
    assert gateway.server.crowd.total == 0


@pytest.mark.anyio
async def test_handshakes_count_as_connections(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verger.gateway.server.MAX_CLIENT_CONNECTIONS", 1)
    files = write_certificate(authority, tmp_path)
    async with ready_gateway(tmp_path, trust=trusting(authority), tls=files) as (gateway, _):
        _, silent = await asyncio.open_connection("127.0.0.1", gateway.port)
        with pytest.raises(httpx.ConnectError):
            await gateway.http.get("/livez")
        silent.close()


@pytest.mark.anyio
async def test_a_client_library_sees_over_tls_that_the_stream_was_cut(secured: Served) -> None:
    gateway, engine = secured
    async with chat_stream(gateway) as events:
        await events.next()
        await engine.submits.get()
        engine.die()
        assert (await events.next())["error"]["code"] == "engine_unavailable"
        with pytest.raises(httpx.RemoteProtocolError):
            await events.next()


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_reader_that_stops_is_cut_off_over_tls_and_sees_no_end(
    secured: Served, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verger.gateway.connection.SEND_TIMEOUT_S", 0.05)
    gateway, engine = secured
    async with over_tls(gateway, authority) as (reader, writer):
        writer.write(raw_chat(stream=True))
        submit = await engine.submits.get()
        engine.say(submit, FINAL)
        flooding = asyncio.create_task(flood(engine, submit))
        assert await engine.cancels.get() == submit.request_id
        flooding.cancel()
        received = await all_of(reader)

    assert b"[DONE]" not in received
    assert not received.endswith(b"0\r\n\r\n")


@pytest.mark.anyio
async def test_a_new_context_is_for_new_connections(
    secured: Served, authority: trustme.CA, tmp_path: Path
) -> None:
    gateway, _ = secured
    assert (await gateway.http.get("/livez")).status_code == 200
    other = trustme.CA()
    gateway.service.tls = tls_context(write_certificate(other, tmp_path))

    assert (await gateway.http.get("/livez")).status_code == 200
    async with httpx.AsyncClient(base_url=gateway.url, verify=trusting(other)) as new:
        assert json.loads((await new.get("/livez")).content) == {"status": "alive"}
    async with httpx.AsyncClient(base_url=gateway.url, verify=trusting(authority)) as old:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await old.get("/livez")
