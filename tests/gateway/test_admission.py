"""Letting in, refusing, and looking at those that wait, with an engine that the test plays."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from tests.fakes import READY, FakeEngine, FakeEngines, FakeTime, settle
from tests.principals import caller
from verger.errors import EngineUnavailable, Overloaded
from verger.gateway.admission import MAX_SPILLING, REVIEW_S, Admission, Ticket, nowhere
from verger.gateway.engine_client import EngineClient, Generation
from verger.gateway.hits import LOOK_UP_WAIT_S, Hits
from verger.gateway.prediction import MIN_SCORES
from verger.gateway.principal import ANONYMOUS, Principal, RoutePolicy
from verger.gateway.routing import ENTER_SAMPLES, Limits, Place, Reason, Spilled
from verger.gateway.submit_queue import LOOK_AHEAD_ROWS, MAX_QUEUED, Origin
from verger.messages import (
    Finished,
    FinishReason,
    Found,
    Hello,
    LookUp,
    PrefillStats,
    Progress,
    RowTokens,
    Stats,
    Submit,
    Tokens,
)

pytestmark = pytest.mark.anyio

MAX_ROWS = 3
PLACES = MAX_ROWS + LOOK_AHEAD_ROWS
LIMITS = Limits(ttft_objective_s=4.0, max_wait_s=30.0)
SUBMIT = Submit(0, [1] * 1_000, 100, [])
PREFILL = PrefillStats(0.25, chunk_tokens=250, best_tokens_s=1_000.0, efficiency=1.0)
ANN, BOB = caller("ann"), caller("bob")
ROAMER = caller("roamer", route=RoutePolicy.PREFER_LOCAL)


def anywhere() -> bool:
    return True


@dataclass
class Office:
    """An admission, its engine, and the requests that a test has open."""

    admission: Admission
    client: EngineClient
    engine: FakeEngine
    time: FakeTime
    cached_tokens: int = 0
    answers: bool = True
    submits: list[Submit] = field(default_factory=list)
    unanswered: list[LookUp] = field(default_factory=list)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def listen(self) -> None:
        while True:
            try:
                frame = await self.engine.receive()
            except (asyncio.IncompleteReadError, ConnectionError):
                return
            if isinstance(frame, LookUp) and self.answers:
                self.tell(frame)
            elif isinstance(frame, LookUp):
                self.unanswered.append(frame)
            elif isinstance(frame, Submit):
                self.submits.append(frame)

    def tell(self, look_up: LookUp) -> None:
        found = min(self.cached_tokens, len(look_up.prompt) - 1)
        self.engine.send(Found(look_up.lookup_id, found, found))

    async def measure(self) -> None:
        """A step takes 0.1 s, a prompt token a millisecond."""
        for second in range(20):
            stats = Stats(1, 0, 10 * second, 0, 10 * second, 0, 0, 0, prefill=PREFILL)
            self.engine.send(stats)
            await settle()
            self.time.now_s += 1.0
        assert self.admission.rates.is_measured

    async def admit(
        self,
        submit: Submit = SUBMIT,
        principal: Principal = ANONYMOUS,
        cloud: Callable[[], bool] = nowhere,
    ) -> Ticket:
        return await self.admission.admit(submit, 1, principal, "low", cloud)

    async def ask(
        self,
        submit: Submit = SUBMIT,
        principal: Principal = ANONYMOUS,
        cloud: Callable[[], bool] = nowhere,
    ) -> tuple[Ticket, Generation]:
        """Let in, and in the queue."""
        ticket = await self.admit(submit, principal, cloud)
        made = await self.stack.enter_async_context(
            self.client.generate_choices(submit, 1, ticket.origin)
        )
        await settle()
        return ticket, made[0]

    async def fill(self, count: int, submit: Submit = SUBMIT) -> None:
        """So many requests that nobody decides about."""
        for _ in range(count):
            made = self.client.generate(submit, Origin(effort="low"))
            await self.stack.enter_async_context(made)
        await settle()

    async def answer(self, generation: Generation, tokens: int = 100, step_s: float = 0.0) -> None:
        request_id = generation.request_id
        prompt_tokens = len(generation.submit.prompt)
        self.engine.send(Progress(request_id, prompt_tokens, prompt_tokens))
        await settle()
        for _ in range(tokens):
            self.engine.send(Tokens([RowTokens(request_id, [7])]))
        await settle()
        self.time.now_s += step_s * tokens
        self.engine.send(Finished(request_id, FinishReason.STOP, prompt_tokens, tokens))
        await settle()


@pytest.fixture
async def office() -> AsyncIterator[Office]:
    engines, time = FakeEngines(), FakeTime()
    client = EngineClient(
        ["engine"], Hello(1, 5), spawn=engines.spawn, clock=time.clock, sleep=time.sleep
    )
    await client.start()
    engine = await engines.next_ready(replace(READY, max_rows=MAX_ROWS))
    await client.wait_ready(10)
    admission = Admission(
        client, "m", LIMITS, clock=time.clock, sleep=time.sleep, uniform=lambda low, high: low
    )
    made = Office(admission, client, engine, time)
    listening = asyncio.create_task(made.listen())
    yield made
    await made.stack.aclose()
    await admission.close()
    engines.exit_all()
    await client.stop(drain_s=0.0)
    listening.cancel()


async def test_what_is_cached_is_known_when_it_is_decided(office: Office) -> None:
    await office.measure()
    cold = await office.admit()
    office.cached_tokens = 900
    warm = await office.admit()

    assert (cold.route.place, cold.route.reason) == (Place.LOCAL, Reason.WITHIN_OBJECTIVE)
    assert cold.first.ttft_s == pytest.approx(1.0, abs=0.1)
    assert warm.first.ttft_s < 0.2


async def test_an_engine_in_a_long_step_is_not_waited_for_longer_than_a_blink(
    office: Office,
) -> None:
    office.answers = False
    started_s = asyncio.get_running_loop().time()
    ticket = await office.admit()
    took_s = asyncio.get_running_loop().time() - started_s

    assert took_s >= LOOK_UP_WAIT_S
    assert ticket.origin.hits.memory_tokens == 0


@pytest.mark.parametrize("is_told", [True, False])
async def test_during_a_long_step_nobody_is_refused_for_prompts_that_are_cached(
    office: Office, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    """Sixteen agents with the same long prefix come at once: 40 s of prompts, or none at all."""
    monkeypatch.setattr("verger.gateway.admission.REFUSAL_WAIT_S", 10.0 if is_told else 0.01)
    await office.measure()
    long = replace(SUBMIT, prompt=[1] * 10_000)
    ahead = [Hits() for _ in range(4)]
    for hits in ahead:
        made = office.client.generate(long, Origin(effort="low", hits=hits))
        await office.stack.enter_async_context(made)
    office.answers, office.cached_tokens = False, 10_000

    def end_the_step() -> None:
        for hits in ahead:
            hits.tell(Found(0, 9_999, 9_999))
        for look_up in office.unanswered:
            office.tell(look_up)

    if is_told:
        asyncio.get_running_loop().call_later(2 * LOOK_UP_WAIT_S, end_the_step)
        ticket = await office.admit(long)
        assert ticket.route.place is not Place.REJECT
    else:
        with pytest.raises(Overloaded):
            await office.admit(long)


@pytest.mark.parametrize(("running", "waits"), [(0, True), (1, False), (2, True), (9, True)])
async def test_whoever_goes_at_once_beside_others_does_not_wait_for_the_answer(
    office: Office, running: int, waits: bool
) -> None:
    """It would only miss the next step. An idle engine answers at once."""
    await office.fill(running)
    office.answers = False
    started_s = asyncio.get_running_loop().time()
    await office.admit(SUBMIT)
    took_s = asyncio.get_running_loop().time() - started_s
    assert (took_s >= LOOK_UP_WAIT_S) is waits


async def test_a_wait_that_is_too_long_is_refused_and_says_which_limit_and_what_to_do(
    office: Office,
) -> None:
    """Three rows of 100 tokens at 0.1 s: three requests take more than 10 s."""
    await office.measure()
    refusal = None
    for _ in range(20):
        try:
            await office.ask()
        except Overloaded as error:
            refusal = error
            break

    assert refusal is not None
    assert office.admission.decisions[Place.QUEUE] > 2
    assert "max_wait_s = 30" in refusal.message
    assert "send fewer requests" in refusal.message
    assert refusal.retry_after_s is not None
    assert 1 <= refusal.retry_after_s <= 60
    assert str(refusal.retry_after_s) in refusal.message
    await office.admit(SUBMIT, BOB)


async def test_forecasts_are_judged_by_what_comes(office: Office) -> None:
    await office.measure()
    ticket, generation = await office.ask()
    office.time.now_s += 2.2
    await office.answer(generation)
    office.admission.end(ticket, (generation,), is_whole=True)

    assert len(office.admission.scores) == 1
    assert office.admission.scores.median_error == pytest.approx(0.5, abs=0.05)
    assert office.admission.scores.wrong_share == 0


@pytest.mark.parametrize(("is_whole", "expected_tokens"), [(True, 50), (False, 400)])
async def test_how_long_answers_are_is_learned_from_whole_ones_only(
    office: Office, is_whole: bool, expected_tokens: int
) -> None:
    long = replace(SUBMIT, prompt=[1], max_tokens=1_000)
    await office.measure()
    ticket, generation = await office.ask(long)
    await office.answer(generation, tokens=50, step_s=0.1)
    office.admission.end(ticket, (generation,), is_whole=is_whole)
    office.admission.limits = Limits(ttft_objective_s=4.0, max_wait_s=1_000.0)
    await office.fill(MAX_ROWS, long)
    late = await office.admit(long)

    assert late.first.wait_s == pytest.approx(expected_tokens * 0.1, rel=0.1)


async def test_poor_forecasts_hand_over_to_the_depth_of_the_queue(office: Office) -> None:
    await office.measure()
    for _ in range(MIN_SCORES):
        ticket, generation = await office.ask()
        office.time.now_s += 20.0
        await office.answer(generation)
        office.admission.end(ticket, (generation,), is_whole=True)
    assert not office.admission.scores.is_trusted
    await office.fill(PLACES)
    assert (await office.admit()).route.wait_s == 0, "nobody waits before it"
    await office.fill(2)
    in_a_row_s = 20.0
    ticket = await office.admit()
    assert ticket.route.wait_s == pytest.approx(2 * in_a_row_s / MAX_ROWS, rel=0.1)


async def test_those_that_wait_are_forecast_again_every_second(office: Office) -> None:
    await office.measure()
    asked = [await office.ask() for _ in range(PLACES + 2)]
    last, _ = asked[-1]
    assert last.route == last.first
    _, first = asked[0]
    await office.answer(first, tokens=60)
    assert last.route == last.first
    await office.time.advance(REVIEW_S)

    assert last.route.ttft_s < last.first.ttft_s


async def spilled(office: Office, principal: Principal = ROAMER) -> Reason | None:
    """Why the next request goes to the cloud; None if it stays."""
    try:
        await office.admit(principal=principal, cloud=anywhere)
    except Spilled as error:
        return error.route.reason
    return None


async def test_whoever_may_spill_goes_once_spilling_has_set_in(office: Office) -> None:
    await office.measure()
    await office.fill(PLACES)
    went = [await spilled(office) for _ in range(ENTER_SAMPLES + 1)]
    assert went == [None] * (ENTER_SAMPLES - 1) + [Reason.SATURATED] * 2
    assert office.admission.decisions[Place.CLOUD] == 2
    assert await spilled(office, caller("home")) is None, "local-only"
    assert (await office.admit(principal=ROAMER)).route.place is Place.QUEUE, "no cloud"
    other = caller("other", route=RoutePolicy.PREFER_LOCAL)
    assert await spilled(office, other) is None, "spilling has not set in for this key"
    assert await spilled(office, caller("any", route=RoutePolicy.ANY)) is Reason.SATURATED


async def test_one_that_waits_may_still_spill_and_does_so_once(office: Office) -> None:
    await office.measure()
    await office.fill(PLACES)
    leaving, _ = await office.ask(principal=ROAMER, cloud=anywhere)
    stuck, _ = await office.ask(principal=ROAMER, cloud=anywhere)
    assert leaving.route.place is stuck.route.place is Place.QUEUE
    told: list[Spilled] = []
    leaving.spill = told.append
    for _ in range(3):
        await office.time.advance(REVIEW_S)

    assert [error.route.reason for error in told] == [Reason.SATURATED]
    assert stuck.route.place is Place.QUEUE, "it cannot leave"
    assert office.admission.decisions[Place.CLOUD] == 1


async def test_what_may_be_warm_waits_for_the_first_look_at_it(office: Office) -> None:
    """A busy engine answers between two steps only: until then nobody is sent away."""
    await office.measure()
    await office.fill(PLACES)
    office.answers = False
    asking = [asyncio.create_task(office.admit(principal=ROAMER, cloud=anywhere)) for _ in range(9)]
    await settle()
    await asyncio.gather(*asking)
    assert office.admission.decisions[Place.CLOUD] == 0


async def test_a_cloud_that_can_no_longer_take_it_is_not_told_to(office: Office) -> None:
    """Its budget may be gone, or its breaker open, by the time."""
    await office.measure()
    await office.fill(PLACES)
    is_open = [True]
    ticket, _ = await office.ask(principal=ROAMER, cloud=lambda: is_open[0])
    told: list[Spilled] = []
    ticket.spill = told.append
    is_open[0] = False
    for _ in range(ENTER_SAMPLES + 1):
        await office.time.advance(REVIEW_S)
    assert not told
    is_open[0] = True
    await office.time.advance(REVIEW_S)
    assert len(told) == 1


async def test_of_more_keys_than_that_the_one_used_least_lately_is_forgotten(
    office: Office,
) -> None:
    for number in range(MAX_SPILLING + 1):
        office.admission._spilling_of(f"key {number}")
    assert len(office.admission._spilling) == MAX_SPILLING
    assert "key 0" not in office.admission._spilling


async def test_when_no_more_may_wait_only_what_may_spill_goes_anywhere(office: Office) -> None:
    await office.fill(PLACES + MAX_QUEUED - 1)
    assert await spilled(office) is None
    await office.fill(1)
    assert await spilled(office) is Reason.QUEUE_TOO_LONG
    assert await spilled(office, caller("home")) is None, "the queue itself refuses it"


async def test_without_an_engine_only_what_may_spill_goes_anywhere(office: Office) -> None:
    office.engine.exit(-9)
    await settle()
    assert await spilled(office) is Reason.ENGINE_DOWN
    for principal, cloud in ((ROAMER, nowhere), (caller("home"), anywhere)):
        with pytest.raises(EngineUnavailable):
            await office.admit(principal=principal, cloud=cloud)


async def test_a_ticket_ends_with_its_request(office: Office) -> None:
    await office.measure()
    ticket, generation = await office.ask()
    office.admission.end(ticket, (), is_whole=False)
    office.admission.end(ticket, (generation,), is_whole=False)
    assert not office.admission._tickets
    assert len(office.admission.scores) == 0, "no token came"
