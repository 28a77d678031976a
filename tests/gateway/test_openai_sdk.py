"""The official client against a live port: what it sends is understood, what it gets it accepts."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2  # The official SDK's HTTP library.
import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from tests.gateway.harness import MODEL_ID, Gateway, PlayedEngine, running_gateway, tokens_of

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]

ANALYSIS = "<|channel|>analysis<|message|>hmm<|end|><|start|>assistant"
ANSWER = ANALYSIS + "<|channel|>final<|message|>hello<|return|>"
CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>'
HI: ChatCompletionMessageParam = {"role": "user", "content": "hi"}
TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


def connect(gateway: Gateway) -> AsyncOpenAI:
    return AsyncOpenAI(api_key="none", base_url=f"{gateway.url}/v1", max_retries=0)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[AsyncOpenAI]:
    async with connect(served[0]) as client:
        yield client


async def test_models(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == [MODEL_ID]
    assert (await client.models.retrieve(MODEL_ID)).owned_by == "verger"


async def test_chat(served: Served, client: AsyncOpenAI) -> None:
    answering = asyncio.create_task(served[1].answer(ANSWER))
    completion = await client.chat.completions.create(model=MODEL_ID, messages=[HI])
    await answering

    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("hello", "stop")
    assert choice.message.model_extra == {"reasoning": "hmm"}
    assert completion.usage is not None
    assert completion.usage.completion_tokens == len(tokens_of(ANSWER))


async def test_stream_with_usage(served: Served, client: AsyncOpenAI) -> None:
    answering = asyncio.create_task(served[1].answer(ANSWER))
    stream = await client.chat.completions.create(
        model=MODEL_ID, messages=[HI], stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    await answering

    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "hello"
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


async def test_streaming_helper_puts_a_tool_call_together(
    served: Served, client: AsyncOpenAI
) -> None:
    answering = asyncio.create_task(served[1].answer(ANALYSIS + CALL))
    async with client.chat.completions.stream(
        model=MODEL_ID, messages=[HI], tools=[TOOL]
    ) as stream:
        events = [event.type async for event in stream]
        completion = await stream.get_final_completion()
    await answering

    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].function.arguments == '{"a":1}'
    assert "tool_calls.function.arguments.done" in events


async def test_tool_loop(served: Served, client: AsyncOpenAI) -> None:
    answering = asyncio.create_task(served[1].answer(ANALYSIS + CALL))
    first = await client.chat.completions.create(model=MODEL_ID, messages=[HI], tools=[TOOL])
    await answering
    message = first.choices[0].message
    assert message.tool_calls is not None
    history: list[ChatCompletionMessageParam] = [
        HI,
        message.model_dump(exclude_none=True),  # type: ignore[list-item]  # as its documentation does
        {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "42"},
    ]
    answering = asyncio.create_task(served[1].answer(ANSWER))
    second = await client.chat.completions.create(model=MODEL_ID, messages=history, tools=[TOOL])
    submit = await answering

    assert second.choices[0].message.content == "hello"
    assert "hmm" in served[0].service.vocabulary.decode(submit.prompt)


async def test_errors_become_the_right_exceptions(mortal: Served) -> None:
    gateway, engine = mortal
    async with connect(gateway) as client:
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(model="other", messages=[HI])
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.chat.completions.create(model=MODEL_ID, messages=[HI], n=9)
        engine.die()
        await gateway.next_engine()
        with pytest.raises(openai.InternalServerError) as dead:
            await client.chat.completions.create(model=MODEL_ID, messages=[HI])

    assert missing.value.code == "model_not_found"
    assert (wrong.value.code, wrong.value.param) == ("invalid_request", "n")
    assert (dead.value.status_code, dead.value.code) == (503, "engine_unavailable")


@pytest.mark.slow
async def test_a_503_is_retried_until_the_engine_is_there(tmp_path: Path) -> None:
    """The SDK waits for as long as the reply told it to: two seconds."""
    statuses: list[int] = []
    refused = asyncio.Event()

    async def note(response: httpx2.Response) -> None:
        statuses.append(response.status_code)
        refused.set()

    async with (
        running_gateway(tmp_path) as gateway,
        DefaultAsyncHttpxClient(event_hooks={"response": [note]}) as http,
    ):
        engine = await gateway.next_engine()
        client = connect(gateway).with_options(max_retries=1, http_client=http)
        asking = asyncio.create_task(client.chat.completions.create(model=MODEL_ID, messages=[HI]))
        await refused.wait()
        engine.become_ready()
        await engine.answer(ANSWER)
        completion = await asking

    assert completion.choices[0].message.content == "hello"
    assert statuses == [503, 200]


async def test_death_in_a_stream_is_an_exception(mortal: Served) -> None:
    gateway, engine = mortal
    async with connect(gateway) as client:
        stream = await client.chat.completions.create(model=MODEL_ID, messages=[HI], stream=True)
        await engine.submits.get()
        engine.die()
        with pytest.raises(openai.APIError) as cut:
            _ = [chunk async for chunk in stream]

    assert cut.value.code == "engine_unavailable"


async def test_closing_the_stream_cancels(served: Served, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model=MODEL_ID, messages=[HI], stream=True)
    submit = await served[1].submits.get()
    await stream.close()

    assert await served[1].cancels.get() == submit.request_id
