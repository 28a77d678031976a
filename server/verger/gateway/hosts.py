"""Which names this server answers to: the guard against DNS rebinding, around all routes.

A web page can give its own domain name this machine's address; what it then asks for arrives here
as if from the same site, but still names the page's domain in the Host header. So only hosts that
nobody else can have are answered: literal addresses of private networks, the machine's own names,
and what `[server] allowed_hosts` adds. Called by `app`; must not know what is asked for.
"""

import ipaddress
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from verger.errors import ConfigError, HostNotAllowed

PRIVATE_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",  # Shared address space (RFC 6598): where Tailscale's addresses are.
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
MAX_NAMED_CHARACTERS = 100
"""How much of a refused Host the error repeats."""
_SCUTIL_TIMEOUT_S = 5.0

_HOST = re.compile(r"(\[[0-9a-f:.]+(?:%[0-9a-z_.~%-]+)?\]|[0-9a-z_.-]+)(?::[0-9]{0,5})?")
"""A Host header in lower case (RFC 9110, 7.2), ports and IPv6 zones allowed."""
_NAME = re.compile(r"[0-9a-z_-]+(\.[0-9a-z_-]+)*")


class HostGuard:
    """Pure ASGI; `names` is asked at every request, since SIGHUP and Bonjour may change them."""

    def __init__(self, app: ASGIApp, names: Callable[[], Collection[str]]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value for key, value in scope["headers"] if key == b"host"]
            if len(hosts) != 1:
                raise HostNotAllowed("Send exactly one Host header, which names this server.")
            _check(hosts[0].decode("latin-1"), self._names())
        await self._app(scope, receive, send)


def is_allowed(host: str, names: Collection[str]) -> bool:
    """Whether a Host header names this server; its port does not matter."""
    parsed = _HOST.fullmatch(host.lower())
    if parsed is None:
        return False
    name = _normal(parsed[1])
    return name in names or _is_private(name)


def host_list(text: str) -> tuple[str, ...]:
    """The names and addresses of `[server] allowed_hosts`; raises ConfigError."""
    return tuple(_host(entry.strip()) for entry in text.split(",") if entry.strip())


def machine_names() -> frozenset[str]:
    """What this machine is called; asks macOS for the name under which Bonjour knows it."""
    names: set[str] = set()
    for name in (socket.gethostname(), _bonjour_name()):
        full = name.lower().removesuffix(".")
        label = full.partition(".")[0]
        names |= {full, label, f"{label}.local"} if label else set()
    return frozenset(names)


def _check(host: str, names: Collection[str]) -> None:
    if not is_allowed(host, names):
        raise HostNotAllowed(
            f"This server does not answer to the host {host[:MAX_NAMED_CHARACTERS]!r}. If it "
            "should, add the name to allowed_hosts in the section [server] of its config.toml."
        )


def _is_private(name: str) -> bool:
    address = _address(name)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address is not None and any(address in network for network in PRIVATE_NETWORKS)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _normal(host: str) -> str:
    """One way to write each host; the zone of a link-local address means something here only."""
    bare = host.lower().strip("[]").partition("%")[0].removesuffix(".")
    address = _address(bare)
    return bare if address is None else str(address)


def _host(entry: str) -> str:
    host = _normal(entry)
    if _NAME.fullmatch(host) or _address(host):
        return host
    raise ConfigError(
        f"server.allowed_hosts: {entry!r} is not a host; write names or addresses in full, without "
        "scheme, port or *, separated by commas"
    )


def _bonjour_name() -> str:
    """macOS: LocalHostName, which need not be the host name. Elsewhere nothing."""
    if sys.platform != "darwin":
        return ""
    command = ["/usr/sbin/scutil", "--get", "LocalHostName"]
    try:
        done = subprocess.run(  # noqa: S603 (constant)
            command, capture_output=True, text=True, timeout=_SCUTIL_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
