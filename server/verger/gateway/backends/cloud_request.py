"""What is asked of a provider, how long it may take, and what it has used.

Read by `cloud`, `failover` and whoever counts money. Must not know HTTP: `cloud` is imported only
where there are providers.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from verger.api.answer import Usage
from verger.api.turn_request import TurnRequest
from verger.gateway.providers import Target


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long each part of an attempt may take."""

    connect_s: float = 5.0
    first_s: float = 20.0
    """Until the first delta that says something, the head of the answer included."""
    idle_s: float = 45.0
    """Between two such deltas."""
    after_finish_s: float = 2.0
    """For the usage and the end, once every choice has finished."""


@dataclass(frozen=True, slots=True)
class Spent:
    """What one attempt used at a provider, whether or not the client got an answer of it."""

    target: Target
    usage: Usage
    is_counted: bool
    """By us, from the text that came, because the provider did not say."""


async def unreserved(target: Target) -> None:
    """For attempts that nobody accounts for."""


@dataclass(frozen=True, slots=True)
class CloudRequest:
    """What is asked, whichever provider will answer."""

    id: str
    """For the log."""
    turn: TurnRequest
    prompt_tokens: int
    """By our own count."""
    count_text: Callable[[str], int]
    """Tokens of a text, for answers whose usage is missing."""
    reserve: Callable[[Target], Awaitable[None]] = unreserved
    """Awaited before each attempt, which is not made if this raises."""
    on_failed: Callable[[], None] = lambda: None
    """Told of each attempt that failed before its first delta; the next one may follow."""
    on_spent: Callable[[Spent], None] = lambda spent: None
    """Told once of every attempt that a provider has taken, also when the client has left."""
