"""After a final: what is computed in the background, when, and when not."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import settle
from tests.gateway.harness import CONTEXT_TOKENS, Gateway, PlayedEngine, ready_gateway, tokens_of
from tests.gateway.test_streams import FINAL, chat_stream
from verger.api.answer import Outcome, Usage
from verger.formats.conversation import Conversation, Message, Role
from verger.formats.harmony import Finish, render
from verger.gateway.admission import Ticket, nowhere
from verger.gateway.edge import RequestRecord
from verger.gateway.generation import Generation
from verger.gateway.principal import TENANT
from verger.gateway.refills import MAX_REFILLS, MIN_REFILL_TOKENS, Refills
from verger.gateway.routing import Place, Reason, Route
from verger.gateway.submit_queue import Origin
from verger.gateway.turns import Turn
from verger.messages import BACKGROUND, FinishReason, Submit

pytestmark = pytest.mark.anyio

ROUTE = Route(Place.LOCAL, Reason.WITHIN_OBJECTIVE, 0.0, 0.0)
Served = tuple[Gateway, PlayedEngine]

REASONING = "<|channel|>analysis<|message|>hmm<|end|><|start|>assistant"
LONG = "The orchard is open until the evening."
ANSWER = f"{REASONING}<|channel|>final<|message|>{LONG}<|return|>"
QUESTION = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def ask(
    gateway: Gateway, engine: PlayedEngine, text: str, **fields: Any
) -> tuple[Any, Submit]:
    """The message of an answer, and what was submitted for it."""
    asking = asyncio.create_task(gateway.chat(**fields))
    submit = await engine.answer(text)
    response = await asking
    assert response.status_code == 200
    return response.json()["choices"][0]["message"], submit


async def refilled(gateway: Gateway, engine: PlayedEngine) -> bool:
    """Whether anything was refilled for the answers so far; the next one always is."""
    before = engine.refills.qsize()
    marker = f"marker {LONG}"
    await ask(gateway, engine, f"{REASONING}<|channel|>final<|message|>{marker}<|return|>")
    found = before > 0
    while marker not in gateway.service.vocabulary.decode((await engine.refills.get()).prompt):
        found = True
    return found


async def test_the_next_turns_prompt_begins_with_what_was_refilled(served: Served) -> None:
    gateway, engine = served
    message, first = await ask(gateway, engine, ANSWER)
    refill = await engine.refills.get()
    messages = [QUESTION, message, {"role": "user", "content": "and then?"}]
    _, second = await ask(gateway, engine, FINAL + "x<|return|>", messages=messages)

    assert second.prompt[: len(refill.prompt)] == refill.prompt
    assert refill.prompt[-1:] == tokens_of("<|end|>")
    assert first.prompt[:-2] == refill.prompt[: len(first.prompt) - 2]
    assert tokens_of(LONG)[-1] in refill.prompt
    assert refill.boundaries == first.boundaries
    assert (refill.max_tokens, refill.priority, refill.cache_salt) == (0, BACKGROUND, TENANT)
    assert "hmm" not in gateway.service.vocabulary.decode(refill.prompt)


async def test_a_stream_is_refilled_like_an_answer_in_one_piece(served: Served) -> None:
    gateway, engine = served
    async with chat_stream(gateway) as events:
        submit = await engine.submits.get()
        for piece in (ANSWER[:40], ANSWER[40:]):
            engine.say(submit, piece)
        engine.finish(submit)
        await events.rest()
    streamed = (await engine.refills.get()).prompt
    await ask(gateway, engine, ANSWER)

    assert (await engine.refills.get()).prompt == streamed


async def test_the_reasoning_of_a_whole_tool_loop_is_left_out(served: Served) -> None:
    """The answer itself had none, but the prompt kept that of the calls before it."""
    gateway, engine = served
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        QUESTION,
        {"role": "assistant", "tool_calls": [call], "reasoning": "let me look"},
        {"role": "tool", "tool_call_id": "c", "content": LONG},
    ]
    await ask(
        gateway, engine, "<|channel|>final<|message|>yes<|return|>", messages=messages, tools=[TOOL]
    )
    prompt = gateway.service.vocabulary.decode((await engine.refills.get()).prompt)

    assert prompt.endswith(f"{LONG}assistantfinalyes")
    assert "let me look" not in prompt


async def test_nothing_is_refilled_that_is_cached_already(served: Served) -> None:
    """Without reasoning the history is the prompt and the answer: only the last token differs."""
    gateway, engine = served
    await ask(gateway, engine, f"<|channel|>final<|message|>{LONG}<|return|>")

    assert not await refilled(gateway, engine)


@pytest.mark.parametrize(("missing_tokens", "expected"), [(0, True), (-1, False)])
async def test_short_answers_are_not_worth_it(
    served: Served, missing_tokens: int, expected: bool
) -> None:
    """Behind the common <|channel|> the history has final<|message|>…<|end|>."""
    gateway, engine = served
    content_tokens = MIN_REFILL_TOKENS + missing_tokens - len(tokens_of("final<|message|><|end|>"))
    text = f"{REASONING}<|channel|>final<|message|>{'x' * content_tokens}<|return|>"
    await ask(gateway, engine, text)

    assert await refilled(gateway, engine) is expected


async def test_only_finals_of_one_choice_are_refilled(served: Served) -> None:
    gateway, engine = served
    call = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
    await ask(
        gateway, engine, REASONING + call, tools=[TOOL], messages=[{**QUESTION, "content": LONG}]
    )
    asking = asyncio.create_task(gateway.chat())
    await engine.answer(ANSWER.removesuffix("<|return|>"), FinishReason.LENGTH)
    await asking
    asking = asyncio.create_task(gateway.chat(n=2))
    submit = await engine.submits.get()
    for request_id in (submit.request_id, *submit.forks):
        choice = Submit(request_id, submit.prompt, 1, [])
        engine.say(choice, ANSWER)
        engine.finish(choice)
    await asking

    assert not await refilled(gateway, engine)


async def test_without_a_cache_there_is_nothing_to_refill(tmp_path: Path) -> None:
    async with ready_gateway(tmp_path, has_prefix_cache=False) as (gateway, engine):
        await ask(gateway, engine, ANSWER)
        await settle()
        gateway.server.should_exit = True
        await gateway.serving
        assert engine.refills.empty()


async def test_a_history_beyond_the_context_is_not_refilled(tmp_path: Path) -> None:
    """What the engine holds for the next turn must leave it room."""
    async with ready_gateway(tmp_path) as (gateway, engine):
        room_tokens = CONTEXT_TOKENS - len((await ask(gateway, engine, ANSWER))[1].prompt)
        await engine.refills.get()
        text = "<|channel|>final<|message|>"
        overhead_tokens = len(tokens_of(text)) + 1
        for content_tokens, expected in (
            (room_tokens - overhead_tokens, True),
            (room_tokens - overhead_tokens + 1, False),
        ):
            await ask(gateway, engine, f"{REASONING}{text}{'x' * content_tokens}<|return|>")
            assert await refilled(gateway, engine) is expected


async def test_one_line_says_what_it_cost_and_for_whom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with ready_gateway(tmp_path) as (gateway, engine):
        engine.finishes_refills = False
        response = asyncio.create_task(gateway.chat())
        await engine.answer(ANSWER)
        request_id = (await response).headers["x-request-id"]
        refill = await engine.refills.get()
        assert gateway.service.engine.pending == 0
        engine.finish_refill(refill, cached_tokens=64)
        engine.finishes_refills = True
        assert not await refilled(gateway, engine)

    lines = [line for line in caplog.messages if f"event=prefix_refilled id={request_id}" in line]
    expected = f"event=prefix_refilled id={request_id} prompt_tokens={len(refill.prompt)}"
    assert lines == [f"{expected} cached_tokens=64"]


async def test_the_oldest_that_waits_gives_way(tmp_path: Path) -> None:
    """The engine has one, the others wait: with one too many the second answer's is dropped."""
    async with ready_gateway(tmp_path) as (gateway, engine):
        engine.finishes_refills = False
        await ask(gateway, engine, ANSWER)
        refills = [await engine.refills.get()]
        for number in range(1, MAX_REFILLS + 1):
            messages = [{"role": "user", "content": f"number {number:02}"}]
            await ask(gateway, engine, ANSWER, messages=messages)
        await settle()
        assert engine.refills.empty()
        engine.finishes_refills = True
        engine.finish_refill(refills[0])
        decode = gateway.service.vocabulary.decode
        prompts = [decode((await engine.refills.get()).prompt) for _ in range(2, MAX_REFILLS + 1)]

    for number, prompt in enumerate(prompts, 2):
        assert f"number {number:02}" in prompt


async def test_the_engines_death_is_survived(mortal: Served) -> None:
    gateway, engine = mortal
    engine.finishes_refills = False
    await ask(gateway, engine, ANSWER)
    await engine.refills.get()
    await ask(gateway, engine, ANSWER)
    engine.die()
    second = await gateway.next_engine()
    assert second.submits.empty()
    second.become_ready()
    await gateway.service.engine.wait_ready(30)
    assert not await refilled(gateway, second), "what waited died with the engine"


async def test_closing_gives_up_what_runs_and_what_waits(mortal: Served) -> None:
    gateway, engine = mortal
    engine.finishes_refills = False
    refills = Refills(gateway.service)
    conversation = Conversation((Message(Role.USER, "hi"),))
    turn = Turn(
        prompt=render(conversation, gateway.service.vocabulary),
        generations=(Generation(1, Submit(1, [1], 1, [])),),
        readers=(),
        ticket=Ticket(Origin(), nowhere, 0.0, ROUTE, ROUTE, False),
        record=RequestRecord("id", arrived_s=0),
        monotonic_s=gateway.service.monotonic_s,
        cancel=gateway.service.engine.cancel,
        _content=[LONG],
        _outcomes=[Outcome(Finish.STOP, Usage(1, 1, 0, 0))],
    )
    for _ in range(2):
        refills.want("id", conversation, turn)
    refill = await engine.refills.get()
    await refills.close()

    assert await engine.cancels.get() == refill.request_id
    assert engine.refills.empty()


async def test_a_drain_waits_for_no_refill(mortal: Served) -> None:
    gateway, engine = mortal
    engine.finishes_refills = False
    await ask(gateway, engine, ANSWER)
    refill = await engine.refills.get()
    gateway.server.should_exit = True

    assert await engine.cancels.get() == refill.request_id
    await gateway.serving
