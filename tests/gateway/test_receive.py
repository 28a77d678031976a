"""Reading from clients that are slow, huge, or gone."""

import asyncio
from collections.abc import Iterable

import pytest
from starlette.types import Message, Receive

from verger.errors import BodyTooLarge, RequestTimeout
from verger.gateway.receive import (
    MAX_BODY_BYTES,
    MAX_DISCARDED_BYTES,
    ClientGone,
    read_body,
    while_connected,
)

pytestmark = pytest.mark.anyio

SCOPE = {"type": "http", "headers": []}
GONE: Message = {"type": "http.disconnect"}


def piece(body: bytes, more_body: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more_body}


def receiving(messages: Iterable[Message]) -> Receive:
    """The messages one by one, then nothing for ever."""
    waiting = iter(messages)

    async def receive() -> Message:
        for message in waiting:
            return message
        await asyncio.Event().wait()
        raise AssertionError

    return receive


async def test_a_body_arrives_in_pieces() -> None:
    assert await read_body(SCOPE, receiving([piece(b"a"), piece(b"b", False)])) == b"ab"


@pytest.mark.parametrize("extra_bytes", [0, 1])
async def test_the_limit_itself_still_fits(extra_bytes: int) -> None:
    receive = receiving([piece(b"x" * MAX_BODY_BYTES), piece(b"x" * extra_bytes, False)])
    if extra_bytes:
        with pytest.raises(BodyTooLarge):
            await read_body(SCOPE, receive)
    else:
        assert len(await read_body(SCOPE, receive)) == MAX_BODY_BYTES


async def test_a_body_without_end_is_given_up() -> None:
    piece_bytes = MAX_BODY_BYTES // 4
    pieces = [piece(b"x" * piece_bytes)] * (MAX_DISCARDED_BYTES // piece_bytes + 1)

    with pytest.raises(BodyTooLarge):
        await read_body(SCOPE, receiving(pieces))


async def test_a_body_that_does_not_come_times_out() -> None:
    with pytest.raises(RequestTimeout):
        await read_body(SCOPE, receiving([piece(b"x")]), timeout_s=0.01)


async def test_a_client_that_leaves_within_its_body() -> None:
    with pytest.raises(ClientGone):
        await read_body(SCOPE, receiving([piece(b"x"), GONE]))


async def test_work_ends_with_its_client() -> None:
    is_cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            is_cancelled.set()

    with pytest.raises(ClientGone):
        await while_connected(receiving([GONE]), work())
    assert is_cancelled.is_set()


async def test_work_that_ends_first_returns_or_raises() -> None:
    async def work(error: Exception | None) -> int:
        if error is not None:
            raise error
        return 42

    assert await while_connected(receiving([]), work(None)) == 42
    with pytest.raises(ZeroDivisionError):
        await while_connected(receiving([]), work(ZeroDivisionError()))
