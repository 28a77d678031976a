"""From what was sent and what the server counted to the figures of a scenario: pure.

Called by `replay.py`. Must not know how requests are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from verger.bench.chat import Answer
from verger.bench.children import BenchError
from verger.bench.least import exchange_of, least_tokens
from verger.bench.replay_report import TARGETS, ScenarioReport
from verger.bench.served import Status
from verger.formats.conversation import Conversation
from verger.formats.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that was answered."""

    conversation: Conversation
    answer: Answer


@dataclass(slots=True)
class Counted:
    """Differences of a server's counters, over the lives of the servers of a scenario."""

    is_known: bool = True
    prefilled: int = 0
    background: int = 0
    asked: int = 0
    cached: int = 0
    evictions: int = 0
    preemptions: int = 0

    def add(self, before: Status | None, after: Status | None) -> None:
        """One life of a server, or the part of it that is measured."""
        if before is None or after is None:
            self.is_known = False
            return
        self.prefilled += after.tokens.prefilled - before.tokens.prefilled
        self.background += after.tokens.background - before.tokens.background
        self.asked += after.cache.asked_tokens - before.cache.asked_tokens
        self.cached += after.cache.cached_tokens - before.cache.cached_tokens
        self.evictions += after.cache.evictions - before.cache.evictions
        self.preemptions += after.cache.preemptions - before.cache.preemptions


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that happened in a scenario."""

    sent: Sequence[Sent]
    failures: Sequence[str]
    substituted: int
    counted: Counted
    elapsed_s: float


def scenario_report(
    name: str, limit_bytes: int | None, outcome: Outcome, vocabulary: Vocabulary
) -> ScenarioReport:
    """Where the server's counters are not known, the usage of the answers must do."""
    sent, failures, counted = outcome.sent, outcome.failures, outcome.counted
    if not sent:
        raise BenchError(f"no request was answered: {failures[0]}")
    exchanges = [exchange_of(one.conversation, one.answer, vocabulary) for one in sent]
    least = least_tokens(exchanges)
    asked = prompt_tokens = sum(one.answer.prompt_tokens for one in sent)
    cached = sum(one.answer.cached_tokens for one in sent)
    computed = asked - cached
    if counted.is_known:
        computed, asked, cached = counted.prefilled, counted.asked, counted.cached
    return ScenarioReport(
        name=name,
        kv_limit_bytes=limit_bytes,
        requests=len(sent) + len(failures),
        failed_requests=len(failures),
        first_failure=failures[0] if failures else None,
        substituted_answers=outcome.substituted,
        prompt_tokens=prompt_tokens,
        rendered_tokens=sum(len(exchange.prompt) for exchange in exchanges),
        least_tokens=least.tokens,
        distinct_tokens=least.positions,
        computed_tokens=computed,
        background_tokens=counted.background if counted.is_known else None,
        ratio=computed / least.tokens,
        target_ratio=TARGETS[name],
        is_met=computed <= TARGETS[name] * least.tokens and not failures,
        hit_ratio=cached / asked if asked else 0.0,
        mean_ttft_s=fmean(one.answer.ttft_s for one in sent),
        elapsed_s=outcome.elapsed_s,
        evictions=counted.evictions if counted.is_known else None,
        preemptions=counted.preemptions if counted.is_known else None,
    )
