"""What every way of advertising a server has in common, and the choice of one.

Used by the gateway. `dnssd` asks the system's own mDNSResponder (macOS), which survives sleep and
withdraws the record of a process that dies; `zeroconf` speaks multicast DNS itself; `none` is
silent. Must not know when a server should be advertised.
"""

import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from verger.errors import LanError
from verger.lan.interfaces import Interface
from verger.lan.records import Advert

START_S = 20.0
"""The longest that `start` takes: a name that is taken costs some seconds, and so does the next."""
UPDATE_S = 5.0
STOP_S = 2.0
"""The longest that the farewell takes."""


class Backend(StrEnum):
    """What `[lan] bonjour` may say."""

    AUTO = "auto"
    ZEROCONF = "zeroconf"
    DNSSD = "dnssd"
    NONE = "none"


class Advertiser(Protocol):
    """One advertised server. Everything raises LanError, and takes no longer than its bound."""

    @property
    def name(self) -> str:
        """The name in use now; empty before `start`, and when the registration was lost."""

    async def start(self, advert: Advert) -> str:
        """Advertise; returns the name that is used, another if the wanted one was taken."""

    async def update(self, advert: Advert) -> None:
        """Change what is said of the server. Its name and port stay as they were."""

    async def stop(self) -> None:
        """Say goodbye. Also after a failure, and more than once."""


class Silence:
    """Advertises nothing; `why` is the reason."""

    name = ""

    def __init__(self, why: str) -> None:
        self._why = why

    async def start(self, advert: Advert) -> str:
        """There is nothing to start."""
        raise LanError(self._why)

    async def update(self, advert: Advert) -> None:
        """There is nothing to update."""

    async def stop(self) -> None:
        """There is nothing to stop."""


def resolved(backend: Backend, platform: str = sys.platform) -> Backend:
    """What `auto` means on this machine."""
    if backend is not Backend.AUTO:
        return backend
    return Backend.DNSSD if platform == "darwin" else Backend.ZEROCONF


def make_advertiser(
    backend: Backend, interfaces: Sequence[Interface], addresses: Sequence[str]
) -> Advertiser:
    """An advertiser on these interfaces; `addresses` are those at which the server is reached.

    The backends are imported here: most commands, and servers on loopback, need neither.
    """
    match resolved(backend):
        case Backend.DNSSD:
            from verger.lan.dnssd import DnsSd

            return DnsSd(interfaces)
        case Backend.ZEROCONF:
            from verger.lan.zeroconf_backend import ZeroconfAdvertiser

            return ZeroconfAdvertiser(interfaces, addresses)
        case _:
            return Silence("[lan] bonjour is none")
