"""One request to one provider, with no gateway around it: what it says was spent, its limits."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.fault_plays import ANSWER, PROMPT_TOKENS, TEXT, USAGE
from tests.fault_provider import fault_provider
from tests.gateway.clouds import SHORT, played_by
from verger.api.answer import Delta, Piece
from verger.api.turn_request import TurnRequest
from verger.formats.conversation import Conversation, Message, Role
from verger.gateway.backends.cloud import CloudBackend
from verger.gateway.backends.cloud_request import CloudRequest, Spent
from verger.gateway.backends.failure import Fault, UpstreamFailure
from verger.gateway.providers import Target
from verger.messages import Sampling

pytestmark = pytest.mark.anyio

TURN = TurnRequest(Conversation((Message(Role.USER, "hi"),)), Sampling())
OUR_PROMPT_TOKENS = 100


@dataclass
class Asked:
    """A provider and what it reported."""

    backend: CloudBackend
    target: Target
    spent: list[Spent] = field(default_factory=list)

    def stream(self, budget_s: float = 10.0) -> Any:
        request = CloudRequest("req", TURN, OUR_PROMPT_TOKENS, len, on_spent=self.spent.append)
        return self.backend.open_stream(self.target, request, budget_s)

    async def pieces(self) -> list[Piece]:
        return [piece async for piece in self.stream()]


@asynccontextmanager
async def asked(folder: Path, play: str, **deadlines: float) -> AsyncIterator[Asked]:
    async with fault_provider() as server:
        backend = CloudBackend(replace(SHORT, **deadlines))
        try:
            yield Asked(backend, Target(played_by(server, folder, "p", [play]), play))
        finally:
            await backend.close()


async def test_what_the_provider_says_is_spent(tmp_path: Path) -> None:
    async with asked(tmp_path, "correct") as asking:
        pieces = await asking.pieces()
    assert [piece.content for _, piece in pieces if isinstance(piece, Delta)] == list(ANSWER)
    (spent,) = asking.spent
    assert not spent.is_counted
    assert (spent.usage.prompt_tokens, spent.usage.completion_tokens) == (PROMPT_TOKENS, 4)
    assert spent.usage.cost_usd == USAGE["cost"]


async def test_what_it_does_not_say_is_counted(tmp_path: Path) -> None:
    async with asked(tmp_path, "no-usage") as asking:
        await asking.pieces()
    (spent,) = asking.spent
    assert spent.is_counted
    assert spent.usage.prompt_tokens == OUR_PROMPT_TOKENS
    assert spent.usage.completion_tokens == len(TEXT)


async def test_who_leaves_has_spent_what_came(tmp_path: Path) -> None:
    async with asked(tmp_path, "endless") as asking:
        stream = asking.stream()
        for _ in range(3):
            await anext(stream)
        assert asking.spent == []
        await stream.aclose()
    (spent,) = asking.spent
    assert spent.is_counted
    assert spent.usage.completion_tokens >= 3


@pytest.mark.slow
@pytest.mark.parametrize("play", ["cut-late", "stall-late", "error-in-200-late"])
async def test_an_answer_that_breaks_off_was_paid_for_as_well(play: str, tmp_path: Path) -> None:
    async with asked(tmp_path, play) as asking:
        with pytest.raises(UpstreamFailure):
            await asking.pieces()
    (spent,) = asking.spent
    assert spent.usage.completion_tokens == len("".join(ANSWER[:2]))


@pytest.mark.slow
@pytest.mark.parametrize("play", ["500", "no-response", "html-in-200", "cut-before-headers"])
async def test_what_was_never_begun_costs_nothing(play: str, tmp_path: Path) -> None:
    async with asked(tmp_path, play) as asking:
        with pytest.raises(UpstreamFailure):
            await asking.pieces()
    assert asking.spent == []


@pytest.mark.slow
@pytest.mark.parametrize("play", ["no-response", "headers-then-silence", "comment-flood"])
async def test_the_budget_bounds_the_wait_for_the_first_delta(play: str, tmp_path: Path) -> None:
    """Though each single wait might be longer, and bytes keep coming."""
    async with asked(tmp_path, play, first_s=600.0, idle_s=600.0) as asking:
        with pytest.raises(UpstreamFailure) as raised:
            await anext(asking.stream(budget_s=0.2))
    assert raised.value.fault is Fault.SILENT


@pytest.mark.slow
async def test_the_budget_does_not_bound_what_comes_after_it(tmp_path: Path) -> None:
    async with asked(tmp_path, "slow-drip-late", idle_s=1.5) as asking:
        stream = asking.stream(budget_s=0.5)
        assert [await anext(stream) for _ in range(2)]
        started_s = asking.backend._monotonic_s()
        with pytest.raises(UpstreamFailure, match="in time"):
            await anext(stream)
        assert asking.backend._monotonic_s() - started_s >= 1.0


async def test_no_proxy_variable_says_where_prompts_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with asked(tmp_path, "correct") as asking:
        assert await asking.pieces()
