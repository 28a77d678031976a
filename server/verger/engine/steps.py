"""The contract between the scheduler, the loop and whatever computes: what one step is.

The scheduler writes a `Step`, which is edits of what the device holds and then a `Plan`; a `Runner`
carries both out (`device/runner.py` on MLX, `fake.py` from a script); the loop carries both ways.
Must not know sockets, clocks, MLX or how rows are chosen.

A runner belongs to one thread. Its life of a row, keyed by request id, never by a slot:

    apply(Open) ─► launch(plan with Prefill …) ─► launch(plan with decode)* ─► apply(Close)
                          └──────────── collect() ────────────┘

What the device holds besides rows are *spans*, the full-attention KV of some positions of a prefix,
and *windows*, what the sliding layers need in order to go on at a position. The scheduler names
them; everything is done in the order in which it was said, so a window may be used by an edit that
follows the launch that cuts it.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from verger.messages import Logprob, Sampling, Submit

if TYPE_CHECKING:
    from verger.engine.prefix_files import SaveOrder

MAX_LAUNCHED_STEPS = 2
"""How many plans may be launched and not yet collected."""


@dataclass(frozen=True, slots=True)
class KVGeometry:
    """What KV costs in bytes, keys and values over all layers of a kind."""

    token_bytes: int
    """One position in the full-attention layers: these keep every position."""
    sliding_token_bytes: int
    """One position in the sliding layers: these keep the last `window`."""
    window: int
    max_rows: int

    @property
    def ring_bytes(self) -> int:
        """The sliding layers of all rows; allocated once."""
        return self.max_rows * self.window * self.sliding_token_bytes

    def window_bytes(self, at: int) -> int:
        """A window cut at position `at`: what the query at `at` sees of those before it."""
        return min(at, self.window - 1) * self.sliding_token_bytes


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row's full-attention KV lies: in row `row` of a block of `block_rows` rows, each
    with room for `capacity` positions."""

    block_id: int
    row: int
    block_rows: int
    capacity: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Source of positions start:stop of a prefix: a whole span, which is freed once copied."""

    span_id: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Running:
    """Source of positions start:stop of a prefix: they are copied from an open row."""

    request_id: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Make the window before position `at` and keep it under `window_id`."""

    window_id: int
    at: int


@dataclass(frozen=True, slots=True)
class Kept:
    """Make the positions start:stop of a row a span."""

    span_id: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Open:
    """Give a request a row that begins with a known prefix: adjoining sources from position 0 on
    and the window at their end, or neither. Computes nothing."""

    submit: Submit
    place: Place
    sources: tuple[Stored | Running, ...] = ()
    window_id: int | None = None

    @property
    def cached_tokens(self) -> int:
        """How many positions the row begins with."""
        return self.sources[-1].stop if self.sources else 0


@dataclass(frozen=True, slots=True)
class Move:
    """Copy a row's KV to a larger place and free the old one."""

    request_id: int
    place: Place


@dataclass(frozen=True, slots=True)
class Close:
    """Free a row, after keeping parts of it; legal while a launched step still computes it.

    `window.at` is what the row has computed, or one less: the ring holds no other window."""

    request_id: int
    kept: tuple[Kept, ...] = ()
    window: Cut | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """Divide a span: its first `tokens` positions become `upper_id`, the rest keep the id."""

    span_id: int
    upper_id: int
    tokens: int


@dataclass(frozen=True, slots=True)
class FreeSpan:
    """Forget a span."""

    span_id: int


@dataclass(frozen=True, slots=True)
class FreeWindow:
    """Forget a window."""

    window_id: int


@dataclass(frozen=True, slots=True)
class Import:
    """Make a span, and a window if there is an id for it, of what `Runner.export` returned earlier.

    The payload holds `payload_tokens` positions, of which first:stop become the span, and behind
    them a window of `window_tokens` positions (0: none).
    """

    payload: bytes
    payload_tokens: int
    window_tokens: int
    first: int
    stop: int
    span_id: int
    window_id: int | None = None


Edit = Open | Move | Close | Split | FreeSpan | FreeWindow | Import


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute prompt[start:stop]; where stop ends the prompt, also sample the first token, unless
    the request's `max_tokens` is 0.

    There `forks` are open rows of the same prompt: each gets a copy of the KV and its own sample.
    `cuts` are windows to keep, with start < at ≤ stop, in rising order.
    """

    request_id: int
    start: int
    stop: int
    forks: tuple[int, ...] = ()
    cuts: tuple[Cut, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """One step. A decode feeds the row's last sampled token, which may still be on the device."""

    prefills: tuple[Prefill, ...] = ()
    decodes: tuple[int, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.prefills and not self.decodes


@dataclass(frozen=True, slots=True)
class Step:
    """Edits to apply and prefixes to save, in this order, then what to compute."""

    edits: "tuple[Edit | SaveOrder, ...]"
    plan: Plan


@dataclass(frozen=True, slots=True)
class Work:
    """What a step's time depends on: tokens computed, and the positions that they attend to in a
    full-attention layer, summed over the tokens."""

    tokens: int
    attended: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.tokens + other.tokens, self.attended + other.attended)


def prefill_work(start: int, stop: int) -> Work:
    """The work of computing positions start:stop of one row."""
    tokens = stop - start
    return Work(tokens, tokens * (start + stop + 1) // 2)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that a step sampled for a row; `logprob` only if the request asked."""

    request_id: int
    id: int
    logprob: Logprob | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What the device holds: KV of rows, spans and windows; all live arrays; the highest so far;
    buffers that are free, for the arrays to come."""

    kv_bytes: int
    active_bytes: int
    peak_bytes: int
    buffer_bytes: int = 0


class Runner(Protocol):
    """Computes plans. Any exception it raises is fatal: the engine exits."""

    @property
    def context_tokens(self) -> int:
        """The longest sequence, prompt and generated tokens together."""

    @property
    def vocabulary_size(self) -> int:
        """The number of ids, ordinary and special."""

    @property
    def device(self) -> str:
        """The backend's name, for people."""

    @property
    def kv(self) -> KVGeometry:
        """What KV costs."""

    @property
    def free_bytes(self) -> int:
        """What this machine can spare for KV, beside the weights and what a step needs."""

    @property
    def fingerprint(self) -> str:
        """Names weights, precision and layout: what one engine exported, another with the same
        fingerprint may import."""

    @property
    def step_s(self) -> float:
        """What the plan collected last took, from the end of the one before it to its own."""

    def apply(self, edit: Edit) -> None:
        """Carry out one edit."""

    def launch(self, plan: Plan) -> None:
        """Start computing without waiting; at most MAX_LAUNCHED_STEPS stay uncollected."""

    def collect(self) -> list[Sampled]:
        """Wait for the oldest launched plan; includes ids of rows closed meanwhile."""

    def export(self, source: Stored | Running, window_id: int | None) -> bytes:
        """The bytes of a span, or of positions that an open row has computed, and of the window
        behind them; all stay."""

    def memory(self) -> Memory:
        """The device's memory now; cheap, asked at most once a second."""


def has_penalties(sampling: Sampling) -> bool:
    """Whether the next token depends on those generated before, other than through the model."""
    return (
        sampling.frequency_penalty != 0
        or sampling.presence_penalty != 0
        or sampling.repetition_penalty != 1
    )
