"""Lets an answer begin before its headers are sent, for a while: a true status, a true served-by.

Used for answers from elsewhere, where most failures come within a second. Must not know what the
items are.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


@asynccontextmanager
async def head_start(source: AsyncGenerator[T], wait_s: float) -> AsyncIterator[AsyncGenerator[T]]:
    """The source, of which the first item has been waited for; raises what the source raises
    meanwhile. Leaving the block closes the source."""
    first = asyncio.ensure_future(_first(source))
    try:
        await asyncio.wait({first}, timeout=wait_s)
        if first.done():
            first.result()
        async with aclosing(_continued(first, source)) as items:
            yield items
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await source.aclose()


async def _first(source: AsyncGenerator[T]) -> list[T]:
    """A list, because a source without items is no error here."""
    async for item in source:
        return [item]
    return []


async def _continued(
    first: asyncio.Future[list[T]], source: AsyncGenerator[T]
) -> AsyncGenerator[T]:
    for item in await first:
        yield item
    async for item in source:
        yield item
