"""Lets clients in: accepts connections while there are places, and secures them where TLS is on.

Run by `server` in place of asyncio's own accepting, which knows of no limit and, with TLS, tells of
a client only when the handshake is over. Must not know HTTP.
"""

import asyncio
import logging
import math
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from socket import socket

from verger.log import key_values

logger = logging.getLogger("verger.gateway")

MAX_CONNECTIONS = 1_024
MAX_CLIENT_CONNECTIONS = 320
"""Of one address: more than can have answers waiting, so that it hears `overloaded` before this."""
HANDSHAKE_TIMEOUT_S = 10.0
TLS_CLOSE_S = 5.0
ACCEPT_PAUSE_S = 1.0
"""When accepting fails: usually for want of file descriptors."""
REFUSAL_LOG_S = 60.0
"""One line at most in this time: whoever is refused may try again very often."""


class Place:
    """Of one connection, from the moment it is accepted until it is over."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        """Give it back; a failed handshake may end more than once."""
        if self._leave is not None:
            self._leave()
            self._leave = None


class Crowd:
    """Counts the connections that are open, all of them and those of each address."""

    def __init__(
        self,
        limit: int,
        client_limit: int,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._client_limit = client_limit
        self._monotonic_s = monotonic_s
        self._by_address: Counter[str] = Counter()
        self._total = 0
        self._refused = 0
        self._told_s = -math.inf

    @property
    def total(self) -> int:
        """Connections that are open."""
        return self._total

    def enter(self, address: str) -> Place | None:
        """A place for one more connection of this address, if there is one."""
        if self._total >= self._limit or self._by_address[address] >= self._client_limit:
            self._note_refusal(address)
            return None
        self._total += 1
        self._by_address[address] += 1
        return Place(partial(self._leave, address))

    def _leave(self, address: str) -> None:
        self._total -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def _note_refusal(self, address: str) -> None:
        self._refused += 1
        now_s = self._monotonic_s()
        if now_s - self._told_s < REFUSAL_LOG_S:
            return
        self._told_s = now_s
        logger.warning(
            key_values(
                event="too_many_connections",
                client=address,
                of_client=self._by_address[address],
                open=self._total,
                refused=self._refused,
            )
        )


class Acceptor:
    """`new_protocol` gets the function to call when its connection is over.

    `tls` is asked at every connection, since SIGHUP replaces the context.
    """

    def __init__(
        self,
        crowd: Crowd,
        new_protocol: Callable[[Callable[[], None]], asyncio.Protocol],
        tls: Callable[[], ssl.SSLContext | None],
        refusal: bytes,
    ) -> None:
        self._crowd = crowd
        self._new_protocol = new_protocol
        self._tls = tls
        self._refusal = refusal
        """For whom there is no place; over TLS a client is not even told that."""

    async def accept(self, listener: socket) -> None:
        """Until it is cancelled, which also ends the handshakes that are not over."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as arrivals:
            while True:
                try:
                    connection, address = await loop.sock_accept(listener)
                except ConnectionAbortedError:
                    continue
                except OSError as error:
                    logger.error(key_values(event="cannot_accept", reason=error.strerror))
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                if place := self._crowd.enter(address[0]):
                    arrivals.create_task(self._let_in(connection, address[0], place))
                else:
                    self._turn_away(connection)

    async def _let_in(self, connection: socket, address: str, place: Place) -> None:
        loop, context = asyncio.get_running_loop(), self._tls()
        with ExitStack() as on_failure:
            on_failure.callback(place.leave)
            try:
                await loop.connect_accepted_socket(
                    lambda: self._new_protocol(place.leave),
                    connection,
                    ssl=context,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if context else None,
                    ssl_shutdown_timeout=TLS_CLOSE_S if context else None,
                )
            except OSError as error:
                reason = getattr(error, "reason", None) or str(error)
                logger.info(key_values(event="handshake_failed", client=address, reason=reason))
            else:
                on_failure.pop_all()

    def _turn_away(self, connection: socket) -> None:
        with connection, suppress(OSError):
            if self._tls() is None:
                connection.send(self._refusal)
