"""What `verger bench fallback` reports: pure.

Filled by `fallback.py`, printed by `cli/bench_fallback.py`; the same Structs are the JSON.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec import Struct

from verger.bench.stall_report import percentile

SCHEMA_VERSION = 1
CPU_TOKENS = 100_000


class Latency(Struct, frozen=True):
    """Milliseconds to the first token, over all pairs; what is added is of each pair."""

    direct_p50_ms: float
    direct_p99_ms: float
    through_p50_ms: float
    through_p99_ms: float
    added_p50_ms: float
    added_p99_ms: float


class Flow(Struct, frozen=True):
    """All streams at once, from the first byte sent to the last one received."""

    pace_tok_s: int | None
    """At which the provider writes each stream; None: as fast as it is read."""
    tokens: int
    direct_tok_s: float
    through_tok_s: float
    gateway_cpu_s: float
    """Per CPU_TOKENS tokens, of the gateway's process alone."""


class FallbackReport(Struct, frozen=True):
    """Everything, on one machine."""

    schema_version: int
    machine: str
    cores: int
    pairs: int
    streams: int
    latency: Latency
    flows: Sequence[Flow]


@dataclass(frozen=True, slots=True)
class FallbackPlan:
    """How much is measured."""

    pairs: int
    streams: int
    tokens: int
    """Of each stream."""


def latency_of(direct_s: Sequence[float], through_s: Sequence[float]) -> Latency:
    """Of pairs that were made one right after the other."""
    added_s = [through - direct for direct, through in zip(direct_s, through_s, strict=True)]
    return Latency(
        direct_p50_ms=percentile(direct_s, 50) * 1000,
        direct_p99_ms=percentile(direct_s, 99) * 1000,
        through_p50_ms=percentile(through_s, 50) * 1000,
        through_p99_ms=percentile(through_s, 99) * 1000,
        added_p50_ms=percentile(added_s, 50) * 1000,
        added_p99_ms=percentile(added_s, 99) * 1000,
    )


def flow_of(
    tokens: int, direct_s: float, through_s: float, cpu_s: float, pace_tok_s: int | None
) -> Flow:
    """Of the same streams twice."""
    return Flow(
        pace_tok_s=pace_tok_s,
        tokens=tokens,
        direct_tok_s=tokens / direct_s,
        through_tok_s=tokens / through_s,
        gateway_cpu_s=cpu_s / tokens * CPU_TOKENS,
    )
