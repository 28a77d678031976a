"""What comes from a client: its body, read within bounds, and the news that it has gone.

Called by the endpoints. Must not know what a body means.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from verger.errors import BodyTooLarge, RequestTimeout

MAX_BODY_BYTES = 8 * 1024 * 1024
MAX_DISCARDED_BYTES = 4 * MAX_BODY_BYTES
"""A client that is still sending would miss the 413, so what follows is read and dropped."""
BODY_TIMEOUT_S = 30.0

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection: nobody is left to answer."""


async def read_body(scope: Scope, receive: Receive, timeout_s: float = BODY_TIMEOUT_S) -> bytes:
    """The whole body; raises BodyTooLarge, RequestTimeout or ClientGone."""
    declared = Headers(scope=scope).get("content-length", "0")
    if declared.isdecimal() and int(declared) > MAX_DISCARDED_BYTES:
        raise _too_large()
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_bounded(receive)
    except TimeoutError:
        raise RequestTimeout(f"The body did not arrive within {timeout_s:g} s.") from None


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, or cancel it and raise ClientGone as soon as the client disconnects."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _read_bounded(receive: Receive) -> bytes:
    body = bytearray()
    received_bytes = 0
    has_more = True
    while has_more and received_bytes <= MAX_DISCARDED_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        received_bytes += len(message["body"])
        if received_bytes <= MAX_BODY_BYTES:
            body += message["body"]
        else:
            body.clear()
        has_more = message["more_body"]
    if received_bytes > MAX_BODY_BYTES:
        raise _too_large()
    return bytes(body)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"The body exceeds {MAX_BODY_BYTES} bytes.")
