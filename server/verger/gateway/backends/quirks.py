"""What single kinds of providers need done to a request: small transformations, each with a name.

A kind's file lists those that it needs; `upstream_body` applies them in that order. Pure but for
`Signatures`, which belongs to the event loop. Must not know which kind is asked.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

Body = dict[str, Any]
"""A request as it will be sent. Quirks change it in place."""

MAX_SIGNATURES = 4_096
MAX_SIGNATURE_CHARACTERS = 65_536


class Signatures:
    """What Gemini signed its calls with, by call id; the longest unused are forgotten first.

    Clients do not know the field, and a call that comes back without it is refused.
    """

    def __init__(self) -> None:
        self._by_call_id: OrderedDict[str, str] = OrderedDict()

    def remember(self, call_id: str, signature: str) -> None:
        """Keep it until the client sends the call back."""
        if len(signature) > MAX_SIGNATURE_CHARACTERS:
            return
        self._by_call_id[call_id] = signature
        self._by_call_id.move_to_end(call_id)
        if len(self._by_call_id) > MAX_SIGNATURES:
            self._by_call_id.popitem(last=False)

    def of(self, call_id: str) -> str | None:
        """The signature of a call, if it is remembered."""
        if call_id in self._by_call_id:
            self._by_call_id.move_to_end(call_id)
        return self._by_call_id.get(call_id)


def system_for_developer(body: Body, signatures: Signatures) -> None:
    """Only OpenAI's own models know the role `developer`."""
    for message in body["messages"]:
        if message["role"] == "developer":
            message["role"] = "system"


def fixed_temperature(body: Body, signatures: Signatures) -> None:
    """OpenAI's reasoning models sample in one way, and refuse to be told another."""
    body.pop("temperature", None)
    body.pop("top_p", None)


def thought_signatures(body: Body, signatures: Signatures) -> None:
    """Gemini wants each of its calls back with the signature that it came with."""
    for message in body["messages"]:
        for call in message.get("tool_calls", ()):
            if (signature := signatures.of(call["id"])) is not None:
                call["extra_content"] = {"google": {"thought_signature": signature}}


QUIRKS: Mapping[str, Callable[[Body, Signatures], None]] = {
    "system_for_developer": system_for_developer,
    "fixed_temperature": fixed_temperature,
    "thought_signatures": thought_signatures,
}
