"""One request in the engine, from Submit to Finished: its state and its counts.

Owned by the scheduler. Pure; must not know rows, bytes or other sequences but its leader.

    WAITING ─► PREFILLING ─► DECODING ─► FINISHED
       ▲ ▲─ preempted ─┘          │
       └────── preempted ─────────┘         (every state may also end at once: cancelled)

Launched counts run ahead of settled ones by the plans that are launched and not yet settled.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from msgspec.structs import replace

from verger.engine.prefix_cache import Kind
from verger.engine.prefix_node import ids_of
from verger.engine.steps import Place, has_penalties
from verger.messages import BACKGROUND, FinishReason, Submit

GRID_TOKENS = 512
"""A checkpoint is kept at every multiple, however long nobody marks a boundary."""


class SequenceState(Enum):
    """Where a sequence is in its life; the diagram is in the module docstring."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


_MOVES = {
    SequenceState.WAITING: (SequenceState.PREFILLING, SequenceState.FINISHED),
    SequenceState.PREFILLING: (
        SequenceState.DECODING,
        SequenceState.WAITING,
        SequenceState.FINISHED,
    ),
    SequenceState.DECODING: (SequenceState.WAITING, SequenceState.FINISHED),
    SequenceState.FINISHED: (),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A position of a prompt worth a window."""

    at: int
    kind: Kind


@dataclass(slots=True)
class Sequence:
    """`submit` is what is computed now: after a preemption its prompt ends with what was generated
    before. `asked` is what came."""

    asked: Submit
    submit: Submit
    max_tokens: int
    """What it may generate from here: what was asked, cut at the context's end."""
    order: int
    """Counts arrivals; kept through preemptions."""
    arrived_s: float
    leader: "Sequence | None" = None
    """Whose prefill this one shares; None for a sequence that has its own."""
    state: SequenceState = SequenceState.WAITING
    place: Place | None = None
    prefilled_tokens: int = 0
    launched_tokens: int = 0
    ids: list[int] = field(default_factory=list)
    """What was sampled since the last time it got a row, as far as it is settled."""
    cached_tokens: int | None = None
    """Found when it first got a row; None before."""
    turn: int = 0
    """The number of its last chunk: whoever waits longest is next."""
    has_begun: bool = False
    """Whether it had a chunk since it got its row."""
    resumes_after: int = 0
    """It may get a row again once so many steps are settled: until then a step computes the old."""
    has_read: bool = False
    """Whether what is on disk of its prompt was read back, since it last waited."""
    reads: int = 0
    """How often that was begun."""
    is_promoted: bool = False
    """Whether it has waited so long that it may take what others will soon go on with; then its
    conversation is as good as the oldest."""
    prompt_ids: "array[int]" = field(init=False)
    """The prompt, quick to look up again and again."""
    shared_tokens: dict[int, int] = field(default_factory=dict)
    """Common prefix with the prompts of other requests, remembered while both wait or prefill."""

    def __post_init__(self) -> None:
        self.prompt_ids = ids_of(self.submit.prompt)

    @property
    def request_id(self) -> int:
        """The gateway's name for it."""
        return self.asked.request_id

    @property
    def prompt_tokens(self) -> int:
        """The length of what has to be computed before it decodes."""
        return len(self.submit.prompt)

    @property
    def settled_tokens(self) -> int:
        """Sampled and known, since it last got a row."""
        return len(self.ids)

    @property
    def completion_tokens(self) -> int:
        """Everything sampled for the request."""
        return self.prompt_tokens - len(self.asked.prompt) + self.settled_tokens

    @property
    def computed_tokens(self) -> int:
        """Positions whose KV is written, or being written by a launched step."""
        if self.state is not SequenceState.DECODING:
            return self.prefilled_tokens
        return self.prompt_tokens + self.launched_tokens - 1

    @property
    def is_prefill_only(self) -> bool:
        """Whether it generates nothing."""
        return self.asked.max_tokens == 0

    @property
    def is_background(self) -> bool:
        """Whether everybody else goes first."""
        return self.asked.priority >= BACKGROUND

    @property
    def reusable_tokens(self) -> int:
        """How much of the prompt may come from the cache: a token must be left to sample from."""
        return self.prompt_tokens if self.is_prefill_only else self.prompt_tokens - 1

    @property
    def needs_tokens(self) -> bool:
        """Whether a step cannot be launched before this row's last token is known to the host."""
        return self.submit.grammar is not None or has_penalties(self.submit.sampling)

    def open(self, place: Place, cached_tokens: int, turn: int) -> None:
        """It got a row that begins with so many known positions."""
        self.place = place
        self.prefilled_tokens = cached_tokens
        self.turn = turn
        self.has_begun = False
        if self.cached_tokens is None:
            self.cached_tokens = cached_tokens
        self.shared_tokens.clear()
        self.move(SequenceState.PREFILLING)

    def start_decoding(self) -> None:
        """The prompt is computed, by this sequence or its leader, and a first token launched."""
        self.prefilled_tokens = self.prompt_tokens
        self.launched_tokens = 1
        self.leader = None
        self.move(SequenceState.DECODING)

    def preempt(self, resumes_after: int) -> None:
        """It lost its row; what it has generated becomes part of its prompt."""
        self.submit = replace(
            self.submit,
            prompt=[*self.submit.prompt, *self.ids],
            resumed_tokens=self.submit.resumed_tokens + len(self.ids),
        )
        self.prompt_ids = ids_of(self.submit.prompt)
        self.max_tokens -= len(self.ids)
        self.ids = []
        self.place = None
        self.prefilled_tokens = self.launched_tokens = 0
        self.resumes_after = resumes_after
        self.has_read = False
        self.reads = 0
        self.move(SequenceState.WAITING)

    def move(self, state: SequenceState) -> None:
        """The one place where a state changes."""
        assert state in _MOVES[self.state], (self.state, state)
        self.state = state

    def finish_reason(self) -> FinishReason | None:
        """Whether its last token ended it, and why."""
        if self.ids and self.ids[-1] in self.submit.stop_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.settled_tokens == self.max_tokens else None

    def reusable_prefix(self, will_resume: bool) -> list[int]:
        """The ids of its computed positions, as far as a later prompt can begin with them: a stop
        id is not repeated there, and whoever resumes must have a token left to compute."""
        known = [*self.submit.prompt, *self.ids]
        ends_with_stop = bool(self.ids) and self.ids[-1] in self.submit.stop_ids
        is_last_left_out = will_resume or (ends_with_stop and not self.ends_open)
        return known[: min(len(known) - is_last_left_out, self.computed_tokens)]

    @property
    def ends_open(self) -> bool:
        """Whether it ended so that somebody will soon go on from there."""
        return bool(self.ids) and self.ids[-1] in self.submit.kept_stop_ids

    def checkpoints(self, start: int, stop: int) -> Iterator[Checkpoint]:
        """Where to keep windows in start < at ≤ stop, in rising order, the best kind of each."""
        limit = self.reusable_tokens
        kinds = {at: Kind.GRID for at in range(0, limit + 1, GRID_TOKENS)}
        kinds[limit] = Kind.TURN if self.is_prefill_only else Kind.PROMPT
        for index, at in enumerate(self.asked.boundaries):
            kinds[at] = Kind.SYSTEM if index == 0 else Kind.TURN
        for at in sorted(kinds):
            if start < at <= min(stop, limit):
                yield Checkpoint(at, kinds[at])
