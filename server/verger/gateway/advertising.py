"""When the office network is told of this server, what it is told, and when it is told goodbye.

Started and stopped by `server`. Must not know how multicast DNS is spoken (`lan` does) and never
stops the server: whatever fails is logged once, shown by /v1/status, and tried again.

    engine ready ──► advertised ──► withdrawn     on SIGTERM, before anything is drained;
                      │     ▲                     while the engine is in safe mode, or has failed
  looked at every CHECK_S ──┘

A restart of the engine takes seconds, in which clients are told to try again: the record stays.
"""

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from verger import __version__
from verger.api.status import Lan
from verger.catalogue import EMBEDDED_ID
from verger.errors import EngineUnavailable, LanError
from verger.gateway.engine_client import EngineState
from verger.gateway.service import Service
from verger.lan.advertise import STOP_S, Advertiser, Backend, make_advertiser, resolved
from verger.lan.interfaces import Interface, choose_interfaces, reachable_addresses
from verger.lan.records import Advert, host_label
from verger.log import key_values

logger = logging.getLogger("verger.gateway")

CHECK_S = 10.0
"""How often interfaces are looked at, and a failure is tried again: nobody tells us of either."""
MAX_DOUBTS = 2
"""How many looks in a row must differ from what is advertised: a network may be away shortly."""
MAX_LOAD_S = 900.0
_DOWN = {
    EngineState.SAFE_MODE: "the engine is in safe mode",
    EngineState.FAILED: "the engine cannot run",
}
MAX_WITHDRAWAL_S = STOP_S + 0.5

Make = Callable[[Backend, Sequence[Interface], Sequence[str]], Advertiser]
Choose = Callable[[Sequence[str]], tuple[Interface, ...]]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a record points; one that points elsewhere is another registration."""

    name: str
    port: int
    interfaces: tuple[Interface, ...]
    addresses: tuple[str, ...]


class Advertising:
    """Owns the advertiser and the task that looks after it; belongs to the server's event loop."""

    def __init__(
        self,
        service: Service,
        *,
        make: Make = make_advertiser,
        choose: Choose = choose_interfaces,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._service = service
        self._backend = resolved(service.settings.bonjour)
        self._make = make
        self._choose = choose
        self._sleep = sleep
        self._host, self._port = "", 0
        self._advertiser: Advertiser | None = None
        self._place: _Place | None = None
        self._advert: Advert | None = None
        self._doubts = 0
        self._last_warning = ""
        self._task: asyncio.Task[None] | None = None

    def start(self, host: str, port: int) -> None:
        """Begin to follow the server that listens there."""
        self._host, self._port = host, port
        if (reason := self._reason_to_be_silent()) is not None:
            logger.info(key_values(event="not_advertised", reason=reason))
            self._show(off_reason=reason)
            return
        self._show(off_reason="the engine is not ready yet")
        self._task = asyncio.create_task(self._follow(), name="advertising")
        self._task.add_done_callback(self._end)

    async def stop(self) -> None:
        """Withdraw what is advertised; takes at most MAX_WITHDRAWAL_S and raises nothing."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task}, timeout=MAX_WITHDRAWAL_S)

    def _reason_to_be_silent(self) -> str | None:
        """Why this server is not to be advertised at all."""
        settings = self._service.settings
        if self._backend is Backend.NONE:
            return "[lan] bonjour is none"
        if ipaddress.ip_address(self._host).is_loopback and not settings.lan_interfaces:
            return f"only this machine reaches {self._host}: see --host"
        return None

    async def _follow(self) -> None:
        try:
            with suppress(EngineUnavailable):
                await self._service.engine.wait_ready(MAX_LOAD_S)
            while True:
                await self._look()
                await self._sleep(CHECK_S)
        finally:
            await self._withdraw("the server is stopping")

    def _end(self, task: asyncio.Task[None]) -> None:
        """A defect here is none of the clients' business: they are served on."""
        if not task.cancelled() and (defect := task.exception()) is not None:
            logger.critical("event=advertising_failed", exc_info=defect)
            self._show(off_reason=f"advertising failed: {defect}")

    async def _look(self) -> None:
        """Compare what is with what is advertised, and act on it."""
        is_ready = self._service.engine.state is EngineState.READY
        try:
            place = self._wanted_place()
            if self._place == place and self._advertiser is not None and self._advertiser.name:
                await self._keep(self._advertiser, self._wanted_advert(place))
            elif is_ready and self._is_certain():
                if self._place is not None:
                    await self._withdraw("the network has changed")
                await self._register(place)
        except LanError as error:
            if self._is_certain():
                self._warn(str(error))
                await self._withdraw(str(error))

    def _is_certain(self) -> bool:
        """Of a deviation; while nothing is advertised there is nothing to be lost."""
        self._doubts += 1
        return self._place is None or self._doubts >= MAX_DOUBTS

    async def _register(self, place: _Place) -> None:
        advert = self._wanted_advert(place)
        self._show(off_reason="being registered")
        self._advertiser = self._make(self._backend, place.interfaces, place.addresses)
        name = await self._advertiser.start(advert)
        self._place, self._advert = place, advert
        self._doubts, self._last_warning = 0, ""
        self._show(name=name)
        # What clients are told to connect to must be a host that is answered to.
        self._service.own_names.add(f"{host_label(name)}.local")
        interfaces = ",".join(self._service.lan.interfaces)
        backend = self._backend.value
        logger.info(
            key_values(event="advertised", name=name, backend=backend, interfaces=interfaces)
        )

    async def _keep(self, advertiser: Advertiser, advert: Advert) -> None:
        if advert != self._advert:
            await advertiser.update(advert)
            self._advert = advert
            logger.info(key_values(event="advert_updated", name=advertiser.name))
        self._doubts = 0
        self._show(name=advertiser.name)

    async def _withdraw(self, reason: str) -> None:
        """Also what was only half registered."""
        advertiser, self._advertiser = self._advertiser, None
        if self._place is not None:
            logger.info(key_values(event="withdrawn", reason=reason))
        self._place = None
        self._show(off_reason=reason)
        if advertiser is not None:
            try:
                await advertiser.stop()
            except LanError as error:
                logger.warning(key_values(event="no_goodbye", reason=str(error)))

    def _warn(self, reason: str) -> None:
        """Once, however often it is tried again."""
        if reason != self._last_warning:
            self._last_warning = reason
            logger.warning(key_values(event="not_advertised", reason=reason))

    def _wanted_place(self) -> _Place:
        """Raises LanError where there is none."""
        service, settings = self._service, self._service.settings
        if service.engine.state in _DOWN:
            raise LanError(_DOWN[service.engine.state])
        interfaces = self._choose(settings.lan_interfaces)
        if settings.model_id == EMBEDDED_ID:
            interfaces = tuple(one for one in interfaces if one.is_loopback)
        if not interfaces:
            raise LanError(f"{EMBEDDED_ID} is a test model: it is not advertised to the office")
        addresses = reachable_addresses(interfaces, self._host)
        if not addresses:
            names = ", ".join(interface.name for interface in interfaces)
            raise LanError(f"the server listens on {self._host}, which is no address of {names}")
        return _Place(settings.name, self._port, interfaces, addresses)

    def _wanted_advert(self, place: _Place) -> Advert:
        settings = self._service.settings
        return Advert(
            name=place.name,
            port=place.port,
            id=settings.instance_id,
            model_ids=(settings.model_id,),
            needs_key=self._service.keys.needs_key,
            has_tls=self._service.tls is not None,
            version=__version__,
        )

    def _show(self, name: str | None = None, off_reason: str | None = None) -> None:
        interfaces = self._place.interfaces if self._place is not None else ()
        self._service.lan = Lan(
            backend=self._backend.value,
            name=name,
            interfaces=tuple(interface.name for interface in interfaces),
            off_reason=off_reason,
        )
