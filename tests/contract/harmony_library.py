"""Our conversations as openai-harmony's, and its prompts in the order that we render.

Used by test_harmony_oracle.py. Follows the library's documentation, not our renderer.
"""

import re
from collections.abc import Iterator
from itertools import takewhile

import openai_harmony as library
from openai_harmony import ReasoningEffort, RenderConversationConfig

from tests.harmony_text import harmony_ids, harmony_text
from verger.formats.conversation import Conversation, Effort, Message, Role
from verger.formats.vocabulary import Vocabulary

ASSISTANT = library.Role.ASSISTANT
INSTRUCTION_ROLES = (Role.SYSTEM, Role.DEVELOPER)
EFFORTS = {
    Effort.LOW: ReasoningEffort.LOW,
    Effort.MEDIUM: ReasoningEffort.MEDIUM,
    Effort.HIGH: ReasoningEffort.HIGH,
}
CALL_HEADER = re.compile(
    r"<\|start\|>assistant( to=\S+)<\|channel\|>commentary <\|constrain\|>json"
)


def their_prompt(conversation: Conversation, encoding: library.HarmonyEncoding) -> list[int]:
    messages = library.Conversation.from_messages(their_messages(conversation))
    config = RenderConversationConfig(auto_drop_analysis=False)
    return list(encoding.render_conversation_for_completion(messages, ASSISTANT, config))


def their_messages(conversation: Conversation) -> list[library.Message]:
    messages = conversation.messages
    leading = list(takewhile(lambda message: message.role in INSTRUCTION_ROLES, messages))
    history = messages[len(leading) :]
    finals = [i for i, m in enumerate(history) if m.role is Role.ASSISTANT and not m.tool_calls]
    names = {call.id: call.name for message in history for call in message.tool_calls}
    theirs = [*their_front(conversation, "\n\n".join(message.content for message in leading))]
    for index, message in enumerate(history):
        keeps_reasoning = not finals or index > finals[-1]
        theirs += their_turn(message, keeps_reasoning, names)
    return theirs


def their_front(conversation: Conversation, instructions: str) -> Iterator[library.Message]:
    system = (
        library.SystemContent.new()
        .with_conversation_start_date(conversation.date)
        .with_reasoning_effort(EFFORTS[conversation.effort])
    )
    developer = library.DeveloperContent.new()
    if instructions:
        developer = developer.with_instructions(instructions)
    tools = [
        library.ToolDescription.new(tool.name, tool.description, tool.parameters)
        for tool in conversation.tools
    ]
    if tools:
        developer = developer.with_function_tools(tools)
    yield library.Message.from_role_and_content(library.Role.SYSTEM, system)
    if tools or instructions:
        yield library.Message.from_role_and_content(library.Role.DEVELOPER, developer)


def their_turn(
    message: Message, keeps_reasoning: bool, names: dict[str, str]
) -> Iterator[library.Message]:
    if message.role is Role.USER:
        yield library.Message.from_role_and_content(library.Role.USER, message.content)
    elif message.role is Role.TOOL:
        author = library.Author.new(library.Role.TOOL, f"functions.{names[message.tool_call_id]}")
        result = library.Message.from_author_and_content(author, message.content)
        yield result.with_channel("commentary").with_recipient("assistant")
    elif message.role is Role.ASSISTANT:
        yield from their_answer(message, keeps_reasoning)
    else:
        developer = library.DeveloperContent.new().with_instructions(message.content)
        yield library.Message.from_role_and_content(library.Role.DEVELOPER, developer)


def their_answer(message: Message, keeps_reasoning: bool) -> Iterator[library.Message]:
    if message.reasoning and keeps_reasoning:
        yield said(message.reasoning, "analysis")
    if not message.tool_calls:
        yield said(message.content, "final")
    elif message.content:
        yield said(message.content, "commentary")
    for call in message.tool_calls:
        call_message = said(call.arguments, "commentary").with_recipient(f"functions.{call.name}")
        yield call_message.with_content_type("<|constrain|>json")


def said(text: str, channel: str) -> library.Message:
    return library.Message.from_role_and_content(ASSISTANT, text).with_channel(channel)


def in_model_order(ids: list[int], vocabulary: Vocabulary) -> list[int]:
    """Rewrite the headers of calls from the library's order; all other ids stay as they are."""
    rewritten: list[int] = []
    header_start = 0
    for id in ids:
        if id == vocabulary.special("<|start|>"):
            header_start = len(rewritten)
        elif id == vocabulary.special("<|message|>"):
            header = harmony_text(rewritten[header_start:], vocabulary)
            if call := CALL_HEADER.fullmatch(header):
                in_order = f"<|start|>assistant<|channel|>commentary{call[1]} <|constrain|>json"
                rewritten[header_start:] = harmony_ids(in_order, vocabulary)
        rewritten.append(id)
    return rewritten
