"""From times to rates, and what `verger bench overhead` reports: pure.

Filled by `overhead.py`, printed by `cli/bench.py`; the same Structs are the JSON.

    first tokens … │ the decode window │
    ──┬──┬─────────┼───────────────────┼──►   The window opens when every stream has its first
      0  1     the last one       last end    token, so that no prefill is in it.
"""

from collections.abc import Sequence
from statistics import median

from msgspec import Struct

from verger.timings import StreamTimes

SCHEMA_VERSION = 1


class Rates(Struct, frozen=True):
    """One round on one side; `whole_tok_s` includes the prefill."""

    tokens: int
    decode_tok_s: float
    whole_tok_s: float


class Pair(Struct, frozen=True):
    """The same work on both sides, one right after the other."""

    http: Rates
    bare: Rates


class Spread(Struct, frozen=True):
    """Over the repeats."""

    median: float
    low: float
    high: float


class CpuPerToken(Struct, frozen=True):
    """CPU time over all HTTP rounds, divided by their tokens."""

    gateway_us: float
    engine_us: float


class ScenarioReport(Struct, frozen=True):
    """Ratios are HTTP ÷ bare loop, of the pairs."""

    name: str
    streams: int
    prompt_tokens: int
    """Of all streams together."""
    target_ratio: float
    decode_ratio: Spread
    whole_ratio: Spread
    http_decode_tok_s: float
    bare_decode_tok_s: float
    are_tokens_equal: bool
    """Whether both sides generated equally many tokens in every pair."""
    cpu_per_token: CpuPerToken
    pairs: Sequence[Pair]


class Connections(Struct, frozen=True):
    """How many of the streams opened at once were answered in full."""

    opened: int
    served: int
    elapsed_s: float


class Report(Struct, frozen=True):
    """One run."""

    schema_version: int
    model: str
    machine: str
    cores: int
    ready_s: float
    """From the start of the server's process to a green /readyz."""
    scenarios: Sequence[ScenarioReport]
    connections: Connections


def rates(streams: Sequence[StreamTimes]) -> Rates:
    """Every stream must have shown a token."""
    opened_s = max(stream.token_s[0] for stream in streams)
    ended_s = max(stream.ended_s for stream in streams)
    before = sum(at_s <= opened_s for stream in streams for at_s in stream.token_s)
    tokens = sum(stream.tokens for stream in streams)
    return Rates(
        tokens=tokens,
        decode_tok_s=(tokens - before) / (ended_s - opened_s),
        whole_tok_s=tokens / ended_s,
    )


def summarise(
    name: str,
    target_ratio: float,
    streams: Sequence[StreamTimes],
    pairs: Sequence[Pair],
    cpu_per_token: CpuPerToken,
) -> ScenarioReport:
    """`streams` are those of any one round: all rounds have the same prompts' lengths."""
    return ScenarioReport(
        name=name,
        streams=len(streams),
        prompt_tokens=sum(stream.prompt_tokens for stream in streams),
        target_ratio=target_ratio,
        decode_ratio=spread([pair.http.decode_tok_s / pair.bare.decode_tok_s for pair in pairs]),
        whole_ratio=spread([pair.http.whole_tok_s / pair.bare.whole_tok_s for pair in pairs]),
        http_decode_tok_s=median(pair.http.decode_tok_s for pair in pairs),
        bare_decode_tok_s=median(pair.bare.decode_tok_s for pair in pairs),
        are_tokens_equal=all(pair.http.tokens == pair.bare.tokens for pair in pairs),
        cpu_per_token=cpu_per_token,
        pairs=pairs,
    )


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return Spread(median(values), min(values), max(values))
