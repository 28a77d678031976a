"""Streaming: order of chunks, heartbeats, disconnects, and ends that cannot be misread."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.harness import (
    Gateway,
    PlayedEngine,
    chat_body,
    raw_chat,
    ready_gateway,
    tokens_of,
)
from verger.messages import FinishReason, Logprob, RowTokens, Submit, Tokens

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]

FINAL = "<|start|>assistant<|channel|>final<|message|>"
TOOL = {"type": "function", "function": {"name": "f"}}


@asynccontextmanager
async def chat_stream(gateway: Gateway, **fields: Any) -> AsyncIterator["Events"]:
    body = chat_body(stream=True, **fields)
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Events(response)


class Events:
    """The events of a stream, one at a time; [DONE] is None."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.aiter_lines()

    async def next(self) -> Any:
        async for line in self._lines:
            if line.startswith("data: "):
                return None if line == "data: [DONE]" else json.loads(line[6:])
        raise EOFError

    async def rest(self) -> list[Any]:
        events = []
        while (event := await self.next()) is not None:
            events.append(event)
        with pytest.raises(EOFError):
            await self.next()
        return events


def deltas_of(chunks: list[Any]) -> list[Any]:
    return [chunk["choices"][0]["delta"] for chunk in chunks]


async def test_chunks_come_one_a_step_from_role_to_done(served: Served) -> None:
    gateway, engine = served
    async with chat_stream(gateway) as events:
        assert (await events.next())["choices"] == [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "finish_reason": None,
                "logprobs": None,
            }
        ]
        submit = await engine.submits.get()
        engine.say(submit, "<|channel|>analysis<|message|>h")
        first = await events.next()
        engine.say(submit, "m")
        second = await events.next()
        engine.say(submit, "<|end|>" + FINAL + "hel")
        third = await events.next()
        engine.say(submit, "lo<|return|>")
        engine.finish(submit)
        rest = await events.rest()

    chunks = [first, second, third, *rest]
    assert deltas_of(chunks) == [
        {"reasoning": "h"},
        {"reasoning": "m"},
        {"content": "hel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)


async def test_usage_comes_last_when_it_is_asked_for(served: Served) -> None:
    gateway, engine = served
    async with chat_stream(gateway, stream_options={"include_usage": True}) as events:
        submit = await engine.answer(FINAL + "hello<|return|>")
        *chunks, last = await events.rest()

    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == len(submit.prompt)
    assert last["usage"]["completion_tokens"] == len(tokens_of(FINAL + "hello<|return|>"))


async def test_a_tool_call_is_streamed_in_pieces(served: Served) -> None:
    gateway, engine = served
    async with chat_stream(gateway, tools=[TOOL]) as events:
        await events.next()
        submit = await engine.submits.get()
        engine.say(submit, '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a"')
        (opening,) = deltas_of([await events.next()])[0]["tool_calls"]
        engine.say(submit, ":1}")
        (more,) = deltas_of([await events.next()])[0]["tool_calls"]
        engine.say(submit, "<|call|>")
        engine.finish(submit)
        (last,) = await events.rest()

    assert opening.pop("id").startswith("call_")
    arguments = opening["function"].pop("arguments") + more["function"].pop("arguments")
    assert opening == {"index": 0, "type": "function", "function": {"name": "f"}}
    assert more == {"index": 0, "function": {}}
    assert arguments == '{"a":1}'
    assert last["choices"][0]["finish_reason"] == "tool_calls"


async def test_steps_that_show_nothing_send_nothing(served: Served) -> None:
    """Header tokens, and text that may be the beginning of a stop string."""
    gateway, engine = served
    async with chat_stream(gateway, stop="END") as events:
        await events.next()
        submit = await engine.submits.get()
        for piece in ("<|start|>assistant", "<|channel|>final", "<|message|>", "a", "E", "N", "X"):
            engine.say(submit, piece)
            if piece == "a":
                assert deltas_of([await events.next()]) == [{"content": "a"}]
        engine.say(submit, "ENDhidden")
        chunks = await events.rest()

    assert "".join(delta.get("content", "") for delta in deltas_of(chunks)) == "ENX"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert await engine.cancels.get() == submit.request_id


async def test_logprobs_are_held_back_with_their_text(served: Served) -> None:
    gateway, engine = served
    async with chat_stream(gateway, stop="END", logprobs=True) as events:
        await events.next()
        submit = await engine.submits.get()
        for piece in (FINAL, "aE", "b", "c", "END"):
            engine.say(submit, piece, [Logprob(-1.0)] * len(tokens_of(piece)))
        chunks = await events.rest()
    assert await engine.cancels.get() == submit.request_id

    for chunk in chunks:
        (choice,) = chunk["choices"]
        entries = choice["logprobs"]["content"] if choice["logprobs"] else []
        assert "".join(entry["token"] for entry in entries) == choice["delta"].get("content", "")
    assert "".join(delta.get("content", "") for delta in deltas_of(chunks)) == "aEbc"


async def test_characters_split_across_tokens_arrive_whole(served: Served) -> None:
    gateway, engine = served
    async with chat_stream(gateway) as events:
        await engine.answer(FINAL + "né 🍏!<|return|>")
        chunks = await events.rest()

    shown = "".join(delta.get("content", "") for delta in deltas_of(chunks))
    assert shown == "né 🍏!"


async def test_a_waiting_client_hears_heartbeats_that_are_data(tmp_path: Path) -> None:
    async with ready_gateway(tmp_path, heartbeat_s=0.02) as (gateway, engine):
        async with chat_stream(gateway) as events:
            await events.next()
            submit = await engine.submits.get()
            for _ in range(3):
                assert deltas_of([await events.next()]) == [{}]
            engine.say(submit, FINAL + "hi<|return|>")
            engine.finish(submit, FinishReason.STOP)
            shown = [d for d in deltas_of(await events.rest()) if d]

    assert shown == [{"content": "hi"}]


async def test_a_client_that_leaves_frees_its_row(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway, engine = served
    async with chat_stream(gateway) as events:
        await events.next()
        submit = await engine.submits.get()
        engine.say(submit, FINAL + "x")
        await events.next()

    assert await engine.cancels.get() == submit.request_id
    assert gateway.service.engine.pending == 0
    assert "finish=client_gone" in caplog.text


async def test_the_engines_death_is_an_error_event_and_no_clean_end(mortal: Served) -> None:
    """Some clients take a cleanly ended stump for the whole answer."""
    gateway, engine = mortal
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(raw_chat(stream=True))
    submit = await engine.submits.get()
    engine.say(submit, FINAL + "half")
    received = await reader.readuntil(b"half")
    engine.die()
    received += await reader.read()
    writer.close()

    last_event = received.split(b"data: ")[-1].split(b"\n\n")[0]
    error = json.loads(last_event)["error"]
    assert (error["code"], error["type"]) == ("engine_unavailable", "server_error")
    assert b"[DONE]" not in received
    assert b'finish_reason":"' not in received
    assert b"transfer-encoding: chunked" in received
    assert not received.endswith(b"0\r\n\r\n")


async def test_a_client_library_sees_that_the_stream_was_cut(mortal: Served) -> None:
    gateway, engine = mortal
    async with chat_stream(gateway) as events:
        await events.next()
        await engine.submits.get()
        engine.die()
        assert (await events.next())["error"]["code"] == "engine_unavailable"
        with pytest.raises(httpx.RemoteProtocolError):
            await events.next()


async def test_errors_before_the_first_byte_have_a_status(mortal: Served) -> None:
    gateway, engine = mortal
    engine.die()
    await gateway.next_engine()
    response = await gateway.chat(stream=True)

    assert response.status_code == 503


@pytest.mark.slow
async def test_a_reader_that_stops_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its buffers are full; nobody else waits for it, and its row is freed."""
    monkeypatch.setattr("verger.gateway.connection.SEND_TIMEOUT_S", 0.05)
    async with ready_gateway(tmp_path) as (gateway, engine):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1_024)
        writer.write(raw_chat(stream=True))
        submit = await engine.submits.get()
        engine.say(submit, FINAL)
        flooding = asyncio.create_task(flood(engine, submit))

        assert await engine.cancels.get() == submit.request_id
        flooding.cancel()
        assert not gateway.server.server_state.connections
        writer.close()


async def flood(engine: PlayedEngine, submit: Submit) -> None:
    frame = Tokens([RowTokens(submit.request_id, tokens_of("x" * 20_000))])
    while True:
        engine.send(frame)
        await asyncio.sleep(0)


async def test_a_stream_that_lasts_too_long_is_an_error_event_and_no_clean_end(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verger.gateway.turns.MAX_ANSWER_S", 0.1)
    gateway, engine = served
    async with chat_stream(gateway) as events:
        submit = await engine.submits.get()
        engine.say(submit, FINAL + "half")
        await events.next()
        await events.next()
        assert (await events.next())["error"]["code"] == "answer_too_long"
        with pytest.raises(httpx.RemoteProtocolError):
            await events.next()

    assert await engine.cancels.get() == submit.request_id


async def test_an_answer_in_one_piece_may_last_no_longer(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verger.gateway.turns.MAX_ANSWER_S", 0.05)
    gateway, engine = served
    for n in (1, 2):
        response = await gateway.chat(n=n)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "answer_too_long")
        submit = await engine.submits.get()
        ids = {submit.request_id, *submit.forks}
        assert {await engine.cancels.get() for _ in range(n)} == ids


async def test_running_streams_finish_before_the_server_stops(mortal: Served) -> None:
    gateway, engine = mortal
    async with chat_stream(gateway) as events:
        await events.next()
        submit = await engine.submits.get()
        engine.say(submit, FINAL + "a")
        await events.next()
        gateway.server.should_exit = True
        await engine.draining.wait()
        engine.say(submit, "b<|return|>")
        engine.finish(submit)
        chunks = await events.rest()

    assert deltas_of(chunks) == [{"content": "b"}, {}]
    await gateway.serving
    with pytest.raises(httpx.ConnectError):
        await gateway.http.get("/livez")
