"""The contract between the scheduler, the loop and whatever computes: what one step is.

The scheduler writes a `Plan`, a `Runner` computes it (`device/runner.py` on MLX, `fake.py` from a
script), the loop carries both ways. Must not know sockets, clocks, MLX or how rows are chosen.

A runner belongs to one thread. Its life of a row, keyed by request id, never by a slot:

    open(submit) ─► launch(plan with Prefill …) ─► launch(plan with decode)* ─► close(request_id)
                          └──────────── collect() ────────────┘
"""

from dataclasses import dataclass
from typing import Protocol

from verger.messages import Logprob, Sampling, Submit

MAX_LAUNCHED_STEPS = 2
"""How many plans may be launched and not yet collected."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Compute prompt[start:stop]; where stop ends the prompt, also sample the first token.

    There `forks` are open rows of the same prompt: each gets a copy of the KV and its own sample.
    """

    request_id: int
    start: int
    stop: int
    forks: tuple[int, ...] = ()


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
class Sampled:
    """The token that a step sampled for a row; `logprob` only if the request asked."""

    request_id: int
    id: int
    logprob: Logprob | None = None


@dataclass(frozen=True, slots=True)
class Memory:
    """What the device holds: KV of open rows, all live arrays, and the highest so far."""

    kv_bytes: int
    active_bytes: int
    peak_bytes: int


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

    def open(self, submit: Submit) -> None:
        """Allocate the request's row; computes nothing."""

    def launch(self, plan: Plan) -> None:
        """Start computing without waiting; at most MAX_LAUNCHED_STEPS stay uncollected."""

    def collect(self) -> list[Sampled]:
        """Wait for the oldest launched plan; includes ids of rows closed meanwhile."""

    def close(self, request_id: int) -> None:
        """Free the row; legal while a launched step still computes it."""

    def memory(self) -> Memory:
        """The device's memory now; cheap, asked at most once a second."""


def has_penalties(sampling: Sampling) -> bool:
    """Whether the next token depends on those generated before, other than through the model."""
    return (
        sampling.frequency_penalty != 0
        or sampling.presence_penalty != 0
        or sampling.repetition_penalty != 1
    )
