"""What a soak asks: the same for the same seed, of every kind, and all of it valid."""

import json
from collections import Counter
from functools import cache
from itertools import islice

import msgspec
import pytest

from verger.api.chat_request import parse_chat_request
from verger.bench.soak_asks import (
    LEAVING,
    MAX_LEAVE_EVENTS,
    MAX_LEAVE_S,
    PARTS,
    Ask,
    asks,
    limited,
    plain,
)
from verger.messages import Sampling

REQUESTS = 1000
VOCABULARY_SIZE = 1024


@cache
def drawn(requests: int = REQUESTS, seed: int = 1, clients: int = 3) -> list[Ask]:
    return [asked for turns in limited(asks(seed, "m", clients), requests) for asked in turns]


def test_the_same_seed_asks_the_same_and_another_something_else() -> None:
    assert list(islice(asks(1, "m", 3), 50)) == list(islice(asks(1, "m", 3), 50))
    assert drawn(100) != drawn(100, seed=2)


def test_a_conversation_does_not_depend_on_those_before_it() -> None:
    conversations = list(islice(asks(1, "m", 3), 20))
    assert list(islice(asks(1, "m", 3, first=7), 13)) == conversations[7:]


@pytest.mark.parametrize("requests", [1, 2, 3, 100])
def test_there_are_as_many_requests_as_were_wanted(requests: int) -> None:
    assert len(drawn(requests)) == requests


def test_every_kind_occurs_about_as_often_as_it_should() -> None:
    found = Counter(feature for asked in drawn() for feature in asked.features)
    assert found["leaves"] / REQUESTS == pytest.approx(LEAVING, abs=0.04)
    for name, part in PARTS.items():
        # What would spoil a call is left out of those requests.
        assert 0.6 * part < found[name] / REQUESTS < part + 0.04, name
    assert found["tools"] > REQUESTS / 10


def test_clients_leave_before_the_first_byte_and_after_some_events() -> None:
    leaves = [asked.leave for asked in drawn() if asked.leave]
    events = {leave.after_events for leave in leaves if leave.after_events is not None}
    times_s = [leave.after_s for leave in leaves if leave.after_events is None]
    assert events == set(range(1, MAX_LEAVE_EVENTS + 1))
    assert 0 <= min(times_s) < 0.1 * MAX_LEAVE_S
    assert 0.9 * MAX_LEAVE_S < max(times_s) <= MAX_LEAVE_S
    streamed = [asked for asked in drawn() if asked.leave and asked.leave.after_events]
    assert all(asked.body["stream"] for asked in streamed)


def test_every_request_is_one_that_the_server_takes() -> None:
    for asked in (*drawn(), plain("m")):
        body = msgspec.json.encode(asked.body)
        assert not parse_chat_request(body, Sampling(), VOCABULARY_SIZE).unknown_parameters


def test_only_a_greedy_answer_without_penalties_is_known_beforehand() -> None:
    for asked in drawn():
        is_free = bool(asked.features & {"sampled", "penalties"})
        assert (asked.expected is None) == is_free
        assert (asked.body["temperature"] > 0) == ("sampled" in asked.features)
        if asked.expected and asked.expected.tool:
            assert json.loads(asked.expected.text)
            assert asked.body["messages"][-1]["content"].endswith(asked.expected.text)


def test_a_turn_brings_the_whole_conversation_and_one_client_has_it() -> None:
    for turns in islice(asks(1, "m", 3), 200):
        assert len({asked.client for asked in turns}) == 1
        for earlier, later in zip(turns, turns[1:], strict=False):
            said = earlier.body["messages"]
            assert later.body["messages"][: len(said)] == said
            assert later.body["messages"][len(said)]["role"] == "assistant"
    assert {asked.client for asked in drawn(100)} == {0, 1, 2}
