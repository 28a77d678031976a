"""Conversation → the token ids that gpt-oss was trained to continue (its *Harmony* format).

Called by the gateway before each submission. Pure: must not know a clock, wire bodies or one
particular vocabulary. Special tokens are written from this file's own markup only; all text of a
client passes through `Vocabulary.encode`, which cannot produce one.

    <|start|>{role}[ to={recipient}]<|channel|>{channel}<|message|>{text}<|end|>

History is written in the order in which the model itself writes (channel before recipient), so
that a rendered tool call continues the very prefix that the model generated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from verger.errors import InvalidRequest
from verger.formats.conversation import Conversation, Message, Role, Tool, ToolCall
from verger.formats.harmony.tools import tools_section
from verger.formats.specials import Special
from verger.formats.vocabulary import Vocabulary

_INSTRUCTION_ROLES = (Role.SYSTEM, Role.DEVELOPER)
_SYSTEM = """\
You are ChatGPT, a large language model trained by OpenAI.
Knowledge cutoff: 2024-06
Current date: {date}

Reasoning: {effort}

# Valid channels: analysis, commentary, final. Channel must be included for every message."""
_FUNCTIONS_LINE = "\nCalls to these tools must go to the commentary channel: 'functions'."


@dataclass(slots=True)
class Prompt:
    """What the model continues. `boundaries` are offsets into `ids` where a prefix is likely to
    be shared by later prompts: the end of system and tools, and the start of each user turn."""

    ids: list[int] = field(default_factory=list)
    boundaries: list[int] = field(default_factory=list)


def render(conversation: Conversation, vocabulary: Vocabulary) -> Prompt:
    """Raises InvalidRequest for a tool result without its call."""
    return _Renderer(vocabulary).render(conversation)


def render_history(conversation: Conversation, vocabulary: Vocabulary) -> Prompt:
    """What the prompts of all later turns begin with: as `render`, but no answer is opened."""
    return _Renderer(vocabulary).render_history(conversation)


class _Renderer:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._prompt = Prompt()
        self._names_by_call_id: dict[str, str] = {}

    def render(self, conversation: Conversation) -> Prompt:
        self.render_history(conversation)
        self._write(Special.START, "assistant")
        return self._prompt

    def render_history(self, conversation: Conversation) -> Prompt:
        leading = list(takewhile(_is_instruction, conversation.messages))
        self._system(conversation)
        self._developer(leading, conversation.tools)
        self._mark_boundary()
        history = conversation.messages[len(leading) :]
        last_final = max((i for i, message in enumerate(history) if _is_final(message)), default=-1)
        for index, message in enumerate(history):
            self._turn(message, keeps_reasoning=index > last_final)
        return self._prompt

    def _system(self, conversation: Conversation) -> None:
        text = _SYSTEM.format(date=conversation.date, effort=conversation.effort.value)
        self._message("system", text + (_FUNCTIONS_LINE if conversation.tools else ""))

    def _developer(self, instructions: Sequence[Message], tools: Sequence[Tool]) -> None:
        sections = []
        if instructions:
            text = "\n\n".join(message.content for message in instructions)
            sections.append(f"# Instructions\n\n{text}")
        if tools:
            sections.append(tools_section(tools))
        if sections:
            self._message("developer", "\n\n".join(sections))

    def _turn(self, message: Message, keeps_reasoning: bool) -> None:
        match message.role:
            case Role.SYSTEM | Role.DEVELOPER:
                self._developer([message], ())
            case Role.USER:
                self._mark_boundary()
                self._message("user", message.content)
            case Role.ASSISTANT:
                self._assistant(message, keeps_reasoning)
            case Role.TOOL:
                self._tool_result(message)

    def _assistant(self, message: Message, keeps_reasoning: bool) -> None:
        """Reasoning, then either the answer or what was said before the calls, then the calls."""
        if message.reasoning and keeps_reasoning:
            self._message("assistant", message.reasoning, channel="analysis")
        if not message.tool_calls:
            self._message("assistant", message.content, channel="final")
        elif message.content:
            self._message("assistant", message.content, channel="commentary")
        for call in message.tool_calls:
            self._call(call)

    def _call(self, call: ToolCall) -> None:
        self._names_by_call_id[call.id] = call.name
        self._write(Special.START, "assistant", Special.CHANNEL)
        self._write(f"commentary to=functions.{call.name} ", Special.CONSTRAIN, "json")
        self._write(Special.MESSAGE, call.arguments, Special.CALL)

    def _tool_result(self, message: Message) -> None:
        name = self._names_by_call_id.get(message.tool_call_id)
        if name is None:
            raise InvalidRequest(
                f"No tool call with the id '{message.tool_call_id}' precedes its result; send the "
                "assistant message that made the call.",
                param="messages",
            )
        self._message(f"functions.{name} to=assistant", message.content, channel="commentary")

    def _message(self, author: str, text: str, channel: str = "") -> None:
        self._write(Special.START, author)
        if channel:
            self._write(Special.CHANNEL, channel)
        self._write(Special.MESSAGE, text, Special.END)

    def _write(self, *parts: str | Special) -> None:
        for part in parts:
            if isinstance(part, Special):
                self._prompt.ids.append(self._vocabulary.special(part.value))
            else:
                self._prompt.ids.extend(self._vocabulary.encode(part))

    def _mark_boundary(self) -> None:
        offset = len(self._prompt.ids)
        if offset not in self._prompt.boundaries:
            self._prompt.boundaries.append(offset)


def _is_instruction(message: Message) -> bool:
    return message.role in _INSTRUCTION_ROLES


def _is_final(message: Message) -> bool:
    return message.role is Role.ASSISTANT and not message.tool_calls
