"""From the times of tokens to rates, and what `verger bench rates` asks for and reports: pure.

Filled by `rates.py`, printed by `cli/bench_rates.py`; the same Structs are the JSON.

    ──┬──┬─│─┬──┬──┬──┬──┬──┬──┬─│──┬──   The window opens when every stream has shown a token and
           │   the decode window │        closes when the first of them has shown its last, so that
      all have begun     one has ended    as many decode all the time, and nobody's prompt is in it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from msgspec import Struct

from verger.bench.chat import Answer, Target
from verger.bench.served import Own
from verger.formats.vocabulary import Vocabulary

SCHEMA_VERSION = 1
MAX_CONTEXT_TOKENS = 131_072
MAX_BATCH = 64
MAX_LISTED = 16
"""Contexts, or batches, of one run of the command."""
MIN_WINDOW_TOKENS = 8
"""Of each stream: fewer say nothing of a steady rate."""
PROMPT_ROOM_TOKENS = 256
"""What the prompt's format and the question add to the text of a context, at most."""
ROW_ROOM_TOKENS = 512
"""Rows may be given their memory in steps of so much."""


@dataclass(frozen=True, slots=True)
class RatesPlan:
    """`own` is the server to start, or None: then `running` is asked as it is."""

    own: Own | None
    running: Target | None
    model: str
    vocabulary: Vocabulary
    has_models_vocabulary: bool
    seed: int
    contexts: Sequence[int]
    batches: Sequence[int]
    tokens: int
    """That each stream decodes."""
    repeats: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server can hold; None where it does not tell."""

    context_tokens: int | None = None
    rows: int | None = None
    kv_bytes: int | None = None
    """For rows, after what they take whatever their length."""
    token_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Decoded:
    """One stream: when each of its tokens came."""

    prompt_tokens: int
    token_s: Sequence[float]


class Load(Struct, frozen=True, kw_only=True):
    """How long the server took to start; `engine_s` and `device` are what its log says."""

    ready_s: float
    """From the start of the process to a green /readyz."""
    engine_s: float | None
    device: str | None


class PrefillRate(Struct, frozen=True, kw_only=True):
    """Prompts of one length, each new to the server, on an idle server: medians of the runs."""

    context_tokens: int
    """As asked for; `prompt_tokens` as the server counts them."""
    prompt_tokens: int
    ttft_s: float
    tok_s: float
    """Prompt tokens that were not cached ÷ the time to the first token that shows."""
    runs_tok_s: Sequence[float]


class DecodeRun(Struct, frozen=True, kw_only=True):
    """One window; `began_s` and `ended_s` are seconds since 1970."""

    tok_s: float
    stream_tok_s: float
    itl_ms: float
    began_s: float
    ended_s: float


class DecodeRate(Struct, frozen=True, kw_only=True):
    """So many streams behind so long a prompt: medians of the runs."""

    batch: int
    context_tokens: int
    prompt_tokens: int
    tok_s: float
    """Of all streams together."""
    stream_tok_s: float
    """Of the median stream."""
    itl_ms: float
    """The median time between two tokens of a stream."""
    runs: Sequence[DecodeRun]


class Skipped(Struct, frozen=True, kw_only=True):
    """What was not measured, and why; without a batch it is the context's prefill as well."""

    context_tokens: int
    batch: int | None
    reason: str


class RatesReport(Struct, frozen=True, kw_only=True):
    """One run of the command."""

    schema_version: int
    model: str
    url: str | None
    """Null: a server of our own."""
    machine: str
    cores: int
    seed: int
    tokens: int
    repeats: int
    load: Load | None
    """Null of a server that ran already."""
    prefill: Sequence[PrefillRate]
    decode: Sequence[DecodeRate]
    skipped: Sequence[Skipped]


class TooShort(Exception):
    """The streams did not decode together for long enough to be measured."""


def parse_counts(text: str, most: int) -> list[int]:
    """Different numbers from 1 to `most`, between commas, in their order. Raises ValueError."""
    counts = [int(part) for part in text.split(",")]
    if wrong := [count for count in counts if not 1 <= count <= most]:
        raise ValueError(f"{wrong[0]} is not between 1 and {most}")
    if len(set(counts)) < len(counts):
        raise ValueError("a number stands there twice")
    if len(counts) > MAX_LISTED:
        raise ValueError(f"more than {MAX_LISTED} numbers")
    return counts


def why_not(context_tokens: int, batch: int, tokens: int, limits: Limits) -> str | None:
    """Why so many streams cannot run at once behind so long a prompt; None if they can."""
    needed = context_tokens + PROMPT_ROOM_TOKENS + tokens
    if limits.context_tokens is not None and needed > limits.context_tokens:
        return f"the model's context is {limits.context_tokens} tokens"
    if limits.rows is not None and batch > limits.rows:
        return f"the server has {limits.rows} rows"
    needed_bytes = batch * (needed + ROW_ROOM_TOKENS) * limits.token_bytes
    if limits.kv_bytes is not None and needed_bytes > limits.kv_bytes:
        return (
            f"{batch} rows need {needed_bytes / 2**20:.0f} MiB for KV, of "
            f"{limits.kv_bytes / 2**20:.0f} MiB"
        )
    return None


def prefill_rate(context_tokens: int, answers: Sequence[Answer]) -> PrefillRate:
    """Of the runs of one length."""
    rates = [(one.prompt_tokens - one.cached_tokens) / one.ttft_s for one in answers]
    return PrefillRate(
        context_tokens=context_tokens,
        prompt_tokens=round(median(one.prompt_tokens for one in answers)),
        ttft_s=median(one.ttft_s for one in answers),
        tok_s=median(rates),
        runs_tok_s=rates,
    )


def decode_run(streams: Sequence[Decoded], epoch_s: float) -> DecodeRun:
    """The window of streams that ran at once; `epoch_s` is 1970's offset to their clock. Raises
    TooShort."""
    if not all(stream.token_s for stream in streams):
        raise TooShort("a stream showed nothing")
    opened_s = max(stream.token_s[0] for stream in streams)
    closed_s = min(stream.token_s[-1] for stream in streams)
    inside = [[at for at in one.token_s if opened_s <= at <= closed_s] for one in streams]
    # Those of the first event are when it is that the others begin to be counted.
    counted = [sum(at > times[0] for at in times) if times else 0 for times in inside]
    if min(counted) < MIN_WINDOW_TOKENS:
        raise TooShort(f"all decoded at once for less than {MIN_WINDOW_TOKENS} tokens each")
    rates = [tokens / (times[-1] - times[0]) for tokens, times in zip(counted, inside, strict=True)]
    return DecodeRun(
        tok_s=sum(rates),
        stream_tok_s=median(rates),
        itl_ms=1000 * median(_gaps_s(inside)),
        began_s=opened_s + epoch_s,
        ended_s=closed_s + epoch_s,
    )


def decode_rate(
    context_tokens: int, prompt_tokens: int, batch: int, runs: Sequence[DecodeRun]
) -> DecodeRate:
    """Of the runs of one batch at one context."""
    return DecodeRate(
        batch=batch,
        context_tokens=context_tokens,
        prompt_tokens=prompt_tokens,
        tok_s=median(run.tok_s for run in runs),
        stream_tok_s=median(run.stream_tok_s for run in runs),
        itl_ms=median(run.itl_ms for run in runs),
        runs=runs,
    )


def _gaps_s(streams: Sequence[Sequence[float]]) -> list[float]:
    """Tokens that came in one event have the time since the last event between them."""
    gaps = []
    for times in streams:
        came = Counter(times)
        for earlier_s, later_s in pairwise(sorted(came)):
            gaps += [(later_s - earlier_s) / came[later_s]] * came[later_s]
    return gaps
