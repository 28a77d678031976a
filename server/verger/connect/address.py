"""Where a server is reached, and which names and hosts are taken from the network at all.

Used by the client commands and by the gateway's page /connect. Hosts, names and model ids come from
strangers (mDNS, Host headers, answers) and end in shell code, configuration files and HTML. Whoever
prints them also quotes; here, only what is plainly a host, a name or a model gets in. Pure.
Host names: RFC 1123 section 2.1.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from verger.config import ServerConfig

DEFAULT_PORT = ServerConfig().port
HTTPS_PORT = 443
HTTP_PORT = 80
MAX_HOST_CHARACTERS = 253

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAME = re.compile(r"[^\W_][\w .()-]{0,62}")
_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,127}")


@dataclass(frozen=True, slots=True)
class Address:
    """Made by the functions below, which check the parts."""

    host: str
    port: int
    is_tls: bool = False

    @property
    def authority(self) -> str:
        """Host and port; the port is left out where the scheme implies it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_implied = self.port == (HTTPS_PORT if self.is_tls else HTTP_PORT)
        return host if is_implied else f"{host}:{self.port}"

    @property
    def root_url(self) -> str:
        """What clients of Anthropic's API are given."""
        return f"{'https' if self.is_tls else 'http'}://{self.authority}"

    @property
    def base_url(self) -> str:
        """What clients of OpenAI's API are given."""
        return f"{self.root_url}/v1"


def make_address(host: str, port: int, *, is_tls: bool) -> Address:
    """Raises ValueError for what is not plainly a host and a port."""
    if not 0 < port < 65_536:
        raise ValueError(f"{port} is not a port")
    return Address(_checked_host(host), port, is_tls)


def parse_url(url: str) -> Address:
    """`http://office-mini.local:8374/v1`, or only a host; raises ValueError.

    Without a port it is Verger's own, for https 443.
    """
    if "://" not in url:
        url = f"http://{url}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.path.rstrip("/") not in ("", "/v1"):
        raise ValueError("write http://HOST:PORT or https://HOST:PORT")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("nothing but a host and a port may stand in the URL")
    is_tls = parts.scheme == "https"
    port = HTTPS_PORT if is_tls else DEFAULT_PORT
    if parts.port is not None:
        port = parts.port
    return make_address(parts.hostname or "", port, is_tls=is_tls)


def parse_host_header(host: str, *, is_tls: bool) -> Address:
    """The address under which a client reached this server; raises ValueError."""
    parts = urlsplit(f"//{host}")
    if parts.netloc != host or "@" in host:
        raise ValueError("not a host")
    implied = HTTPS_PORT if is_tls else HTTP_PORT
    port = implied if parts.port is None else parts.port
    return make_address(parts.hostname or "", port, is_tls=is_tls)


def is_name(text: str) -> bool:
    """Letters and digits of any script, spaces and `. _ - ( )`; 63 characters at most."""
    return _NAME.fullmatch(text) is not None


def is_model_id(text: str) -> bool:
    """As OpenAI-compatible servers name their models."""
    return _MODEL_ID.fullmatch(text) is not None


def _checked_host(host: str) -> str:
    host = host.lower().removesuffix(".")
    if ":" in host:
        if "%" in host:
            raise ValueError("an address with a scope means nothing to HTTP clients")
        return str(ipaddress.IPv6Address(host))
    if len(host) > MAX_HOST_CHARACTERS or not _HOST.fullmatch(host):
        raise ValueError(f"{host[:MAX_HOST_CHARACTERS]!a} is not a host")
    return host
