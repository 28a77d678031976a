"""Well-formed answers: what the events say, one id at a time and many at once."""

from tests.harmony_text import byte_vocabulary, harmony_ids, parse_text
from verger.formats.harmony import (
    ContentDelta,
    Finish,
    HarmonyParser,
    ReasoningDelta,
    Repair,
    ToolCallDelta,
    ToolCallStart,
)
from verger.messages import FinishReason

ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
PREAMBLE = "<|channel|>commentary<|message|>"
CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
NEXT = "<|end|><|start|>assistant"


def parser(*tools: str) -> HarmonyParser:
    return HarmonyParser(byte_vocabulary(), tools)


def ids(text: str) -> list[int]:
    return harmony_ids(text, byte_vocabulary())


def test_reasoning_and_answer() -> None:
    answer = parse_text(ANALYSIS + "hm é" + NEXT + FINAL + "Hello 🌳!<|return|>")
    assert (answer.reasoning, answer.content) == ("hm é", "Hello 🌳!")
    assert answer.finish is Finish.STOP
    assert answer.reasoning_tokens == len("hm é".encode())
    assert not answer.repairs


def test_a_call_in_both_orders() -> None:
    for header in (CALL, " to=functions.f<|channel|>commentary <|constrain|>json<|message|>"):
        answer = parse_text(ANALYSIS + "hm" + NEXT + header + '{"a":1}<|call|>', tools=["f"])
        assert answer.calls == [["f", '{"a":1}']]
        assert answer.finish is Finish.TOOL_CALLS
        assert not answer.repairs


def test_events_come_as_the_ids_do() -> None:
    harmony = parser("f")
    assert harmony.feed(ids(ANALYSIS + "hm")) == [ReasoningDelta("hm")]
    assert harmony.feed(ids(NEXT + CALL)) == [ToolCallStart(0, "f")]
    assert harmony.feed(ids('{"a"')) == [ToolCallDelta(0, '{"a"')]
    assert not harmony.is_done
    assert harmony.feed(ids(":1}<|call|>")) == [ToolCallDelta(0, ":1}")]
    assert harmony.is_done
    assert harmony.close(FinishReason.STOP).finish is Finish.TOOL_CALLS


def test_text_after_the_end_is_ignored() -> None:
    harmony = parser()
    harmony.feed(ids(FINAL + "4.<|return|>"))
    assert harmony.feed(ids("5.<|start|>assistant" + FINAL + "6.")) == []
    assert harmony.close(FinishReason.LENGTH).finish is Finish.STOP


def test_several_calls_are_numbered() -> None:
    text = CALL + "{}" + NEXT + CALL.replace("functions.f", "functions.g") + "{}<|call|>"
    assert parse_text(text, tools=["f", "g"]).calls == [["f", "{}"], ["g", "{}"]]


def test_a_preamble_is_content_outside_the_final_channel() -> None:
    events = parser("f").feed(ids(PREAMBLE + "Let me look." + NEXT + CALL))
    assert isinstance(events[0], ContentDelta)
    assert (events[0].text, events[0].is_final) == ("Let me look.", False)


def test_two_messages_of_content_are_kept_apart() -> None:
    answer = parse_text(PREAMBLE + "Let me think." + NEXT + FINAL + "4.<|return|>")
    assert answer.content == "Let me think.\n\n4."


def test_positions_name_the_tokens_of_the_answer() -> None:
    """Every id of a final's body is counted once, also those that end no character."""
    text = ANALYSIS + "hm" + NEXT + FINAL + "aé🌳b"
    body = len("aé🌳b".encode())
    everything = ids(text)
    harmony = parser()
    deltas = [event for id in everything for event in harmony.feed([id])]
    content = [delta for delta in deltas if isinstance(delta, ContentDelta)]
    assert [delta.text for delta in content] == ["a", "é", "🌳", "b"]
    positions = [position for delta in content for position in delta.positions]
    assert positions == list(range(len(everything) - body, len(everything)))


def test_positions_of_an_answer_inside_its_header() -> None:
    everything = ids("<|channel|>final Yes.<|return|>")
    (delta,) = parser().feed(everything)
    assert delta == ContentDelta("Yes.", tuple(range(7, 11)))


def test_a_broken_character_becomes_a_replacement() -> None:
    vocabulary = byte_vocabulary()
    half = ids(FINAL) + vocabulary.encode("é")[:1]
    harmony = HarmonyParser(vocabulary)
    assert harmony.feed(half) == []
    assert harmony.feed(ids("<|return|>")) == [ContentDelta("\ufffd", (len(half) - 1,))]


def test_ids_that_no_token_has_are_silent() -> None:
    harmony = parser()
    harmony.feed(ids(FINAL))
    assert harmony.feed([200_000]) == []
    assert harmony.feed(ids("a")) == [ContentDelta("a", (len(ids(FINAL)), len(ids(FINAL)) + 1))]


def test_cancelled_in_the_middle_is_a_stop() -> None:
    """As after a stop string: what was said stands; half a call is not a call."""
    assert parse_text(FINAL + "4", reason=FinishReason.CANCELLED).finish is Finish.STOP
    half = parse_text(CALL + '{"a"', tools=["f"], reason=FinishReason.CANCELLED)
    assert half.finish is Finish.STOP
    assert half.repairs[Repair.TRUNCATED] == 1
