"""The official SDK against `verger serve` with the real engine and the embedded model."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionFunctionToolParam

from tests.chat_answers import same_answer
from tests.contract.live import MODEL_ID, Live, serving

pytestmark = [pytest.mark.mlx, pytest.mark.process]

WEATHER: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def shared_live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Instead of the one that plays a script."""
    with serving(tmp_path_factory.mktemp("nano")) as live:
        yield live


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with live.client() as client:
        yield client


def asking(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL_ID, "messages": [{"role": "user", "content": content}], **fields}


def test_it_says_what_it_was_told(client: OpenAI) -> None:
    completion = client.chat.completions.create(**asking("The orchard is open."))

    (choice,) = completion.choices
    assert (choice.message.content, choice.finish_reason) == (
        "You said: The orchard is open.",
        "stop",
    )
    assert choice.message.model_extra is not None
    assert choice.message.model_extra["reasoning"]


def test_a_stream_adds_up_to_the_answer_in_one_piece(client: OpenAI) -> None:
    """At temperature 1 as well: equal seeds give equal answers."""
    fields = asking("hi", temperature=1, seed=7, n=3, logprobs=True, top_logprobs=3)
    whole = client.chat.completions.create(**fields)
    with client.chat.completions.stream(**fields) as stream:
        summed = stream.get_final_completion()

    assert [choice.message.content for choice in summed.choices] == [
        choice.message.content for choice in whole.choices
    ]
    assert [choice.finish_reason for choice in summed.choices] == ["stop"] * 3


def test_a_tool_loop(client: OpenAI) -> None:
    fields = asking('call weather {"city":"Paris"}', tools=[WEATHER])
    message = client.chat.completions.create(**fields).choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Paris"}')

    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    fields["messages"] += [message.to_dict(exclude_none=True), result]
    second = client.chat.completions.create(**fields)

    assert second.choices[0].message.content == "weather returned: sunny"


@pytest.mark.anyio
async def test_answers_at_once_are_those_of_each_alone(live: Live) -> None:
    texts = [f"{number} apples" for number in range(6)]
    async with live.async_client() as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(**asking(text)) for text in texts)
        )
        alone = await client.chat.completions.create(**asking(texts[3]))

    contents = [answer.choices[0].message.content for answer in answers]
    assert contents == [f"You said: {text}" for text in texts]
    assert same_answer(answers[3].to_dict(), alone.to_dict())
