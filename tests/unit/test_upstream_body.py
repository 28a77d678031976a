"""What each kind of provider is sent: fields that it knows, in its own words, with its quirks."""

from pathlib import Path
from typing import Any

import pytest

from tests.chat_bodies import CALLING, RESULT, TOOL, USER, VOCABULARY_SIZE, body
from tests.providers import KINDS, MODEL_ID, target_of
from verger.api.chat_request import parse_chat_request
from verger.api.turn_request import TurnRequest
from verger.gateway.backends import quirks
from verger.gateway.backends.quirks import Signatures
from verger.gateway.backends.upstream_body import (
    MAX_ANSWER_TOKENS,
    build_body,
    is_in_tool_loop,
    unsupported,
)
from verger.messages import Sampling

THINKING = {"role": "assistant", "content": "4", "reasoning": "2 and 2"}


def turn_of(**fields: Any) -> TurnRequest:
    return parse_chat_request(body(**fields), Sampling(), VOCABULARY_SIZE).turn


def sent(folder: Path, kind: str, signatures: Signatures | None = None, **fields: Any) -> Any:
    return build_body(target_of(folder, kind), turn_of(**fields), signatures or Signatures())


def test_the_least_that_is_sent(tmp_path: Path) -> None:
    assert sent(tmp_path, "compatible") == {
        "model": MODEL_ID,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": MAX_ANSWER_TOKENS,
        "temperature": 1.0,
        "top_p": 1.0,
    }


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_gets_a_limit_and_is_asked_for_its_usage(kind: str, tmp_path: Path) -> None:
    body = sent(tmp_path, kind, max_tokens=7)
    named = {"max_tokens", "max_completion_tokens"} & body.keys()
    assert named == {KINDS[kind].max_tokens_field}
    assert body[KINDS[kind].max_tokens_field] == 7
    assert body["stream_options"] == {"include_usage": True}


def test_openrouter_is_told_price_quantisation_and_privacy_on_every_call(tmp_path: Path) -> None:
    assert sent(tmp_path, "openrouter")["provider"] == {
        "sort": "price",
        "require_parameters": True,
        "data_collection": "deny",
        "zdr": True,
    }


def test_openai_is_told_to_store_nothing_and_no_temperature(tmp_path: Path) -> None:
    body = sent(tmp_path, "openai", temperature=0.2, top_p=0.5)
    assert body["store"] is False
    assert not {"temperature", "top_p"} & body.keys()


@pytest.mark.parametrize(
    ("kind", "name"), [("openrouter", "reasoning"), ("groq", None), ("gemini", None)]
)
def test_earlier_reasoning_goes_back_only_to_those_who_want_it(
    kind: str, name: str | None, tmp_path: Path
) -> None:
    body = sent(tmp_path, kind, messages=[USER, THINKING, USER])
    assistant = body["messages"][1]
    expected = {"role": "assistant", "content": "4"}
    assert assistant == (expected | {name: "2 and 2"} if name else expected)


def test_a_developer_is_a_system_for_all_but_openai(tmp_path: Path) -> None:
    messages = [{"role": "developer", "content": "be brief"}, USER]
    assert sent(tmp_path, "groq", messages=messages)["messages"][0]["role"] == "system"
    assert sent(tmp_path, "openai", messages=messages)["messages"][0]["role"] == "developer"


def test_tools_and_calls_are_sent_in_openais_shape(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
    body = sent(tmp_path, "groq", messages=[USER, CALLING, RESULT], tools=[tool])
    assert body["messages"][1:] == [CALLING, RESULT]
    assert body["tools"] == [
        {"type": "function", "function": {"name": "f", "description": "", "strict": True}}
    ]


def test_gemini_gets_its_signatures_back(tmp_path: Path) -> None:
    signatures = Signatures()
    signatures.remember("call_1", "signed")
    body = sent(tmp_path, "gemini", signatures, messages=[USER, CALLING, RESULT])
    (call,) = body["messages"][1]["tool_calls"]
    assert call["extra_content"] == {"google": {"thought_signature": "signed"}}
    body = sent(tmp_path, "openrouter", signatures, messages=[USER, CALLING, RESULT])
    assert "extra_content" not in body["messages"][1]["tool_calls"][0]


def test_the_memory_of_signatures_is_bounded() -> None:
    signatures = Signatures()
    for number in range(quirks.MAX_SIGNATURES):
        signatures.remember(str(number), "s")
    assert signatures.of("0") == "s"
    signatures.remember("one more", "s")
    assert signatures.of("1") is None
    assert signatures.of("0") == "s"
    signatures.remember("long", "s" * quirks.MAX_SIGNATURE_CHARACTERS)
    signatures.remember("longer", "s" * (quirks.MAX_SIGNATURE_CHARACTERS + 1))
    assert signatures.of("long") is not None
    assert signatures.of("longer") is None


@pytest.mark.parametrize(
    ("fields", "kind", "names"),
    [
        ({}, "groq", ()),
        ({"temperature": 0.5, "stop": "x", "tools": [TOOL], "seed": 1}, "groq", ()),
        ({"n": 2}, "groq", ("n",)),
        ({"logprobs": True, "top_logprobs": 2}, "groq", ("logprobs", "top_logprobs")),
        ({"logit_bias": {"1": 1}}, "openrouter", ("logit_bias",)),
        ({"seed": 1, "frequency_penalty": 1}, "gemini", ("frequency_penalty", "seed")),
        ({"min_p": 0.1, "top_k": 5, "repetition_penalty": 1.1}, "openrouter", ()),
        ({"reasoning_effort": "high"}, "compatible", ()),
    ],
)
def test_what_a_kind_cannot_honour_is_named(
    fields: dict[str, Any], kind: str, names: tuple[str, ...]
) -> None:
    assert unsupported(KINDS[kind], turn_of(**fields)) == names


def test_a_refused_field_can_be_left_out(tmp_path: Path) -> None:
    body = build_body(
        target_of(tmp_path, "groq"), turn_of(), Signatures(), frozenset({"temperature"})
    )
    assert "temperature" not in body
    assert "top_p" in body


def test_a_tool_loop_is_open_while_its_result_is_the_last_word() -> None:
    assert is_in_tool_loop(turn_of(messages=[USER, CALLING, RESULT]))
    assert not is_in_tool_loop(turn_of(messages=[USER, CALLING, RESULT, USER]))
