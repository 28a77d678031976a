"""Every fault of a provider, before and after it has begun to answer, streamed and not: the client
gets a correct answer from the next choice, or one clear error. Through a gateway, over sockets.
"""

import asyncio
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.fault_plays import ANSWER, AT_THE_HEAD, CORRECT, IN_STREAM, TEXT
from tests.fault_provider import fault_provider
from tests.gateway.clouds import cloud_gateway, played_by
from tests.gateway.conftest import FAULTS
from tests.gateway.harness import Gateway

pytestmark = pytest.mark.anyio

MAX_AT_ONCE = 12
PARTIAL = "".join(ANSWER[:2])
EARLY = sorted([*IN_STREAM, *AT_THE_HEAD])
LATE = sorted(f"{name}-late" for name in IN_STREAM)

NEXT = "answered by second"
UNAVAILABLE = "503 provider_unavailable"
REFUSED = "400 provider_refused"
TOO_LONG = "400 context_length_exceeded"
INTERRUPTED = "502 upstream_interrupted"
CUT_OFF = "upstream_interrupted, cut off"
REFUSALS = ("400", "422", "error-in-array")


@dataclass(frozen=True)
class Case:
    """One request. With `has_next`, a second provider could answer it correctly."""

    play: str
    has_next: bool
    is_streamed: bool

    @property
    def model(self) -> str:
        """A model of its own each, since breakers would remember."""
        suffix = f"{'next' if self.has_next else 'alone'}-{'sse' if self.is_streamed else 'json'}"
        return f"{self.play}.{suffix}"

    @property
    def name(self) -> str:
        return f"{'cloud' if self.has_next else 'first'}/{self.model}"


CASES = [
    Case(play, has_next, is_streamed)
    for play, has_next, is_streamed in itertools.product(
        [*EARLY, *LATE, *CORRECT], (True, False), (True, False)
    )
]


def expected(case: Case) -> str:
    if case.play in CORRECT:
        return "answered by first"
    if case.play in LATE:
        return CUT_OFF if case.is_streamed else INTERRUPTED
    if case.play in REFUSALS:
        return REFUSED
    if case.has_next:
        return NEXT
    return TOO_LONG if case.play == "context-length" else UNAVAILABLE


async def outcome(gateway: Gateway, case: Case) -> str:
    """What the client was told."""
    fields: dict[str, Any] = {"model": case.name}
    if not case.is_streamed:
        response = await gateway.chat(**fields)
        if response.status_code != 200:
            return _refusal(response)
        assert response.json()["choices"][0]["message"]["content"] == TEXT
        return f"answered by {response.headers['x-verger-served-by'].removeprefix('cloud:')}"
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    async with gateway.http.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            await response.aread()
            return _refusal(response)
        return await _streamed(response)


def _refusal(response: httpx.Response) -> str:
    return f"{response.status_code} {response.json()['error']['code']}"


async def _streamed(response: httpx.Response) -> str:
    events: list[Any] = []
    try:
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                events.append(json.loads(line[6:]))
        is_cut_off = False
    except httpx.RemoteProtocolError:
        is_cut_off = True
    if "error" in events[-1]:
        assert is_cut_off, "an error must not look like a clean end"
        assert events[-1]["error"]["partial"] is True
        assert _content(events[:-1]) == PARTIAL
        return f"{events[-1]['error']['code']}, cut off"
    assert not is_cut_off
    assert _content(events) == TEXT
    return f"answered by {events[-1]['usage']['served_by'].removeprefix('cloud:')}"


def _content(events: list[Any]) -> str:
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.fixture(scope="module")
async def outcomes(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Mapping[Case, str]:
    """All cases at once: most of them are deadlines that have to pass."""
    folder = tmp_path_factory.mktemp("faults")
    places = asyncio.Semaphore(MAX_AT_ONCE)

    async def play(gateway: Gateway, case: Case) -> tuple[Case, str]:
        async with places:
            return case, await outcome(gateway, case)

    async with fault_provider() as server:
        first = played_by(server, folder, "first", [case.model for case in CASES])
        second = played_by(
            server, folder, "second", {c.model: "correct" for c in CASES if c.has_next}
        )
        async with cloud_gateway(folder, [first, second]) as gateway:
            found = dict(await asyncio.gather(*(play(gateway, case) for case in CASES)))
    request.config.stash[FAULTS] = list(_table(found))
    return found


def _table(found: Mapping[Case, str]) -> Iterator[str]:
    """Faults with the same consequences in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for play in [*EARLY, *LATE, *CORRECT]:
        told = tuple(found[case] for case in CASES if case.play == play)
        rows.setdefault(told, []).append(play)
    for (next_sse, next_json, alone_sse, alone_json), plays in rows.items():
        yield f"with a next choice: {next_sse} | {next_json}; alone: {alone_sse} | {alone_json}"
        yield f"    {', '.join(plays)}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}")
async def test_the_client_gets_a_correct_answer_or_one_clear_error(
    case: Case, outcomes: Mapping[Case, str]
) -> None:
    assert outcomes[case] == expected(case)
