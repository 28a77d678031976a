"""Providers' chunks, as they really come, and what our clients get of them."""

import itertools
from typing import Any

import msgspec
import pytest

from verger.api.answer import Delta, Outcome, Piece, TokenLogprob, ToolCallDelta, Usage
from verger.formats.harmony.events import Finish
from verger.gateway.backends import upstream_answer
from verger.gateway.backends.failure import Fault, UpstreamFailure
from verger.gateway.backends.upstream_answer import UpstreamAnswer

NO_USAGE = Usage(0, 0, 0, 0)


class Reader:
    """Feeds chunks to an answer."""

    def __init__(self, choices: int = 1) -> None:
        numbers = itertools.count(1)
        self.signed: dict[str, str] = {}
        self.answer = UpstreamAnswer(
            choices, lambda: f"call_{next(numbers)}", self.signed.__setitem__
        )

    def feed(self, **chunk: Any) -> list[Piece]:
        return self.answer.feed(msgspec.json.encode(chunk))

    def choice(self, index: int = 0, finish: str | None = None, **delta: Any) -> list[Piece]:
        return self.feed(choices=[{"index": index, "delta": delta, "finish_reason": finish}])

    def call(self, **piece: Any) -> ToolCallDelta | None:
        """What becomes of a piece of a call; `name` and `arguments` stand in its function."""
        names = {"name", "arguments"} & piece.keys()
        function = {name: piece.pop(name) for name in names}
        pieces = self.choice(tool_calls=[{**piece, "function": function}])
        if not pieces:
            return None
        ((_, delta),) = pieces
        assert isinstance(delta, Delta)
        (call,) = delta.tool_calls
        return call

    def finish(self, reason: str) -> Finish:
        self.choice(finish=reason)
        ((_, outcome),) = self.answer.outcomes(NO_USAGE)
        assert isinstance(outcome, Outcome)
        return outcome.finish


def test_content_and_reasoning_under_either_name() -> None:
    reader = Reader()
    assert reader.choice(role="assistant", content="") == []
    assert reader.choice(reasoning="hm") == [(0, Delta(reasoning="hm"))]
    assert reader.choice(reasoning_content="hm") == [(0, Delta(reasoning="hm"))]
    assert reader.choice(reasoning="a", reasoning_content="a") == [(0, Delta(reasoning="a"))]
    assert reader.choice(content="yes", reasoning=None) == [(0, Delta(content="yes"))]
    assert reader.choice(refusal="no") == [(0, Delta(content="no"))]
    assert reader.finish("stop") is Finish.STOP


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", Finish.STOP),
        ("length", Finish.LENGTH),
        ("content_filter", Finish.CONTENT_FILTER),
        ("tool_calls", Finish.STOP),
        ("eos", Finish.STOP),
    ],
)
def test_finish_reasons_without_calls(reason: str, finish: Finish) -> None:
    assert Reader().finish(reason) is finish


@pytest.mark.parametrize("reason", ["stop", "tool_calls", "function_call"])
def test_an_answer_with_a_call_ends_with_tool_calls(reason: str) -> None:
    reader = Reader()
    reader.call(index=0, id="a", name="f")
    assert reader.finish(reason) is Finish.TOOL_CALLS


def test_calls_as_openai_streams_them() -> None:
    reader = Reader()
    assert reader.call(index=0, id="a", name="f", arguments="") == ToolCallDelta(0, "", "a", "f")
    assert reader.call(index=0, arguments='{"x"') == ToolCallDelta(0, '{"x"')
    assert reader.call(index=0, arguments=":1}") == ToolCallDelta(0, ":1}")
    assert reader.call(index=1, id="b", name="g", arguments="{}") == ToolCallDelta(
        1, "{}", "b", "g"
    )


def test_calls_whose_every_piece_repeats_id_and_name() -> None:
    reader = Reader()
    reader.call(index=0, id="a", name="f", arguments="{")
    assert reader.call(index=0, id="a", name="f", arguments="}") == ToolCallDelta(0, "}")


def test_calls_without_an_index_or_all_with_the_index_0() -> None:
    for index in ({}, {"index": 0}):
        reader = Reader()
        reader.call(**index, id="a", name="f", arguments="{}")
        assert reader.call(**index, id="b", name="f", arguments="{}") == ToolCallDelta(
            1, "{}", "b", "f"
        )


def test_calls_without_an_id_or_with_one_that_is_taken_or_too_long_get_ours() -> None:
    reader = Reader()
    assert reader.call(index=0, name="f") == ToolCallDelta(0, "", "call_1", "f")
    assert reader.call(index=1, id="call_1", name="f") == ToolCallDelta(1, "", "call_2", "f")
    longest = "x" * upstream_answer.MAX_ID_CHARACTERS
    assert reader.call(index=2, id=longest, name="f") == ToolCallDelta(2, "", longest, "f")
    assert reader.call(index=3, id=f"{longest}x", name="f") == ToolCallDelta(3, "", "call_3", "f")


def test_arguments_that_are_an_object_become_text() -> None:
    assert Reader().call(index=0, id="a", name="f", arguments={"x": 1}) == ToolCallDelta(
        0, '{"x":1}', "a", "f"
    )


def test_geminis_signature_in_a_trailing_delta_without_an_index() -> None:
    reader = Reader()
    reader.call(index=0, id="a", name="f", arguments="{}")
    signed = {"google": {"thought_signature": "s"}}
    assert reader.choice(tool_calls=[{"extra_content": signed}]) == []
    assert reader.signed == {"a": "s"}


@pytest.mark.parametrize(
    ("pieces", "what"),
    [
        ([{"index": 0, "id": "a"}], "without a name"),
        (
            [{"index": 0, "name": "f"}, {"index": 1, "name": "f"}, {"index": 0, "arguments": "x"}],
            "mixed the pieces",
        ),
    ],
)
def test_calls_that_cannot_be_put_together(pieces: list[Any], what: str) -> None:
    reader = Reader()
    *before, last = pieces
    for piece in before:
        reader.call(**piece)
    with pytest.raises(UpstreamFailure, match=what):
        reader.call(**last)


def test_the_number_of_calls_is_bounded() -> None:
    reader = Reader()
    for index in range(upstream_answer.MAX_CALLS):
        reader.call(index=index, name="f")
    with pytest.raises(UpstreamFailure, match="tool calls without end"):
        reader.call(index=upstream_answer.MAX_CALLS, name="f")


def test_the_length_of_an_answer_is_bounded() -> None:
    reader = Reader()
    half = "x" * (upstream_answer.MAX_ANSWER_CHARACTERS // 2)
    reader.choice(content=half)
    reader.choice(reasoning=half)
    with pytest.raises(UpstreamFailure, match="an answer without end"):
        reader.choice(content="x")


@pytest.mark.parametrize("data", [b"{", b"[]", b'"x"', b'{"choices": [1]}', b"\xff", b""])
def test_what_is_no_chunk_breaks_the_answer(data: bytes) -> None:
    with pytest.raises(UpstreamFailure) as raised:
        Reader().answer.feed(data)
    assert raised.value.fault is Fault.BROKEN


def test_chunks_without_choices_are_nothing() -> None:
    reader = Reader()
    assert reader.feed() == reader.feed(choices=None) == reader.feed(choices=[], id="x") == []


def test_errors_among_chunks_are_failures() -> None:
    with pytest.raises(UpstreamFailure) as raised:
        Reader().feed(error={"code": 429, "message": "slow down"}, choices=[])
    assert (raised.value.fault, raised.value.words) == (Fault.BUSY, "slow down")
    with pytest.raises(UpstreamFailure, match="gave up"):
        Reader().choice(finish="error")


@pytest.mark.parametrize("index", [-1, 1])
def test_a_choice_that_nobody_asked_for_breaks_the_answer(index: int) -> None:
    with pytest.raises(UpstreamFailure, match="nobody asked for"):
        Reader().choice(index, content="x")


def test_text_after_the_finish_breaks_the_answer() -> None:
    reader = Reader()
    reader.choice(finish="stop", content="x")
    assert reader.choice(finish=None) == []
    with pytest.raises(UpstreamFailure, match="went on"):
        reader.choice(content="y")


def test_an_answer_has_finished_when_all_its_choices_have() -> None:
    reader = Reader(choices=2)
    reader.choice(1, finish="length", content="b")
    assert not reader.answer.has_finished
    reader.choice(0, finish="stop", content="a")
    assert reader.answer.has_finished
    assert not reader.answer.is_done
    reader.answer.feed(b" [DONE]")
    assert reader.answer.is_done
    usage = Usage(3, 4, 0, 0, 0.5)
    assert reader.answer.outcomes(usage) == [
        (0, Outcome(Finish.STOP, usage)),
        (1, Outcome(Finish.LENGTH, Usage(3, 0, 0, 0))),
    ]


def test_the_last_usage_counts() -> None:
    reader = Reader()
    assert not reader.answer.has_usage
    reader.feed(usage={"prompt_tokens": 5, "completion_tokens": 1})
    reader.feed(
        usage={
            "prompt_tokens": 5,
            "completion_tokens": 9,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 2},
            "cost": 0.25,
        }
    )
    reader.feed(usage=None)
    assert reader.answer.reported_usage() == Usage(5, 9, 4, 2, 0.25)


def test_a_usage_that_contradicts_itself_is_made_consistent() -> None:
    reader = Reader()
    reader.feed(
        usage={
            "prompt_tokens": 5,
            "completion_tokens": -1,
            "prompt_tokens_details": {"cached_tokens": 6},
            "completion_tokens_details": {"reasoning_tokens": 2},
            "cost": -1,
        }
    )
    assert reader.answer.reported_usage() == Usage(5, 0, 5, 0, None)


def test_a_usage_of_nothing_is_no_usage() -> None:
    reader = Reader()
    reader.feed(usage={"prompt_tokens": 0, "completion_tokens": 0})
    assert not reader.answer.has_usage


def test_without_a_usage_what_came_is_counted() -> None:
    reader = Reader()
    reader.choice(reasoning="abc")
    reader.choice(content="de")
    reader.call(index=0, name="f", arguments="{}")
    assert reader.answer.counted_usage(10, len) == Usage(10, 8, 0, 3)


def test_logprobs_are_passed_on() -> None:
    reader = Reader()
    top = {"token": "y", "logprob": -2.0, "bytes": [121]}
    sent = {"token": "x", "logprob": -0.5, "bytes": None, "top_logprobs": [top]}
    ((_, delta),) = reader.feed(
        choices=[{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": [sent]}}]
    )
    assert isinstance(delta, Delta)
    (logprob,) = delta.logprobs
    assert logprob == TokenLogprob("x", [120], -0.5, logprob.top_logprobs)
    assert logprob.top_logprobs[0].token == "y"
