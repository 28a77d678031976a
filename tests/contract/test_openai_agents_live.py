"""The official agents library in chat-completions mode, with a tool, against `verger serve`."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    RunConfig,
    Runner,
    RunResult,
    RunResultStreaming,
    ToolCallItem,
    ToolCallOutputItem,
    function_tool,
)
from openai import AsyncOpenAI
from openai.types.responses import EasyInputMessageParam

from tests.contract.live import MODEL_ID, Live

pytestmark = [pytest.mark.process, pytest.mark.anyio]

UNTRACED = RunConfig(tracing_disabled=True)
"""Traces would go to OpenAI."""
QUESTION = "What is the weather in Paris?"


@function_tool
def weather(city: str) -> str:
    """Today's weather in a city.

    Args:
        city: The city's name.
    """
    return f"sunny in {city}"


def forecaster(client: AsyncOpenAI) -> Agent[Any]:
    return Agent(
        name="Forecaster",
        instructions="Answer with the weather.",
        model=OpenAIChatCompletionsModel(model=MODEL_ID, openai_client=client),
        model_settings=ModelSettings(temperature=0, include_usage=True),
        tools=[weather],
    )


@pytest.fixture
async def agent(live: Live) -> AsyncIterator[Agent[Any]]:
    async with live.async_client() as client:
        yield forecaster(client)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_tool_loop_ends_with_the_answer(agent: Agent[Any], is_streamed: bool) -> None:
    """What it sends back with the call includes the reasoning, whose key must be `reasoning`."""
    result = await _run(agent, is_streamed)

    calls = [item for item in result.new_items if isinstance(item, ToolCallItem)]
    outputs = [item.output for item in result.new_items if isinstance(item, ToolCallOutputItem)]
    assert len(calls) == 1
    assert outputs == ["sunny in Paris"]
    assert result.final_output == "It is sunny, as I thought."


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_usage_is_added_up_over_the_loop(agent: Agent[Any], is_streamed: bool) -> None:
    usage = (await _run(agent, is_streamed)).context_wrapper.usage

    assert usage.requests == 2
    assert usage.input_tokens > 0
    assert usage.output_tokens > usage.output_tokens_details.reasoning_tokens > 0
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_a_conversation_goes_on_after_a_tool_loop(agent: Agent[Any]) -> None:
    first = await _run(agent, is_streamed=False)
    thanks: EasyInputMessageParam = {"role": "user", "content": "say thanks"}
    second = await Runner.run(agent, [*first.to_input_list(), thanks], run_config=UNTRACED)

    assert second.final_output == "thanks"


async def test_the_text_arrives_in_pieces(agent: Agent[Any]) -> None:
    result = Runner.run_streamed(agent, QUESTION, run_config=UNTRACED)
    pieces = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]

    assert len(pieces) > 1
    assert "".join(pieces) == result.final_output


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_an_answer_that_breaks_off_is_an_exception(mortal: Live, is_streamed: bool) -> None:
    async with mortal.async_client() as client:
        with pytest.raises(openai.APIError) as broken:
            await _run(forecaster(client), is_streamed, "die")

    assert broken.value.code == "engine_unavailable"


async def _run(
    agent: Agent[Any], is_streamed: bool, question: str = QUESTION
) -> RunResult | RunResultStreaming:
    if not is_streamed:
        return await Runner.run(agent, question, run_config=UNTRACED)
    result = Runner.run_streamed(agent, question, run_config=UNTRACED)
    async for _ in result.stream_events():
        pass
    return result
