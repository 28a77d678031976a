"""Advertising and browsing by python-zeroconf, between machines that the test has made."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.lan.networks import Host, Office
from tests.lan.player import ADVERT, Player, player
from verger.errors import LanError
from verger.lan import zeroconf_backend
from verger.lan.advertise import Backend, make_advertiser
from verger.lan.interfaces import choose_interfaces

pytestmark = pytest.mark.process

ASK = """
import socket, struct, sys
# Where is a _verger._tcp? Asked straight, from a port of its own (RFC 6762, 6.7).
labels = b"".join(bytes([len(part)]) + part for part in (b"_verger", b"_tcp", b"local"))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.settimeout(1)
    question = struct.pack("!6H", 7, 0, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, 12, 1)
    asking.sendto(question, (sys.argv[1], 5353))
    try:
        print(b"office-mini" in asking.recv(9000))
    except TimeoutError:
        print("silence")
"""
TAKE_THE_PORT = """
import socket
taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
taken.bind(("", 5353))
print("taken", flush=True)
input()
"""


def names(client: Player, timeout_s: float = 2.5) -> list[str]:
    return [found["advert"]["name"] for found in client.browse(timeout_s)]


def ask(host: Host, address: str) -> str:
    """What comes back when somebody on the host asks an address."""
    return host.run(sys.executable, "-c", ASK, address).strip()


def test_a_server_is_found_updated_and_gone_and_nothing_leaves_elsewhere(
    two_hosts: Office,
) -> None:
    changed = replace(ADVERT, model_ids=("a", "b"), needs_key=False)
    with (
        player("lan0", on=two_hosts.server) as server,
        player("lan0", on=two_hosts.client) as client,
    ):
        assert server.start() == "office-mini"
        (found,) = client.browse(2.5)
        assert found["host"] == "office-mini.local"
        assert found["addresses"] == [two_hosts.server_address]
        assert found["advert"]["port"] == ADVERT.port
        assert found["advert"]["id"] == ADVERT.id
        assert found["advert"]["model_ids"] == ["gpt-oss-20b"]

        server.update(changed)
        (found,) = client.browse(2.5)
        assert (found["advert"]["model_ids"], found["advert"]["needs_key"]) == (["a", "b"], False)

        server.stop()
        assert names(client) == []
    assert two_hosts.server.sent_packets("other0") == 0
    assert two_hosts.server.sent_packets("lan0") > 0


def test_who_asks_on_another_network_gets_no_answer(two_hosts: Office) -> None:
    """The socket that hears multicast hears every address of the machine."""
    with player("lan0", on=two_hosts.server) as server:
        server.start()
        assert ask(two_hosts.client, two_hosts.server_address) == "True"
        assert ask(two_hosts.stranger, two_hosts.other_address) == "silence"


def test_a_name_that_is_taken_gets_a_number_and_both_are_found(two_hosts: Office) -> None:
    with (
        player("lan0", on=two_hosts.server) as server,
        player("lan0", on=two_hosts.client) as other,
    ):
        assert server.start() == "office-mini"
        assert other.start(replace(ADVERT, port=1)) == "office-mini-2"
        found = {one["advert"]["name"]: one for one in other.browse(2.5)}

    assert {name: one["host"] for name, one in found.items()} == {
        "office-mini": "office-mini.local",
        "office-mini-2": "office-mini-2.local",
    }
    assert found["office-mini-2"]["addresses"] == [two_hosts.client_address]
    assert (found["office-mini"]["advert"]["port"], found["office-mini-2"]["advert"]["port"]) == (
        ADVERT.port,
        1,
    )


def test_a_killed_server_is_found_no_more_and_comes_back_under_its_name(
    two_hosts: Office,
) -> None:
    """It has said no goodbye; whoever asks now is not kept waiting for it."""
    with player("lan0", on=two_hosts.client) as client:
        with player("lan0", on=two_hosts.server) as server:
            server.start()
            assert names(client) == ["office-mini"]
            server.kill()
        begun_s = time.monotonic()
        assert client.browse(1.0) == []
        assert time.monotonic() - begun_s < 5
        with player("lan0", on=two_hosts.server) as server:
            assert server.start() == "office-mini"
            assert names(client) == ["office-mini"]


def test_on_loopback_a_machine_finds_itself(lonely: Host) -> None:
    with player("127.0.0.1", on=lonely, bound_to="127.0.0.1") as server:
        server.start()
        (found,) = server.browse(2.5)
    assert found["addresses"] == ["127.0.0.1"]


def test_two_servers_on_one_machine_are_told_apart_and_leave_one_by_one(lonely: Host) -> None:
    loopback = "127.0.0.1"
    with (
        player(loopback, on=lonely, bound_to=loopback) as first,
        player(loopback, on=lonely, bound_to=loopback) as second,
    ):
        assert first.start() == "office-mini"
        for _ in range(3):
            # On a busy machine the first may answer the second's probes too late.
            if (name := second.start()) != "office-mini":
                break
            second.stop()
        assert name == "office-mini-2"
        assert names(second) == ["office-mini", "office-mini-2"]
        first.stop()
        (found,) = second.browse(2.5)
    assert (found["host"], found["addresses"]) == ("office-mini-2.local", [loopback])


@pytest.mark.parametrize("has_ipv4", [True, False])
def test_a_server_that_listens_on_ipv6_is_found_at_it(two_hosts: Office, has_ipv4: bool) -> None:
    for number, host in enumerate((two_hosts.server, two_hosts.client), start=1):
        host.run("sysctl", "-qw", "net.ipv6.conf.lan0.disable_ipv6=0")
        host.run("ip", "address", "add", f"fd77::{number}/64", "dev", "lan0", "nodad")
        if not has_ipv4:
            host.run("ip", "-4", "address", "flush", "dev", "lan0")
    with (
        player("lan0", on=two_hosts.server, bound_to="::") as server,
        player("lan0", on=two_hosts.client) as client,
    ):
        server.start()
        (found,) = client.browse(2.5)
    assert found["addresses"] == ["fd77::1"]


def test_where_there_is_no_network_the_reason_is_said(lonely: Host) -> None:
    with player(on=lonely) as server:
        with pytest.raises(LanError, match="no interface looks like the office's network"):
            server.start()
        with pytest.raises(LanError, match="no interface looks like the office's network"):
            server.browse()
    with (
        player("en7", on=lonely) as server,
        pytest.raises(LanError, match="no interface or .* en7"),
    ):
        server.start()


def test_a_port_that_somebody_keeps_for_themselves_is_an_error(lonely: Host) -> None:
    command = lonely.command(sys.executable, "-c", TAKE_THE_PORT)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as taker:
        try:
            assert taker.stdout is not None
            assert taker.stdout.readline() == "taken\n"
            with player("127.0.0.1", on=lonely) as server:
                with pytest.raises(LanError, match="cannot be spoken: .*in use"):
                    server.start()
        finally:
            taker.kill()


@pytest.mark.anyio
async def test_a_registration_that_takes_too_long_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the first packet, so that this process may do it."""
    monkeypatch.setattr(zeroconf_backend, "START_S", 0.05)
    advertiser = make_advertiser(Backend.ZEROCONF, choose_interfaces(["127.0.0.1"]), ["127.0.0.1"])
    with pytest.raises(LanError, match="cannot be advertised: it took too long"):
        await advertiser.start(ADVERT)
    assert advertiser.name == ""
    await advertiser.stop()


def test_an_interface_that_goes_away_is_no_end(two_hosts: Office) -> None:
    """The record cannot be sent any more; saying so takes no longer than it may."""
    with player("lan0", on=two_hosts.server) as server:
        server.start()
        two_hosts.server.run("ip", "link", "delete", "lan0")
        server.update(replace(ADVERT, model_ids=()))
        server.stop()
