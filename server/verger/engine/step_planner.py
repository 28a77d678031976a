"""What the next step computes for the rows that there are: a token each, and one chunk of prompt.

Owned by the scheduler. Pure; must not know who waits, nor why a row is there. A chunk is as large
as the pacer allows beside the rows that decode. One row gets it, in turns, so that a short prompt
does not wait for the end of a long one; background rows only while nobody else prefills.

Nobody's first token shall wait for somebody else's many prompts. So a caller's only row goes before
the rows of callers that have several, and interactive rows before batch rows, but only for
HEAD_START_CHUNKS; and whoever has just come before whoever has just had a chunk. When a prompt ends
before its chunk is used up, the next ones get the rest, but other callers' rows, and those of lower
rank, may lengthen the step by RIDER_SHARE only.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from verger.engine.kv_budget import KVBudget
from verger.engine.pacing import Pacer
from verger.engine.sequence import Sequence, SequenceState
from verger.engine.steps import Plan, Prefill, Work, prefill_work
from verger.messages import BATCH

NO_WORK = Work(0, 0)
HEAD_START_CHUNKS = 32
"""Whoever has waited for so many chunks more goes first all the same."""
RIDER_SHARE = 0.75
"""Of what the step takes without them: it is not to be doubled, and the fit is not exact."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A plan and what its duration will be explained by."""

    plan: Plan
    work: Work
    prefill_tokens: int


class StepPlanner:
    """Advances the launched counts of the rows that it plans for."""

    def __init__(self, kv: KVBudget, pacer: Pacer) -> None:
        self.turn = 0
        """Counts chunks: a row that has just come is behind those that wait for their next."""
        self.prefill_tokens = 0
        self.background_tokens = 0
        self._kv = kv
        self._pacer = pacer

    def plan(
        self,
        rows: Rows[Sequence],
        forks_of: Callable[[Sequence], list[Sequence]],
        now_s: float,
    ) -> PlannedStep:
        """Empty if nobody can be advanced."""
        decoding = [row for row in rows if will_decode(row)]
        for row in decoding:
            row.launched_tokens += 1
        beside = sum((Work(1, row.computed_tokens) for row in decoding), NO_WORK)
        chunks = self._chunks(rows, beside)
        prefills = tuple(self._prefill(row, stop, forks_of(row), now_s) for row, stop in chunks)
        prefilled = sum((prefill_work(p.start, p.stop) for p in prefills), NO_WORK)
        plan = Plan(prefills, tuple(row.request_id for row in decoding))
        return PlannedStep(plan, beside + prefilled, prefilled.tokens)

    def _chunks(self, rows: Rows[Sequence], beside: Work) -> list[tuple[Sequence, int]]:
        """Who is prefilled up to where: whoever has waited longest, and, if that ends its prompt
        before the chunk is used up, the next ones with the rest."""
        prefilling = [row for row in rows if _will_prefill(row)]
        urgent = [row for row in prefilling if not row.is_background] or prefilling
        handicaps = _handicaps(rows)
        urgent.sort(key=lambda row: (row.turn + handicaps[row.request_id], row.order))

        def is_foreign(row: Sequence) -> bool:
            first = urgent[0]
            is_lower = handicaps[row.request_id] > handicaps[first.request_id]
            return is_lower or row.asked.caller != first.asked.caller

        chunks: list[tuple[Sequence, int]] = []
        budget, spare_s = 0, 0.0
        for row in urgent:
            start = row.prefilled_tokens
            if not chunks:
                budget = self._pacer.chunk_tokens(start, beside, has_decodes=beside.tokens > 0)
            elif is_foreign(row):
                budget = self._pacer.tokens_within(spare_s, start, budget)
            stop = min(row.prompt_tokens, start + budget)
            if not chunks:
                spare_s = RIDER_SHARE * self._pacer.step_s(start, stop, beside)
            if stop > start:
                chunks.append((row, stop))
                budget -= stop - start
        return chunks

    def _prefill(self, row: Sequence, stop: int, forks: list[Sequence], now_s: float) -> Prefill:
        start = row.prefilled_tokens
        cuts = [self._kv.cut(row, point, now_s) for point in row.checkpoints(start, stop)]
        self.turn += 1
        row.turn = self.turn
        row.has_begun = True
        row.prefilled_tokens = stop
        self.prefill_tokens += stop - start
        self.background_tokens += (stop - start) * row.is_background
        starting = []
        if stop == row.prompt_tokens and not row.is_prefill_only:
            row.start_decoding()
            starting = forks
        for fork in starting:
            self._kv.fork(fork, row)
            fork.start_decoding()
        fork_ids = tuple(fork.request_id for fork in starting)
        return Prefill(row.request_id, start, stop, fork_ids, tuple(c for c in cuts if c))


def will_decode(row: Sequence) -> bool:
    """Whether the next step samples a token from it."""
    return row.state is SequenceState.DECODING and row.launched_tokens < row.max_tokens


def _handicaps(rows: Rows[Sequence]) -> dict[int, int]:
    """How many chunks later than it came a row counts as having come."""
    rows_of = Counter(row.asked.caller for row in rows if not (row.leader or row.is_background))
    has_others = len(rows_of) > 1
    return {
        row.request_id: HEAD_START_CHUNKS
        * ((rows_of[row.asked.caller] > 1) + (row.asked.priority == BATCH))
        + (has_others and row.has_begun)
        for row in rows
    }


def _will_prefill(row: Sequence) -> bool:
    is_prefilling = row.state is SequenceState.PREFILLING and row.leader is None
    return is_prefilling and row.prefilled_tokens < row.prompt_tokens
