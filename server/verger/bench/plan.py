"""What to measure: pure; made by `cli/bench.py`, carried out by `overhead.py`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from verger.catalogue import ModelChoice

EQUAL_TARGET = 0.85
MIXED_TARGET = 1.3
MAX_STREAMS = 256
LONG_PROMPT_TOKENS = 4_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """Streams that run at once; each prompt is as much longer as `instructions_tokens` says."""

    name: str
    instructions_tokens: Sequence[int]
    target_ratio: float
    bare_prefill_rows: int
    """How many prompts the bare loop prefills at once: it pads them to the longest."""


@dataclass(frozen=True, slots=True)
class Plan:
    """`requested` is what --model said, `choice` what that means."""

    requested: str
    choice: ModelChoice
    scenarios: Sequence[Scenario]
    tokens: int
    repeats: int


def parse_scenario(text: str) -> Scenario:
    """`16` is that many equal streams, `15+1` is short ones and a long one. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,3})(\+1)?", text)
    if match is None or not 1 <= int(match[1]) <= MAX_STREAMS:
        raise ValueError(text)
    short_rows = [0] * int(match[1])
    if match[2]:
        rows = [LONG_PROMPT_TOKENS, *short_rows]
        return Scenario(f"{match[1]}+1 long", rows, MIXED_TARGET, bare_prefill_rows=1)
    return Scenario(match[1], short_rows, EQUAL_TARGET, bare_prefill_rows=len(short_rows))
