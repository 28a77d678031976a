"""Chooses what the next step computes and whose turn it is: pure, called by the loop only.

Continuous batching with chunked prefill (Orca, OSDI 2022; Sarathi-Serve, OSDI 2024): rows join
and leave at any step, every decoding row gets one token a step, and a bounded piece of prompt
rides along. Must not know sockets, clocks, MLX or text.

    submit ─► WAITING ─► PREFILLING ─► DECODING ─► FINISHED ─► one Finished frame
       │         └───────────┴── cancel ──┴────────────▲
       └─► one Rejected frame

A plan may be launched before the one before it is settled, so a sequence counts what is launched
and what is settled separately. What a step computed for a sequence that finished meanwhile is
dropped in `settle` and leaves no trace.

The choices of one answer are a leader and its forks: they are admitted together, the leader is
prefilled, and the step that ends its prompt starts the forks as well. Should the leader be
cancelled before, the next of them takes its place.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from msgspec.structs import replace

from verger.engine.steps import MAX_LAUNCHED_STEPS, Plan, Prefill, Sampled, has_penalties
from verger.messages import (
    Finished,
    FinishReason,
    FromEngine,
    Progress,
    Rejected,
    RejectReason,
    RowTokens,
    Submit,
    Tokens,
)

MAX_ROWS = 16
MAX_WAITING = 256
PREFILL_TOKENS_ALONE = 2048
"""Prompt tokens a step while nobody decodes; bounds how long a cancel or a heartbeat waits."""
PREFILL_TOKENS_SHARED = 512
"""Prompt tokens a step while others decode; bounds how long their next token waits."""


class SequenceState(Enum):
    """Where a sequence is in its life; the diagram is in the module docstring."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


_MOVES = {
    SequenceState.WAITING: (SequenceState.PREFILLING, SequenceState.FINISHED),
    SequenceState.PREFILLING: (SequenceState.DECODING, SequenceState.FINISHED),
    SequenceState.DECODING: (SequenceState.FINISHED,),
    SequenceState.FINISHED: (),
}


@dataclass(slots=True)
class Sequence:
    """One request in flight. Launched counts run ahead of settled ones by the launched plans."""

    submit: Submit
    max_tokens: int
    """What it may generate: what was asked, cut at the context's end."""
    leader: "Sequence | None" = None
    """Whose prefill this one shares; None for a sequence that has its own."""
    state: SequenceState = SequenceState.WAITING
    prefilled_tokens: int = 0
    launched_tokens: int = 0
    settled_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        """The prompt's length."""
        return len(self.submit.prompt)

    @property
    def needs_tokens(self) -> bool:
        """Whether a step cannot be launched before this row's last token is known to the host."""
        return self.submit.grammar is not None or has_penalties(self.submit.sampling)

    def start_decoding(self) -> None:
        """The prompt is computed, by this sequence or its leader, and a first token launched."""
        self.prefilled_tokens = self.prompt_tokens
        self.launched_tokens = 1
        self.leader = None
        self.move(SequenceState.DECODING)

    def move(self, state: SequenceState) -> None:
        """The one place where a state changes."""
        assert state in _MOVES[self.state], (self.state, state)
        self.state = state


@dataclass(frozen=True, slots=True)
class Step:
    """Rows to free, rows to allocate, then what to compute, in this order."""

    closed: tuple[int, ...]
    opened: tuple[Submit, ...]
    plan: Plan


class Scheduler:
    """Owns every sequence from Submit to Finished; what to tell the gateway piles up as frames."""

    def __init__(
        self,
        *,
        context_tokens: int,
        max_rows: int = MAX_ROWS,
        max_waiting: int = MAX_WAITING,
        prefill_tokens_alone: int = PREFILL_TOKENS_ALONE,
        prefill_tokens_shared: int = PREFILL_TOKENS_SHARED,
    ) -> None:
        assert min(max_rows, prefill_tokens_alone, prefill_tokens_shared) >= 1
        self.context_tokens = context_tokens
        self.max_rows = max_rows
        self.max_waiting = max_waiting
        self.prefill_tokens_alone = prefill_tokens_alone
        self.prefill_tokens_shared = prefill_tokens_shared
        self.steps = 0
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.is_draining = False
        # Both in order of arrival: rows are prefilled first come, first served.
        self._waiting: dict[int, Sequence] = {}
        self._rows: dict[int, Sequence] = {}
        self._launched: deque[Plan] = deque()
        self._closed: list[int] = []
        self._frames: list[FromEngine] = []

    @property
    def running(self) -> int:
        """Sequences that hold a row."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a row."""
        return len(self._waiting)

    @property
    def launched(self) -> int:
        """Plans launched and not yet settled."""
        return len(self._launched)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute, to free, to settle or to say."""
        return not (self._waiting or self._rows or self._launched or self._closed or self._frames)

    @property
    def needs_tokens(self) -> bool:
        """Whether what is launched must be settled before the next plan."""
        return any(
            row.needs_tokens and row.launched_tokens > row.settled_tokens
            for row in self._rows.values()
        )

    def submit(self, submit: Submit) -> None:
        """Queue a sequence and its forks, or reject them."""
        request_ids = (submit.request_id, *submit.forks)
        assert len(set(request_ids)) == len(request_ids) <= self.max_rows
        assert not self._waiting.keys() & set(request_ids)
        assert not self._rows.keys() & set(request_ids)
        assert submit.prompt
        assert submit.max_tokens >= 1
        reason = self._reject_reason(submit)
        if reason is not None:
            self._frames += [Rejected(request_id, reason) for request_id in request_ids]
            return
        max_tokens = min(submit.max_tokens, self.context_tokens - len(submit.prompt))
        leader = self._waiting[submit.request_id] = Sequence(submit, max_tokens)
        for choice, request_id in enumerate(submit.forks, start=1):
            fork = _fork(submit, request_id, choice)
            self._waiting[request_id] = Sequence(fork, max_tokens, leader)

    def cancel(self, request_id: int) -> None:
        """Finish a sequence wherever it is; a request that ended meanwhile is no error."""
        sequence = self._waiting.get(request_id) or self._rows.get(request_id)
        if sequence is not None:
            self._finish(sequence, FinishReason.CANCELLED)

    def drain(self) -> None:
        """Reject every Submit from now on; what was taken runs to its end."""
        self.is_draining = True

    def plan(self) -> Step:
        """The next step; it counts as launched unless its plan is empty."""
        assert self.launched < MAX_LAUNCHED_STEPS
        closed = tuple(self._closed)
        self._closed.clear()
        opened = tuple(self._admit())
        decodes = tuple(self._plan_decodes())
        budget = self.prefill_tokens_shared if decodes else self.prefill_tokens_alone
        plan = Plan(tuple(self._plan_prefills(budget)), decodes)
        if not plan.is_empty:
            self._launched.append(plan)
        return Step(closed, opened, plan)

    def settle(self, sampled: list[Sampled]) -> None:
        """Take in what the oldest launched plan sampled."""
        plan = self._launched.popleft()
        self.steps += 1
        self._report_prefills(plan.prefills)
        taken = [token for token in sampled if token.request_id in self._rows]
        if not taken:
            return
        self.decode_tokens += len(taken)
        self._frames.append(Tokens([_row_tokens(token) for token in taken]))
        for token in taken:
            sequence = self._rows[token.request_id]
            sequence.settled_tokens += 1
            reason = _finish_reason(sequence, token.id)
            if reason is not None:
                self._finish(sequence, reason)

    def take_frames(self) -> list[FromEngine]:
        """What happened since the last call, in order."""
        frames, self._frames = self._frames, []
        return frames

    def check_integrity(self) -> None:
        """Assert what must hold between any two calls; for randomised tests."""
        free_rows = self.max_rows - self.running
        assert 0 <= free_rows
        assert self.waiting <= self.max_waiting + free_rows
        assert self.launched <= MAX_LAUNCHED_STEPS
        assert not self._waiting.keys() & self._rows.keys()
        for sequence in self._waiting.values():
            assert sequence.state is SequenceState.WAITING
            assert sequence.prefilled_tokens == sequence.launched_tokens == 0
        for request_id, sequence in self._rows.items():
            assert request_id == sequence.submit.request_id
            self._check_row(sequence)

    def _check_row(self, row: Sequence) -> None:
        is_prefilled = row.prefilled_tokens == row.prompt_tokens
        assert 0 <= row.prefilled_tokens <= row.prompt_tokens < self.context_tokens
        assert row.state is (SequenceState.DECODING if is_prefilled else SequenceState.PREFILLING)
        assert 0 <= row.launched_tokens - row.settled_tokens <= self.launched
        assert row.settled_tokens < row.max_tokens
        assert is_prefilled == (row.launched_tokens > 0)
        if row.leader is not None:
            assert row.prefilled_tokens == 0
            assert row.leader.state is SequenceState.PREFILLING
        assert row.launched_tokens <= row.max_tokens

    def _reject_reason(self, submit: Submit) -> RejectReason | None:
        if self.is_draining:
            return RejectReason.DRAINING
        if len(submit.prompt) >= self.context_tokens:
            return RejectReason.TOO_LONG
        # Whoever fits into a free row does not count as waiting.
        room = self.max_waiting + self.max_rows - self.running
        if self.waiting + 1 + len(submit.forks) > room:
            return RejectReason.QUEUE_FULL
        return None

    def _admit(self) -> Iterable[Submit]:
        while self._waiting:
            request_id, sequence = next(iter(self._waiting.items()))
            forks = [row for row in self._waiting.values() if row.leader is sequence]
            if self.running + 1 + len(forks) > self.max_rows:
                return
            del self._waiting[request_id]
            sequence.move(SequenceState.PREFILLING)
            self._rows[request_id] = sequence
            yield sequence.submit

    def _plan_decodes(self) -> Iterable[int]:
        for request_id, row in self._rows.items():
            is_decoding = row.state is SequenceState.DECODING
            if is_decoding and row.launched_tokens < row.max_tokens:
                row.launched_tokens += 1
                yield request_id

    def _plan_prefills(self, budget: int) -> Iterable[Prefill]:
        for request_id, row in self._rows.items():
            if budget == 0:
                return
            if row.state is not SequenceState.PREFILLING or row.leader is not None:
                continue
            start = row.prefilled_tokens
            stop = min(row.prompt_tokens, start + budget)
            budget -= stop - start
            row.prefilled_tokens = stop
            forks: tuple[int, ...] = ()
            if stop == row.prompt_tokens:
                forks = tuple(fork.submit.request_id for fork in self._forks_of(row))
                for starting in (row, *self._forks_of(row)):
                    starting.start_decoding()
            yield Prefill(request_id, start, stop, forks)

    def _forks_of(self, leader: Sequence) -> list[Sequence]:
        """Who still waits for this one's prefill, or with it."""
        everyone = (*self._rows.values(), *self._waiting.values())
        return [sequence for sequence in everyone if sequence.leader is leader]

    def _report_prefills(self, prefills: tuple[Prefill, ...]) -> None:
        for prefill in prefills:
            self.prefill_tokens += prefill.stop - prefill.start
            for request_id in (prefill.request_id, *prefill.forks):
                row = self._rows.get(request_id)
                if row is not None:
                    self._frames.append(Progress(request_id, prefill.stop, row.prompt_tokens))

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        request_id = sequence.submit.request_id
        if sequence.state is SequenceState.WAITING:
            del self._waiting[request_id]
        else:
            del self._rows[request_id]
            self._closed.append(request_id)
        sequence.move(SequenceState.FINISHED)
        self._hand_over(sequence)
        self._frames.append(
            Finished(request_id, reason, sequence.prompt_tokens, sequence.settled_tokens)
        )

    def _hand_over(self, leader: Sequence) -> None:
        """Whoever shared a prefill that will not be computed: the first of them computes it."""
        forks = self._forks_of(leader)
        for fork in forks:
            fork.leader = None if fork is forks[0] else forks[0]


def _fork(submit: Submit, request_id: int, choice: int) -> Submit:
    sampling = replace(submit.sampling, choice=choice)
    return replace(submit, request_id=request_id, sampling=sampling, forks=[])


def _row_tokens(token: Sampled) -> RowTokens:
    logprobs = [] if token.logprob is None else [token.logprob]
    return RowTokens(token.request_id, [token.id], logprobs)


def _finish_reason(sequence: Sequence, token_id: int) -> FinishReason | None:
    if token_id in sequence.submit.stop_ids:
        return FinishReason.STOP
    if sequence.settled_tokens == sequence.max_tokens:
        return FinishReason.LENGTH
    return None
