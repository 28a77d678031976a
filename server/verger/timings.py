"""One measured round: what the processes that measure are asked, and what they answer.

The wire between `bench/` and its two children, the reader of HTTP streams (`bench/reader.py`) and
the loop that Verger is compared with (`engine/device/bare_loop.py`): a line of JSON each way per
round. All times are seconds since the round began. Must not know HTTP, MLX or statistics.
"""

from msgspec import Struct


class HttpRound(Struct, frozen=True):
    """Send each body on a connection of its own, all at once, and read the answers."""

    port: int
    bodies: list[str]
    limit_s: float


class BareRound(Struct, frozen=True):
    """Generate greedily from all prompts in one batch; `prefill_rows` at a time are prefilled."""

    prompts: list[list[int]]
    max_tokens: int
    stop_ids: list[int]
    prefill_rows: int


class StreamTimes(Struct, frozen=True):
    """One answer. `tokens` counts all that were sampled, `token_s` lists those seen to arrive."""

    prompt_tokens: int
    tokens: int
    token_s: list[float]
    ended_s: float


class Timings(Struct, frozen=True):
    """The round's complete answers, and one line for each that failed."""

    streams: list[StreamTimes]
    failures: list[str] = []
