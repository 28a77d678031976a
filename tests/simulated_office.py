"""The gateway's queue in front of the engine's real scheduler, in simulated time.

Every step takes what a step cost says, and two steps overlap as in the engine's loop; nothing is
left to a real clock. What is measured here is therefore exact.
"""

from collections import Counter
from dataclasses import dataclass, field
from itertools import count

from msgspec.structs import replace

from tests.fakes import ECHO_KV, EchoRunner
from verger.engine.pacing import Pacer
from verger.engine.scheduler import Scheduler
from verger.engine.step_cost import StepCost
from verger.engine.steps import KVGeometry
from verger.gateway.generation import Event, Generation
from verger.gateway.hits import Hits
from verger.gateway.principal import Principal
from verger.gateway.submit_queue import Choices, Origin, SubmitQueue
from verger.messages import Finished, FromEngine, Progress, Submit, Tokens

COST = StepCost(fixed_s=0.06, token_s=0.0008, attended_s=2e-8)
"""About a gpt-oss-20B on an M4 Pro: 1,100 prompt tokens a second in large chunks."""
CONTEXT_TOKENS = 60_000


@dataclass(slots=True)
class Seen:
    """What became of one request."""

    arrived_s: float
    arrived_plans: int
    first_chunk_plans: int | None = None
    """How many plans were made from its arrival up to its first chunk."""
    first_token_s: float | None = None
    is_finished: bool = False

    @property
    def ttft_s(self) -> float:
        assert self.first_token_s is not None
        return self.first_token_s - self.arrived_s


@dataclass(slots=True)
class Office:
    """One engine and its queue; `now_s` is the engine's loop's time."""

    max_rows: int
    cost: StepCost = COST
    now_s: float = 0.0
    longest_step_s: float = 0.0
    plans: int = 0
    queue: SubmitQueue = field(default_factory=SubmitQueue)
    seen: dict[int, Seen] = field(default_factory=dict)
    finished: list[int] = field(default_factory=list)
    sampled: Counter[int] = field(default_factory=Counter)
    """Tokens of each request."""
    scheduler: Scheduler = field(init=False)
    _runner: EchoRunner = field(init=False)
    _ends_s: list[float] = field(default_factory=list)
    """When each launched step will have been computed."""
    _seconds: list[float] = field(default_factory=list)
    _ids: "count[int]" = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        kv = KVGeometry(
            ECHO_KV.token_bytes, ECHO_KV.sliding_token_bytes, ECHO_KV.window, self.max_rows
        )
        self.scheduler = Scheduler(
            kv, context_tokens=CONTEXT_TOKENS, limit_bytes=1 << 32, pacer=Pacer(target_s=0.25)
        )
        self._runner = EchoRunner(CONTEXT_TOKENS, kv)

    def ask(self, principal: Principal, submit: Submit, hits: Hits | None = None) -> int:
        """A request comes now; its id."""
        request_id = next(self._ids)
        submit = replace(submit, request_id=request_id)
        origin = Origin(principal, hits=hits or Hits())
        choices = (Generation(request_id, submit),)
        assert self.queue.push(choices, origin, self.now_s)
        self.seen[request_id] = Seen(self.now_s, self.plans)
        self._submit_next()
        return request_id

    def step(self) -> None:
        """One turn of the engine's loop: launch a step, collect the one before it."""
        if self.scheduler.must_settle:
            self._collect()
        step = self.scheduler.plan(self.now_s)
        for edit in step.edits:
            self._runner.apply(edit)  # type: ignore[arg-type]
        if not step.plan.is_empty:
            self.plans += 1
            for prefill in step.plan.prefills:
                seen = self.seen[prefill.request_id]
                if seen.first_chunk_plans is None:
                    seen.first_chunk_plans = self.plans - seen.arrived_plans
            self._runner.launch(step.plan)
            self._launch()
        if self.scheduler.launched > (0 if step.plan.is_empty else 1):
            self._collect()
        self._take(self.scheduler.take_frames())

    def run_until(self, end_s: float) -> None:
        """Nothing new comes until then; an idle engine waits."""
        while self.now_s < end_s and not self.scheduler.is_idle:
            self.step()
        self.now_s = max(self.now_s, end_s)

    def run(self) -> None:
        """Until all is done."""
        while not self.scheduler.is_idle:
            self.step()

    def _launch(self) -> None:
        seconds = self.cost.seconds(self.scheduler._launched[-1].work)
        begin_s = max([self.now_s, *self._ends_s])
        self._ends_s.append(begin_s + seconds)
        self._seconds.append(seconds)
        self.longest_step_s = max(self.longest_step_s, seconds)

    def _collect(self) -> None:
        self.now_s = max(self.now_s, self._ends_s.pop(0))
        self.scheduler.settle(self._runner.collect(), self._seconds.pop(0), self.now_s)

    def _take(self, frames: list[FromEngine]) -> None:
        for frame in frames:
            match frame:
                case Tokens(rows=rows):
                    for row in rows:
                        self._note(row)
                        self.sampled[row.request_id] += 1
                        seen = self.seen[row.request_id]
                        if seen.first_token_s is None:
                            seen.first_token_s = self.now_s
                case Progress():
                    self._note(frame)
                case Finished():
                    self.seen[frame.request_id].is_finished = True
                    self.finished.append(frame.request_id)
                    self.queue.end(frame.request_id)
                    self._submit_next()
                case _:
                    raise AssertionError(frame)

    def _note(self, event: Event) -> None:
        self.queue.note(event)
        generation = self.queue._given[event.request_id]
        generation.put(event)
        generation._events.clear()  # Nobody reads them.

    def _submit_next(self) -> None:
        while (choices := self._next()) is not None:
            self.scheduler.submit(choices[0].submit, self.now_s)

    def _next(self) -> Choices | None:
        return self.queue.pop_next(self.max_rows, self.now_s)
