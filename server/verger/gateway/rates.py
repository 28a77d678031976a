"""How fast the engine is, fitted to what its statistics say that it has done.

Fed by `engine_client.py` with every Stats; read by the forecast of waiting times and by the fair
counters, which charge in seconds. Pure; must not know a clock, requests or rows by name.

Between two statistics of an engine that was busy all the time

    seconds = step_s · steps + row_s · tokens sampled + prompt_s · prompt tokens

is fitted by least squares of relative errors, none of them negative, in which older intervals fade.
What a prompt takes in chunks, alone and beside running rows, the engine's own fit knows better.
"""

from dataclasses import dataclass

from verger.gateway.fairness import Prices
from verger.messages import Stats

FADE = 0.97
"""What an interval counts for once the next one has come; they come every second."""
PRIOR_INTERVALS = 0.01
"""The weight of the typical machine, in intervals."""
MAX_INTERVAL_S = 3.0
"""Statistics come once a second: what is longer was no normal interval."""
MIN_STEPS = 1

Row = list[float]


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds of a step and its parts, and of prompt tokens in chunks."""

    step_s: float = 0.03
    row_s: float = 0.002
    prompt_s: float = 0.0009
    alone_s: float = 0.001
    """A prompt token, in large chunks with nobody decoding."""
    beside_s: float = 0.0015
    """A prompt token, in chunks as they are beside running rows."""
    chunk_tokens: int = 512
    """Of such a chunk."""
    is_measured: bool = False

    def token_s(self, rows: float) -> float:
        """Between two tokens of a row while so many decode and nobody prefills."""
        return self.step_s + self.row_s * rows

    def prefill_s(self, tokens: int, has_decodes: bool) -> float:
        """What computing so many prompt tokens takes; one step at least."""
        if not tokens:
            return 0.0
        in_chunks_s = tokens * (self.beside_s if has_decodes else self.alone_s)
        return max(in_chunks_s, self.step_s + self.prompt_s * tokens)

    @property
    def stall(self) -> float:
        """How much of the time in which prompts are computed is lost to the rows that decode."""
        chunk_s = self.chunk_tokens * self.beside_s
        return max(0.0, 1.0 - self.step_s / chunk_s) if chunk_s > 0 else 0.0

    def prices(self, rows: float) -> Prices:
        """What a token costs the GPU while so many rows decode."""
        return Prices(self.alone_s, self.token_s(rows) / max(1.0, rows))


TYPICAL = Rates()


class RateFit:
    """Learns Rates from statistics as they come."""

    def __init__(self) -> None:
        self.rates = TYPICAL
        self.rows = 1.0
        """That decode at a time, lately."""
        self._last: Stats | None = None
        self._last_s = 0.0
        typical = (TYPICAL.step_s, TYPICAL.row_s, TYPICAL.prompt_s)
        # In units of the typical machine every part weighs alike.
        self._units = typical
        self._matrix = [[PRIOR_INTERVALS * (i == j) for j in range(3)] for i in range(3)]
        self._vector = [PRIOR_INTERVALS] * 3

    def observe(self, stats: Stats, now_s: float) -> None:
        """One Stats, at the time when it came."""
        last, seconds = self._last, now_s - self._last_s
        self._last, self._last_s = stats, now_s
        was_busy = last is not None and last.running + last.waiting > 0
        if last is None or not was_busy or not 0 < seconds <= MAX_INTERVAL_S:
            return
        steps = stats.steps - last.steps
        if steps < MIN_STEPS:
            return
        sampled = stats.decode_tokens - last.decode_tokens
        self._learn([steps, sampled, stats.prefill_tokens - last.prefill_tokens], seconds)
        self.rows = sampled / steps
        self._set_rates(stats)

    def restart(self) -> None:
        """Another engine counts from zero; it is as fast as the last one until it shows."""
        self._last = None

    def _learn(self, counts: list[int], seconds: float) -> None:
        parts = [count * unit / seconds for count, unit in zip(counts, self._units, strict=True)]
        for i in range(3):
            prior = (1 - FADE) * PRIOR_INTERVALS
            self._vector[i] = FADE * self._vector[i] + parts[i] + prior
            for j in range(3):
                faded = FADE * self._matrix[i][j]
                self._matrix[i][j] = faded + parts[i] * parts[j] + prior * (i == j)

    def _set_rates(self, stats: Stats) -> None:
        factors = solve_nonnegative(self._matrix, self._vector)
        step_s, row_s, prompt_s = (f * u for f, u in zip(factors, self._units, strict=True))
        told = stats.prefill
        alone_s = 1 / told.best_tokens_s if told.best_tokens_s > 0 else max(prompt_s, 1e-6)
        self.rates = Rates(
            step_s=max(step_s, 1e-6),
            row_s=row_s,
            prompt_s=prompt_s,
            alone_s=alone_s,
            beside_s=alone_s / max(told.efficiency, 0.01),
            chunk_tokens=told.chunk_tokens or TYPICAL.chunk_tokens,
            is_measured=True,
        )


def solve_nonnegative(matrix: list[Row], vector: Row) -> list[float]:
    """Least squares from the normal equations; what would be negative is 0."""
    kept = list(range(len(vector)))
    while kept:
        solution = dict(
            zip(
                kept,
                _solve([[matrix[i][j] for j in kept] + [vector[i]] for i in kept]),
                strict=True,
            )
        )
        worst = min(kept, key=solution.__getitem__)
        if solution[worst] >= 0:
            return [solution.get(i, 0.0) for i in range(len(vector))]
        kept.remove(worst)
    return [0.0] * len(vector)


def _solve(rows: list[Row]) -> list[float]:
    """Gauss-Jordan elimination; the typical machine keeps every pivot above zero."""
    for pivot, pivot_row in enumerate(rows):
        rows[pivot] = pivot_row = [value / pivot_row[pivot] for value in pivot_row]
        for other, row in enumerate(rows):
            if other != pivot:
                scale = row[pivot]
                rows[other] = [v - scale * p for v, p in zip(row, pivot_row, strict=True)]
    return [row[-1] for row in rows]
