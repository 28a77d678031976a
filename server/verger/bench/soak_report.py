"""What `verger bench soak` is asked for and what it reports: pure.

Made and printed by `cli/bench_soak.py`, filled by `soak.py`; the same Structs are the JSON.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from verger.bench.chat import Target
from verger.bench.served import Own, Status
from verger.bench.soak_asks import Ask
from verger.bench.soak_check import Outcome, Verdict
from verger.bench.soak_memory import Memory

SCHEMA_VERSION = 1
MAX_EXAMPLES = 5
"""Of bad replies that are described."""
MAX_BAD = 100
"""After so many a soak is given up."""
BAD = (Outcome.MALFORMED, Outcome.LOST, Outcome.FAILED)
MIN_COPIED = 0.995
"""Of what nano gets right alone: in a batch sums round differently, and seldom that decides."""
MAX_ASKED_ALONE = 50
"""Wrong copies beyond count as wrong, whatever nano would say alone."""


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """`own` is the server to start, or None: then `running` is asked as it is. Either `requests`
    or `minutes` says when it ends."""

    own: Own | None
    running: Target | None
    model: str
    seed: int
    at_once: int
    requests: int | None
    minutes: float | None

    @property
    def is_copier(self) -> bool:
        """Whether it is known what the model has to say."""
        return self.model == "nano"


class Counts(Struct, frozen=True, kw_only=True):
    """How the requests ended; each is in one of these."""

    answered: int
    left: int
    overloaded: int
    failed: int
    malformed: int
    lost: int


class SoakReport(Struct, frozen=True, kw_only=True):
    """One run of the command."""

    schema_version: int
    model: str
    url: str | None
    """Null: a server of our own."""
    machine: str
    cores: int
    seed: int
    at_once: int
    minutes: float | None
    elapsed_s: float
    requests: int
    features: dict[str, int]
    """How many requests had what."""
    counts: Counts
    is_sound: bool
    """Whether none was malformed, lost or failed."""
    copies: int
    own_mistakes: int
    """Wrong copies that nano makes alone, with nothing cached, as well: the model's, not ours."""
    wrong_copies: int
    """The others."""
    target_copied: float
    are_copies_met: bool | None
    examples: Sequence[str]
    """The first bad replies and wrong copies."""
    remains: Sequence[str]
    """What was not as before when all was over."""
    is_restored: bool
    memory: Memory | None
    memory_skipped: str | None


@dataclass(slots=True)
class Tally:
    """Counts replies as they come."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    own_mistakes: int = 0
    wrong_copies: int = 0
    unexplained: list[tuple[Ask, Verdict]] = field(default_factory=list)
    """Wrong copies until it is known what nano says alone."""
    examples: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """All that have ended."""
        return self.outcomes.total()

    @property
    def is_hopeless(self) -> bool:
        """Whether going on would only show more of the same."""
        return sum(self.outcomes[outcome] for outcome in BAD) >= MAX_BAD

    @property
    def is_sound(self) -> bool:
        """Whether every reply was one, or a refusal for want of room."""
        return not any(self.outcomes[outcome] for outcome in BAD)

    @property
    def are_copies_met(self) -> bool | None:
        """None where nothing had to be copied."""
        fair = self.copies - self.own_mistakes
        return fair - self.wrong_copies >= MIN_COPIED * fair if self.copies else None

    def note(self, asked: Ask, verdict: Verdict) -> None:
        """One reply."""
        self.outcomes[verdict.outcome] += 1
        self.features.update(asked.features)
        if verdict.is_copy is not None:
            self.copies += 1
        if verdict.outcome in BAD:
            self._describe(asked, f"{verdict.outcome.value}: {verdict.reason}")
        elif verdict.is_copy is False and len(self.unexplained) < MAX_ASKED_ALONE:
            self.unexplained.append((asked, verdict))
        elif verdict.is_copy is False:
            self.wrong_copies += 1

    def explain(self, asked: Ask, among_others: Verdict, alone: Verdict) -> None:
        """A wrong copy, now that nano has been asked alone."""
        if alone.outcome is Outcome.ANSWERED and alone.said == among_others.said:
            self.own_mistakes += 1
            return
        self.wrong_copies += 1
        said = f"{among_others.said}, and alone {alone.said or alone.outcome.value}"
        self._describe(asked, f"wrong copy: {said}")

    def counts(self) -> Counts:
        """By name."""
        return Counts(**{outcome.value: self.outcomes[outcome] for outcome in Outcome})

    def _describe(self, asked: Ask, what: str) -> None:
        if len(self.examples) < MAX_EXAMPLES:
            features = ", ".join(sorted(asked.features)) or "plain"
            self.examples.append(f"{what} ({features})")


def remains_of(before: Status, after: Status) -> list[str]:
    """What an idle server still holds of a soak. Cached prefixes are meant to stay."""
    found = []
    if not after.is_idle:
        found.append(f"rows: {after.rows}")
    if after.memory.kv_bytes > after.cache.bytes + before.ring_bytes:
        held = after.memory.kv_bytes - after.cache.bytes - before.ring_bytes
        found.append(f"{held} bytes of KV that are neither cached nor were held before")
    running = {key.name: key.running for key in before.keys}
    for key in after.keys:
        if key.running > running.get(key.name, 0):
            found.append(f"{key.running - running.get(key.name, 0)} permits of the key {key.name}")
    return found
