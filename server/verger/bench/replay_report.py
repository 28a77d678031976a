"""What `verger bench replay` is asked for and what it reports: pure.

Made and printed by `cli/bench_replay.py`, filled by `replay_counts.py` and `second_turn.py`; the
same Structs are the JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from msgspec import Struct

from verger.bench.chat import Answer, Target
from verger.bench.served import Own
from verger.bench.trace import Scale
from verger.formats.vocabulary import Vocabulary

SCHEMA_VERSION = 1
TARGETS: Mapping[str, float] = {"fits": 1.05, "half-disk": 1.10, "half": 1.80, "restart": 1.10}
"""Scenario → the most that may be computed ÷ the least possible."""
NEEDS_WORKING_SET = ("half-disk", "half")
"""Their memory is half of what `fits` was seen to need."""
SECOND_TURN_TARGET = 0.05
SECOND_TURN_TARGET_TOKENS = 8_000
"""From this length on the target holds."""
MAX_SECOND_TURN_TOKENS = 120_000


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """`own` is the server to start, or None: then `running` is asked as it is."""

    own: Own | None
    running: Target | None
    model: str
    vocabulary: Vocabulary
    has_models_vocabulary: bool
    """Whether the vocabulary is known to be that of the model which is asked."""
    scale: Scale
    seed: int
    agents: int
    keys: int
    steps: int
    scenarios: Sequence[str]
    second_turn_tokens: Sequence[int]
    repeats: int
    """Of each length of the second turns."""


class ScenarioReport(Struct, frozen=True, kw_only=True):
    """All agents' traces, once. A null is what the server does not tell."""

    name: str
    kv_limit_bytes: int | None
    """What was set; null: nothing."""
    requests: int
    failed_requests: int
    first_failure: str | None
    substituted_answers: int
    """Not of the wanted kind, a call or an answer: the trace went on with a scripted one."""
    prompt_tokens: int
    """As the server counts them."""
    rendered_tokens: int
    """As `least_tokens` was counted; another number means that the server writes prompts
    differently."""
    least_tokens: int
    distinct_tokens: int
    """Positions of all sequences, each prefix once, with what was generated."""
    computed_tokens: int
    background_tokens: int | None
    """Those of `computed_tokens` that no request waited for."""
    ratio: float
    target_ratio: float
    is_met: bool
    hit_ratio: float
    mean_ttft_s: float
    elapsed_s: float
    evictions: int | None
    preemptions: int | None


class SecondTurnReport(Struct, frozen=True, kw_only=True):
    """Medians over the repeats; the target is null where there is none for this length."""

    prompt_tokens: int
    cold_ttft_s: float
    second_ttft_s: float
    ratio: float
    """The median of the pairs' ratios."""
    target_ratio: float | None
    is_met: bool | None


class ReplayReport(Struct, frozen=True, kw_only=True):
    """One run."""

    schema_version: int
    model: str
    url: str | None
    """Null: a server of our own."""
    machine: str
    cores: int
    scale: str
    seed: int
    agents: int
    keys: int
    steps: int
    working_set_bytes: int | None
    scenarios: Sequence[ScenarioReport]
    second_turns: Sequence[SecondTurnReport]


def parse_scenarios(text: str) -> list[str]:
    """Names between commas, in the order in which they are to run. Raises ValueError."""
    names = text.split(",") if text else []
    if unknown := [name for name in names if name not in TARGETS]:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(TARGETS)}")
    if len(set(names)) < len(names):
        raise ValueError("a scenario is named twice")
    needing = [name for name in names if name in NEEDS_WORKING_SET]
    if needing and "fits" not in names[: names.index(needing[0])]:
        raise ValueError(f"{needing[0]} needs fits before it, which measures the working set")
    return names


def parse_lengths(text: str) -> list[int]:
    """Prompt lengths between commas; empty means none. Raises ValueError."""
    lengths = [int(part) for part in text.split(",")] if text else []
    if wrong := [tokens for tokens in lengths if not 1 <= tokens <= MAX_SECOND_TURN_TOKENS]:
        raise ValueError(f"{wrong[0]} is not between 1 and {MAX_SECOND_TURN_TOKENS}")
    return lengths


def second_turn_report(pairs: Sequence[tuple[Answer, Answer]]) -> SecondTurnReport:
    """The first and the second turn of several conversations of one length."""
    tokens = round(median(second.prompt_tokens for _, second in pairs))
    ratio = median(second.ttft_s / cold.ttft_s for cold, second in pairs)
    target = SECOND_TURN_TARGET if tokens >= SECOND_TURN_TARGET_TOKENS else None
    return SecondTurnReport(
        prompt_tokens=tokens,
        cold_ttft_s=median(cold.ttft_s for cold, _ in pairs),
        second_ttft_s=median(second.ttft_s for _, second in pairs),
        ratio=ratio,
        target_ratio=target,
        is_met=None if target is None else ratio <= target,
    )
