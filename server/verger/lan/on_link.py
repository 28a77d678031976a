"""python-zeroconf, kept to the chosen interfaces. Used by `zeroconf_backend` and `browse`.

zeroconf joins the multicast group on those interfaces alone and multicasts from them alone. But its
one listening socket also hears what is sent straight to port 5353 of any other address of the
machine, and it would answer whoever asks there. Must not know records.

RFC 6762: 11 (who may ask).
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from zeroconf import Error, Zeroconf
from zeroconf.asyncio import AsyncZeroconf

from verger.errors import LanError
from verger.lan.interfaces import Interface

MDNS_PORT = 5353


class OnLinkZeroconf(Zeroconf):
    """Sends straight to a host only where that is on one of the chosen interfaces' networks."""

    def __init__(self, interfaces: Sequence[Interface]) -> None:
        self._chosen = tuple(interfaces)
        super().__init__(interfaces=[interface.mdns_address for interface in interfaces])

    def async_send(
        self,
        out: Any,
        addr: str | None = None,
        port: int = MDNS_PORT,
        v6_flow_scope: tuple[()] | tuple[int, int] = (),
        transport: Any = None,
    ) -> None:
        """As zeroconf's own, which all that it sends goes through; `addr` None is multicast."""
        if addr is None or self._has_on_link(addr, scope=v6_flow_scope[1] if v6_flow_scope else 0):
            super().async_send(out, addr, port, v6_flow_scope, transport)

    def _has_on_link(self, host: str, scope: int) -> bool:
        return any(
            interface.has_on_link(host) and scope in (0, interface.index)
            for interface in self._chosen
        )


async def open_zeroconf(interfaces: Sequence[Interface]) -> AsyncZeroconf:
    """Ready to be asked; the caller closes it. Raises LanError where no interface can be used."""
    # What fails is told to our caller, who says it once; zeroconf would log it at every try.
    logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
    with lan_errors("multicast DNS cannot be spoken"):
        zeroconf = AsyncZeroconf(zc=OnLinkZeroconf(interfaces))
        await zeroconf.zeroconf.async_wait_for_start()
        if zeroconf.zeroconf.engine.senders:
            return zeroconf
        await zeroconf.async_close()
    raise LanError("multicast DNS cannot be spoken: none of the interfaces can be bound")


@contextmanager
def lan_errors(what: str) -> Iterator[None]:
    """Whatever the network or zeroconf makes of it is one error of ours."""
    try:
        yield
    except TimeoutError:
        raise LanError(f"{what}: it took too long") from None
    except (OSError, Error, RuntimeError) as error:
        raise LanError(f"{what}: {error or type(error).__name__}") from error
