"""Whose turn it is: the order in which requests reach the engine, and how many may wait.

Owned by `engine_client.py`, which tells it what becomes of each request. Pure; must not know
processes or HTTP. This is the one place that decides the order: the engine shares its steps fairly
among what it was given, and is given few more than it has rows, so that a request that comes later
can still go first.

The key that has used least of the GPU (`fairness.py`) goes first, and of one key's requests the
oldest. A key has at most its share of the rows, and one row is kept for a key that has none: it
never waits for the end of somebody's answer unless all rows belong to different keys. Requests of
the batch class take what the interactive ones leave, except that one of them goes first once in
BATCH_TURN_S. As long as nobody has sent a key there are no keys to be fair to: first come, first
served, and all rows are used.

    wait ─► given: its sequences count among the engine's, and its key's ─► each ends by itself
      └───► removed
"""

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from verger.gateway.fairness import FairCounters, Work
from verger.gateway.generation import Event, Generation
from verger.gateway.hits import Hits
from verger.gateway.principal import ANONYMOUS, Principal
from verger.messages import BACKGROUND, BATCH, INTERACTIVE, Finished, Progress, RowTokens, Submit

LOOK_AHEAD_ROWS = 2
"""Sequences beyond its rows that the engine holds, to fill a row in the step after it is free."""
MAX_QUEUED = 256
"""Sequences that may wait; a request of n choices counts n."""
BATCH_TURN_S = 60.0
"""How often a batch request goes first, if one has waited so long: nobody starves."""

Choices = tuple[Generation, ...]
"""The sequences of one request: they share a prompt, wait together and are submitted at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """Where a request comes from, and what is known of it besides what the engine is told."""

    principal: Principal = ANONYMOUS
    effort: str = ""
    hits: Hits = field(default_factory=Hits)
    """What is cached of its prompt; may become known while it waits."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A request in the queue."""

    choices: Choices
    origin: Origin
    arrived_s: float

    @property
    def request_id(self) -> int:
        """Its first sequence's; the later a request came, the higher."""
        return self.choices[0].request_id

    @property
    def key_id(self) -> str:
        """Whose it is."""
        return self.origin.principal.key_id

    @property
    def submit(self) -> Submit:
        """What the engine will be asked for."""
        return self.choices[0].submit

    @property
    def uncached_tokens(self) -> int:
        """What of its prompt has to be computed, as far as that is known."""
        return len(self.submit.prompt) - self.origin.hits.disk_tokens

    @property
    def is_batch(self) -> bool:
        """Whether interactive requests go first."""
        return self.submit.priority == BATCH


@dataclass(slots=True)
class _Running:
    """A request that the engine has; `sequences` of it have not ended."""

    work: Work
    sequences: int
    origin: Origin


class SubmitQueue:
    """Requests that wait for their turn, and the permits of those that have had it."""

    def __init__(self, max_queued: int = MAX_QUEUED) -> None:
        self.counters = FairCounters()
        self._max_queued = max_queued
        self._waiting: dict[int, Waiting] = {}
        self._given: dict[int, Generation] = {}
        """What the engine has and somebody waits for."""
        self._running: dict[int, _Running] = {}
        """By sequence; the choices of one request share the value."""
        self._rows: Counter[str] = Counter()
        """Key → how many sequences of it the engine has; background work needs no row of a key."""
        self._is_shared = False
        self._batch_turn_s = -math.inf

    @property
    def sequences(self) -> int:
        """How many wait."""
        return sum(len(waiting.choices) for waiting in self._waiting.values())

    @property
    def given(self) -> int:
        """How many the engine has, not counting what it does in the background."""
        return self._rows.total()

    def has_place(self, choices: int) -> bool:
        """Whether so many more may wait."""
        return self.sequences + choices <= self._max_queued

    def push(self, choices: Choices, origin: Origin, now_s: float) -> bool:
        """Queue a request; False if there is no room for it."""
        if not self.has_place(len(choices)):
            return False
        waiting = Waiting(choices, origin, now_s)
        self._waiting[waiting.request_id] = waiting
        self._is_shared |= waiting.key_id != ANONYMOUS.key_id
        self.counters.enter(waiting.key_id, waiting.submit.priority)
        return True

    def pop_next(self, max_rows: int, now_s: float) -> Choices | None:
        """The request whose turn it is, which the engine shall have now; None to wait.

        Nobody overtakes a request that waits for all its choices to fit, but a key without a row.
        A request of more choices than the engine is ever given goes once the engine has none.
        """
        is_blocked = False
        for waiting, is_urgent in self._in_turn(now_s):
            has_rows = self._rows[waiting.key_id] > 0
            if is_blocked and (has_rows or not is_urgent):
                continue
            if has_rows and self._exceeds_share(waiting, max_rows):
                continue
            places = self._places(has_rows, is_urgent, max_rows)
            if not self.given or self.given + len(waiting.choices) <= places:
                return self._give(waiting, is_urgent, now_s)
            if not has_rows and is_urgent:
                return None
            is_blocked = True
        return None

    def start_background(self, generation: Generation, principal: Principal) -> None:
        """The engine gets work that nobody waits for: it has no turn, but is charged for."""
        prompt_tokens = len(generation.submit.prompt)
        self.counters.enter(principal.key_id, BACKGROUND)
        # What it costs is known once the engine has begun.
        work = self.counters.begin(principal.key_id, BACKGROUND, prompt_tokens, prompt_tokens)
        self._running[generation.request_id] = _Running(work, 1, Origin(principal))

    def note(self, event: Event) -> None:
        """Charge for what the engine says that it has done."""
        work = self._running[event.request_id].work
        match event:
            case Progress():
                self.counters.note_prefilled(work, event.prefilled_tokens, event.cached_tokens)
            case RowTokens():
                self.counters.note_decoded(work, len(event.ids))
            case Finished():
                pass

    def end(self, request_id: int) -> None:
        """The engine has one sequence less."""
        self._given.pop(request_id, None)
        running = self._running.pop(request_id)
        work = running.work
        if work.priority != BACKGROUND:
            self._rows[work.key_id] -= 1
            self._rows += Counter()  # Drops those that have none.
        running.sequences -= 1
        if not running.sequences:
            self.counters.end(work)
            self.counters.leave(work.key_id, work.priority)

    def remove(self, choices: Choices) -> bool:
        """Take a request out; False if it does not wait."""
        waiting = self._waiting.pop(choices[0].request_id, None)
        if waiting is not None:
            self.counters.leave(waiting.key_id, waiting.submit.priority)
        return waiting is not None

    def clear(self) -> list[Choices]:
        """Take all of them out."""
        waiting = [waiting.choices for waiting in self._waiting.values()]
        for choices in waiting:
            self.remove(choices)
        return waiting

    # What a forecast is made of.

    def running(self) -> list[tuple[Generation, Origin]]:
        """The sequences that the engine has, in the order in which it got them."""
        return [(g, self._running[request_id].origin) for request_id, g in self._given.items()]

    def share(self, principal: Principal, max_rows: int) -> int | None:
        """How many rows a key may have; None as long as there are no keys."""
        if not self._is_shared and principal.key_id == ANONYMOUS.key_id:
            return None
        return principal.max_parallel or (max_rows + 1) // 2

    def in_fair_order(
        self, asked: Waiting | None, output_tokens: Callable[[Waiting], int]
    ) -> list[Waiting]:
        """Who waits, and `asked` if it came now, in the order in which they would go if nobody
        else came; shares and the turns of the batch class apart."""
        lines: dict[tuple[bool, str], deque[Waiting]] = {}
        for waiting in [*self._waiting.values(), *([asked] if asked else [])]:
            lines.setdefault((waiting.is_batch, waiting.key_id), deque()).append(waiting)
        heap = [
            (is_batch, self.counters.lifted_s(key_id, line[0].submit.priority), line[0].request_id)
            for (is_batch, key_id), line in lines.items()
        ]
        by_head = {line[0].request_id: line for line in lines.values()}
        heapq.heapify(heap)
        order: list[Waiting] = []
        while heap:
            is_batch, counter_s, request_id = heapq.heappop(heap)
            line = by_head.pop(request_id)
            first = line.popleft()
            order.append(first)
            if line:
                sampled = output_tokens(first) * len(first.choices)
                priority = first.submit.priority
                counter_s += self.counters.cost_s(priority, first.uncached_tokens, sampled)
                by_head[line[0].request_id] = line
                heapq.heappush(heap, (is_batch, counter_s, line[0].request_id))
        return order

    # Whose turn it is.

    def _in_turn(self, now_s: float) -> Iterator[tuple[Waiting, bool]]:
        """The first request of each key and class, in the order of their turns; whether it goes
        before those of the batch class."""
        heads: dict[tuple[str, bool], Waiting] = {}
        for waiting in self._waiting.values():
            heads.setdefault((waiting.key_id, waiting.is_batch), waiting)
        in_order = sorted(
            heads.values(), key=lambda w: (self.counters.counter_s(w.key_id), w.request_id)
        )
        due = next((w for w in in_order if self._is_due(w, now_s)), None)
        if due is not None:
            yield due, True
        yield from ((w, True) for w in in_order if not w.is_batch)
        yield from ((w, False) for w in in_order if w.is_batch and w is not due)

    def _is_due(self, waiting: Waiting, now_s: float) -> bool:
        since_s = max(waiting.arrived_s, self._batch_turn_s)
        return waiting.is_batch and now_s - since_s >= BATCH_TURN_S

    def _exceeds_share(self, waiting: Waiting, max_rows: int) -> bool:
        share = self.share(waiting.origin.principal, max_rows)
        return share is not None and self._rows[waiting.key_id] + len(waiting.choices) > share

    def _places(self, has_rows: bool, is_urgent: bool, max_rows: int) -> int:
        """Up to how many sequences the engine may get."""
        is_row_kept = not is_urgent or (has_rows and self._is_shared)
        return max(1, max_rows - 1) if is_row_kept else max_rows + LOOK_AHEAD_ROWS

    def _give(self, waiting: Waiting, is_urgent: bool, now_s: float) -> Choices:
        del self._waiting[waiting.request_id]
        choices, key_id = waiting.choices, waiting.key_id
        asked = waiting.submit
        if waiting.is_batch:
            self._batch_turn_s = now_s
        # In the engine as well, nobody shall overtake a batch request whose turn it is.
        submit = replace(asked, caller=key_id, priority=INTERACTIVE if is_urgent else BATCH)
        cached_tokens = len(asked.prompt) - waiting.uncached_tokens
        work = self.counters.begin(key_id, asked.priority, len(asked.prompt), cached_tokens)
        running = _Running(work, len(choices), waiting.origin)
        for generation in choices:
            generation.submit = submit
            generation.given_s = now_s
            self._given[generation.request_id] = generation
            self._running[generation.request_id] = running
        self._rows[key_id] += len(choices)
        return choices
