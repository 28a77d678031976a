"""What the next step computes for the rows that there are: a token each, and one chunk of prompt.

Owned by the scheduler. Pure; must not know who waits, nor why a row is there. A chunk is as large
as the pacer allows beside the rows that decode. One row gets it, in turns, so that a short prompt
does not wait for the end of a long one; background rows only while nobody else prefills.
"""

from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from verger.engine.kv_budget import KVBudget
from verger.engine.pacing import Pacer
from verger.engine.sequence import Sequence, SequenceState
from verger.engine.steps import Plan, Prefill, Work, prefill_work

NO_WORK = Work(0, 0)


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
        urgent.sort(key=lambda row: (row.turn, row.order))
        chunks: list[tuple[Sequence, int]] = []
        budget = 0
        for row in urgent:
            if not chunks:
                has_decodes = beside.tokens > 0
                budget = self._pacer.chunk_tokens(row.prefilled_tokens, beside, has_decodes)
            stop = min(row.prompt_tokens, row.prefilled_tokens + budget)
            if stop > row.prefilled_tokens:
                chunks.append((row, stop))
                budget -= stop - row.prefilled_tokens
        return chunks

    def _prefill(self, row: Sequence, stop: int, forks: list[Sequence], now_s: float) -> Prefill:
        start = row.prefilled_tokens
        cuts = [self._kv.cut(row, point, now_s) for point in row.checkpoints(start, stop)]
        self.turn += 1
        row.turn = self.turn
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


def _will_prefill(row: Sequence) -> bool:
    is_prefilling = row.state is SequenceState.PREFILLING and row.leader is None
    return is_prefilling and row.prefilled_tokens < row.prompt_tokens
