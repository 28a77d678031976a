"""A gateway whose rows are all taken, and a provider: requests there wait, leave and come back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fault_plays import TEXT
from tests.fault_provider import FaultProvider, fault_provider
from tests.gateway.clouds import ALLOWED, SHORT, played_by
from tests.gateway.harness import MAX_ROWS, MODEL_ID, Gateway, PlayedEngine, ready_gateway
from tests.gateway.test_accounts import read
from tests.gateway.test_streams import FINAL, chat_stream
from verger.gateway.backends.cloud import CloudBackend
from verger.gateway.cloud import Cloud
from verger.gateway.principal import RoutePolicy
from verger.gateway.rates import Rates
from verger.gateway.routing import ENTER_SAMPLES, Limits
from verger.gateway.submit_queue import LOOK_AHEAD_ROWS
from verger.messages import Submit

streamed_and_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
LIMITS = Limits(ttft_objective_s=1.0, max_wait_s=1_000.0)
PATIENCE_S = 20.0
LOCAL_TEXT = "from here"
USAGE_TOO = {"stream_options": {"include_usage": True}}


@dataclass
class Office:
    """A gateway whose rows are taken for a quarter of a minute, and a provider."""

    gateway: Gateway
    engine: PlayedEngine
    server: FaultProvider
    taken: AsyncExitStack
    """Closed, it frees the rows."""
    running: list[Submit] = field(default_factory=list)

    @property
    def queued(self) -> int:
        return self.gateway.service.engine.queued

    async def until_queued(self, count: int = 1) -> None:
        await until(lambda: self.queued == count)

    def review(self) -> None:
        """As often as spilling takes to set in."""
        for _ in range(ENTER_SAMPLES):
            self.gateway.service.admission.review()

    async def answer_here(self) -> None:
        """Free the rows, and say something to whoever gets one."""
        await self.taken.aclose()
        await self.engine.answer(f"{FINAL}{LOCAL_TEXT}<|return|>")

    def too_long(self) -> list[dict[str, str]]:
        """Messages that do not fit."""
        text = "x" * (self.gateway.service.context_tokens + 1)
        return [{"role": "user", "content": text}]

    async def settled(self) -> None:
        """Return once nothing is reserved and nobody waits."""
        ledger = self.gateway.service.accounts.ledger
        await until(lambda: ledger._open == 0 and self.queued == 0)

    async def row(self) -> dict[str, Any]:
        """What the ledger has of the only request, once it has ended."""
        await until(lambda: bool(self._rows()))
        await self.settled()
        (row,) = self._rows()
        return row

    def _rows(self) -> list[dict[str, Any]]:
        file = self.gateway.service.settings.database_file
        assert file is not None
        return [row for row in read(file) if row["reason"] != "provider-check"]


@asynccontextmanager
async def busy_office(
    folder: Path,
    play: str = "correct",
    route: RoutePolicy = RoutePolicy.PREFER_LOCAL,
    limits: Limits = LIMITS,
    **changes: Any,
) -> AsyncIterator[Office]:
    """`changes` are those of whoever asks."""
    async with fault_provider() as server, AsyncExitStack() as taken:
        provider = played_by(server, folder, "first", {MODEL_ID: play})
        cloud = Cloud([provider], make_backend=lambda: CloudBackend(SHORT))
        principal = replace(ALLOWED, route=route, **changes)
        settings: dict[str, Any] = {
            "limits": limits,
            "can_spill": True,
            "cloud_budget_usd": 10.0,
            "database_file": folder / "verger.db",
        }
        opened = ready_gateway(folder, None, cloud, principal, **settings)
        async with opened as (gateway, engine), asyncio.timeout(PATIENCE_S):
            await gateway.http.get("/livez")
            await cloud.wait_checked()
            server.exchanges.clear()
            office = Office(gateway, engine, server, taken)
            await _take_rows(office)
            yield office
            await taken.aclose()


async def _take_rows(office: Office) -> None:
    engine = office.gateway.service.engine
    submit = Submit(request_id=0, prompt=[1], max_tokens=1_000, stop_ids=[])
    for _ in range(MAX_ROWS + LOOK_AHEAD_ROWS):
        await office.taken.enter_async_context(engine.generate(submit))
        office.running.append(await office.engine.submits.get())
    engine._rates.rates = Rates(step_s=0.04, is_measured=True)


@dataclass
class Reply:
    """A whole answer, streamed or not."""

    headers: httpx.Headers
    text: str
    usage: dict[str, Any]

    def assert_served(self, by: str, reason: str) -> None:
        assert (self.usage["served_by"], self.usage["reason"]) == (by, reason)
        assert self.text == (LOCAL_TEXT if by == "local" else TEXT)


async def ask(gateway: Gateway, stream: bool, **fields: Any) -> Reply:
    if not stream:
        response = await gateway.chat(**fields)
        assert response.status_code == 200, response.text
        body = response.json()
        message = body["choices"][0]["message"]
        return Reply(response.headers, message["content"], body["usage"])
    async with chat_stream(gateway, **USAGE_TOO, **fields) as events:
        *chunks, last = await events.rest()
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    text = "".join(delta.get("content", "") for delta in deltas)
    return Reply(events.response.headers, text, last["usage"])


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 (queue and ledger tell nobody)
            await asyncio.sleep(0.01)
