"""Several answers to one request: one submission, merged streams, one end."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator

import openai
import pytest

from tests.gateway.harness import (
    MODEL_ID,
    Gateway,
    PlayedEngine,
    choices_of,
    ready_gateway,
    tokens_of,
)
from tests.gateway.test_streams import FINAL, chat_stream
from verger.gateway.interleave import interleave
from verger.messages import FinishReason, Progress, RowTokens, Tokens

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]


async def test_one_submission_brings_all_choices_in_order(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway, engine = served
    asking = asyncio.create_task(gateway.chat(n=3))
    submit = await engine.submits.get()
    assert len(submit.forks) == 2
    for choice, text in zip(reversed(choices_of(submit)), ("two", "one", "zero"), strict=True):
        engine.say(choice, FINAL + text)
        engine.finish(choice, FinishReason.LENGTH)
    completion = (await asking).json()

    assert [choice["index"] for choice in completion["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in completion["choices"]]
    assert texts == ["zero", "one", "two"]
    assert completion["usage"]["prompt_tokens"] == len(submit.prompt)
    sampled = sum(len(tokens_of(FINAL + text)) for text in texts)
    assert completion["usage"]["completion_tokens"] == sampled
    assert engine.submits.empty()
    assert "finish=length,length,length" in caplog.text


async def test_the_common_prompt_was_cached_once(served: Served) -> None:
    gateway, engine = served
    asking = asyncio.create_task(gateway.chat(n=2, stop="END"))
    first, second = choices_of(await engine.submits.get())
    engine.send(Progress(first.request_id, 64, len(first.prompt), cached_tokens=64))
    for choice in (first, second):
        engine.say(choice, FINAL + "aEND")
        assert await engine.cancels.get() == choice.request_id

    usage = (await asking).json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 64}


async def test_a_step_is_one_chunk_per_choice(served: Served) -> None:
    gateway, engine = served
    async with chat_stream(gateway, n=2, stream_options={"include_usage": True}) as events:
        opening = [(await events.next())["choices"][0] for _ in range(2)]
        submit = await engine.submits.get()
        for text in (FINAL + "a", "b"):
            ids = tokens_of(text)
            engine.send(
                Tokens([RowTokens(choice.request_id, ids) for choice in choices_of(submit)])
            )
            step = [(await events.next())["choices"][0] for _ in range(2)]
            assert sorted(choice["index"] for choice in step) == [0, 1]
            assert [choice["delta"] for choice in step] == [{"content": text[-1]}] * 2
        first, second = choices_of(submit)
        engine.finish(second)
        ended = await events.next()
        engine.say(first, "c<|return|>")
        engine.finish(first)
        more, last, usage = await events.rest()

    assert [choice["index"] for choice in opening] == [0, 1]
    assert {choice["delta"]["role"] for choice in opening} == {"assistant"}
    assert (ended["choices"][0]["index"], ended["choices"][0]["finish_reason"]) == (1, "stop")
    assert more["choices"][0]["delta"] == {"content": "c"}
    assert (last["choices"][0]["index"], last["choices"][0]["finish_reason"]) == (0, "stop")
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == len(submit.prompt)
    sampled = 2 * len(tokens_of(FINAL + "ab")) + len(tokens_of("c<|return|>"))
    assert usage["usage"]["completion_tokens"] == sampled


async def test_a_stop_string_ends_its_own_choice_only(served: Served) -> None:
    gateway, engine = served
    asking = asyncio.create_task(gateway.chat(n=2, stop="END"))
    first, second = choices_of(await engine.submits.get())
    engine.say(first, FINAL + "aEND")
    assert await engine.cancels.get() == first.request_id
    engine.say(second, FINAL + "b<|return|>")
    engine.finish(second)

    texts = [choice["message"]["content"] for choice in (await asking).json()["choices"]]
    assert texts == ["a", "b"]
    assert engine.cancels.empty()


async def test_a_client_that_leaves_frees_the_choices_that_still_run(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    gateway, engine = served
    async with chat_stream(gateway, n=3) as events:
        choices = choices_of(await engine.submits.get())
        engine.say(choices[1], FINAL + "x<|return|>")
        engine.finish(choices[1])
        while not (await events.next())["choices"][0]["finish_reason"]:
            pass

    cancelled = {await engine.cancels.get() for _ in range(2)}
    assert cancelled == {choices[0].request_id, choices[2].request_id}
    assert gateway.service.engine.pending == 0
    assert "finish=client_gone" in caplog.text


async def test_the_engines_death_fails_all_choices_at_once(mortal: Served) -> None:
    gateway, engine = mortal
    async with chat_stream(gateway, n=2) as events:
        first, _ = choices_of(await engine.submits.get())
        engine.say(first, FINAL + "x<|return|>")
        engine.finish(first)
        while not (await events.next())["choices"][0]["finish_reason"]:
            pass
        engine.die()
        assert (await events.next())["error"]["code"] == "engine_unavailable"


async def test_no_more_choices_than_rows(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with ready_gateway(tmp_path_factory.mktemp("narrow"), max_rows=2) as (gateway, engine):
        response = await gateway.chat(n=3)
        assert engine.submits.empty()

    assert (response.status_code, response.json()["error"]["param"]) == (400, "n")


async def test_the_official_clients_helper_puts_the_choices_together(served: Served) -> None:
    gateway, engine = served

    async def play() -> None:
        for choice in choices_of(await engine.submits.get()):
            engine.say(choice, f"{FINAL}answer {choice.request_id}<|return|>")
            engine.finish(choice)

    playing = asyncio.create_task(play())
    async with (
        openai.AsyncOpenAI(api_key="none", base_url=f"{gateway.url}/v1") as client,
        client.chat.completions.stream(
            model=MODEL_ID, messages=[{"role": "user", "content": "hi"}], n=2
        ) as stream,
    ):
        completion = await stream.get_final_completion()
    await playing

    assert [choice.index for choice in completion.choices] == [0, 1]
    assert len({choice.message.content for choice in completion.choices}) == 2


async def test_interleaving_is_fair_and_closes_its_sources() -> None:
    """Three sources that always have something take turns; the error of one ends all."""
    closed: list[str] = []

    async def source(name: str, items: int) -> AsyncGenerator[str]:
        try:
            for _ in range(items):
                yield name
            raise ValueError(name)
        finally:
            closed.append(name)

    taken: list[str] = []

    async def take_all() -> None:
        async for name in interleave([source("a", 9), source("b", 3), source("c", 9)]):
            taken.append(name)

    with pytest.raises(ValueError, match="b"):
        await take_all()

    assert Counter(taken) == {"a": 4, "b": 3, "c": 3}
    assert sorted(closed) == ["a", "b", "c"]
