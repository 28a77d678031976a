"""What is asked of the model, whichever wire API asked: every codec parses into this.

Read by the gateway's turns. Must not know models' names, streaming or JSON.
"""

from msgspec import Struct

from verger.formats.conversation import Conversation
from verger.messages import Sampling


class TurnRequest(Struct, frozen=True):
    """One answer to generate, or several. The conversation's date is not pinned yet."""

    conversation: Conversation
    sampling: Sampling
    choices: int = 1
    """How many answers, each sampled for itself."""
    max_tokens: int | None = None
    """None: up to the end of the context."""
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """As in `messages.Submit`: None for none, else the number of alternatives per token."""
