"""Sampled ids become deltas: channels apart, stop strings cut, logprobs with their text."""

import itertools
from collections.abc import Sequence

import msgspec
import pytest

from tests.fakes import byte_tokenizer
from verger.api.answer import Delta, TokenLogprob, ToolCallDelta
from verger.api.answer_reader import AnswerReader
from verger.formats.harmony.events import Finish
from verger.formats.vocabulary import Vocabulary
from verger.messages import FinishReason, Logprob

TOKENIZER = byte_tokenizer()
VOCABULARY = Vocabulary.from_file_bytes(TOKENIZER.to_str().encode())

ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALL = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"


def ids_of(text: str) -> list[int]:
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


def reader(stop: Sequence[str] = (), tools: Sequence[str] = ("f",)) -> AnswerReader:
    numbers = itertools.count(1)
    return AnswerReader(VOCABULARY, tools, stop, new_call_id=lambda: f"call_{next(numbers)}")


def feed(reader: AnswerReader, text: str, has_logprobs: bool = False) -> Delta:
    ids = ids_of(text)
    return reader.feed(ids, [Logprob(-float(id)) for id in ids] if has_logprobs else [])


def test_channels_are_told_apart_within_one_step() -> None:
    answer = reader()

    delta = feed(answer, ANALYSIS + "why<|end|>" + FINAL + "so")

    assert delta == Delta(reasoning="why", content="so")
    assert feed(answer, "<|return|>").is_empty
    ending = answer.close(FinishReason.STOP)
    assert (ending.finish, ending.reasoning_tokens) == (Finish.STOP, 3)
    assert ending.delta.is_empty


def test_every_sampled_id_is_counted() -> None:
    answer = reader()
    feed(answer, ANALYSIS + "why<|end|>")
    feed(answer, FINAL + "so<|return|>")

    expected = len(ids_of(ANALYSIS + "why<|end|>" + FINAL + "so<|return|>"))
    assert answer.completion_tokens == expected


def test_a_call_is_one_piece_per_step() -> None:
    answer = reader()

    opening = feed(answer, CALL + '{"a"')
    more = feed(answer, ":1}")
    feed(answer, "<|call|>")
    ending = answer.close(FinishReason.STOP)

    pieces = opening.tool_calls + more.tool_calls + ending.delta.tool_calls
    assert pieces[0] == ToolCallDelta(0, pieces[0].arguments, id="call_1", name="f")
    assert all(piece.index == 0 and not piece.id and not piece.name for piece in pieces[1:])
    assert "".join(piece.arguments for piece in pieces) == '{"a":1}'
    assert max(len(delta.tool_calls) for delta in (opening, more, ending.delta)) == 1
    assert ending.finish is Finish.TOOL_CALLS


def test_a_stop_string_across_tokens_ends_the_answer() -> None:
    answer = reader(stop=["END"])
    shown = [feed(answer, piece).content for piece in (FINAL, "oneE", "N", "two", "E", "ND", "x")]

    assert "".join(shown) == "oneENtwo"
    assert answer.is_over
    ending = answer.close(FinishReason.STOP)
    assert ending.finish is Finish.STOP
    assert ending.delta.is_empty


@pytest.mark.parametrize("size", [1, 3, 100])
def test_ids_behind_a_stop_string_are_not_counted(size: int) -> None:
    """However the ids are merged into events, the usage of the same answer is the same."""
    answer = reader(stop=["END"])
    ids = ids_of(FINAL + "so END and more")
    for start in range(0, len(ids), size):
        if not answer.is_over:
            answer.feed(ids[start : start + size], [])

    assert answer.is_over
    assert answer.completion_tokens == len(ids_of(FINAL + "so END"))


def test_stop_strings_do_not_apply_to_reasoning_and_arguments() -> None:
    answer = reader(stop=["END"])

    assert feed(answer, ANALYSIS + "END<|end|><|start|>assistant").reasoning == "END"
    feed(answer, CALL + '"END"<|call|>')
    ending = answer.close(FinishReason.STOP)

    assert not answer.is_over
    assert ending.finish is Finish.TOOL_CALLS


def test_what_a_stop_string_held_back_is_shown_at_the_end() -> None:
    answer = reader(stop=["END"])

    assert feed(answer, FINAL + "oneEN").content == "one"
    assert feed(answer, "<|return|>").content == ""
    assert answer.close(FinishReason.STOP).delta.content == "EN"


def test_a_cut_answer_has_its_length_as_reason() -> None:
    answer = reader()
    feed(answer, FINAL + "one")

    assert answer.close(FinishReason.LENGTH).finish is Finish.LENGTH


def test_the_engine_is_cancelled_when_the_model_speaks_for_someone_else() -> None:
    answer = reader()
    feed(answer, FINAL + "one<|end|>")
    assert not answer.is_over

    feed(answer, "<|start|>user<|message|>and you?")

    assert answer.is_over


def test_an_ordinary_end_needs_no_cancel() -> None:
    answer = reader()
    feed(answer, FINAL + "one<|return|>")

    assert not answer.is_over


@pytest.mark.parametrize("step_tokens", [1, 3, 1_000])
def test_logprobs_belong_to_the_shown_tokens_of_the_final_channel(step_tokens: int) -> None:
    answer = reader(stop=["END"])
    ids = ids_of(ANALYSIS + "why<|end|>" + FINAL + "né🍏 EN.ENDx")
    shown: list[TokenLogprob] = []
    for start in range(0, len(ids), step_tokens):
        step = ids[start : start + step_tokens]
        delta = answer.feed(step, [Logprob(-float(id)) for id in step])
        assert b"".join(bytes(entry.bytes) for entry in delta.logprobs).decode() == delta.content
        shown += delta.logprobs

    assert [entry.logprob for entry in shown] == [-float(id) for id in ids_of("né🍏 EN.")]


def test_logprobs_of_held_text_are_shown_at_the_end() -> None:
    answer = reader(stop=["END"])
    first = feed(answer, FINAL + "oneEN", has_logprobs=True)
    ending = answer.close(FinishReason.LENGTH)

    assert [entry.token for entry in first.logprobs] == ["o", "n", "e"]
    assert [entry.token for entry in ending.delta.logprobs] == ["E", "N"]


def test_infinite_logprobs_are_written_as_openai_does() -> None:
    answer = reader()
    (token_id,) = ids_of("a")
    answer.feed(ids_of(FINAL), [Logprob(0.0)] * len(ids_of(FINAL)))
    minus_infinity = float("-inf")
    sampled = Logprob(minus_infinity, [token_id], [minus_infinity])

    (entry,) = answer.feed([token_id], [sampled]).logprobs

    assert msgspec.to_builtins(entry) == {
        "token": "a",
        "bytes": [97],
        "logprob": -9999.0,
        "top_logprobs": [{"token": "a", "bytes": [97], "logprob": -9999.0}],
    }
