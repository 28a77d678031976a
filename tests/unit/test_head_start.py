"""Waiting for the first item before anything is said, without losing an item or an error."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from verger.gateway.head_start import head_start

LONG_S = 30.0


class Source:
    """Yields what the test puts in; an exception is raised, None ends it."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[str | Exception | None] = asyncio.Queue()
        self.is_closed = False

    async def read(self) -> AsyncGenerator[str]:
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.is_closed = True


def test_the_first_item_is_waited_for_and_not_lost() -> None:
    async def run() -> None:
        source = Source()
        for item in ("a", "b", None):
            source.items.put_nowait(item)
        async with head_start(source.read(), LONG_S) as items:
            assert source.items.qsize() == 2
            assert [item async for item in items] == ["a", "b"]
        assert source.is_closed

    asyncio.run(run())


def test_an_error_in_time_is_raised_before_anything_is_said() -> None:
    async def run() -> None:
        source = Source()
        source.items.put_nowait(ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            async with head_start(source.read(), LONG_S):
                pytest.fail("it must not begin")

    asyncio.run(run())


def test_what_takes_longer_comes_later_be_it_an_item_or_an_error() -> None:
    async def run() -> None:
        source = Source()
        async with head_start(source.read(), 0) as items:
            source.items.put_nowait("a")
            source.items.put_nowait(ValueError("no"))
            assert await anext(items) == "a"
            with pytest.raises(ValueError, match="no"):
                await anext(items)
        assert source.is_closed

    asyncio.run(run())


def test_a_source_without_items_is_an_end() -> None:
    async def run() -> None:
        source = Source()
        source.items.put_nowait(None)
        async with head_start(source.read(), LONG_S) as items:
            assert [item async for item in items] == []

    asyncio.run(run())


@pytest.mark.parametrize("reads", [0, 1])
def test_leaving_closes_the_source(reads: int) -> None:
    async def run() -> None:
        source = Source()
        source.items.put_nowait("a")
        async with head_start(source.read(), LONG_S) as items:
            for _ in range(reads):
                await anext(items)
        assert source.is_closed

    asyncio.run(run())


def test_being_cancelled_while_it_waits_closes_the_source() -> None:
    async def run() -> None:
        source = Source()
        entering = asyncio.ensure_future(head_start(source.read(), LONG_S).__aenter__())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert source.is_closed

    asyncio.run(run())
