"""Chat request bodies: what is honoured, what changes nothing, and what is refused and how."""

from typing import Any

import pytest

from tests.chat_bodies import (
    CALL,
    CALLING,
    LEGACY_CALLING,
    LEGACY_RESULT,
    NOT_JSON,
    TOOL,
    UNSUPPORTED,
    USER,
    VOCABULARY_SIZE,
    WRONG,
    body,
)
from verger.api import chat_body
from verger.api.chat_request import ChatRequest, parse_chat_request
from verger.errors import InvalidRequest, ReplyError, UnsupportedParameter
from verger.formats.conversation import Effort, Message, Role, Tool, ToolCall
from verger.messages import MAX_TOP_LOGPROBS, Sampling


def parse(raw: bytes) -> ChatRequest:
    return parse_chat_request(raw, Sampling(), VOCABULARY_SIZE)


def test_smallest_request_gets_the_defaults() -> None:
    request = parse_chat_request(body(), Sampling(temperature=0.5, top_k=7), VOCABULARY_SIZE)

    assert request.turn.conversation.messages == (Message(Role.USER, "hi"),)
    assert request.turn.conversation.effort is Effort.MEDIUM
    assert request.turn.sampling == Sampling(temperature=0.5, top_k=7)
    assert request.turn.max_tokens is None
    assert not request.stream
    assert request.turn.logprobs is None


def test_every_role_and_part_becomes_a_message() -> None:
    messages = [
        {"role": "system", "content": "a"},
        {"role": "developer", "content": [{"type": "text", "text": "b"}]},
        {"role": "user", "name": "x", "content": [{"type": "text", "text": t} for t in "cd"]},
        {**CALLING, "content": "e", "reasoning": "why"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "42"}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "assistant", "refusal": "never"},
    ]

    assert parse(body(messages=messages)).turn.conversation.messages == (
        Message(Role.SYSTEM, "a"),
        Message(Role.DEVELOPER, "b"),
        Message(Role.USER, "c\nd"),
        Message(Role.ASSISTANT, "e", reasoning="why", tool_calls=(ToolCall("call_1", "f", "{}"),)),
        Message(Role.TOOL, "42", tool_call_id="call_1"),
        Message(Role.ASSISTANT, "no"),
        Message(Role.ASSISTANT, "never"),
    )


def test_a_legacy_function_result_belongs_to_the_last_call_of_its_name() -> None:
    messages = [LEGACY_CALLING, LEGACY_RESULT, CALLING, {**LEGACY_RESULT, "content": None}]
    first, answer, _, second = parse(body(messages=messages)).turn.conversation.messages

    (call,) = first.tool_calls
    assert (call.name, call.arguments) == ("f", "{}")
    assert answer == Message(Role.TOOL, "42", tool_call_id=call.id)
    assert second == Message(Role.TOOL, "", tool_call_id="call_1")


def test_instructions_may_stand_anywhere() -> None:
    messages = [USER, {"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]

    assert parse(body(messages=messages)).turn.conversation.messages[1:] == (
        Message(Role.SYSTEM, "a"),
        Message(Role.DEVELOPER, "b"),
    )


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_is_read_under_each_of_its_names(field: str) -> None:
    message = {"role": "assistant", "content": "x", field: "because"}

    assert (
        parse(body(messages=[USER, message])).turn.conversation.messages[1].reasoning == "because"
    )


def test_sampling_parameters_override_the_defaults() -> None:
    request = parse(
        body(
            temperature=0,
            top_p=0.5,
            top_k=-1,
            min_p=0.1,
            frequency_penalty=1,
            presence_penalty=-1.5,
            repetition_penalty=1.2,
            logit_bias={"3": -100, "264": 5.5},
            seed=-(2**63),
        )
    )

    assert request.turn.sampling == Sampling(
        temperature=0,
        top_p=0.5,
        top_k=0,
        min_p=0.1,
        frequency_penalty=1,
        presence_penalty=-1.5,
        repetition_penalty=1.2,
        logit_bias={3: -100, 264: 5.5},
        seed=-(2**63),
    )


def test_tools_are_declared_unless_the_choice_is_none() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
    tools = [{"type": "function", "function": function}]

    declared = parse(body(tools=tools, tool_choice="auto")).turn.conversation.tools
    assert declared == (Tool("f", "d", {"type": "object"}, strict=True),)
    assert parse(body(tools=tools, tool_choice="none")).turn.conversation.tools == ()


@pytest.mark.parametrize(
    ("sent", "effort"),
    [
        ("none", Effort.LOW),
        ("minimal", Effort.LOW),
        ("low", Effort.LOW),
        ("medium", Effort.MEDIUM),
        ("high", Effort.HIGH),
        ("xhigh", Effort.HIGH),
    ],
)
def test_reasoning_effort_is_normalised(sent: str, effort: Effort) -> None:
    assert parse(body(reasoning_effort=sent)).turn.conversation.effort is effort


@pytest.mark.parametrize(
    ("fields", "logprobs"),
    [
        ({}, None),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": MAX_TOP_LOGPROBS}, MAX_TOP_LOGPROBS),
    ],
)
def test_logprobs_say_how_many_alternatives(fields: dict[str, Any], logprobs: int | None) -> None:
    assert parse(body(**fields)).turn.logprobs == logprobs


def test_choices_are_bounded_by_the_api_and_by_the_server() -> None:
    assert parse(body()).turn.choices == 1
    assert parse(body(n=chat_body.MAX_CHOICES)).turn.choices == chat_body.MAX_CHOICES
    assert parse_chat_request(body(n=2), Sampling(), VOCABULARY_SIZE, 2).turn.choices == 2
    with pytest.raises(InvalidRequest, match="only 2 answers at once") as refusal:
        parse_chat_request(body(n=3), Sampling(), VOCABULARY_SIZE, 2)
    assert refusal.value.param == "n"


def test_stop_is_one_string_or_up_to_four() -> None:
    assert parse(body(stop="a")).turn.stop == ("a",)
    assert parse(body(stop=list("abcd"))).turn.stop == ("a", "b", "c", "d")
    assert parse(body(stop=[])).turn.stop == ()


def test_either_name_limits_the_tokens() -> None:
    assert parse(body(max_tokens=5)).turn.max_tokens == 5
    assert parse(body(max_completion_tokens=6)).turn.max_tokens == 6
    assert parse(body(max_tokens=7, max_completion_tokens=7)).turn.max_tokens == 7


def test_streaming_options() -> None:
    request = parse(body(stream=True, stream_options={"include_usage": True, "other": 1}))

    assert request.stream
    assert request.include_usage
    assert not parse(body(stream=True)).include_usage


def test_null_means_absent_for_every_optional_parameter() -> None:
    names = (chat_body.HONOURED | chat_body.LIMITED.keys()) - {"model", "messages"}

    assert parse(body(**dict.fromkeys(names))) == parse(body())


@pytest.mark.parametrize("name", sorted(chat_body.HARMLESS))
def test_a_harmless_parameter_changes_nothing(name: str) -> None:
    assert parse(body(**{name: {"any": "thing"}})) == parse(body())


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in chat_body.LIMITED.items() for v in values]
)
def test_the_implemented_values_of_a_limited_parameter_pass(name: str, value: object) -> None:
    assert parse(body(**{name: value})) == parse(body())


def test_an_unknown_parameter_is_reported_and_ignored() -> None:
    request = parse(body(ignore_eos=True, user="u"))

    assert request.unknown_parameters == ("ignore_eos",)


@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED)
def test_what_would_change_the_answer_is_refused_by_name(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedParameter) as refusal:
        parse(body(**fields))

    assert refusal.value.param == param


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_a_wrong_value_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse(body(**fields))

    assert refusal.value.param == param


def test_a_missing_model_is_named() -> None:
    with pytest.raises(InvalidRequest, match="Missing required parameter: 'model'") as refusal:
        parse(b'{"messages":[{"role":"user","content":"x"}]}')

    assert refusal.value.param == "model"


@pytest.mark.parametrize("raw", NOT_JSON)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse(raw)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("depth", [64, 500, 100_000])
def test_depth_bombs_are_refused(opening: bytes, closing: bytes, depth: int) -> None:
    bomb = opening * depth + b"1" + closing * depth

    with pytest.raises(InvalidRequest, match="nested more than 64 levels"):
        parse(body()[:-1] + b',"metadata":' + bomb + b"}")


def test_a_body_may_be_as_deep_as_the_limit() -> None:
    nested = b"[" * 63 + b"1" + b"]" * 63

    parse(body()[:-1] + b',"metadata":' + nested + b"}")


@pytest.mark.parametrize("extra", [0, 1])
def test_lists_may_be_as_long_as_their_limits(extra: int) -> None:
    parts = [{"type": "text", "text": "x"}] * (chat_body.MAX_PARTS + extra)
    calls = [CALL] * (chat_body.MAX_TOOL_CALLS + extra)
    tools = [{**TOOL, "function": {"name": f"f{n}"}} for n in range(chat_body.MAX_TOOLS + extra)]
    for fields in (
        {"messages": [USER] * (chat_body.MAX_MESSAGES + extra)},
        {"messages": [{"role": "user", "content": parts}]},
        {"messages": [{"role": "assistant", "tool_calls": calls}]},
        {"tools": tools},
    ):
        if extra:
            with pytest.raises(InvalidRequest):
                parse(body(**fields))
        else:
            parse(body(**fields))


def test_every_refusal_is_a_client_error() -> None:
    for raw in (b"", body(n=0), body(messages=[])):
        with pytest.raises(ReplyError) as refusal:
            parse(raw)
        assert 400 <= refusal.value.status < 500
