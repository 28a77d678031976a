"""Chat completions without streaming: what reaches the engine, and what becomes of its answer."""

import asyncio
import itertools
from pathlib import Path

import pytest

from tests.gateway.harness import (
    CONTEXT_TOKENS,
    MODEL_ID,
    Gateway,
    PlayedEngine,
    ready_gateway,
    running_gateway,
    tokens_of,
)
from verger.gateway.principal import TENANT
from verger.messages import INTERACTIVE, FinishReason, Logprob, Progress, Sampling

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]

ANSWER = (
    "<|channel|>analysis<|message|>hmm<|end|><|start|>assistant<|channel|>final<|message|>hello"
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>'


async def test_the_answer_has_content_reasoning_usage_and_headers(served: Served) -> None:
    gateway, engine = served
    asking = asyncio.create_task(gateway.chat(model="gpt-4o"))
    submit = await engine.answer(ANSWER + "<|return|>")
    response = await asking

    completion = response.json()
    assert completion["object"] == "chat.completion"
    assert completion["id"].startswith("chatcmpl-")
    assert completion["model"] == MODEL_ID
    (choice,) = completion["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"] == {
        "role": "assistant",
        "content": "hello",
        "reasoning": "hmm",
        "refusal": None,
    }
    sampled = len(tokens_of(ANSWER + "<|return|>"))
    assert completion["usage"] == {
        "prompt_tokens": len(submit.prompt),
        "completion_tokens": sampled,
        "total_tokens": len(submit.prompt) + sampled,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 3},
        "served_by": response.headers["x-verger-served-by"],
        "reason": response.headers["x-verger-reason"],
        "queue_ms": int(response.headers["x-verger-queue-ms"]),
    }
    assert completion["usage"]["served_by"] == "local"
    assert completion["usage"]["reason"] == "unmeasured"


async def test_the_engine_gets_what_was_asked_for(served: Served) -> None:
    gateway, engine = served
    asking = asyncio.create_task(
        gateway.chat(temperature=0, seed=7, max_tokens=9, logprobs=True, top_logprobs=0)
    )
    submit = await engine.submits.get()
    engine.finish(submit)
    await asking

    assert submit.sampling == Sampling(temperature=0, seed=7)
    assert submit.max_tokens == 9
    assert submit.logprobs == 0
    assert submit.stop_ids == tokens_of("<|return|><|call|><|endoftext|>")
    assert submit.kept_stop_ids == tokens_of("<|call|>")
    assert submit.cache_salt == TENANT
    assert submit.priority == INTERACTIVE
    assert submit.prompt[-len(tokens_of("<|start|>assistant")) :] == tokens_of("<|start|>assistant")


async def test_max_tokens_end_with_the_context(served: Served) -> None:
    gateway, engine = served
    for fields in ({}, {"max_tokens": 10**9}):
        asking = asyncio.create_task(gateway.chat(**fields))
        submit = await engine.submits.get()
        engine.finish(submit)
        await asking
        assert len(submit.prompt) + submit.max_tokens == CONTEXT_TOKENS


async def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(served: Served) -> None:
    gateway, engine = served
    messages = [{"role": "user", "content": "x" * CONTEXT_TOKENS}]
    response = await gateway.chat(messages=messages)

    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert str(CONTEXT_TOKENS) in error["message"]
    assert "resulted in 4" in error["message"]
    assert "memory" not in error["message"]
    assert engine.submits.empty()


async def test_an_engine_with_less_context_refuses_before_the_stream_begins(
    tmp_path: Path,
) -> None:
    async with running_gateway(tmp_path) as gateway:
        (await gateway.next_engine()).become_ready(context_tokens=400)
        await gateway.service.engine.wait_ready(30)
        messages = [{"role": "user", "content": "x" * 400}]
        response = await gateway.chat(messages=messages, stream=True)
        listed = await gateway.http.get("/v1/models")

    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages")
    assert "maximum context length is 400 tokens" in error["message"]
    assert f"memory holds 400 tokens; the model itself takes {CONTEXT_TOKENS}" in error["message"]
    assert listed.json()["data"][0]["context_length"] == 400


async def test_a_tool_call_and_the_turn_after_it(served: Served) -> None:
    gateway, engine = served
    asking = asyncio.create_task(gateway.chat(tools=[TOOL]))
    await engine.answer(CALL)
    (choice,) = (await asking).json()["choices"]

    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"] == {"name": "f", "arguments": '{"a":1}'}

    messages = [
        {"role": "user", "content": "hi"},
        choice["message"],
        {"role": "tool", "tool_call_id": call["id"], "content": "42"},
    ]
    asking = asyncio.create_task(gateway.chat(messages=messages, tools=[TOOL]))
    submit = await engine.answer(ANSWER + "<|return|>")

    assert (await asking).json()["choices"][0]["message"]["content"] == "hello"
    prompt = gateway.service.vocabulary.decode(submit.prompt)
    assert 'functions.f json{"a":1}' in prompt
    assert prompt.endswith("functions.f to=assistantcommentary42assistant")


async def test_length_is_a_finish_reason(served: Served) -> None:
    gateway, engine = served
    asking = asyncio.create_task(gateway.chat())
    await engine.answer(ANSWER, FinishReason.LENGTH)

    (choice,) = (await asking).json()["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "hello")


async def test_a_stop_string_ends_the_answer_and_cancels_the_row(served: Served) -> None:
    gateway, engine = served
    asking = asyncio.create_task(gateway.chat(stop=["lo w"]))
    submit = await engine.submits.get()
    engine.say(submit, ANSWER)
    engine.say(submit, " wo")
    (choice,) = (await asking).json()["choices"]

    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", "hel")
    assert await engine.cancels.get() == submit.request_id
    assert gateway.service.engine.pending == 0


async def test_cached_tokens_are_those_that_the_engine_found(served: Served) -> None:
    """However the answer ends: by itself, or by a stop string that the engine knows nothing of."""
    gateway, engine = served
    for stop, text in (([], ANSWER + "<|return|>"), (["ello"], ANSWER)):
        asking = asyncio.create_task(gateway.chat(stop=stop))
        submit = await engine.submits.get()
        prompt_tokens = len(submit.prompt)
        engine.send(
            Progress(submit.request_id, 64, prompt_tokens, cached_tokens=64),
            Progress(submit.request_id, prompt_tokens, prompt_tokens),
        )
        engine.say(submit, text)
        if stop:
            assert await engine.cancels.get() == submit.request_id
        else:
            engine.finish(submit, cached_tokens=64)
        usage = (await asking).json()["usage"]
        assert usage["prompt_tokens_details"] == {"cached_tokens": 64}


async def test_logprobs_cover_the_final_channel(served: Served) -> None:
    gateway, engine = served
    asking = asyncio.create_task(gateway.chat(logprobs=True, top_logprobs=2))
    submit = await engine.submits.get()
    assert submit.logprobs == 2
    text = ANSWER + "<|return|>"
    (h,) = tokens_of("h")
    logprobs = [Logprob(-0.5, [h, h + 1], [-0.5, float("-inf")]) for _ in tokens_of(text)]
    engine.say(submit, text, logprobs)
    engine.finish(submit)
    (choice,) = (await asking).json()["choices"]

    content = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in content) == "hello"
    assert content[0] == {
        "token": "h",
        "bytes": [104],
        "logprob": -0.5,
        "top_logprobs": [
            {"token": "h", "bytes": [104], "logprob": -0.5},
            {"token": "i", "bytes": [105], "logprob": -9999.0},
        ],
    }


async def test_a_client_that_leaves_frees_its_row(served: Served) -> None:
    gateway, engine = served
    asking = asyncio.create_task(gateway.chat())
    submit = await engine.submits.get()
    asking.cancel()

    assert await engine.cancels.get() == submit.request_id
    assert gateway.service.engine.pending == 0


async def test_the_engines_death_is_a_503_and_the_next_request_works(mortal: Served) -> None:
    gateway, engine = mortal
    asking = asyncio.create_task(gateway.chat())
    await engine.submits.get()
    engine.die()
    response = await asking

    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert int(response.headers["retry-after"]) >= 1
    assert (await gateway.http.get("/readyz")).status_code == 503
    second = await gateway.next_engine()
    second.become_ready()
    await gateway.service.engine.wait_ready(30)
    asking = asyncio.create_task(gateway.chat())
    await second.answer(ANSWER + "<|return|>")
    assert (await asking).status_code == 200


async def test_sixty_four_connections_at_once_are_all_served(served: Served) -> None:
    gateway, engine = served

    async def serve_all() -> None:
        for _ in range(64):
            await engine.answer(ANSWER + "<|return|>")

    serving = asyncio.create_task(serve_all())
    responses = await asyncio.gather(*(gateway.chat() for _ in range(64)))
    await serving

    assert {response.status_code for response in responses} == {200}
    assert len({response.json()["id"] for response in responses}) == 64


async def test_unknown_parameters_are_logged_once(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, engine = served
    for _ in range(2):
        asking = asyncio.create_task(gateway.chat(ignore_eos=True))
        await engine.answer(ANSWER + "<|return|>")
        assert (await asking).status_code == 200

    assert [line for line in caplog.messages if "ignore_eos" in line] == [
        "event=unknown_parameter name=ignore_eos"
    ]


async def test_one_log_line_per_request_without_its_text(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    gateway, engine = served
    caplog.set_level("INFO")
    asking = asyncio.create_task(gateway.chat(messages=[{"role": "user", "content": "secret"}]))
    await engine.answer(ANSWER + "<|return|>")
    response = await asking

    (line,) = [line for line in caplog.messages if line.startswith("event=request ")]
    assert f"id={response.headers['x-request-id']}" in line
    assert "status=200" in line
    assert "finish=stop" in line
    assert "secret" not in caplog.text


async def test_the_date_is_pinned_per_conversation(tmp_path: Path) -> None:
    async with ready_gateway(tmp_path) as (gateway, engine):
        prompts = []
        for days in range(2):
            gateway.service.unix_s = itertools.repeat(days * 86_400 * 40.0).__next__
            asking = asyncio.create_task(gateway.chat())
            prompts.append((await engine.answer(ANSWER + "<|return|>")).prompt)
            await asking

        assert prompts[0] == prompts[1]
