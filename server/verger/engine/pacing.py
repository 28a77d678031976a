"""How many prompt tokens a step computes: large chunks alone, small ones while others decode.

Asked by the scheduler for every chunk and told of every settled step; the price of recomputing a
prefix comes from here too. Must not know a clock, requests or MLX.

Beside decoding rows a step is to stay within the target latency (Sarathi-Serve, OSDI 2024), but the
chunk never shrinks so far that prefill runs at less than half of its best rate: a step has a fixed
cost, and below that nearly all of it would be paid for nothing.
"""

import math
from bisect import bisect_right
from collections import deque

from msgspec.structs import replace

from verger.engine.step_cost import StepCostFit
from verger.engine.steps import Work, prefill_work
from verger.messages import PrefillStats

MAX_CHUNK_TOKENS = 2048
CHUNK_QUANTUM_TOKENS = 32
MIN_ALONE_TOKENS = 128
"""Also where so many take longer than MAX_ALONE_STEP_S."""
MAX_ALONE_STEP_S = 2.0
"""Bounds how long a cancel or a heartbeat waits."""
MIN_RATE_SHARE = 0.5
"""Of the best prefill rate; what decoding rows may not take away."""
FIRST_BESIDE_TOKENS = 512
"""The chunk beside decoding rows before any step was seen; alone it is the largest."""
MAX_GROWTH = 1.125
"""From one chunk beside decoding rows to the next, so that a bad fit freezes nobody."""
LARGE_TOKENS = 512
"""A chunk from which the best rate can be told."""
DEPTH_TOKENS = 1024
"""The rate falls with the depth in a prompt: what is told apart."""
RECENT_STEPS = 8
"""With decodes, of which those that the fit is most wrong about set the next chunk."""
TOLERATED_ERROR = 0.03
"""Smaller errors are noise, and not worth smaller chunks."""
MIN_OBSERVED_TOKENS = 16
"""Steps with fewer prompt tokens leave some experts unread and tell nothing of chunks."""
LONG_STEP_S = 0.1
"""A step with a chunk that takes longer is not followed by another one before its end is known:
whoever comes meanwhile would wait for that as well, and the host's few milliseconds cost little."""

NOTHING = Work(0, 0)


class Pacer:
    """Sizes chunks for a target step time, from the steps it is told of."""

    def __init__(self, target_s: float, max_chunk_tokens: int = MAX_CHUNK_TOKENS) -> None:
        assert target_s > 0
        assert max_chunk_tokens >= 1
        self._max_chunk_tokens = max_chunk_tokens
        quantum = min(CHUNK_QUANTUM_TOKENS, max_chunk_tokens)
        self._sizes = range(quantum, max_chunk_tokens + 1, quantum)
        self._fit = StepCostFit()
        self._beside: deque[tuple[Work, float]] = deque(maxlen=RECENT_STEPS)
        """The last steps with decodes and prompt: their work and seconds."""
        self._alone_rates: dict[int, float] = {}
        """Tokens per second of the last large chunk without decodes that began at each depth."""
        self._stats = PrefillStats(target_itl_s=target_s)

    def observe(self, work: Work, seconds: float, prefill_tokens: int) -> None:
        """One settled step: all its work, its duration, how many of its tokens were a prompt's."""
        if prefill_tokens < MIN_OBSERVED_TOKENS or seconds <= 0:
            return
        if work.tokens == prefill_tokens >= LARGE_TOKENS:
            start = work.attended / work.tokens - work.tokens / 2
            self._alone_rates[int(start) // DEPTH_TOKENS] = prefill_tokens / seconds
        if work.tokens > prefill_tokens:
            self._beside.append((work, seconds))
        self._fit.observe(work, seconds)

    def chunk_tokens(self, start: int, beside: Work, has_decodes: bool) -> int:
        """How many tokens the next chunk of a row may compute that stands at `start`, in a step
        that also does the work `beside`."""
        if not self._fit.steps:
            return min(FIRST_BESIDE_TOKENS if has_decodes else MAX_CHUNK_TOKENS, self._sizes[-1])
        alone = self._chunk_alone(start)
        # A fit to small chunks may promise of large ones what they do not keep.
        best_tokens_s = min(alone / self._step_s(start, alone), self._rate_seen(start))
        self._stats = replace(self._stats, best_tokens_s=best_tokens_s)
        return self._chunk_beside(start, beside, alone) if has_decodes else alone

    def step_s(self, start: int, stop: int, beside: Work) -> float:
        """What a step with this chunk is expected to take."""
        return self._fit.cost.seconds(prefill_work(start, stop) + beside)

    def tokens_within(self, seconds: float, start: int, most: int) -> int:
        """How many prompt tokens more, from `start` on, lengthen a step by so much."""
        token_s = self._fit.cost.token_s + self._fit.cost.attended_s * (start + most)
        return min(most, int(seconds / token_s)) if token_s > 0 else most

    def is_long(self, work: Work, prefill_tokens: int) -> bool:
        """Whether a step, so many of whose tokens are a prompt's, is known to take long."""
        is_known = bool(self._fit.steps) and prefill_tokens >= MIN_OBSERVED_TOKENS
        return is_known and self._fit.cost.seconds(work) > LONG_STEP_S

    def prefill_s(self, start: int, stop: int) -> float:
        """What computing positions start:stop alone takes, in large chunks."""
        assert start < stop
        cost = self._fit.cost
        chunks = (stop - start) / self._max_chunk_tokens
        return cost.seconds(prefill_work(start, stop)) + cost.fixed_s * (chunks - 1)

    def stats(self) -> PrefillStats:
        """As of the last chunk."""
        return self._stats

    def _chunk_alone(self, start: int) -> int:
        longest = self._largest_within(MAX_ALONE_STEP_S, start, NOTHING)
        return max(longest, min(MIN_ALONE_TOKENS, self._sizes[-1]))

    def _rate_seen(self, start: int) -> float:
        """Of the last large chunk that began about there, or as near before it as was seen."""
        depths = [depth for depth in self._alone_rates if depth <= start // DEPTH_TOKENS]
        return self._alone_rates[max(depths)] if depths else math.inf

    def _chunk_beside(self, start: int, beside: Work, alone: int) -> int:
        target_s = self._stats.target_itl_s
        least = self._least_worth_while(start, beside, alone)
        limit_s = target_s / max(1.0, self._beside_error() - TOLERATED_ERROR)
        chunk = max(least, min(alone, self._largest_within(limit_s, start, beside)))
        last = self._stats.chunk_tokens or FIRST_BESIDE_TOKENS
        chunk = min(chunk, max(least, int(MAX_GROWTH * last)))
        step_s = self._step_s(start, chunk, beside)
        self._stats = replace(
            self._stats,
            chunk_tokens=chunk,
            step_s=step_s,
            efficiency=min(1.0, chunk / step_s / self._stats.best_tokens_s),
            meets_target=self._step_s(start, least, beside) <= target_s,
        )
        return chunk

    def _beside_error(self) -> float:
        """How many times longer than the fit now says recent steps with decodes took: the worst
        but one, since a single one may have been an accident."""
        cost = self._fit.cost
        errors = sorted(seconds / cost.seconds(work) for work, seconds in self._beside)
        return errors[-2] if len(errors) > 1 else 1.0

    def _least_worth_while(self, start: int, beside: Work, alone: int) -> int:
        """The smallest chunk with half of the best rate; none reaches it where decoding takes
        more time than the largest chunk."""
        rate = MIN_RATE_SHARE * self._stats.best_tokens_s
        return next(
            tokens
            for tokens in self._sizes
            if tokens >= alone or tokens >= rate * self._step_s(start, tokens, beside)
        )

    def _largest_within(self, limit_s: float, start: int, beside: Work) -> int:
        """The least size if there is none."""
        count = bisect_right(
            self._sizes, limit_s, key=lambda tokens: self._step_s(start, tokens, beside)
        )
        return self._sizes[max(0, count - 1)]

    def _step_s(self, start: int, tokens: int, beside: Work = NOTHING) -> float:
        return self.step_s(start, start + tokens, beside)
