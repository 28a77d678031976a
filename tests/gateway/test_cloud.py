"""Answers from cloud providers, through the gateway: who may have them, what they look like."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fault_plays import ANSWER, TEXT, USAGE
from tests.fault_provider import KEY, FaultProvider, fault_provider
from tests.gateway.clouds import ALLOWED, PRICE, RICH, SHORT, cloud_gateway, played_by
from tests.gateway.harness import MODEL_ID, Gateway, ready_gateway
from verger.gateway.backends.cloud import CloudBackend
from verger.gateway.cloud import Cloud
from verger.gateway.principal import RoutePolicy

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, FaultProvider]

PLAYS = [
    *("correct", "no-usage", "reasoning", "tool-calls", "endless", "no-response", "cut-late"),
    *("refused-temperature", "busy-for-a-moment", "redirect", "error-in-array"),
]
TOOL = {"type": "function", "function": {"name": "f"}}
USER = {"role": "user", "content": "a secret question"}


@pytest.fixture(scope="module")
async def cloud(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("cloud")
    async with fault_provider() as server:
        providers = [
            played_by(server, folder, "first", PLAYS),
            played_by(server, folder, "groq", PLAYS, kind="groq"),
            played_by(server, folder, "gemini", PLAYS, kind="gemini"),
            played_by(server, folder, "openai", {"gpt-4o": "correct"}, kind="compatible"),
        ]
        async with cloud_gateway(folder, providers) as gateway:
            yield gateway, server


@pytest.fixture(autouse=True)
def valid(request: pytest.FixtureRequest) -> Any:
    """Whatever was sent passes the validator."""
    yield
    if "cloud" in request.fixturenames:
        request.getfixturevalue("cloud")[0].traffic.assert_valid()


async def streamed(gateway: Gateway, **fields: Any) -> tuple[httpx.Headers, list[Any]]:
    body = {
        "messages": [USER],
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return response.headers, [json.loads(line[6:]) for line in lines[:-1]]


async def test_a_named_model_is_served_by_its_provider(cloud: Served) -> None:
    gateway, server = cloud
    response = await gateway.chat(model="first/correct")
    body = response.json()
    assert response.status_code == 200
    assert body["model"] == "first/correct"
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"][0]["message"]["content"] == TEXT
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {
        "prompt_tokens": USAGE["prompt_tokens"],
        "completion_tokens": len(ANSWER),
        "total_tokens": 7 + len(ANSWER),
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "cost_usd": USAGE["cost"],
        "served_by": "cloud:first",
        "reason": "named-model",
        "queue_ms": body["usage"]["queue_ms"],
    }
    assert response.headers["x-verger-served-by"] == "cloud:first"
    assert response.headers["x-verger-reason"] == "named-model"
    assert int(response.headers["x-verger-queue-ms"]) < 5_000
    assert server.exchanges[-1].tokens == body["usage"]["completion_tokens"]


async def test_the_last_chunk_of_a_stream_says_who_served_it(cloud: Served) -> None:
    headers, chunks = await streamed(cloud[0], model="first/correct")
    assert headers["x-verger-served-by"] == "cloud:first"
    assert {chunk["model"] for chunk in chunks} == {"first/correct"}
    assert chunks[-1]["usage"]["served_by"] == "cloud:first"
    assert chunks[-1]["usage"]["reason"] == "named-model"
    assert chunks[-1]["usage"]["cost_usd"] == USAGE["cost"]
    assert chunks[-1]["usage"]["completion_tokens"] == len(ANSWER)


async def test_a_cost_that_is_not_said_is_counted_by_the_price(cloud: Served) -> None:
    usage = (await cloud[0].chat(model="groq/correct")).json()["usage"]
    assert usage["cost_usd"] == (7 * PRICE.input_usd + len(ANSWER) * PRICE.output_usd) / 1e6


async def test_a_missing_usage_is_counted_here(cloud: Served) -> None:
    gateway, _ = cloud
    usage = (await gateway.chat(model="first/no-usage")).json()["usage"]
    assert usage["completion_tokens"] == gateway.service.count_tokens(TEXT)
    assert usage["prompt_tokens"] > gateway.service.count_tokens("hi")


async def test_reasoning_comes_under_our_name(cloud: Served) -> None:
    _, chunks = await streamed(cloud[0], model="first/reasoning")
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert [delta["reasoning"] for delta in deltas if "reasoning" in delta] == ["hm"]
    assert not any("reasoning_content" in delta for delta in deltas)


async def test_tool_calls_get_index_id_and_finish_and_gemini_its_signature(cloud: Served) -> None:
    gateway, server = cloud
    response = await gateway.chat(model="gemini/tool-calls", tools=[TOOL])
    choice = response.json()["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["id"].startswith("call_")
    assert call["function"] == {"name": "f", "arguments": '{"a":1}'}

    result = {"role": "tool", "tool_call_id": call["id"], "content": "42"}
    history = [USER, choice["message"], result]
    assert (await gateway.chat(model="gemini/correct", messages=history)).status_code == 200
    (sent,) = server.exchanges[-1].body["messages"][1]["tool_calls"]
    assert sent["extra_content"] == {"google": {"thought_signature": "signed"}}


async def test_what_a_provider_is_sent(cloud: Served) -> None:
    gateway, server = cloud
    await gateway.chat(model="first/correct", max_tokens=9)
    sent = server.exchanges[-1]
    assert sent.body["model"] == "correct"
    assert sent.body["max_tokens"] == 9
    assert sent.body["provider"]["data_collection"] == "deny"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["accept-encoding"] == "identity"
    assert sent.headers["user-agent"].startswith("verger/")


async def test_connections_are_used_again(cloud: Served) -> None:
    gateway, server = cloud
    for _ in range(2):
        await gateway.chat(model="first/correct")
    ports = [exchange.writer.get_extra_info("peername") for exchange in server.exchanges[-2:]]
    assert ports[0] == ports[1]


async def test_a_refused_parameter_is_left_out_and_tried_once_more(cloud: Served) -> None:
    gateway, server = cloud
    response = await gateway.chat(model="first/refused-temperature", temperature=0.5)
    assert response.json()["choices"][0]["message"]["content"] == TEXT
    assert ["temperature" in exchange.body for exchange in server.exchanges[-2:]] == [True, False]


async def test_a_short_retry_after_of_the_only_choice_is_waited_for(cloud: Served) -> None:
    gateway, server = cloud
    response = await gateway.chat(model="first/busy-for-a-moment")
    assert response.status_code == 503
    assert "first HTTP 429" in response.json()["error"]["message"]
    assert len(server.of("busy-for-a-moment")) == 2


async def test_a_providers_own_words_reach_the_client(cloud: Served) -> None:
    response = await cloud[0].chat(model="first/error-in-array")
    assert response.status_code == 400
    assert response.json()["error"]["message"] == 'first refuses the request: Unknown name "x"'


async def test_redirects_are_not_followed(cloud: Served) -> None:
    response = await cloud[0].chat(model="first/redirect")
    assert response.status_code == 503
    assert "redirects elsewhere (HTTP 307)" in response.json()["error"]["message"]


async def test_a_parameter_that_the_provider_cannot_honour_is_refused(cloud: Served) -> None:
    response = await cloud[0].chat(model="groq/correct", logprobs=True)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logprobs"
    assert "Groq does not support" in response.json()["error"]["message"]


async def test_a_model_that_the_provider_does_not_have_is_a_404(cloud: Served) -> None:
    response = await cloud[0].chat(model="groq/other")
    assert response.status_code == 404
    assert "groq/correct, groq/cut-late" in response.json()["error"]["message"]
    response = await cloud[0].chat(model="nobody/other")
    assert response.status_code == 404
    assert MODEL_ID in response.json()["error"]["message"]


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_client_that_leaves_closes_the_upstream(cloud: Served, is_streamed: bool) -> None:
    gateway, server = cloud
    body = {"model": "first/endless", "messages": [USER], "stream": is_streamed}
    if is_streamed:
        async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
            await anext(response.aiter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            await gateway.http.post("/v1/chat/completions", json=body, timeout=0.3)
    left = await asyncio.wait_for(server.left.get(), 10)
    assert left.model == "endless"


@pytest.mark.slow
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_client_that_leaves_before_anything_came_closes_it_too(
    cloud: Served, is_streamed: bool
) -> None:
    gateway, server = cloud
    body = {"model": "first/no-response", "messages": [USER], "stream": is_streamed}
    with pytest.raises(httpx.ReadTimeout):
        await gateway.http.post("/v1/chat/completions", json=body, timeout=0.3)
    left = await asyncio.wait_for(server.left.get(), 0.6)
    assert left.model == "no-response"


async def test_neither_prompts_nor_keys_nor_answers_are_logged(
    cloud: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "verger")
    await streamed(cloud[0], model="first/correct")
    await cloud[0].chat(model="first/cut-late", messages=[USER])
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("verger")]
    text = "\n".join(ours)
    assert "event=provider_failed" in text
    assert "served_by=cloud:first" in text
    assert "cost_usd=0.000125" in text
    for secret in (KEY, "a secret question", "orchard"):
        assert secret not in text


@pytest.mark.parametrize("route", ["local-only", "prefer-local"])
async def test_a_request_may_keep_itself_at_home(cloud: Served, route: str) -> None:
    gateway, server = cloud
    before = len(server.exchanges)
    response = await gateway.http.post(
        "/v1/chat/completions",
        json={"model": "first/correct", "messages": [USER]},
        headers={"x-verger-route": route},
    )
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "route_not_allowed"
    assert "by its key or its x-verger-route" in response.json()["error"]["message"]
    assert len(server.exchanges) == before


@pytest.mark.slow
@pytest.mark.parametrize("policy", [RoutePolicy.LOCAL_ONLY, RoutePolicy.PREFER_LOCAL])
@pytest.mark.parametrize("asked", [None, "any"])
async def test_a_key_that_keeps_to_this_machine_gets_a_403(
    tmp_path: Path, policy: RoutePolicy, asked: str | None
) -> None:
    """Whatever the request asks for: a header can narrow what the key allows, and not widen it."""
    principal = replace(ALLOWED, route=policy)
    async with fault_provider() as server:
        providers = [played_by(server, tmp_path, "first", ["correct"])]
        async with cloud_gateway(tmp_path, providers, principal) as gateway:
            checks = len(server.exchanges)
            response = await gateway.http.post(
                "/v1/chat/completions",
                json={"model": "first/correct", "messages": [USER]},
                headers={"x-verger-route": asked} if asked else {},
            )
            assert response.status_code == 403
            assert "by its key or its x-verger-route" in response.json()["error"]["message"]
            assert len(server.exchanges) == checks == 1


async def test_an_alias_that_looks_like_a_providers_model_stays_local(tmp_path: Path) -> None:
    aliases = {"first/gpt-oss": MODEL_ID, "first/correct": MODEL_ID}
    async with fault_provider() as server:
        providers = [played_by(server, tmp_path, "first", ["correct"])]
        cloud = Cloud(providers, make_backend=lambda: CloudBackend(SHORT))
        async with ready_gateway(tmp_path, None, cloud, ALLOWED, aliases=aliases, **RICH) as (
            gateway,
            engine,
        ):
            await cloud.wait_checked()
            asking = asyncio.create_task(gateway.chat(model="first/gpt-oss"))
            await engine.answer("<|start|>assistant<|channel|>final<|message|>hi<|return|>")
            assert (await asking).headers["x-verger-served-by"] == "local"
            named = await gateway.chat(model="first/correct")
            assert named.headers["x-verger-served-by"] == "cloud:first"


async def test_the_last_chunk_of_a_local_stream_says_so_too(tmp_path: Path) -> None:
    async with ready_gateway(tmp_path) as (gateway, engine):
        asking = asyncio.create_task(streamed(gateway, model=MODEL_ID))
        await engine.answer("<|start|>assistant<|channel|>final<|message|>hi<|return|>")
        _, chunks = await asking
    assert chunks[-1]["usage"]["served_by"] == "local"
    assert chunks[-1]["usage"]["reason"] == "unmeasured"
    assert "cost_usd" not in chunks[-1]["usage"]


async def test_a_provider_that_has_not_passed_its_check_is_not_used(tmp_path: Path) -> None:
    async with fault_provider() as server:
        good = played_by(server, tmp_path, "good", ["correct"])
        bad = replace(good, name="bad", key="sk-wrong")
        async with cloud_gateway(tmp_path, [bad, good]) as gateway:
            response = await gateway.chat(model="bad/correct")
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "provider_unavailable"
            assert "replace the key in" in response.json()["error"]["message"]
            response = await gateway.chat(model="cloud/correct")
            assert response.headers["x-verger-served-by"] == "cloud:good"
        # Of the bad one only its list of models was asked for.
        assert all(exchange.headers["authorization"].endswith(KEY) for exchange in server.exchanges)


@pytest.mark.slow
async def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as deaf:
        # Taken, and not listened on: connections are refused.
        deaf.bind(("127.0.0.1", 0))
        await _try_a_dead_provider(tmp_path, deaf.getsockname()[1])


async def _try_a_dead_provider(tmp_path: Path, unused_port: int) -> None:
    async with fault_provider() as server:
        good = played_by(server, tmp_path, "good", ["correct"])
        async with cloud_gateway(tmp_path, [good]) as gateway:
            dead = replace(good, name="dead", base_url=f"http://127.0.0.1:{unused_port}/v1")
            cloud = gateway.service.cloud
            cloud.providers = (dead, good)
            response = await gateway.chat(model="cloud/correct")
            assert response.headers["x-verger-served-by"] == "cloud:good"
            response = await gateway.chat(model="dead/correct")
            assert response.status_code == 503
            assert "dead cannot be reached" in response.json()["error"]["message"]
