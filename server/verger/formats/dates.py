"""The date that a conversation was begun on, so that its prompt's prefix survives midnight.

The date stands at the very front of a Harmony prompt: were it today's, every cached prefix would
be lost once a day. Called by the gateway before rendering. Must not know a clock or do I/O.
"""

import hashlib
from collections import OrderedDict
from itertools import takewhile

import msgspec

from verger.formats.conversation import Conversation, Role

MAX_CONVERSATIONS = 10_000

_INSTRUCTION_ROLES = (Role.SYSTEM, Role.DEVELOPER)


class PinnedDates:
    """Remembers the most recently used conversations, at most `limit`."""

    def __init__(self, limit: int = MAX_CONVERSATIONS) -> None:
        self._limit = limit
        self._dates: OrderedDict[bytes, str] = OrderedDict()

    def date_for(self, tenant: str, conversation: Conversation, today: str) -> str:
        """The date first seen for this tenant and beginning, `today` when it is new."""
        key = _beginning(tenant, conversation)
        date = self._dates.setdefault(key, today)
        self._dates.move_to_end(key)
        if len(self._dates) > self._limit:
            self._dates.popitem(last=False)
        return date


def _beginning(tenant: str, conversation: Conversation) -> bytes:
    """A digest of what all turns of a conversation share: instructions, tools, first question."""
    messages = conversation.messages
    leading = takewhile(lambda message: message.role in _INSTRUCTION_ROLES, messages)
    instructions = [message.content for message in leading]
    question = next((message.content for message in messages if message.role is Role.USER), None)
    shared = (tenant, instructions, conversation.tools, question)
    return hashlib.sha256(msgspec.json.encode(shared)).digest()
