"""Which hosts are answered to, and that a name which was rebound to this address is not."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from tests.gateway.harness import Gateway, PlayedEngine, ready_gateway
from verger.errors import ConfigError, HostNotAllowed
from verger.gateway.hosts import HostGuard, host_list, is_allowed, machine_names

Served = tuple[Gateway, PlayedEngine]

NAMES = {"localhost", "office-mini", "office-mini.local", "mini.tail1234.ts.net", "2001:db8::1"}
PATHS = ["/livez", "/readyz", "/v1/health", "/v1/models", "/v1/status", "/nothing"]


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.9.9.9:8374", "[::1]", "[::1]:8374", "[0:0:0:0:0:0:0:1]"),
        *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.5:80", "169.254.3.4"),
        *("100.64.0.1:8374", "[fd00::1]:8374", "[fe80::1]", "[fe80::1%25en0]:8374"),
        "[::ffff:192.168.1.5]",
        *("localhost", "LOCALHOST:8374", "localhost.", "Office-Mini.local:8374", "office-mini:"),
        *("mini.tail1234.ts.net", "[2001:DB8:0::1]:8374"),
    ],
)
def test_private_addresses_and_our_names_are_answered_to(host: str) -> None:
    assert is_allowed(host, NAMES)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:8374",
            "localhost.evil.example",
            "office-mini.evil.example",
        ),
        *("127.0.0.1.evil.example", "evil.localhost", "tail1234.ts.net", "x.mini.tail1234.ts.net"),
        *("203.0.113.5", "8.8.8.8:8374", "172.32.0.1", "100.128.0.1", "11.0.0.1"),
        *("[2606:4700::1]", "[2001:db8::2]:8374", "[::ffff:8.8.8.8]"),
        *("", " ", ":8374", "[", "[]", "[::1", "::1", "localhost:8374:1", "localhost:x"),
        *("user@localhost", "localhost/", "localhost, evil.example", "localhost\x00", "löcalhost"),
        *("0x7f000001", "2130706433", "127.1", "localhost..", ".localhost"),
    ],
)
def test_everything_else_is_not(host: str) -> None:
    assert not is_allowed(host, NAMES)


def test_hosts_that_are_configured_are_read() -> None:
    assert host_list("") == ()
    assert host_list(" Mini.Tail1234.ts.net ,203.0.113.5,[2001:DB8::1], x. ,") == (
        "mini.tail1234.ts.net",
        "203.0.113.5",
        "2001:db8::1",
        "x",
    )


@pytest.mark.parametrize(
    "text", ["*", "*.ts.net", "http://mini", "mini:8374", "abc:8374", "a b", "ä"]
)
def test_hosts_that_cannot_be_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.allowed_hosts: .* is not a host"):
        host_list(text)


def test_the_machine_is_known_by_its_name_and_by_that_of_bonjour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scutil(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, "Office-Mini\n", "")

    monkeypatch.setattr(socket, "gethostname", lambda: "Mac12.office.example.")
    monkeypatch.setattr(sys, "platform", "linux")
    unix = {"mac12", "mac12.local", "mac12.office.example"}
    assert machine_names() == unix

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", scutil)
    assert machine_names() == unix | {"office-mini", "office-mini.local"}


def test_the_machines_own_name_is_an_allowed_host() -> None:
    assert is_allowed(socket.gethostname(), machine_names())


@pytest.mark.anyio
async def test_a_name_that_was_rebound_to_this_address_is_refused_on_every_route(
    served: Served,
) -> None:
    gateway, _ = served
    for path in PATHS:
        refused = await gateway.http.get(path, headers={"host": f"evil.example:{gateway.port}"})
        _assert_refused(refused)
        assert "'evil.example" in refused.json()["error"]["message"]
        assert "allowed_hosts" in refused.json()["error"]["message"]


def _assert_refused(response: httpx.Response) -> None:
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "head",
    [
        "GET /livez HTTP/1.1\r\n\r\n",
        "GET /livez HTTP/1.0\r\n\r\n",
        "GET /livez HTTP/1.1\r\nhost:\r\n\r\n",
        "GET /livez HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n",
        "GET /livez HTTP/1.1\r\nhost: localhost\r\nHOST: evil.example\r\n\r\n",
        "GET http://localhost/livez HTTP/1.1\r\nhost: evil.example\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    ],
)
async def test_a_missing_or_doubled_host_is_refused(served: Served, head: str) -> None:
    gateway, _ = served
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head.encode())
    answer = await reader.readuntil(b"}}")
    writer.close()

    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b'"host_not_allowed"' in answer


@pytest.mark.anyio
async def test_names_that_are_configured_are_answered_to(tmp_path: Path) -> None:
    allowed = ("mini.tail1234.ts.net", "203.0.113.5")
    async with ready_gateway(tmp_path, name="Office-Mini", allowed_hosts=allowed) as (gateway, _):
        gateway.service.own_names.add("mac12.local")
        for host in (
            *("localhost", "office-mini:8374", "office-mini.local", "mini.tail1234.ts.net"),
            *("203.0.113.5:8374", "mac12.local"),
        ):
            assert (await gateway.http.get("/livez", headers={"host": host})).status_code == 200
        for host in ("203.0.113.6", "mini.local"):
            _assert_refused(await gateway.http.get("/livez", headers={"host": host}))


@pytest.mark.anyio
async def test_the_refusal_repeats_only_the_beginning_of_a_long_host() -> None:
    async def unused(*arguments: Any) -> None:
        raise AssertionError

    async def receive() -> Message:
        raise AssertionError

    scope = {"type": "http", "headers": [(b"host", b"x" * 8_000)]}
    with pytest.raises(HostNotAllowed) as raised:
        await HostGuard(unused, lambda: ())(scope, receive, unused)

    assert len(raised.value.message) < 400
