"""Advertises a server with python-zeroconf, which speaks multicast DNS itself.

For Linux and for tests; on a Mac the system's own responder does it better (`dnssd`). Made by
`advertise.make_advertiser`. Belongs to one event loop.

The host name in the record is made of the instance's name, which has been found to be unique, and
not of the machine's own, which the system's responder may be advertising with other addresses. A
process that is killed says no goodbye: its record stays in others' caches until it is too old.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence

from zeroconf import ServiceInfo
from zeroconf.asyncio import AsyncZeroconf

from verger.lan.advertise import START_S, STOP_S, UPDATE_S
from verger.lan.interfaces import Interface
from verger.lan.on_link import lan_errors, open_zeroconf
from verger.lan.records import (
    SATURN_TYPE,
    SERVICE_TYPE,
    Advert,
    encode_txt,
    host_label,
    instance_name,
    saturn_txt,
)


class ZeroconfAdvertiser:
    """Implements `advertise.Advertiser`: two services, one name, one host."""

    def __init__(self, interfaces: Sequence[Interface], addresses: Sequence[str]) -> None:
        self.name = ""
        self._interfaces = interfaces
        self._addresses = list(addresses)
        self._zeroconf: AsyncZeroconf | None = None
        self._saturn_name = ""

    async def start(self, advert: Advert) -> str:
        """Probe for the name, take the next free one (`office-mini-2`), announce both services."""
        assert self._zeroconf is None
        with lan_errors("the server cannot be advertised"):
            async with asyncio.timeout(START_S):
                self._zeroconf = zeroconf = await open_zeroconf(self._interfaces)
                name, self._saturn_name = await asyncio.gather(
                    _free_name(zeroconf, SERVICE_TYPE, advert.name),
                    _free_name(zeroconf, SATURN_TYPE, advert.name),
                )
                await _all_sent(
                    await zeroconf.async_register_service(service, cooperating_responders=True)
                    for service in self._services(name, advert)
                )
        self.name = name
        return name

    async def update(self, advert: Advert) -> None:
        """Announce the new TXT records."""
        assert self._zeroconf is not None
        with lan_errors("the server's record cannot be updated"):
            async with asyncio.timeout(UPDATE_S):
                await _all_sent(
                    await self._zeroconf.async_update_service(service)
                    for service in self._services(self.name, advert)
                )

    async def stop(self) -> None:
        """Say goodbye, three times, and close."""
        zeroconf, self._zeroconf, self.name = self._zeroconf, None, ""
        if zeroconf is None:
            return
        with lan_errors("the server's record cannot be withdrawn"):
            async with asyncio.timeout(STOP_S):
                await zeroconf.async_close()

    def _services(self, name: str, advert: Advert) -> list[ServiceInfo]:
        texts = {
            f"{name}.{SERVICE_TYPE}": encode_txt(advert),
            f"{self._saturn_name}.{SATURN_TYPE}": saturn_txt(advert),
        }
        return [
            ServiceInfo(
                full_name.partition(".")[2],
                full_name,
                port=advert.port,
                properties=text,
                server=f"{host_label(name)}.local.",
                parsed_addresses=self._addresses,
            )
            for full_name, text in texts.items()
        ]


async def _free_name(zeroconf: AsyncZeroconf, type_: str, name: str) -> str:
    """The name, or the first of its numbered ones that nobody defends."""
    probed = ServiceInfo(type_, f"{instance_name(name)}.{type_}", port=0)
    await zeroconf.zeroconf.async_check_service(probed, allow_name_change=True)
    return probed.name.removesuffix(f".{type_}")


async def _all_sent(announcing: AsyncIterator[Awaitable[None]]) -> None:
    """Each is sent three times; this waits for the last."""
    await asyncio.gather(*[announcement async for announcement in announcing])
