"""Requests for the served model that go to a provider while the engine cannot answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fault_plays import TEXT
from tests.fault_provider import FaultProvider, fault_provider
from tests.gateway.clouds import ALLOWED, cloud_gateway, played_by
from tests.gateway.harness import MODEL_ID, Gateway
from verger.errors import EngineUnavailable
from verger.gateway.principal import RoutePolicy

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def spilling(
    folder: Path,
    route: RoutePolicy = RoutePolicy.PREFER_LOCAL,
    kind: str = "openrouter",
    *,
    no_training: bool = False,
    **settings: Any,
) -> AsyncIterator[tuple[Gateway, FaultProvider]]:
    """Its engine is loading."""
    async with fault_provider() as server:
        models = {MODEL_ID: "correct"}
        provider = played_by(server, folder, "first", models, kind, no_training=no_training)
        fields = {"can_spill": True, **settings}
        principal = replace(ALLOWED, route=route)
        async with cloud_gateway(folder, [provider], principal, **fields) as gateway:
            server.exchanges.clear()
            yield gateway, server


async def ask(gateway: Gateway, **headers: str) -> Any:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
    return await gateway.http.post("/v1/chat/completions", json=body, headers=headers)


@pytest.mark.slow
@pytest.mark.parametrize("route", [RoutePolicy.PREFER_LOCAL, RoutePolicy.ANY])
async def test_while_the_engine_loads_a_provider_answers(
    route: RoutePolicy, tmp_path: Path
) -> None:
    async with spilling(tmp_path, route) as (gateway, _):
        response = await ask(gateway)
    assert response.json()["choices"][0]["message"]["content"] == TEXT
    assert response.json()["model"] == MODEL_ID
    assert response.headers["x-verger-served-by"] == "cloud:first"
    assert response.headers["x-verger-reason"] == "engine-loading"


async def test_while_it_is_down_too_and_no_longer_when_it_is_back(tmp_path: Path) -> None:
    async with spilling(tmp_path) as (gateway, server):
        engine = await gateway.next_engine()
        engine.become_ready()
        await gateway.service.engine.wait_ready(30)
        engine.die()
        engine = await gateway.next_engine()
        assert (await ask(gateway)).headers["x-verger-reason"] == "engine-down"

        engine.become_ready()
        await gateway.service.engine.wait_ready(30)
        asked = len(server.exchanges)
        asking = asyncio.create_task(ask(gateway))
        await engine.answer("<|start|>assistant<|channel|>final<|message|>hi<|return|>")
        assert (await asking).headers["x-verger-served-by"] == "local"
        assert len(server.exchanges) == asked


@pytest.mark.slow
async def test_in_safe_mode_a_provider_answers_and_who_stays_here_is_told_why(
    tmp_path: Path,
) -> None:
    async with spilling(tmp_path) as (gateway, _):
        for _ in range(3):
            engine = await gateway.next_engine()
            await engine.greeted.wait()
            engine.die()
        with pytest.raises(EngineUnavailable):
            await gateway.service.engine.wait_ready(30)

        assert (await ask(gateway)).headers["x-verger-reason"] == "engine-down"
        refused = await ask(gateway, **{"x-verger-route": "local-only"})
        assert refused.status_code == 503
        assert "safe mode" in refused.json()["error"]["message"]
        assert 590 <= int(refused.headers["retry-after"]) <= 600
        status = (await gateway.http.get("/v1/status")).json()
        assert (status["state"], status["next_probe_s"] > 590) == ("safe_mode", True)
        assert "safe mode" in (await gateway.http.get("/readyz")).text
        assert not gateway.serving.done()


async def test_what_stays_at_home_is_told_that_the_engine_loads(tmp_path: Path) -> None:
    async with spilling(tmp_path) as (gateway, server):
        response = await ask(gateway, **{"x-verger-route": "local-only"})
        assert response.json()["error"]["code"] == "engine_unavailable"
        assert server.exchanges == []


async def test_so_is_everybody_unless_spilling_is_enabled(tmp_path: Path) -> None:
    async with spilling(tmp_path, can_spill=False) as (gateway, server):
        assert (await ask(gateway)).json()["error"]["code"] == "engine_unavailable"
        assert server.exchanges == []


async def test_so_is_whoever_asks_for_what_no_provider_can_do(tmp_path: Path) -> None:
    async with spilling(tmp_path) as (gateway, server):
        response = await gateway.chat(logit_bias={"1": 5})
        assert response.json()["error"]["code"] == "engine_unavailable"
        assert server.exchanges == []


async def test_nothing_leaves_for_who_may_train_on_prompts(tmp_path: Path) -> None:
    async with spilling(tmp_path, kind="compatible") as (gateway, server):
        assert (await ask(gateway)).json()["error"]["code"] == "engine_unavailable"
        assert server.exchanges == []
    async with spilling(tmp_path, kind="compatible", no_training=True) as (gateway, _):
        assert (await ask(gateway)).headers["x-verger-served-by"] == "cloud:first"
