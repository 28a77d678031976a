"""The agents' traces: the same for the same seed, and of the promised shape."""

import json
from random import Random

import pytest

from tests.harmony_text import byte_vocabulary
from verger.bench.prompts import joined_text
from verger.bench.trace import SCALES, TOOLS, Scale, Trace, loop_bias, make_trace
from verger.formats.conversation import Effort

SMALL = Scale("small", 40, 0, 20, 50, 10, Effort.MEDIUM)


def trace(seed: int = 1, agents: int = 3, steps: int = 4, scale: Scale = SMALL) -> Trace:
    return make_trace(seed, agents, steps, scale, byte_vocabulary())


def test_a_trace_follows_from_its_seed() -> None:
    assert trace(seed=1) == trace(seed=1)
    assert trace(seed=1) != trace(seed=2)


def test_calls_then_an_answer_then_a_second_turn() -> None:
    made = trace()
    assert len(made.agents) == 3
    for steps in made.agents:
        assert [step.call is not None for step in steps] == [True] * 4 + [False] * 2
        assert [bool(step.result) for step in steps] == [False, True, True, True, True, False]
        assert [bool(step.user) for step in steps] == [True, True, True, True, False, True]


def test_what_is_asked_for_is_a_call_of_a_declared_tool() -> None:
    properties = {tool.name: (tool.parameters or {})["properties"] for tool in TOOLS}
    calls = [step for steps in trace(agents=8).agents for step in steps if step.call]
    for step in calls:
        assert step.call is not None
        assert step.user == f"call {step.call.name} {step.call.arguments}"
        assert json.loads(step.call.arguments).keys() == properties[step.call.name].keys()


def test_agents_do_not_share_their_results() -> None:
    """Else less would have to be computed than it looks."""
    results = [step.result for steps in trace(agents=8).agents for step in steps if step.result]
    assert len(set(results)) == len(results) == 8 * 4


def test_sizes_are_those_of_the_scale() -> None:
    made, vocabulary = trace(agents=8, steps=10), byte_vocabulary()
    assert 70 < len(vocabulary.encode(made.system)) <= 40 + 36
    between = [len(vocabulary.encode(step.result)) for steps in made.agents for step in steps[1:-2]]
    assert min(between) > 10
    assert max(between) <= 50


def test_a_larger_scale_puts_a_task_before_the_call() -> None:
    (steps,) = trace(agents=1, scale=Scale("large", 40, 30, 20, 50, 10, Effort.LOW)).agents
    task, _, order = steps[0].user.rpartition("\n")
    assert 20 < len(byte_vocabulary().encode(task)) <= 30
    assert order.startswith("call ")


def test_both_scales_are_named_as_they_are_asked_for() -> None:
    assert {name: scale.name for name, scale in SCALES.items()} == {"nano": "nano", "full": "full"}


def test_only_words_of_one_token_are_forbidden() -> None:
    assert loop_bias(byte_vocabulary()) == {}


@pytest.mark.parametrize("tokens", [0, 1, 30, 500])
def test_joined_words_have_hardly_fewer_tokens_than_asked_for(tokens: int) -> None:
    """The longest word is a whole one less."""
    have = len(byte_vocabulary().encode(joined_text(tokens, byte_vocabulary(), Random(1))))
    assert tokens - 12 < have <= tokens
