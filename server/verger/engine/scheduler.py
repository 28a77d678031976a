"""Chooses what the next step computes and who gets a row: pure, called by the loop only.

Continuous batching with chunked prefill (Orca, OSDI 2022; Sarathi-Serve, OSDI 2024): rows join
and leave at any step, every decoding row gets one token a step, and a bounded piece of prompt
rides along. Must not know sockets, clocks, MLX or text.

    submit ─► one Rejected frame, or a Sequence (`sequence.py` draws its life) and one Finished

Four files share the work: this one moves sequences from state to state, `row_queue.py` says who
waits and why, `kv_budget.py` finds the bytes and `step_planner.py` cuts the chunks. Over memory,
cached prefixes are evicted first, then whoever waits goes on waiting, then the youngest row of the
least class is preempted: its KV goes to the cache and it resumes later.

A plan may be launched before the one before it is settled. What a step computed for a sequence
that finished or lost its row meanwhile is dropped in `settle` and leaves no trace.

The choices of one answer are a leader and its forks: they are admitted together, the leader is
prefilled, and the step that ends its prompt starts the forks as well. Should the leader be
cancelled before, the next of them takes its place.
"""

from collections import deque

from msgspec.structs import replace

from verger.engine.kv_budget import KVBudget, Shortage
from verger.engine.pacing import Pacer
from verger.engine.prefix_cache import Kind
from verger.engine.row_queue import MAX_WAITING, RowQueue
from verger.engine.sequence import Sequence, SequenceState
from verger.engine.step_planner import PlannedStep, StepPlanner, will_decode
from verger.engine.steps import MAX_LAUNCHED_STEPS, KVGeometry, Prefill, Sampled, Step
from verger.messages import (
    CacheStats,
    Finished,
    FinishReason,
    Found,
    FromEngine,
    LookUp,
    Progress,
    Rejected,
    RejectReason,
    RowTokens,
    Submit,
    Tokens,
)

MAX_ROWS = 16


class Scheduler:
    """Owns every sequence from Submit to Finished; what to tell the gateway piles up as frames."""

    def __init__(
        self,
        geometry: KVGeometry,
        *,
        context_tokens: int,
        limit_bytes: int,
        pacer: Pacer,
        caches: bool = True,
        fingerprint: str = "",
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.pacer = pacer
        self.kv = KVBudget(
            geometry, limit_bytes, pacer.prefill_s, caches=caches, fingerprint=fingerprint
        )
        self.context_tokens = min(context_tokens, self.kv.longest_row())
        """The longest sequence that the model takes and the memory holds."""
        self.max_rows = geometry.max_rows
        self.steps = 0
        self.decode_tokens = 0
        self.asked_tokens = 0
        self.cached_tokens = 0
        self.preemptions = 0
        self.is_draining = False
        self._planner = StepPlanner(self.kv, pacer)
        self._queue = RowQueue(self.kv, geometry.max_rows, max_waiting)
        self._rows: dict[int, Sequence] = {}
        """In order of admission."""
        self._launched: deque[PlannedStep] = deque()
        self._frames: list[FromEngine] = []
        self._arrivals = 0
        self._now_s = 0.0
        self._is_claimed = False
        """Whether somebody waits because of what his row would cost others."""

    @property
    def running(self) -> int:
        """Sequences that hold a row."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Sequences that wait for a row."""
        return len(self._queue)

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens computed, or being computed, since the start."""
        return self._planner.prefill_tokens

    @property
    def launched(self) -> int:
        """Plans launched and not yet settled."""
        return len(self._launched)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to compute, to change on the device, to settle or to say."""
        is_busy = self.waiting or self._rows or self._launched or self._frames
        return not (is_busy or self.kv.has_edits)

    @property
    def must_settle(self) -> bool:
        """Whether what is launched must be settled before the next plan: it is needed, or takes so
        long that whoever comes meanwhile must not wait for more."""
        is_long = any(self.pacer.is_long(s.work, s.prefill_tokens) for s in self._launched)
        return is_long or self.needs_tokens

    @property
    def needs_tokens(self) -> bool:
        """Whether a row goes on with a token of what is launched."""
        return any(
            row.needs_tokens and row.launched_tokens > row.settled_tokens
            for row in self._rows.values()
        )

    def submit(self, submit: Submit, now_s: float) -> None:
        """Queue a sequence and its forks, or reject them."""
        request_ids = (submit.request_id, *submit.forks)
        assert len(set(request_ids)) == len(request_ids) <= self.max_rows
        assert not any(i in self._queue or i in self._rows for i in request_ids)
        assert submit.prompt
        assert submit.max_tokens >= 1 or not submit.forks
        reason = self._reject_reason(submit)
        if reason is not None:
            self._frames += [Rejected(request_id, reason) for request_id in request_ids]
            return
        leader = self._arrive(submit, None, now_s)
        for choice, request_id in enumerate(submit.forks, start=1):
            self._arrive(_fork(submit, request_id, choice), leader, now_s)

    def cancel(self, request_id: int, now_s: float) -> None:
        """Finish a sequence wherever it is; a request that ended meanwhile is no error."""
        self._now_s = now_s
        sequence = self._queue.get(request_id) or self._rows.get(request_id)
        if sequence is not None:
            self._finish(sequence, FinishReason.CANCELLED)

    def look_up(self, asked: LookUp) -> None:
        """Say how much of a prompt is cached."""
        hit = self.kv.look_up(asked.cache_salt, asked.prompt)
        self._frames.append(Found(asked.lookup_id, hit.tokens, hit.file_tokens))

    def drain(self, now_s: float) -> None:
        """Reject every Submit from now on; what was taken runs to its end, unless nobody waits."""
        self.is_draining = True
        for sequence in [*self._queue, *self._rows.values()]:
            if sequence.is_background:
                self.cancel(sequence.request_id, now_s)

    def plan(self, now_s: float) -> Step:
        """The next step; its plan counts as launched unless it is empty."""
        assert self.launched < MAX_LAUNCHED_STEPS
        self._now_s = now_s
        self._grow_rows()
        self._admit()
        planned = self._planner.plan(list(self._rows.values()), self._forks_of, now_s)
        if not planned.plan.is_empty:
            self._launched.append(planned)
        return Step(self.kv.take_edits(), planned.plan)

    def settle(self, sampled: list[Sampled], seconds: float, now_s: float) -> None:
        """Take in what the oldest launched plan sampled, and how long it took."""
        self._now_s = now_s
        launched = self._launched.popleft()
        self.steps += 1
        self.pacer.observe(launched.work, seconds, launched.prefill_tokens)
        self._settle_prefills(launched.plan.prefills)
        taken = [token for token in sampled if token.request_id in self._rows]
        if not taken:
            return
        self.decode_tokens += len(taken)
        self._frames.append(Tokens([_row_tokens(token) for token in taken]))
        for token in taken:
            sequence = self._rows[token.request_id]
            sequence.ids.append(token.id)
            reason = sequence.finish_reason()
            if reason is not None:
                self._finish(sequence, reason)

    def take_frames(self) -> list[FromEngine]:
        """What happened since the last call, in order."""
        frames, self._frames = self._frames, []
        return frames

    def cache_stats(self) -> CacheStats:
        """The cache as the gateway reports it, without the disk."""
        cache = self.kv.cache
        return CacheStats(
            nodes=cache.nodes,
            bytes=cache.bytes,
            limit_bytes=self.kv.limit_bytes,
            asked_tokens=self.asked_tokens,
            cached_tokens=self.cached_tokens,
            evictions=cache.evictions,
            preemptions=self.preemptions,
            background_tokens=self._planner.background_tokens,
            token_bytes=self.kv.geometry.token_bytes,
            window_bytes=self.kv.geometry.window_bytes(self.context_tokens),
        )

    def check_integrity(self) -> None:
        """Assert what must hold between any two calls; for randomised tests."""
        assert self.running <= self.max_rows
        assert self.launched <= MAX_LAUNCHED_STEPS
        self._queue.check_integrity()
        for request_id, row in self._rows.items():
            assert request_id not in self._queue
            assert request_id == row.request_id
            self._check_row(row)
        self.kv.check_integrity([row.place for row in self._rows.values() if row.place])

    def _check_row(self, row: Sequence) -> None:
        assert row.place is not None
        assert row.computed_tokens <= row.place.capacity
        assert 0 <= row.prefilled_tokens <= row.prompt_tokens < self.context_tokens
        assert (row.state is SequenceState.DECODING) == (row.launched_tokens > 0)
        assert row.state in (SequenceState.PREFILLING, SequenceState.DECODING)
        assert 0 <= row.launched_tokens - row.settled_tokens <= self.launched
        assert row.launched_tokens <= row.max_tokens
        if row.leader is not None:
            assert row.prefilled_tokens == 0
            assert row.leader.state is SequenceState.PREFILLING

    def _arrive(self, submit: Submit, leader: Sequence | None, now_s: float) -> Sequence:
        max_tokens = min(submit.max_tokens, self.context_tokens - len(submit.prompt))
        self._arrivals += 1
        sequence = Sequence(submit, submit, max_tokens, self._arrivals, now_s, leader)
        self._queue.add(sequence)
        return sequence

    def _reject_reason(self, submit: Submit) -> RejectReason | None:
        if self.is_draining:
            return RejectReason.DRAINING
        if len(submit.prompt) >= self.context_tokens:
            return RejectReason.TOO_LONG
        if not self._queue.has_room(1 + len(submit.forks), self.running):
            return RejectReason.QUEUE_FULL
        return None

    # Rows come and go.

    def _admit(self) -> None:
        """Give rows to whoever can have one; the background makes way."""
        self.kv.allowance.pass_time(
            self._now_s, is_idle=not self._rows, is_claimed=self._is_claimed
        )
        self._is_claimed = False
        if self._queue.has_urgent:
            self.kv.stop_background_reading()
            for row in [row for row in self._rows.values() if row.is_background]:
                self._preempt(row)
        for sequence in self._queue.candidates(self._rows.values(), self.steps):
            if sequence.is_prefill_only and self.kv.match(sequence) == sequence.prompt_tokens:
                self._finish(sequence, FinishReason.LENGTH)
                continue
            if sequence.is_background and not self._may_run_background():
                continue
            forks = self._queue.forks_of(sequence)
            if self.running + 1 + len(forks) > self.max_rows:
                break
            shortage = self._open(sequence, forks)
            if shortage is Shortage.TOO_DEAR:
                self._is_claimed |= not sequence.is_background
            elif shortage is Shortage.NO_ROOM and self._queue.is_out_of_patience(
                sequence, self._now_s
            ):
                self.kv.stop_reading()
                break

    def _may_run_background(self) -> bool:
        """One at a time, while a row stays free and nobody else waits."""
        is_running = any(row.is_background for row in self._rows.values())
        has_row = self.running < max(1, self.max_rows - 1)
        return has_row and not is_running and not self._queue.has_urgent

    def _open(self, sequence: Sequence, forks: list[Sequence]) -> Shortage | None:
        """Give it a row, and its forks theirs; or why not."""
        is_first = not self._is_claimed
        submits = [fork.submit for fork in forks]
        opened = self.kv.open(sequence, submits, self._now_s, is_first=is_first)
        if opened is Shortage.NO_ROOM and forks and not self._rows:
            # Together they would not fit: each fork will find the leader's prefix in its turn.
            for fork in forks:
                fork.leader = None
            forks = []
            opened = self.kv.open(sequence, [], self._now_s, is_first=is_first)
        if isinstance(opened, Shortage):
            return opened
        for row, place in zip([sequence, *forks], opened.places, strict=True):
            self._queue.remove(row)
            row.open(place, opened.cached_tokens if row is sequence else 0, self._planner.turn)
            self._rows[row.request_id] = row
            self._report(row, opened.cached_tokens)
        if not sequence.is_background:
            self.asked_tokens += sequence.prompt_tokens
            self.cached_tokens += opened.cached_tokens
        return None

    def _grow_rows(self) -> None:
        """Room for one more position in every row that decodes; the youngest may lose its own."""
        for row in list(self._rows.values()):
            while self._must_grow(row):
                place = self.kv.grow(row, row.computed_tokens + 1, self._now_s)
                if place is not None:
                    row.place = place
                else:
                    self._preempt(self._youngest())

    def _must_grow(self, row: Sequence) -> bool:
        if row.request_id not in self._rows or not will_decode(row):
            return False
        assert row.place is not None
        return row.computed_tokens + 1 > row.place.capacity

    def _youngest(self) -> Sequence:
        """Of the least class present, who came last; nobody whose prefill others share."""
        leaders = {id(row.leader) for row in self._rows.values() if row.leader is not None}
        rows = [r for r in self._rows.values() if r.leader is None and id(r) not in leaders]
        return max(rows, key=lambda row: (row.asked.priority, row.order))

    def _preempt(self, row: Sequence) -> None:
        """Take its row; a lone one comes back to a larger place, which holds what it had."""
        self.kv.close(row, Kind.END, self._now_s, will_resume=True)
        del self._rows[row.request_id]
        row.preempt(resumes_after=self.steps + self.launched)
        self._queue.add(row)
        self.preemptions += not row.is_background

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        if sequence.state is SequenceState.WAITING:
            self._queue.remove(sequence)
        else:
            kind = Kind.OPEN if sequence.ends_open else Kind.END
            self.kv.close(sequence, kind, self._now_s)
            del self._rows[sequence.request_id]
        sequence.move(SequenceState.FINISHED)
        self._hand_over(sequence)
        self._frames.append(
            Finished(
                sequence.request_id,
                reason,
                len(sequence.asked.prompt),
                sequence.completion_tokens,
                sequence.cached_tokens or 0,
            )
        )

    def _hand_over(self, leader: Sequence) -> None:
        """Whoever shared a prefill that will not be computed: the first of them computes it."""
        forks = self._forks_of(leader)
        for fork in forks:
            fork.leader = None if fork is forks[0] else forks[0]

    def _forks_of(self, leader: Sequence) -> list[Sequence]:
        rows = [row for row in self._rows.values() if row.leader is leader]
        return [*rows, *self._queue.forks_of(leader)]

    def _settle_prefills(self, prefills: tuple[Prefill, ...]) -> None:
        for prefill in prefills:
            for request_id in (prefill.request_id, *prefill.forks):
                row = self._rows.get(request_id)
                if row is None:
                    continue
                self._report(row, prefill.stop)
                if row.is_prefill_only and prefill.stop == row.prompt_tokens:
                    self._finish(row, FinishReason.LENGTH)

    def _report(self, row: Sequence, prefilled_tokens: int) -> None:
        asked_tokens = len(row.asked.prompt)
        done = min(prefilled_tokens, asked_tokens)
        cached = min(row.cached_tokens or 0, asked_tokens)
        self._frames.append(Progress(row.request_id, done, asked_tokens, cached))


def _fork(submit: Submit, request_id: int, choice: int) -> Submit:
    sampling = replace(submit.sampling, choice=choice)
    return replace(submit, request_id=request_id, sampling=sampling, forks=[])


def _row_tokens(token: Sampled) -> RowTokens:
    logprobs = [] if token.logprob is None else [token.logprob]
    return RowTokens(token.request_id, [token.id], logprobs)
