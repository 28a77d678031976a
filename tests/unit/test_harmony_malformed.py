"""The ways in which gpt-oss was seen to break Harmony, one case each, and what the client gets."""

import pytest

from tests.harmony_text import parse_text
from verger.formats.harmony import Finish, Repair
from verger.messages import FinishReason

CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("text", "repair"),
    [
        (
            '<|channel|>commentary to=functions.f to=functions.f json<|message|>{"a":1}<|call|>',
            Repair.DUPLICATE_RECIPIENT,
        ),
        (
            ' to=functions.f<|channel|>commentary to=functions.f json<|message|>{"a":1}<|call|>',
            Repair.DUPLICATE_RECIPIENT,
        ),
        (
            ' to=functions.f<|channel|>commentary json<|message|>{"a":1}<|call|>',
            Repair.MISSING_CONSTRAIN,
        ),
        (
            "<|channel|>commentary<|channel|>commentary to=functions.f "
            '<|constrain|>json<|message|>{"a":1}<|call|>',
            Repair.REPEATED_CHANNEL,
        ),
        (
            '<|channel|>analysis to=functions.f code<|message|>{"a":1}<|call|>',
            Repair.CALL_ON_ANALYSIS,
        ),
        (
            '<|channel|>commentary?? to=functions.f <|constrain|>json<|message|>{"a":1}<|call|>',
            Repair.HEADER_JUNK,
        ),
        (
            '<|channel|>let me see to=functions.f<|message|>{"a":1}<|call|>',
            Repair.HEADER_JUNK,
        ),
        (
            "<|channel|>analysis<|message|>hm<|end|><|channel|>commentary to=functions.f "
            '<|constrain|>json<|message|>{"a":1}<|call|>',
            Repair.MISSING_START,
        ),
        (
            "<|channel|>analysis<|message|>hm<|end|>assistant to=functions.f<|channel|>commentary "
            '<|constrain|>json<|message|>{"a":1}<|call|>',
            Repair.MISSING_START,
        ),
        ('<|channel|>commentary to=functions.f {"a":1}<|call|>', Repair.BODY_IN_HEADER),
        (CALL + '{"a":1}<|end|>', Repair.WRONG_TERMINATOR),
        (CALL + '{"a":1}<|return|>', Repair.WRONG_TERMINATOR),
        (CALL + '{"a":1}' + "<|start|>assistant<|return|>", Repair.MISSING_END),
        (CALL.replace("functions.f", "f") + '{"a":1}<|call|>', Repair.INEXACT_TOOL),
        (CALL.replace("functions.f", "container.f") + '{"a":1}<|call|>', Repair.INEXACT_TOOL),
        (
            CALL.replace("functions.f", "functions") + '{"name":"f","arguments":{"a":1}}<|call|>',
            Repair.WRAPPED_CALL,
        ),
        (
            CALL.replace("functions.f", "functions")
            + '{"name":"functions.f","arguments":"{\\"a\\":1}"}<|call|>',
            Repair.WRAPPED_CALL,
        ),
        (
            CALL + '{"a":1}<|end|><|start|>functions.f to=assistant<|channel|>commentary'
            "<|message|>a made-up result<|end|>",
            Repair.FOREIGN_AUTHOR,
        ),
    ],
)
def test_a_call_is_understood(text: str, repair: Repair) -> None:
    answer = parse_text(text, tools=["f"])
    assert answer.calls == [["f", '{"a":1}']]
    assert answer.content == ""
    assert answer.finish is Finish.TOOL_CALLS
    assert repair in answer.repairs


@pytest.mark.parametrize(
    ("text", "repair"),
    [
        ("<|channel|>final json<|message|>4.<|return|>", Repair.TYPED_FINAL),
        ("<|channel|>final <|constrain|>json<|message|>4.<|return|>", Repair.TYPED_FINAL),
        ("<|channel|>final <|constrain|>response<|message|>4.<|return|>", Repair.TYPED_FINAL),
        ("<|channel|>––final<|message|>4.<|return|>", Repair.HEADER_JUNK),
        ("<|channel|>the reply is<|message|>4.<|return|>", Repair.HEADER_JUNK),
        ("<|start|>assistantfinal<|message|>4.<|return|>", None),
        ("<|message|>4.<|return|>", None),
        ("<|channel|>final<|message|>4.<|call|>", Repair.WRONG_TERMINATOR),
        ("<|channel|>final<|message|><|constrain|>4<|message|>.<|return|>", Repair.STRAY_SPECIAL),
        ("4.<|return|>", Repair.BARE_TEXT),
        ("<|start|>assistant 4.<|return|>", Repair.BARE_TEXT),
        ("4.<|end|>", Repair.BARE_TEXT),
        ("<|channel|>analysis<|message|>hm<|end|>4.<|return|>", Repair.BARE_TEXT),
        ("<|channel|>final 4.<|return|>", Repair.BODY_IN_HEADER),
        ("<|channel|>final: 4.<|end|>", Repair.BODY_IN_HEADER),
        ("<|channel|>4.<|return|>", Repair.BODY_IN_HEADER),
        ("<|channel|>final <|constrain|>json 4.<|return|>", Repair.BODY_IN_HEADER),
        ("<|channel|>analysis<|message|>hm" + FINAL + "4.<|return|>", Repair.MISSING_END),
        (
            "<|channel|>analysis<|message|>hm<|channel|>final<|message|>4.<|return|>",
            Repair.MISSING_END,
        ),
        (
            "<|channel|>analysis<|message|>hm<|end|>well" + FINAL + "4.<|return|>",
            Repair.STRAY_TEXT,
        ),
        (
            "<|channel|>analysis<|message|>hm<|end|>well<|channel|>final<|message|>4.<|return|>",
            Repair.STRAY_TEXT,
        ),
        ("<|channel|>final<|message|>4.<|end|>and so on<|return|>", Repair.STRAY_TEXT),
        ("<|channel|>final<|message|>4.<|end|><|start|>user<|message|>5?", Repair.FOREIGN_AUTHOR),
        ("<|channel|>final<|message|>4.<|end|>user<|message|>5?", Repair.FOREIGN_AUTHOR),
        (CALL.replace("functions.f", "container.exec") + "4.<|call|>", Repair.UNDECLARED_TOOL),
        (CALL.replace("functions.f", "functions") + "4.<|call|>", Repair.UNDECLARED_TOOL),
        (CALL.replace("functions.f", "assistant") + "4.<|end|>", None),
    ],
)
def test_an_answer_is_understood(text: str, repair: Repair | None) -> None:
    answer = parse_text(text, tools=["f"])
    assert answer.content == "4."
    assert answer.calls == []
    assert answer.finish is Finish.STOP
    assert repair is None or repair in answer.repairs


def test_a_call_without_a_body_has_empty_arguments() -> None:
    for text in ("<|channel|>commentary to=functions.f<|call|>", CALL + "<|call|>"):
        answer = parse_text(text, tools=["f"])
        assert answer.calls == [["f", "{}"]]
        assert answer.repairs[Repair.CALL_WITHOUT_BODY] == 1


def test_arguments_that_are_not_json_are_passed_on() -> None:
    for arguments in ('{"a":', "[1]", "[" * 5000):
        answer = parse_text(CALL + arguments + "<|call|>", tools=["f"])
        assert answer.calls == [["f", arguments]]
        assert answer.finish is Finish.TOOL_CALLS
        assert answer.repairs[Repair.INVALID_ARGUMENTS] == 1


def test_a_call_without_declared_tools_is_content() -> None:
    """So the tool_choice `none` holds, whatever the model writes."""
    answer = parse_text(CALL + '{"a":1}<|call|>')
    assert (answer.content, answer.calls, answer.finish) == ('{"a":1}', [], Finish.STOP)
    assert answer.repairs[Repair.UNDECLARED_TOOL] == 1


def test_reasoning_without_an_answer_is_an_empty_answer() -> None:
    answer = parse_text("<|channel|>analysis<|message|>hm<|return|>")
    assert (answer.reasoning, answer.content, answer.finish) == ("hm", "", Finish.STOP)
    assert answer.repairs[Repair.NO_FINAL] == 1


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("<|channel|>final<|message|>It is", "It is", []),
        ("<|channel|>final It is", "It is", []),
        ("It is", "It is", []),
        (CALL + '{"a":', "", [["f", '{"a":']]),
        ("<|channel|>commentary to=func", "", []),
        ("<|channel|>comm", "", []),
        (CALL.replace("functions.f", "functions") + '{"name"', '{"name"', []),
        (CALL + '{"a":1}<|end|><|start|>assist', "", [["f", '{"a":1}']]),
    ],
)
def test_what_was_cut_off_ends_for_length(text: str, content: str, calls: list[list[str]]) -> None:
    answer = parse_text(text, tools=["f"], reason=FinishReason.LENGTH)
    assert (answer.content, answer.calls) == (content, calls)
    assert answer.finish is Finish.LENGTH


def test_a_header_without_end_becomes_content() -> None:
    words = "so it goes on and on " * 20
    for text in (words + "<|return|>", "<|channel|>final " + words + "<|return|>"):
        answer = parse_text(text)
        assert answer.content == words
        assert answer.repairs[Repair.RUNAWAY_HEADER] == 1


def test_a_header_of_special_tokens_only_ends_as_well() -> None:
    answer = parse_text("<|channel|>" * 1000 + "final<|message|>4.<|return|>")
    assert answer.content.endswith("4.")


def test_a_long_gap_after_an_answer_is_dropped() -> None:
    answer = parse_text("<|channel|>final<|message|>4.<|end|>" + "blah " * 100 + "<|return|>")
    assert answer.content == "4."
    assert answer.repairs[Repair.STRAY_TEXT] > 1
