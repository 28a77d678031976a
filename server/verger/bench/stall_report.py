"""From the times of events to gaps and rates, and what `verger bench stall` reports: pure.

Filled by `stall.py`, printed by `cli/bench_stall.py`; the same Structs are the JSON.

      undisturbed         a prompt is prefilled
    ──┬─┬─┬──┬─┬─┬─┬───│──┬───────┬──┬──────┬───│──┬─┬─   A gap counts where it reaches into the
                       sent               first token      time that is looked at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from msgspec import Struct

from verger.bench.chat import Target
from verger.bench.served import Own
from verger.formats.vocabulary import Vocabulary

SCHEMA_VERSION = 1
ITL_ALLOWANCE = 1.2
"""A gap may be this many times the target, and the longest undisturbed one longer."""
RATE_TARGET = 0.80
MAX_STREAMS = 64
PERCENTILE = 99


@dataclass(frozen=True, slots=True)
class StallPlan:
    """`own` is the server to start, or None: then `running` is asked as it is."""

    own: Own | None
    running: Target | None
    model: str
    vocabulary: Vocabulary
    has_models_vocabulary: bool
    seed: int
    streams: int
    prompt_tokens: int
    target_itl_ms: float
    repeats: int


@dataclass(frozen=True, slots=True)
class Span:
    """A time that is looked at."""

    start_s: float
    stop_s: float


class StallRun(Struct, frozen=True, kw_only=True):
    """One prompt beside the streams, and one like it before on the idle server."""

    prompt_tokens: int
    alone_s: float
    """From sending the prompt to its first token, as `beside_s`."""
    beside_s: float
    rate_ratio: float
    """Prompt tokens per second beside the streams ÷ alone."""
    undisturbed_ms: Sequence[float]
    """The longest gap of each stream while no prompt is prefilled."""
    disturbed_ms: Sequence[float]
    """The longest gap of each stream while the prompt is prefilled."""
    restarts: int
    """Streams that ended too early and were begun anew; what lay between is no gap."""


class Gaps(Struct, frozen=True, kw_only=True):
    """The longest gaps of all streams in all runs."""

    median_ms: float
    p90_ms: float
    p99_ms: float
    longest_ms: float


class StallReport(Struct, frozen=True, kw_only=True):
    """One run of the command."""

    schema_version: int
    model: str
    url: str | None
    """Null: a server of our own."""
    machine: str
    cores: int
    seed: int
    streams: int
    target_itl_ms: float
    undisturbed: Gaps
    disturbed: Gaps
    allowed_ms: float
    """What the p99 of the disturbed gaps may be."""
    is_gap_met: bool
    rate_ratio: float
    """The median of the runs."""
    target_rate_ratio: float
    is_rate_met: bool
    runs: Sequence[StallRun]


def longest_gap_ms(segments: Sequence[Sequence[float]], span: Span) -> float | None:
    """Of one stream, which may have been begun anew: a segment each, of the times of its events.

    Gaps that only reach into the span count in full; one that is still open at its end counts up to
    there. None if the stream was between two segments all the time.
    """
    times = [list(segment) for segment in segments if segment]
    if segments and segments[-1] and segments[-1][-1] < span.stop_s:
        times[-1].append(span.stop_s)
    gaps_s = [
        later_s - earlier_s
        for segment in times
        for earlier_s, later_s in pairwise(segment)
        if later_s > span.start_s and earlier_s < span.stop_s
    ]
    return max(gaps_s) * 1000 if gaps_s else None


def percentile(values: Sequence[float], percent: int) -> float:
    """By nearest rank: the least value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def gaps_of(values_ms: Sequence[float]) -> Gaps:
    """Their distribution."""
    return Gaps(
        median_ms=median(values_ms),
        p90_ms=percentile(values_ms, 90),
        p99_ms=percentile(values_ms, PERCENTILE),
        longest_ms=max(values_ms),
    )


def stall_report(
    plan: StallPlan, runs: Sequence[StallRun], machine: str, cores: int
) -> StallReport:
    """The verdicts over all runs."""
    undisturbed = gaps_of([gap for run in runs for gap in run.undisturbed_ms])
    disturbed = gaps_of([gap for run in runs for gap in run.disturbed_ms])
    allowed_ms = plan.target_itl_ms * ITL_ALLOWANCE + undisturbed.longest_ms
    rate_ratio = median(run.rate_ratio for run in runs)
    return StallReport(
        schema_version=SCHEMA_VERSION,
        model=plan.model,
        url=plan.running.endpoint.url if plan.running else None,
        machine=machine,
        cores=cores,
        seed=plan.seed,
        streams=plan.streams,
        target_itl_ms=plan.target_itl_ms,
        undisturbed=undisturbed,
        disturbed=disturbed,
        allowed_ms=allowed_ms,
        is_gap_met=disturbed.p99_ms <= allowed_ms,
        rate_ratio=rate_ratio,
        target_rate_ratio=RATE_TARGET,
        is_rate_met=rate_ratio >= RATE_TARGET,
        runs=runs,
    )
