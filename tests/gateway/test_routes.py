"""Routes, health and errors: every refusal in OpenAI's shape, whatever the request looks like."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.chat_bodies import NOT_JSON, UNSUPPORTED, WRONG, body
from tests.gateway.harness import MODEL_ID, Gateway, PlayedEngine, chat_body, running_gateway
from verger.gateway.receive import MAX_BODY_BYTES
from verger.messages import CacheStats, Stats

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error, after checking the shape that OpenAI's clients expect."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_models_are_listed_and_described(served: Served) -> None:
    gateway, _ = served
    listed = (await gateway.http.get("/v1/models")).json()
    described = (await gateway.http.get(f"/v1/models/{MODEL_ID}")).json()

    assert listed == {"object": "list", "data": [described]}
    assert described["id"] == MODEL_ID
    assert described["object"] == "model"
    assert described["context_length"] == 4096
    assert (await gateway.http.get("/v1/models/gpt-4o")).json() == described


async def test_an_unknown_model_is_refused_with_what_there_is(served: Served) -> None:
    gateway, _ = served
    for response in (
        await gateway.http.get("/v1/models/org/other"),
        await gateway.chat(model="org/other"),
    ):
        assert response.status_code == 404
        error = error_of(response)
        assert error["code"] == "model_not_found"
        assert MODEL_ID in error["message"]
        assert "gpt-4o" in error["message"]


async def test_the_status_shows_the_engines_figures_and_the_queue(tmp_path: Path) -> None:
    async with running_gateway(tmp_path, target_itl_ms=100, max_rows=3) as gateway:
        engine = await gateway.next_engine()
        before = (await gateway.http.get("/v1/status")).json()
        engine.become_ready()
        await gateway.service.engine.wait_ready(30)
        cache = CacheStats(nodes=7, asked_tokens=4, cached_tokens=1)
        engine.send(Stats(1, 2, 3, 4, 5, 6, 7, 8, cache))
        response = await gateway.http.get("/v1/status")
        while response.json()["rows"]["running"] == 0:
            response = await gateway.http.get("/v1/status")
        gateway.server.ask_to_exit()
        draining = (await gateway.http.get("/v1/status")).json()

    assert (before["state"], before["rows"]["running"]) == ("starting", 0)
    assert before["cache"]["hit_ratio"] is None
    after = response.json()
    assert response.headers["content-type"] == "application/json"
    assert (after["schema_version"], after["model"], after["state"]) == (1, MODEL_ID, "ready")
    assert after["rows"] == {"max": 3, "running": 1, "waiting": 2, "queued": 0}
    assert (after["cache"]["nodes"], after["cache"]["hit_ratio"]) == (7, 0.25)
    assert after["prefill"]["target_itl_ms"] == 100
    assert after["uptime_s"] >= 0
    assert draining["state"] == "draining"


async def test_unknown_routes_and_methods(served: Served) -> None:
    gateway, _ = served
    missing = await gateway.http.get("/v1/nothing")
    wrong = await gateway.http.get("/v1/chat/completions")

    assert (missing.status_code, error_of(missing)["code"]) == (404, "route_not_found")
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_bad_bodies_never_reach_the_engine_and_never_end_the_server(served: Served) -> None:
    gateway, engine = served
    bodies = [
        body(model=MODEL_ID, **fields) for fields, _ in UNSUPPORTED + WRONG if "model" not in fields
    ]
    for content in [*bodies, *NOT_JSON, b"[" * 100_000]:
        response = await gateway.http.post("/v1/chat/completions", content=content)
        assert (response.status_code, error_of(response)["type"]) == (400, "invalid_request_error")

    assert engine.submits.empty()
    assert (await gateway.http.get("/readyz")).status_code == 200


async def test_the_body_is_bounded_with_and_without_a_declared_length(served: Served) -> None:
    gateway, _ = served

    async def chunked() -> Any:
        for _ in range(MAX_BODY_BYTES // 65_536 + 2):
            yield b" " * 65_536

    for content in (b" " * (MAX_BODY_BYTES + 1), chunked()):
        response = await gateway.http.post("/v1/chat/completions", content=content)
        assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")
    fits = await gateway.http.post("/v1/chat/completions", content=b" " * MAX_BODY_BYTES)
    assert fits.status_code == 400


async def test_a_declared_length_beyond_all_bounds_is_refused_unread(served: Served) -> None:
    gateway, _ = served
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: [::1]\r\n"
    writer.write(head + b"content-length: 99999999999\r\n\r\n")

    answer = await reader.read()

    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_readiness_follows_the_engine(tmp_path: Path) -> None:
    async with running_gateway(tmp_path) as gateway:
        engine = await gateway.next_engine()
        for path in ("/readyz", "/v1/health"):
            red = await gateway.http.get(path)
            assert (red.status_code, error_of(red)["code"]) == (503, "engine_unavailable")
            assert int(red.headers["retry-after"]) >= 1
            assert red.headers["x-verger-id"] == gateway.service.settings.instance_id
        assert (await gateway.http.get("/livez")).status_code == 200
        refused = await gateway.http.post("/v1/chat/completions", json=chat_body())
        assert refused.status_code == 503

        engine.become_ready()
        await gateway.service.engine.wait_ready(30)

        for path in ("/readyz", "/v1/health", "/livez"):
            green = await gateway.http.get(path)
            assert green.status_code == 200
            assert green.headers["x-verger-id"] == gateway.service.settings.instance_id


async def test_a_defect_is_a_500_in_the_same_shape(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, _ = served
    monkeypatch.setattr(gateway.service, "vocabulary", None)

    response = await gateway.chat()

    assert response.status_code == 500
    assert error_of(response)["code"] == "internal_error"
    assert "Traceback" not in response.text
