"""Agents that play their steps, and the figures that come of it."""

import asyncio
import json
from collections.abc import Sequence

import msgspec
import pytest

from tests.harmony_text import byte_vocabulary
from verger.bench import replay
from verger.bench.chat import Answer, Options, Target
from verger.bench.client import Endpoint
from verger.bench.least import exchange_of
from verger.bench.reader import ReadError
from verger.bench.replay import Agent
from verger.bench.replay_counts import Counted, Outcome, Sent, scenario_report
from verger.bench.replay_report import (
    SCHEMA_VERSION,
    ReplayReport,
    parse_lengths,
    parse_scenarios,
    second_turn_report,
)
from verger.bench.served import Status
from verger.bench.trace import Call, Step
from verger.formats.conversation import Conversation, Message, Role, ToolCall

TARGET = Target(Endpoint("127.0.0.1", 1, "/v1"), "m")
LOOK = Step("", "call look {}", Call("look", "{}"))
RESULT = Step("sunny", "call look {}", Call("look", "{}"))
FINAL = Step("rain", "", None)
FOLLOW_UP = Step("", "and now?", None)
BEGINNING = Conversation((Message(Role.SYSTEM, "Be brief."),))


def calling(id: str, *names: str) -> Message:
    calls = tuple(ToolCall(f"{id}{name}", name, "{}") for name in names)
    return Message(Role.ASSISTANT, reasoning="I look.", tool_calls=calls)


def saying(text: str) -> Message:
    return Message(Role.ASSISTANT, text, reasoning="I say it.")


def answer(
    message: Message, prompt_tokens: int = 10, cached_tokens: int = 4, ttft_s: float = 0.5
) -> Answer:
    return Answer(message, prompt_tokens, cached_tokens, 1.0, 1.0 + ttft_s, 9.0)


def status(prefilled: int, background: int = 0, asked: int = 0, cached: int = 0) -> Status:
    return msgspec.convert(
        {
            "rows": {"max": 16, "running": 0, "waiting": 0, "queued": 0},
            "tokens": {"prefilled": prefilled, "decoded": 1, "background": background},
            "cache": {
                "bytes": 5,
                "limit_bytes": 9,
                "asked_tokens": asked,
                "cached_tokens": cached,
                "token_bytes": 2,
                "window_bytes": 3,
            },
            "memory": {"kv_bytes": 7, "active_bytes": 8},
        },
        Status,
    )


def play(
    monkeypatch: pytest.MonkeyPatch,
    steps: Sequence[Step],
    said: Sequence[Message | ReadError],
    stops: Sequence[int] | None = None,
) -> tuple[Agent, list[Options]]:
    """An agent whose model says these things, one after the other."""
    left, options_seen = list(said), []

    async def ask_chat(
        target: Target, conversation: Conversation, options: Options, limit_s: float
    ) -> Answer:
        options_seen.append(options)
        if isinstance(now := left.pop(0), ReadError):
            raise now
        return answer(now)

    monkeypatch.setattr(replay, "ask_chat", ask_chat)
    monkeypatch.setattr(replay, "READING_S", 0.0)
    agent = Agent("3", "key", steps, BEGINNING, Options(8, {"5": -100.0}), Options(8))
    for until in stops or [len(steps)]:
        asyncio.run(agent.play(TARGET, until))
    return agent, options_seen


def test_an_agent_sends_back_what_it_got(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [calling("a", "look"), calling("b", "look"), saying("It rains.")]
    agent, options = play(monkeypatch, [LOOK, RESULT, FINAL], said)
    assert agent.conversation.messages[1:] == (
        Message(Role.USER, "call look {}"),
        said[0],
        Message(Role.TOOL, "sunny", tool_call_id="alook"),
        Message(Role.USER, "call look {}"),
        said[1],
        Message(Role.TOOL, "rain", tool_call_id="blook"),
        said[2],
    )
    assert [len(sent.conversation.messages) for sent in agent.sent] == [2, 5, 7]
    assert [bool(asked.logit_bias) for asked in options] == [True, True, False]
    assert (agent.substituted, agent.failure) == (0, None)


def test_every_call_of_an_answer_gets_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, _ = play(monkeypatch, [LOOK, FINAL], [calling("a", "look", "see"), saying("Done.")])
    results = [message for message in agent.conversation.messages if message.role is Role.TOOL]
    assert [message.tool_call_id for message in results] == ["alook", "asee"]


def test_an_answer_of_the_wrong_kind_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, _ = play(monkeypatch, [LOOK, FINAL], [saying("No."), calling("a", "look")])
    assert agent.conversation.messages[2:] == (
        Message(Role.ASSISTANT, tool_calls=(ToolCall("call_3_0", "look", "{}"),)),
        Message(Role.TOOL, "rain", tool_call_id="call_3_0"),
        Message(Role.ASSISTANT, "Done."),
    )
    assert agent.substituted == 2
    assert [sent.answer.message.content for sent in agent.sent] == ["No.", ""]


def test_an_agent_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [calling("a", "look"), saying("It rains.")]
    whole, _ = play(monkeypatch, [LOOK, FINAL], said)
    halved, _ = play(monkeypatch, [LOOK, FINAL], said, stops=[1, 2])
    assert halved.conversation == whole.conversation


def test_a_second_question_follows_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [calling("a", "look"), saying("It rains."), saying("Still.")]
    agent, _ = play(monkeypatch, [LOOK, FINAL, FOLLOW_UP], said)
    assert agent.conversation.messages[-3:] == (said[1], Message(Role.USER, "and now?"), said[2])


def test_an_agent_ends_at_its_first_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Message | ReadError] = [calling("a", "look"), ReadError("503: full")]
    agent, options = play(monkeypatch, [LOOK, RESULT, FINAL], said, stops=[2, 3])
    assert (agent.failure, len(agent.sent), len(options)) == ("503: full", 1, 2)


def outcome(counted: Counted, failures: Sequence[str] = ()) -> Outcome:
    """One request; all of its prompt must be computed."""
    conversation = Conversation((Message(Role.USER, "hi"),))
    sent = Sent(conversation, answer(saying("It rains."), prompt_tokens=100, cached_tokens=40))
    return Outcome([sent], failures, substituted=0, counted=counted, elapsed_s=3.0)


def least() -> int:
    sent = outcome(Counted()).sent[0]
    return len(exchange_of(sent.conversation, sent.answer, byte_vocabulary()).prompt)


@pytest.mark.parametrize(("excess", "expected"), [(1.0, True), (1.05, True), (1.06, False)])
def test_computed_is_what_the_server_counted(excess: float, expected: bool) -> None:
    counted = Counted()
    computed = int(excess * least())
    counted.add(status(7, 1, 10, 5), status(7 + computed, 4, 30, 20))
    report = scenario_report("fits", None, outcome(counted), byte_vocabulary())
    assert (report.computed_tokens, report.background_tokens) == (computed, 3)
    assert (report.hit_ratio, report.is_met) == (0.75, expected)
    assert (report.prompt_tokens, report.rendered_tokens) == (100, least())


def test_the_lives_of_a_server_add_up() -> None:
    counted = Counted()
    counted.add(status(0), status(10, 2))
    counted.add(status(0), status(5, 1))
    assert (counted.is_known, counted.prefilled, counted.background) == (True, 15, 3)
    counted.add(None, None)
    assert not counted.is_known


def test_without_a_status_the_usage_counts() -> None:
    report = scenario_report("fits", None, outcome(Counted(is_known=False)), byte_vocabulary())
    assert (report.computed_tokens, report.hit_ratio) == (60, 0.4)
    assert (report.background_tokens, report.evictions) == (None, None)


def test_a_failed_request_misses_the_target() -> None:
    counted = Counted()
    counted.add(status(0), status(least()))
    report = scenario_report("half", 1, outcome(counted, ["503: full"]), byte_vocabulary())
    assert (report.requests, report.failed_requests, report.first_failure) == (2, 1, "503: full")
    assert (report.ratio, report.is_met) == (1.0, False)


def test_while_idle_what_is_not_cache_is_the_rings() -> None:
    assert (status(0).ring_bytes, status(0).is_idle) == (2, True)


def test_scenarios_as_they_are_written() -> None:
    assert parse_scenarios("fits,half,restart") == ["fits", "half", "restart"]
    assert parse_scenarios("") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("fit", "none of"), ("half", "needs fits"), ("half-disk,fits", "needs fits"),
     ("fits,fits", "twice")],
)  # fmt: skip
def test_scenarios_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_scenarios(text)


def test_lengths_as_they_are_written() -> None:
    assert parse_lengths("1000,8000") == [1000, 8000]
    assert parse_lengths("") == []
    with pytest.raises(ValueError, match="between"):
        parse_lengths("0")


@pytest.mark.parametrize(
    ("tokens", "second_s", "is_met"),
    [(8000, 0.5, True), (8000, 0.51, False), (7999, 0.51, None)],
)
def test_the_second_turns_target_holds_for_long_prompts(
    tokens: int, second_s: float, is_met: bool | None
) -> None:
    pairs = [
        (answer(saying(""), ttft_s=10.0), answer(saying(""), tokens, ttft_s=s))
        for s in (0.1, second_s, 3.0)
    ]
    report = second_turn_report(pairs)
    assert (report.prompt_tokens, report.is_met) == (tokens, is_met)
    assert report.ratio == pytest.approx(second_s / 10)


def test_the_json_carries_its_schema_version() -> None:
    report = ReplayReport(
        schema_version=SCHEMA_VERSION,
        model="nano",
        url=None,
        machine="a Mac",
        cores=8,
        scale="nano",
        seed=1,
        agents=8,
        keys=8,
        steps=20,
        working_set_bytes=None,
        scenarios=[scenario_report("fits", None, outcome(Counted()), byte_vocabulary())],
        second_turns=[],
    )
    body = json.loads(msgspec.json.encode(report))
    assert body["schema_version"] == 1
    assert body["scenarios"][0]["target_ratio"] == 1.05
