"""A server whose model has still to be fetched: it says so, serves the cloud, and starts anew."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeLan
from tests.fault_plays import TEXT
from tests.fault_provider import fault_provider
from tests.gateway.clouds import ALLOWED, cloud_gateway, played_by
from tests.gateway.harness import CONTEXT_TOKENS, MODEL_ID, Gateway, running_gateway
from verger import paths
from verger.gateway.weights import CHECK_S, wait_for_weights

pytestmark = pytest.mark.anyio

STAND_IN = paths.nano_dir() / "tokenizer.json"
HINT = f"`verger pull {MODEL_ID}`"


async def ask(gateway: Gateway, **fields: Any) -> Any:
    return await gateway.chat(**fields)


async def test_it_lives_is_not_ready_and_says_how_to_get_the_model(tmp_path: Path) -> None:
    lan = FakeLan()
    async with running_gateway(tmp_path, lan, stand_in_tokenizer=STAND_IN) as gateway:
        assert (await gateway.http.get("/livez")).status_code == 200
        ready = await gateway.http.get("/readyz")
        assert ready.status_code == 503
        assert HINT in ready.json()["error"]["message"]
        assert (await gateway.http.get("/v1/status")).json()["state"] == "no_weights"
        assert gateway.engines.empty()
        assert lan.calls == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [1, 2 * CONTEXT_TOKENS], ids=["short", "longer than the context"])
async def test_who_asks_is_told_the_same(tmp_path: Path, words: int) -> None:
    """Nothing is refused for what only the stand-in's vocabulary says of it."""
    async with running_gateway(tmp_path, stand_in_tokenizer=STAND_IN) as gateway:
        messages = [{"role": "user", "content": "word " * words}]
        response = await ask(gateway, messages=messages, logit_bias={"200000": 1})
        assert response.status_code == 503
        assert HINT in response.json()["error"]["message"]
        assert response.headers["retry-after"] == "60"


async def test_a_provider_answers_whoever_may_leave(tmp_path: Path) -> None:
    async with fault_provider() as server:
        provider = played_by(server, tmp_path, "first", {MODEL_ID: "correct"})
        fields = {"can_spill": True, "stand_in_tokenizer": STAND_IN}
        async with cloud_gateway(tmp_path, [provider], ALLOWED, **fields) as gateway:
            response = await ask(gateway)
            assert response.json()["choices"][0]["message"]["content"] == TEXT
            assert response.headers["x-verger-reason"] == "no-weights"
            assert response.headers["x-verger-served-by"] == "cloud:first"
            kept = {"x-verger-route": "local-only"}
            body = {"model": MODEL_ID, "messages": [{"role": "user", "content": "hi"}]}
            stays = await gateway.http.post("/v1/chat/completions", json=body, headers=kept)
            assert stays.status_code == 503


async def test_once_the_model_is_there_it_ends_to_be_started_anew(tmp_path: Path) -> None:
    async with running_gateway(
        tmp_path, stand_in_tokenizer=STAND_IN, are_weights_there=lambda: True
    ) as gateway:
        async with asyncio.timeout(30):
            await gateway.serving
        assert gateway.server.has_found_weights
        assert gateway.server.exit_code == 0


async def test_who_is_told_to_end_meanwhile_is_not_started_anew(tmp_path: Path) -> None:
    async with running_gateway(
        tmp_path, stand_in_tokenizer=STAND_IN, are_weights_there=lambda: True
    ) as gateway:
        while not gateway.server.has_found_weights:  # noqa: ASYNC110 (a thread looks)
            await asyncio.sleep(0)
        gateway.server.ask_to_exit()
        assert not gateway.server.force_exit
        await gateway.serving
        assert not gateway.server.has_found_weights


async def test_a_server_with_a_model_looks_for_none(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, are_weights_there=lambda: True) as gateway:
        engine = await gateway.next_engine()
        engine.become_ready()
        await gateway.service.engine.wait_ready(30)
        assert (await gateway.http.get("/readyz")).status_code == 200
        assert not gateway.server.has_found_weights


async def test_it_is_looked_for_until_it_is_there() -> None:
    looks = iter([False, False, True])
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)

    await wait_for_weights(lambda: next(looks), sleep)
    assert slept == [CHECK_S, CHECK_S]
