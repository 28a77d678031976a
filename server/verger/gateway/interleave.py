"""Several streams as one, each item as soon as it is there: how the choices of an answer merge.

Called by `turns` for answers of more than one choice. Must not know what the items are.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def interleave(sources: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[T]:
    """All items of all sources; who has just been served waits behind the others.

    At most one item of each source is taken ahead. The first error ends all of them.
    """
    waiting = {asyncio.ensure_future(anext(source)): source for source in sources}
    try:
        while waiting:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for step in [step for step in waiting if step.done()]:
                source = waiting.pop(step)
                try:
                    item = step.result()
                except StopAsyncIteration:
                    continue
                yield item
                waiting[asyncio.ensure_future(anext(source))] = source
    finally:
        for step in waiting:
            step.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for source in sources:
            await source.aclose()
