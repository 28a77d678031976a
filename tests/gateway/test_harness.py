"""The harness itself: what the gateway sends wrongly does not go unnoticed."""

import asyncio

import pytest

from tests.gateway.harness import Gateway, PlayedEngine

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]

ANSWER = "<|channel|>final<|message|>hello<|return|>"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_every_reply_comes_before_the_validator(
    served: Served, monkeypatch: pytest.MonkeyPatch, is_streamed: bool
) -> None:
    gateway, engine = served
    before = gateway.traffic.exchanges
    monkeypatch.setattr(gateway.service, "system_fingerprint", 7)
    asking = asyncio.create_task(gateway.chat(stream=is_streamed))
    await engine.answer(ANSWER)
    await asking

    assert gateway.traffic.exchanges == before + 1
    with pytest.raises(AssertionError, match="system_fingerprint: Input should be a valid string"):
        gateway.traffic.assert_valid()
