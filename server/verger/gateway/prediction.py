"""When a request would see its first token, if it came now: a forecast, and how good forecasts are.

Asked by `outlook.py`, which knows the queue. Pure; must not know a clock, frames or routes.

The rows that there are and the requests that are ahead in fair order are played through: a row ends
when its answer is expected to; a prompt shares the engine with the prompts that are computed at the
same time, chunk by chunk, unless it is its key's only one; and what is computed of prompts delays
all rows that decode.

    time to the first token = until a row is free + others' chunks meanwhile + its own prompt
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from verger.gateway.rates import Rates

KEPT_SCORES = 256
MIN_SCORES = 20
"""Fewer say nothing of how good forecasts are."""
POOR_ERROR = 0.5
"""From this median error on, forecasts are not trusted."""
ALONE_TOKENS = 2_048
"""Of a chunk with nobody decoding."""
LEAST_S = 0.25
"""Times are judged as if they were so long at least: nobody decides by less."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is left to do for a request."""

    key_id: str
    prompt_tokens: int
    """Not cached and not computed yet."""
    output_tokens: int
    rows: int = 1
    share: int | None = None
    """How many rows its key may have; None: all of them, and none is kept for others."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """In seconds from now."""

    ttft_s: float
    prompt_s: float
    """What of that its own prompt takes: nobody could shorten that by coming later."""

    @property
    def wait_s(self) -> float:
        """What others cost it."""
        return max(0.0, self.ttft_s - self.prompt_s)


@dataclass(slots=True)
class _Row:
    key_id: str
    prompt_s: float
    """What its prompt takes, if nobody shares the engine."""
    prefilled_s: float
    """When its prompt will be computed."""
    end_s: float


@dataclass(slots=True)
class _Play:
    rates: Rates
    max_rows: int
    rows: list[_Row] = field(default_factory=list)

    def start_s(self, job: Job) -> float:
        """When there is a row for it; those that have ended by the time when any row is free, for
        whomsoever, are of no more interest."""
        times_s = [0.0, *sorted(row.end_s for row in self.rows)]
        free_s = times_s[max(0, len(self.rows) - self.max_rows + 1)]
        self.rows = self._running(free_s)
        return next((t for t in times_s if t >= free_s and self._has_row(job, t)), times_s[-1])

    def begin(self, job: Job, start_s: float) -> _Row:
        """It gets its row, or its rows."""
        running = self._running(start_s)
        has_decodes = any(row.prefilled_s <= start_s for row in running)
        prompt_s = self.rates.prefill_s(job.prompt_tokens, has_decodes)
        prefilled_s = start_s + prompt_s + self._others_s(job, prompt_s, running, start_s)
        stall_s = prompt_s * self.rates.stall
        for row in running:
            row.end_s += stall_s
        token_s = self.rates.token_s(len(running) + job.rows)
        end_s = prefilled_s + job.output_tokens * token_s
        made = [_Row(job.key_id, prompt_s, prefilled_s, end_s) for _ in range(job.rows)]
        self.rows += made
        return made[0]

    def _others_s(self, job: Job, prompt_s: float, running: list[_Row], at_s: float) -> float:
        """What is computed of other prompts before the end of its own."""
        rows_of = Counter(row.key_id for row in running)
        is_lone = not rows_of[job.key_id]
        return sum(
            min(prompt_s, row.prompt_s, row.prefilled_s - at_s)
            for row in running
            if row.prefilled_s > at_s and (not is_lone or rows_of[row.key_id] == 1)
        )

    def _running(self, at_s: float) -> list[_Row]:
        return [row for row in self.rows if row.end_s > at_s]

    def _has_row(self, job: Job, at_s: float) -> bool:
        running = self._running(at_s)
        own = sum(row.key_id == job.key_id for row in running)
        if not running:
            return True
        if own == 0 or job.share is None:
            return len(running) + job.rows <= self.max_rows
        places = max(1, self.max_rows - 1)
        return own + job.rows <= job.share and len(running) + job.rows <= places


def forecasts(
    waiting: Sequence[Job], running: Sequence[Job], rates: Rates, max_rows: int
) -> list[Forecast]:
    """When each of those that wait, in fair order, sees its first token."""
    play = _Play(rates, max_rows)
    for job in running:
        play.begin(job, 0.0)
    step_s = _present_step_s(running, rates) / 2  # Whoever comes does so in the middle of one.
    rows = [play.begin(job, play.start_s(job)) for job in waiting]
    return [Forecast(step_s + row.prefilled_s, row.prompt_s) for row in rows]


def _present_step_s(running: Sequence[Job], rates: Rates) -> float:
    if not running:
        return 0.0
    prompt_tokens = sum(job.prompt_tokens for job in running)
    if all(job.prompt_tokens for job in running):
        return rates.prefill_s(min(prompt_tokens, ALONE_TOKENS), has_decodes=False)
    chunk_tokens = min(prompt_tokens, rates.chunk_tokens)
    return max(rates.token_s(len(running)), rates.prefill_s(chunk_tokens, has_decodes=True))


@dataclass(frozen=True, slots=True)
class Score:
    """A forecast, and what came."""

    predicted_s: float
    actual_s: float
    objective_s: float

    @property
    def error(self) -> float:
        """Relative to what came."""
        predicted_s, actual_s = max(LEAST_S, self.predicted_s), max(LEAST_S, self.actual_s)
        return abs(predicted_s - actual_s) / actual_s

    @property
    def is_wrong(self) -> bool:
        """Whether it stood on the wrong side of the objective."""
        return (self.predicted_s <= self.objective_s) != (self.actual_s <= self.objective_s)


class Scores:
    """The last forecasts that could be judged."""

    def __init__(self) -> None:
        self._scores: deque[Score] = deque(maxlen=KEPT_SCORES)

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, score: Score) -> None:
        """A first token has come that was forecast."""
        self._scores.append(score)

    @property
    def median_error(self) -> float | None:
        """None before there is any."""
        return median(score.error for score in self._scores) if self._scores else None

    @property
    def wrong_share(self) -> float | None:
        """The part of forecasts that stood on the wrong side of the objective."""
        if not self._scores:
            return None
        return sum(score.is_wrong for score in self._scores) / len(self._scores)

    @property
    def is_trusted(self) -> bool:
        """Whether forecasts decide; before there are enough they do."""
        error = self.median_error
        return len(self) < MIN_SCORES or error is None or error <= POOR_ERROR
