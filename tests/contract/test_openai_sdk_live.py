"""The official SDK, synchronous and asynchronous, against `verger serve` on a port of loopback."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionFunctionToolParam,
    ChatCompletionMessageParam,
)

from tests.chat_answers import same_usage
from tests.contract.live import MODEL_ID, Live

pytestmark = pytest.mark.process

WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Today's weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


def user(content: str) -> ChatCompletionMessageParam:
    return {"role": "user", "content": content}


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with live.client() as client:
        yield client


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL_ID]
    assert client.models.retrieve(MODEL_ID).owned_by == "verger"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-nothing")


def test_chat(client: OpenAI) -> None:
    completion = client.chat.completions.create(model=MODEL_ID, messages=[user("say 'é 🍏'")])

    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("'é 🍏'", "stop")
    assert choice.message.model_extra == {"reasoning": "They want me to say it."}
    assert completion.usage is not None
    assert completion._request_id is not None


SAME: list[dict[str, Any]] = [
    {"messages": [user("say 'é 🍏'")]},
    {"messages": [user("say one two three")], "stop": ["wo t", "ee"]},
    {"messages": [user("say one two three")], "logprobs": True, "top_logprobs": 20},
    {"messages": [user("say one two three")], "logprobs": True, "stop": "wo"},
    {"messages": [user("say one two three")], "n": 3, "seed": 1, "logprobs": True},
    {"messages": [user("the weather in Paris?")], "tools": [WEATHER]},
    {"messages": [user("the weather in Paris?")], "tools": [WEATHER], "n": 2},
    {"messages": [user("preamble")]},
    {"messages": [user("preamble")], "logprobs": True, "top_logprobs": 0},
]


@pytest.mark.parametrize("fields", SAME)
def test_a_stream_adds_up_to_the_answer_in_one_piece(
    client: OpenAI, fields: dict[str, Any]
) -> None:
    """Put together by the SDK's own streaming helper."""
    whole = client.chat.completions.create(model=MODEL_ID, **fields)
    with client.chat.completions.stream(
        model=MODEL_ID, stream_options={"include_usage": True}, **fields
    ) as stream:
        summed = stream.get_final_completion()

    assert _plain(summed) == _plain(whole)
    # Behind a stop string a step or two more may have been sampled: those are counted.
    assert summed.usage is not None
    assert whole.usage is not None
    assert "stop" in fields or same_usage(summed.usage.model_dump(), whole.usage.model_dump())


def _plain(answer: ChatCompletion) -> Any:
    """What was sent, without what is new each time and without what the helper adds."""
    plain: Any = answer.to_dict(exclude_none=True)
    for choice in plain["choices"]:
        message = choice["message"]
        # Empty text beside a call: the role's chunk says "", the whole answer null.
        message["content"] = message.get("content") or None
        for call in message.get("tool_calls", []):
            call["function"].pop("parsed_arguments", None)
            call.update(id=None, index=None)
    return {**plain, "id": None, "created": None, "object": None, "usage": None}


def test_an_answer_that_is_cut_says_so(client: OpenAI) -> None:
    """The helper makes an exception of it, which has what there was."""
    asked: Any = {"model": MODEL_ID, "messages": [user("say it")], "max_tokens": 8}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        with pytest.raises(openai.LengthFinishReasonError) as cut:
            stream.get_final_completion()

    assert whole.choices[0].finish_reason == "length"
    summed = cut.value.completion.choices[0].message
    assert summed.model_extra == whole.choices[0].message.model_extra == {"reasoning": "They w"}


def test_the_streaming_helper_tells_of_content_and_logprobs(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL_ID, messages=[user("say hello")], logprobs=True
    ) as stream:
        events = list(stream)

    kinds = [event.type for event in events]
    assert "logprobs.content.done" in kinds
    assert [event.content for event in events if event.type == "content.done"] == ["hello"]
    assert "".join(event.delta for event in events if event.type == "content.delta") == "hello"


def test_the_streaming_helper_puts_a_call_together(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL_ID, messages=[user("the weather in Paris?")], tools=[WEATHER]
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]

    assert [(event.name, event.arguments) for event in done] == [("weather", '{"city":"Paris"}')]


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_loop_ends_with_the_answer(client: OpenAI, is_streamed: bool) -> None:
    """The reasoning returns with the call, as the model has learned it."""
    history = [user("What is the weather in Paris?")]
    for _ in range(2):
        message = _next_message(client, history, is_streamed)
        history.append(message)
        for call in message.get("tool_calls", []):
            assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
            history.append({"role": "tool", "tool_call_id": call["id"], "content": "sunny"})

    assert [message["role"] for message in history] == ["user", "assistant", "tool", "assistant"]
    assert history[-1]["content"] == "It is sunny, as I thought."


def _next_message(client: OpenAI, history: list[Any], is_streamed: bool) -> Any:
    if not is_streamed:
        completion = client.chat.completions.create(
            model=MODEL_ID, messages=history, tools=[WEATHER]
        )
        return completion.choices[0].message.to_dict(exclude_none=True)
    with client.chat.completions.stream(
        model=MODEL_ID, messages=history, tools=[WEATHER]
    ) as stream:
        return stream.get_final_completion().choices[0].message.to_dict(exclude_none=True)


def test_several_choices(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL_ID, messages=[user("say hello")], n=8, seed=1
    )
    stream = client.chat.completions.create(
        model=MODEL_ID, messages=[user("say hello")], n=8, seed=1, stream=True
    )
    texts = [""] * 8
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""

    assert [choice.message.content for choice in completion.choices] == ["hello"] * 8
    assert texts == ["hello"] * 8
    with pytest.raises(openai.BadRequestError) as many:
        client.chat.completions.create(model=MODEL_ID, messages=[user("say hello")], n=9)
    assert many.value.param == "n"


def test_logprobs(client: OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL_ID, messages=[user("say hello 🍏")], logprobs=True, top_logprobs=20
    )

    (choice,) = completion.choices
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content) == (
        "hello 🍏".encode()
    )
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 20
        assert entry.top_logprobs[0].logprob == entry.logprob


@pytest.mark.anyio
async def test_many_asynchronous_requests_at_once(live: Live) -> None:
    async with live.async_client() as client:

        async def ask(number: int) -> tuple[str | None, str]:
            messages = [user(f"say number {number}")]
            whole = await client.chat.completions.create(model=MODEL_ID, messages=messages)
            async with client.chat.completions.stream(model=MODEL_ID, messages=messages) as stream:
                pieces = [event.delta async for event in stream if event.type == "content.delta"]
            return whole.choices[0].message.content, "".join(pieces)

        answers = await asyncio.gather(*(ask(number) for number in range(24)))

    assert answers == [(f"number {number}", f"number {number}") for number in range(24)]
