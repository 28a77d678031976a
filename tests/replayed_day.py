"""A day at the office, replayed: agents and people at their pace, and what was forecast of each.

Seeded, in simulated time, with the real queue, scheduler, prefix cache, pacer and forecast; only
the device is missing. The statistics come once a second, as from an engine.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.simulated_office import Office
from verger.engine.step_cost import StepCost
from verger.gateway.hits import Hits
from verger.gateway.outlook import Observer, Outlook, newcomer
from verger.gateway.output_lengths import OutputLengths
from verger.gateway.prediction import Score
from verger.gateway.principal import Principal
from verger.gateway.rates import RateFit
from verger.gateway.submit_queue import Origin
from verger.messages import Found, LookUp, Stats, Submit

MODEL = "m"
MAX_TOKENS = 4_096
"""What clients ask for; answers end long before, by a stop id that nobody else knows of."""

MAX_PROMPT_TOKENS = 30_000
"""Then a conversation is begun anew."""


@dataclass(frozen=True, slots=True)
class Person:
    """How somebody works: steps of a conversation, and the pauses between and after them."""

    principal: Principal
    new_tokens: int
    output_tokens: int
    steps: int
    step_pause_s: float
    pause_s: float
    parallel: int = 1


@dataclass(order=True, slots=True)
class Arrival:
    """The next step of somebody's conversation."""

    at_s: float
    order: int
    person: Person = field(compare=False)
    history: list[int] = field(compare=False)
    steps_left: int = field(compare=False)


@dataclass(slots=True)
class Asked:
    """A request under way."""

    arrival: Arrival
    prompt: list[int]
    outlook: Outlook
    arrived_s: float


class Day:
    """Everybody's arrivals, one engine, and the scores of the forecasts."""

    def __init__(
        self,
        people: list[Person],
        max_rows: int,
        cost: StepCost,
        seed: int,
        objective_s: float,
        pace: Callable[[float], float],
    ) -> None:
        """`pace` says how many times as often as usual people come back at a time of the day."""
        self.random = Random(seed)
        self.office = Office(max_rows, cost)
        self.fit = RateFit()
        self.lengths = OutputLengths()
        self.observer = Observer(self.office.queue, self.lengths, MODEL)
        self.scores: list[Score] = []
        self.objective_s = objective_s
        self._pace = pace
        self._asked: dict[int, Asked] = {}
        self._arrivals: list[Arrival] = []
        self._order = 0
        self._ended = 0
        self._stats_s = 0.0
        for person in people:
            for _ in range(person.parallel):
                self._begin(person, self._pause_s(person.pause_s))

    def run(self, end_s: float) -> None:
        office = self.office
        while self._arrivals and self._arrivals[0].at_s < end_s:
            due_s = self._arrivals[0].at_s
            while office.now_s < due_s and not office.scheduler.is_idle:
                office.step()
                self._settle()
                due_s = self._arrivals[0].at_s if self._arrivals else end_s
            office.now_s = max(office.now_s, due_s)
            if self._arrivals and self._arrivals[0].at_s <= office.now_s:
                self._ask(heapq.heappop(self._arrivals))
        while not office.scheduler.is_idle:
            office.step()
            self._settle()

    def _begin(self, person: Person, at_s: float) -> None:
        system = [3] * 1_500
        mine = [self.random.randrange(10, 900) for _ in range(20)]
        self._push(Arrival(at_s, self._next(), person, system + mine, person.steps))

    def _push(self, arrival: Arrival) -> None:
        heapq.heappush(self._arrivals, arrival)

    def _next(self) -> int:
        self._order += 1
        return self._order

    def _ask(self, arrival: Arrival) -> None:
        rng, person, office = self.random, arrival.person, self.office
        count = min(15_000, max(5, int(rng.lognormvariate(0, 0.5) * person.new_tokens)))
        prompt = arrival.history + [rng.randrange(10, 900) for _ in range(count)]
        sampled = max(2, int(rng.lognormvariate(0, 0.5) * person.output_tokens))
        submit = Submit(0, prompt, sampled, [], cache_salt="office")
        hits = Hits()
        office.scheduler.look_up(LookUp(0, prompt, "office"))
        (found,) = (f for f in office.scheduler.take_frames() if isinstance(f, Found))
        hits.tell(found)
        declared = Submit(0, prompt, MAX_TOKENS, [])
        origin = Origin(person.principal, "low", hits)
        asked = newcomer(declared, 1, origin, office.now_s)
        outlooks = self.observer.outlooks(self.fit.rates, office.max_rows, asked)
        (outlook,) = (one for one in outlooks if one.waiting is asked)
        request_id = office.ask(person.principal, submit, hits)
        self._asked[request_id] = Asked(arrival, prompt, outlook, office.now_s)

    def _settle(self) -> None:
        office = self.office
        if office.now_s >= self._stats_s + 1.0 or office.scheduler.is_idle:
            self._stats_s = office.now_s
            self.fit.observe(stats_of(office), office.now_s)
            office.queue.counters.prices = self.fit.rates.prices(self.fit.rows)
        for request_id in office.finished[self._ended :]:
            self._end(request_id, self._asked.pop(request_id))
        self._ended = len(office.finished)

    def _end(self, request_id: int, asked: Asked) -> None:
        seen = self.office.seen[request_id]
        score = Score(asked.outlook.forecast.ttft_s, seen.ttft_s, self.objective_s)
        self.scores.append(score)
        person, arrival = asked.arrival.person, asked.arrival
        kind = self.observer.kind(Origin(person.principal, "low"))
        said = self.office.sampled[request_id]
        self.lengths.add(kind, said)
        now_s = self.office.now_s
        if arrival.steps_left > 1 and len(asked.prompt) < MAX_PROMPT_TOKENS:
            history = asked.prompt + (asked.prompt * 2)[:said]
            at_s = now_s + self._pause_s(person.step_pause_s)
            self._push(Arrival(at_s, self._next(), person, history, arrival.steps_left - 1))
        else:
            self._begin(person, now_s + self._pause_s(person.pause_s))

    def _pause_s(self, usual_s: float) -> float:
        return self.random.expovariate(self._pace(self.office.now_s) / usual_s)


def stats_of(office: Office) -> Stats:
    """As the engine's loop tells it."""
    scheduler = office.scheduler
    return Stats(
        running=scheduler.running,
        waiting=scheduler.waiting,
        steps=scheduler.steps,
        prefill_tokens=scheduler.prefill_tokens,
        decode_tokens=scheduler.decode_tokens,
        kv_bytes=0,
        active_bytes=0,
        peak_bytes=0,
        prefill=scheduler.pacer.stats(),
    )
