"""Networks of a test's own: Linux network namespaces, from which nothing gets out.

The tests that need them need root, and `ip`; elsewhere they skip and say why, but not under
scripts/test as root on Linux, where they must run.
"""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

_numbers = itertools.count(1)


def need_namespaces() -> None:
    """Skip the test where there can be none; fail where they have to be."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces need Linux and root")
    reason = None
    if shutil.which("ip") is None:
        reason = "network namespaces need `ip`: apt-get install iproute2"
    elif (failure := _failure_of_namespaces()) is not None:
        reason = f"network namespaces cannot be made here: {failure}"
    if reason and os.environ.get("VERGER_REQUIRE_ORACLE") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


def _failure_of_namespaces() -> str | None:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    if done.returncode == 0:
        done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip()


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace, which is to a process what a machine is."""

    name: str

    def command(self, *command: str) -> list[str]:
        """The same command, within."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command: str) -> str:
        """What it prints."""
        done = subprocess.run(self.command(*command), check=True, capture_output=True, text=True)
        return done.stdout

    def sent_packets(self, interface: str) -> int:
        """How many have left through the interface, of any kind."""
        return int(self.run("cat", f"/sys/class/net/{interface}/statistics/tx_packets"))


@contextmanager
def host() -> Iterator[Host]:
    """A machine with nothing but loopback, which speaks no IPv6 unasked."""
    name = f"verger-{os.getpid()}-{next(_numbers)}"
    _ip("netns", "add", name)
    try:
        made = Host(name)
        made.run("ip", "link", "set", "lo", "up")
        made.run("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        yield made
    finally:
        _ip("netns", "del", name)


@dataclass(frozen=True, slots=True)
class Office:
    """Two machines on a network, `lan0` of both; and a network of the server's that is no office's,
    its `other0`, with a stranger on it."""

    server: Host
    client: Host
    stranger: Host
    server_address: str = "10.77.0.1"
    client_address: str = "10.77.0.2"
    other_address: str = "10.78.0.1"
    stranger_address: str = "10.78.0.2"


@contextmanager
def office() -> Iterator[Office]:
    """Both networks, up."""
    with ExitStack() as hosts:
        server, client, stranger = (hosts.enter_context(host()) for _ in range(3))
        made = Office(server, client, stranger)
        _connect(made.server, made.client, "lan0", [made.server_address, made.client_address])
        _connect(made.server, made.stranger, "other0", [made.other_address, made.stranger_address])
        yield made


def _connect(one: Host, other: Host, interface: str, addresses: Sequence[str]) -> None:
    ends = [*("name", interface, "netns", one.name), *("type", "veth", "peer", "name", interface)]
    _ip("link", "add", *ends, "netns", other.name)
    for end, address in zip((one, other), addresses, strict=True):
        end.run("ip", "address", "add", f"{address}/24", "dev", interface)
        end.run("ip", "link", "set", interface, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
