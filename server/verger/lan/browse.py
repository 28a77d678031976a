"""Asks the network for servers. Used by the commands of a colleague's laptop.

Blocks for as long as it is told to, in a thread without an event loop. What it finds is what
anybody says: nothing here proves that a server is the one it says it is. Must not know HTTP.
"""

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from verger.lan.interfaces import choose_interfaces
from verger.lan.on_link import lan_errors, open_zeroconf
from verger.lan.records import SERVICE_TYPE, Advert, decode_txt, is_host

BROWSE_S = 3.0
"""Enough for the second question, which those hear who missed the first, and its answers."""
MAX_FOUND = 64
MAX_ADDRESSES = 8
RESOLVE_SHARE = 0.25
"""Of the time: for asking again about servers of which not all is known yet."""
CLOSE_S = 1.0


@dataclass(frozen=True, slots=True)
class Found:
    """A server that somebody advertises."""

    advert: Advert
    host: str
    """Such as `office-mini.local`."""
    addresses: tuple[str, ...]


def browse(timeout_s: float, interfaces: Sequence[str] = ()) -> list[Found]:
    """The servers that answer in the time given, by name; takes all of it, and little more.

    Raises LanError where there is no network to ask.
    """
    return asyncio.run(_browse(timeout_s, interfaces))


@dataclass(slots=True)
class Search:
    """The names that are there now."""

    names: dict[str, None] = field(default_factory=dict)

    def note(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        """Called by zeroconf for every change that it hears of, by these names."""
        if state_change is ServiceStateChange.Removed:
            self.names.pop(name, None)
        elif len(self.names) < MAX_FOUND:
            self.names[name] = None


def found_in(service: AsyncServiceInfo) -> Found | None:
    """None for what is incomplete, foreign or damaged."""
    host = (service.server or "").removesuffix(".")
    addresses = map(ipaddress.ip_address, service.parsed_addresses(IPVersion.All))
    # A link-local IPv6 address needs a scope, which URLs have no place for.
    usable = [str(own) for own in addresses if own.version == 4 or not own.is_link_local]
    name = service.name.removesuffix(f".{SERVICE_TYPE}")
    advert = decode_txt(name, service.port or 0, service.properties)
    if advert is None or not is_host(host) or not usable:
        return None
    return Found(advert, host, tuple(usable[:MAX_ADDRESSES]))


async def _browse(timeout_s: float, interfaces: Sequence[str]) -> list[Found]:
    zeroconf = await open_zeroconf(choose_interfaces(interfaces))
    try:
        search = Search()
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE_TYPE, handlers=[search.note])
        await asyncio.sleep(timeout_s * (1 - RESOLVE_SHARE))
        found = await _resolve_all(zeroconf, list(search.names), timeout_s * RESOLVE_SHARE)
        await browser.async_cancel()
    finally:
        with lan_errors("multicast DNS cannot be ended"):
            async with asyncio.timeout(CLOSE_S):
                await zeroconf.async_close()
    return sorted(found, key=lambda found: found.advert.name)


async def _resolve_all(
    zeroconf: AsyncZeroconf, names: Sequence[str], timeout_s: float
) -> list[Found]:
    services = [AsyncServiceInfo(SERVICE_TYPE, name) for name in names]
    await asyncio.gather(
        *(service.async_request(zeroconf.zeroconf, timeout_s * 1000) for service in services)
    )
    return [found for service in services if (found := found_in(service)) is not None]
