"""What a model is asked, independent of any wire API: every codec in `api/` parses into these.

Must not know JSON bodies, token ids or a vocabulary.
"""

from enum import Enum
from typing import Any

from msgspec import Struct


class Role(Enum):
    """Who speaks. SYSTEM and DEVELOPER both become Harmony's developer message."""

    SYSTEM = "system"
    DEVELOPER = "developer"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Effort(Enum):
    """How long the model thinks; other spellings are normalised in `api/`."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class ToolCall(Struct, frozen=True):
    """A call that the assistant made; `arguments` is the raw string it wrote."""

    id: str
    name: str
    arguments: str


class Message(Struct, frozen=True):
    """One turn. `tool_call_id` is set for TOOL, `reasoning` and `tool_calls` for ASSISTANT."""

    role: Role
    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


class Tool(Struct, frozen=True):
    """A declared function; `parameters` is a JSON schema object, None when there are none."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool = False


class Conversation(Struct, frozen=True):
    """Everything that determines a prompt. `date` is ISO (YYYY-MM-DD), pinned by the caller."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    effort: Effort = Effort.MEDIUM
    date: str = "2025-01-01"
