"""The queue as a forecast sees it: what is left to do for everybody who runs or waits.

Asked by the admission. Pure; must not know a clock, frames or routes.
"""

import functools
from dataclasses import dataclass

from verger.gateway.generation import Generation
from verger.gateway.output_lengths import Kind, OutputLengths
from verger.gateway.prediction import Forecast, Job, forecasts
from verger.gateway.rates import Rates
from verger.gateway.submit_queue import Origin, SubmitQueue, Waiting
from verger.messages import Submit

NEWCOMER = 2**62
"""The request id of somebody who has none yet: everybody who waits came before."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a request has to expect."""

    waiting: Waiting
    forecast: Forecast
    sequences_ahead: int
    """That wait and would go first."""
    tokens_ahead: int
    """Of their prompts, uncached."""


@dataclass(slots=True)
class Observer:
    """Looks at one queue."""

    queue: SubmitQueue
    lengths: OutputLengths
    model: str

    def outlooks(self, rates: Rates, max_rows: int, asked: Waiting | None = None) -> list[Outlook]:
        """Of all who wait, and of `asked` if it came now, in fair order."""
        expected = functools.cache(self._output_tokens)
        order = self.queue.in_fair_order(asked, expected)
        running = [self._running(*one, max_rows) for one in self.queue.running()]
        jobs = [self._job(waiting, expected(waiting), max_rows) for waiting in order]
        told = forecasts(jobs, running, rates, max_rows)
        made: list[Outlook] = []
        sequences = tokens = 0
        for waiting, job, forecast in zip(order, jobs, told, strict=True):
            made.append(Outlook(waiting, forecast, sequences, tokens))
            sequences += job.rows
            tokens += job.prompt_tokens
        return made

    def kind(self, origin: Origin) -> Kind:
        """Which answers are like this one."""
        return Kind(origin.principal.key_id, self.model, origin.effort)

    def _output_tokens(self, waiting: Waiting) -> int:
        return self.lengths.left(self.kind(waiting.origin), waiting.submit.max_tokens)

    def _job(self, waiting: Waiting, output_tokens: int, max_rows: int) -> Job:
        return Job(
            waiting.key_id,
            waiting.uncached_tokens,
            output_tokens,
            len(waiting.choices),
            self.queue.share(waiting.origin.principal, max_rows),
        )

    def _running(self, generation: Generation, origin: Origin, max_rows: int) -> Job:
        submit, sampled = generation.submit, generation.sampled_tokens
        there = generation.prefilled_tokens
        if generation.request_id != submit.request_id:
            there = len(submit.prompt)  # Its leader computes it.
        elif generation.cached_tokens is None:
            there = origin.hits.disk_tokens  # The engine has not begun with it.
        return Job(
            origin.principal.key_id,
            len(submit.prompt) - there,
            self.lengths.left(self.kind(origin), submit.max_tokens, sampled),
            share=self.queue.share(origin.principal, max_rows),
        )


def newcomer(submit: Submit, choices: int, origin: Origin, now_s: float) -> Waiting:
    """A request that is not in the queue."""
    sequences = tuple(Generation(NEWCOMER, submit) for _ in range(choices))
    return Waiting(sequences, origin, now_s)
