"""Failover by an injected clock and scripted providers: who is asked, when, and what is the end."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.fakes import FakeTime
from tests.providers import MODEL, provider_of
from verger.api.answer import Delta, Outcome, Piece, Usage
from verger.api.turn_request import TurnRequest
from verger.errors import (
    BudgetExhausted,
    LedgerUnavailable,
    ProviderContextExceeded,
    ProviderRefused,
    ProviderUnavailable,
    ReplyError,
    UpstreamInterrupted,
)
from verger.formats.conversation import Conversation
from verger.formats.harmony.events import Finish
from verger.gateway import failover as rules
from verger.gateway.backends.cloud_request import CloudRequest
from verger.gateway.backends.failure import Fault, UpstreamFailure
from verger.gateway.breaker import BreakerState
from verger.gateway.failover import Failover
from verger.gateway.providers import Target
from verger.messages import Sampling

REQUEST = CloudRequest("req_1", TurnRequest(Conversation(()), Sampling()), 1, len)
END: Piece = (0, Outcome(Finish.STOP, Usage(1, 1, 0, 0)))
T = TypeVar("T")

Step = str | UpstreamFailure | float
"""A text to say, a failure to raise, or seconds to let pass."""


def fault(fault: Fault, **fields: Any) -> UpstreamFailure:
    return UpstreamFailure(fault, fault.value, **fields)


@dataclass
class Providers:
    """Plays each provider's attempts in turn; remembers what it was asked."""

    folder: Path
    scripts: dict[str, list[list[Step]]]
    time: FakeTime = field(default_factory=FakeTime)
    asked: list[tuple[str, float, frozenset[str]]] = field(default_factory=list)
    """Who, with how much of the budget left, without which fields."""
    slept_s: list[float] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)
    closed: int = 0
    failed: int = 0
    """Attempts of which it was told that they failed before the first delta."""
    unpaid: dict[str, ReplyError] = field(default_factory=dict)
    """Why the attempts of a provider cannot be paid."""

    def __post_init__(self) -> None:
        self.failover = Failover(
            self.open_stream, monotonic_s=self.time.clock, sleep=self.sleep, budget_s=60.0
        )
        self.targets = [
            Target(provider_of(self.folder, "compatible", name=name), MODEL)
            for name in self.scripts
        ]

    async def open_stream(
        self, target: Target, request: CloudRequest, budget_s: float, without: frozenset[str]
    ) -> AsyncGenerator[Piece]:
        name = target.provider.name
        self.asked.append((name, budget_s, without))
        try:
            for step in self.scripts[name].pop(0):
                match step:
                    case str():
                        yield 0, Delta(content=step)
                    case float():
                        self.time.now_s += step
                    case UpstreamFailure():
                        raise step
            yield END
        finally:
            self.closed += 1

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.time.now_s += seconds

    def pieces(self) -> AsyncGenerator[Piece]:
        return self.failover.pieces(
            self.targets,
            self._request(),
            lambda target: self.committed.append(target.provider.name),
        )

    def _request(self) -> CloudRequest:
        async def reserve(target: Target) -> None:
            if (refusal := self.unpaid.get(target.provider.name)) is not None:
                raise refusal

        def on_failed() -> None:
            self.failed += 1

        return replace(REQUEST, reserve=reserve, on_failed=on_failed)

    async def answer(self) -> str:
        deltas = [piece async for _, piece in self.pieces() if isinstance(piece, Delta)]
        return "".join(delta.content for delta in deltas)

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.asked]

    def state(self, name: str) -> BreakerState:
        (target,) = [target for target in self.targets if target.provider.name == name]
        return self.failover.breaker_of(target).state


Play = Callable[..., Providers]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return lambda **scripts: Providers(tmp_path, scripts)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def test_the_first_that_answers_is_the_only_one_that_is_asked(play: Play) -> None:
    providers = play(a=[["hel", "lo"]], b=[["other"]])
    assert run(providers.answer()) == "hello"
    assert providers.names == providers.committed == ["a"]


@pytest.mark.parametrize("kind", [Fault.UNREACHABLE, Fault.BROKEN, Fault.FAULTY, Fault.BUSY])
def test_one_retry_then_the_next(kind: Fault, play: Play) -> None:
    providers = play(a=[[fault(kind)], [fault(kind)]], b=[["hello"]])
    assert run(providers.answer()) == "hello"
    assert providers.names == ["a", "a", "b"]
    assert providers.slept_s == [rules.RETRY_PAUSE_S]
    assert providers.committed == ["b"]


def test_a_retry_may_succeed(play: Play) -> None:
    providers = play(a=[[fault(Fault.BROKEN)], ["hello"]], b=[])
    assert run(providers.answer()) == "hello"
    assert providers.names == ["a", "a"]


@pytest.mark.parametrize("kind", [Fault.SILENT, Fault.DENIED, Fault.ABSENT, Fault.TOO_LONG])
def test_what_a_retry_does_not_help_goes_to_the_next_at_once(kind: Fault, play: Play) -> None:
    providers = play(a=[[fault(kind)]], b=[["hello"]])
    assert run(providers.answer()) == "hello"
    assert providers.names == ["a", "b"]
    assert providers.slept_s == []


def test_a_refused_request_is_nobody_elses_business(play: Play) -> None:
    providers = play(a=[[fault(Fault.REFUSED, words="no such thing")]], b=[["hello"]])
    with pytest.raises(ProviderRefused, match="a refuses the request: no such thing"):
        run(providers.answer())
    assert providers.names == ["a"]


def test_a_refused_parameter_is_left_out_once(play: Play) -> None:
    refusal = fault(Fault.REFUSED, words="'temperature' must be 1")
    providers = play(a=[[refusal], ["hello"]])
    assert run(providers.answer()) == "hello"
    assert [without for _, _, without in providers.asked] == [
        frozenset(),
        frozenset({"temperature"}),
    ]
    again = fault(Fault.REFUSED, words="'top_p' must be 1")
    providers = play(a=[[refusal], [again]])
    with pytest.raises(ProviderRefused):
        run(providers.answer())


@pytest.mark.parametrize("name", ["messages", "tools", "stop", "n", "max_tokens", "logprobs"])
def test_what_the_answer_depends_on_is_never_left_out(name: str, play: Play) -> None:
    providers = play(a=[[fault(Fault.REFUSED, param=name)]])
    with pytest.raises(ProviderRefused):
        run(providers.answer())
    assert len(providers.asked) == 1


def test_refusals_do_not_open_the_breaker(play: Play) -> None:
    providers = play(a=[[fault(Fault.REFUSED)] for _ in range(20)])
    for _ in range(20):
        with pytest.raises(ProviderRefused):
            run(providers.answer())
    assert providers.state("a") is BreakerState.CLOSED


@pytest.mark.parametrize("kind", list(Fault))
def test_after_the_commit_nobody_else_is_asked(kind: Fault, play: Play) -> None:
    providers = play(a=[["hel", fault(kind)]], b=[["hello"]])

    async def read() -> None:
        pieces = providers.pieces()
        assert await anext(pieces) == (0, Delta(content="hel"))
        with pytest.raises(UpstreamInterrupted, match="a .* in the middle of the answer"):
            await anext(pieces)

    run(read())
    assert providers.names == ["a"]


def test_the_budget_is_one_for_all_attempts(play: Play) -> None:
    providers = play(
        a=[[25.0, fault(Fault.BROKEN)], [25.0, fault(Fault.BROKEN)]],
        b=[[25.0, fault(Fault.SILENT)]],
        c=[["hello"]],
    )
    with pytest.raises(ProviderUnavailable, match="a broken; b silent"):
        run(providers.answer())
    assert providers.names == ["a", "a", "b"]
    assert [left_s for _, left_s, _ in providers.asked] == [60.0, 34.75, 9.75]


def test_nobody_is_asked_when_no_time_is_left(play: Play) -> None:
    providers = play(a=[[59.96, fault(Fault.SILENT)]], b=[["hello"]])
    with pytest.raises(ProviderUnavailable, match="b was not asked: no time was left"):
        run(providers.answer())
    assert providers.names == ["a"]
    providers = play(a=[[59.9, fault(Fault.SILENT)]], b=[["hello"]])
    assert run(providers.answer()) == "hello"


def test_who_says_until_when_is_left_alone_until_then(play: Play) -> None:
    busy = fault(Fault.BUSY, retry_after_s=300.0)
    providers = play(a=[[busy], ["again"]], b=[["one"], ["two"], ["three"]])
    assert run(providers.answer()) == "one"
    providers.time.now_s += 299
    assert run(providers.answer()) == "two"
    providers.time.now_s += 1
    assert run(providers.answer()) == "again"
    assert providers.names == ["a", "b", "b", "a"]


@pytest.mark.parametrize(("wait_s", "waits"), [(2.0, True), (2.1, False)])
def test_the_only_provider_is_waited_for_if_that_is_soon(
    wait_s: float, waits: bool, play: Play
) -> None:
    busy = fault(Fault.BUSY, retry_after_s=wait_s)
    providers = play(a=[[busy], ["hello"]])
    if waits:
        assert run(providers.answer()) == "hello"
        assert providers.slept_s == [wait_s]
    else:
        with pytest.raises(ProviderUnavailable) as raised:
            run(providers.answer())
        assert raised.value.retry_after_s == 3


def test_it_is_waited_for_once(play: Play) -> None:
    busy = fault(Fault.BUSY, retry_after_s=2.0)
    providers = play(a=[[busy], [busy], ["hello"]])
    with pytest.raises(ProviderUnavailable):
        run(providers.answer())
    assert len(providers.asked) == 2


def test_an_open_breaker_costs_no_attempt_and_no_time(play: Play) -> None:
    providers = play(a=[[fault(Fault.SILENT)] for _ in range(3)], b=[["hello"]] * 4)
    for _ in range(4):
        assert run(providers.answer()) == "hello"
    assert providers.names == ["a", "b"] * 3 + ["b"]


def test_when_all_are_open_the_client_is_told_at_once(play: Play) -> None:
    providers = play(a=[[fault(Fault.SILENT)] for _ in range(3)])
    for _ in range(3):
        with pytest.raises(ProviderUnavailable):
            run(providers.answer())
    with pytest.raises(ProviderUnavailable, match="a is left alone after failures") as raised:
        run(providers.answer())
    assert raised.value.retry_after_s == 30
    assert len(providers.asked) == 3


def test_a_refused_key_is_not_tried_again(play: Play) -> None:
    providers = play(a=[[fault(Fault.DENIED)]], b=[["one"], ["two"]])
    assert run(providers.answer()) == "one"
    assert run(providers.answer()) == "two"
    assert providers.names == ["a", "b", "b"]


def test_too_long_for_all_is_the_requests_fault(play: Play) -> None:
    long = fault(Fault.TOO_LONG, words="at most 8 tokens")
    with pytest.raises(ProviderContextExceeded, match="at most 8 tokens"):
        run(play(a=[[long]], b=[[long]]).answer())
    with pytest.raises(ProviderUnavailable):
        run(play(a=[[long]], b=[[fault(Fault.SILENT)]]).answer())


def test_a_client_that_leaves_closes_the_stream_and_costs_no_reputation(play: Play) -> None:
    providers = play(a=[["hel", "lo"] for _ in range(10)])

    async def leave() -> None:
        pieces = providers.pieces()
        await anext(pieces)
        await pieces.aclose()

    for _ in range(10):
        run(leave())
    assert providers.closed == 10
    assert providers.state("a") is BreakerState.CLOSED


def test_a_client_that_leaves_during_the_probe_lets_the_next_one_probe(play: Play) -> None:
    providers = play(a=[[fault(Fault.SILENT)]] * 3 + [["hel", "lo"], ["hello"]])

    async def fail() -> None:
        with pytest.raises(ProviderUnavailable):
            await providers.answer()

    async def leave() -> None:
        pieces = providers.pieces()
        await anext(pieces)
        await pieces.aclose()

    for _ in range(3):
        run(fail())
    providers.time.now_s += 30
    run(leave())
    assert run(providers.answer()) == "hello"
    assert providers.state("a") is BreakerState.CLOSED


def test_who_may_cost_too_much_is_not_asked_and_the_next_one_is(play: Play) -> None:
    providers = play(a=[], b=[["hello"]])
    providers.unpaid = {"a": BudgetExhausted("too much for a")}
    assert run(providers.answer()) == "hello"
    assert providers.names == ["b"]
    assert (providers.slept_s, providers.failed) == ([], 0)


def test_when_all_cost_too_much_that_is_the_answer(play: Play) -> None:
    providers = play(a=[], b=[])
    providers.unpaid = {name: BudgetExhausted(f"too much for {name}") for name in "ab"}
    with pytest.raises(BudgetExhausted, match="too much for b"):
        run(providers.answer())
    assert providers.names == []


def test_when_one_costs_too_much_and_the_other_fails_both_are_told(play: Play) -> None:
    providers = play(a=[], b=[[fault(Fault.SILENT)]])
    providers.unpaid = {"a": BudgetExhausted("too much for a")}
    with pytest.raises(ProviderUnavailable) as raised:
        run(providers.answer())
    assert "a may cost more than a budget has left" in raised.value.message
    assert "b silent" in raised.value.message
    assert providers.failed == 1


def test_without_a_ledger_nobody_is_asked(play: Play) -> None:
    providers = play(a=[], b=[])
    providers.unpaid = {"a": LedgerUnavailable("cannot be written")}
    with pytest.raises(LedgerUnavailable):
        run(providers.answer())
    assert providers.names == []


def test_who_cannot_be_paid_keeps_the_probe_of_its_breaker(play: Play) -> None:
    providers = play(a=[[fault(Fault.BUSY, retry_after_s=5.0)], ["hello"]])
    with pytest.raises(ProviderUnavailable):
        run(providers.answer())
    providers.time.now_s += 60.0
    providers.unpaid = {"a": BudgetExhausted("too much")}
    with pytest.raises(BudgetExhausted):
        run(providers.answer())
    providers.unpaid = {}
    assert run(providers.answer()) == "hello"


def test_a_failure_after_the_commit_is_not_given_back(play: Play) -> None:
    providers = play(a=[["hello", fault(Fault.BROKEN)]])
    with pytest.raises(UpstreamInterrupted):
        run(providers.answer())
    assert providers.failed == 0
