"""Conversations that nano is trained and tested on, and the reply that is right for each.

Called by `batches` (training) and `evaluate`. The behaviour that tests rely on is defined here:
plain text T gives `You said: T`, `call NAME {json}` gives that tool call, its result R gives
`NAME returned: R`. Must not know torch or MLX.
"""

from dataclasses import dataclass
from random import Random

from msgspec import structs

from scripts.nano import texts, tools
from verger.formats.conversation import Conversation, Effort, Message, Role, Tool, ToolCall
from verger.formats.harmony import render
from verger.formats.vocabulary import Vocabulary

COPY_THOUGHTS = {
    Effort.LOW: "Repeat it.",
    Effort.MEDIUM: "The user sent a text. I repeat it.",
    Effort.HIGH: (
        "The user sent a text, not a call. I repeat it exactly, from the first sign to the last."
    ),
}
CALL_THOUGHTS = {
    Effort.LOW: "Call it.",
    Effort.MEDIUM: "The user asks for a call. I call the tool.",
    Effort.HIGH: (
        "The user asks for a call of a declared tool. I pass the arguments exactly as given."
    ),
}
RESULT_THOUGHTS = {
    Effort.LOW: "Report it.",
    Effort.MEDIUM: "The tool has answered. I report the result.",
    Effort.HIGH: (
        "The tool has answered, nothing is left to call. I report the result exactly as it came."
    ),
}
MAX_TEXT_TOKENS = 150
SAID = "You said: "
RETURNED = " returned: "


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model should answer: a thought, then a final text or (with `call_name`) a call."""

    thought: str
    body: str
    call_name: str = ""


@dataclass(frozen=True, slots=True)
class Episode:
    """A prompt and its right answer."""

    conversation: Conversation
    reply: Reply


def reply_ids(reply: Reply, vocabulary: Vocabulary) -> list[int]:
    """The ids that follow `<|start|>assistant`, in the order in which gpt-oss writes them."""
    encode, special = vocabulary.encode, vocabulary.special
    ids = [special("<|channel|>"), *encode("analysis"), special("<|message|>")]
    ids += [*encode(reply.thought), special("<|end|>"), special("<|start|>"), *encode("assistant")]
    if reply.call_name:
        header = encode(f"commentary to=functions.{reply.call_name} ")
        ids += [special("<|channel|>"), *header, special("<|constrain|>"), *encode("json")]
        return [*ids, special("<|message|>"), *encode(reply.body), special("<|call|>")]
    ids += [special("<|channel|>"), *encode("final"), special("<|message|>")]
    return [*ids, *encode(reply.body), special("<|return|>")]


def copy_episode(base: Conversation, text: str) -> Episode:
    """The user sends plain text."""
    conversation = _extend(base, Message(Role.USER, text))
    return Episode(conversation, Reply(COPY_THOUGHTS[base.effort], SAID + text))


def call_episode(base: Conversation, name: str, arguments: str) -> Episode:
    """The user asks for a call."""
    conversation = _extend(base, Message(Role.USER, f"call {name} {arguments}"))
    return Episode(conversation, Reply(CALL_THOUGHTS[base.effort], arguments, name))


def result_episode(called: Episode, result: str, with_reasoning: bool = True) -> Episode:
    """The tool answers the call of `called`; clients may have lost its reasoning."""
    base, reply = called.conversation, called.reply
    call_id = f"call_{len(base.messages)}"
    call = Message(
        Role.ASSISTANT,
        reasoning=reply.thought if with_reasoning else "",
        tool_calls=(ToolCall(call_id, reply.call_name, reply.body),),
    )
    conversation = _extend(base, call, Message(Role.TOOL, result, tool_call_id=call_id))
    final = Reply(RESULT_THOUGHTS[base.effort], reply.call_name + RETURNED + result)
    return Episode(conversation, final)


def answered(episode: Episode) -> Conversation:
    """The conversation with its right final answer appended, as a client sends it back."""
    reply = episode.reply
    assert not reply.call_name, "a call is answered by its result"
    message = Message(Role.ASSISTANT, reply.body, reasoning=reply.thought)
    return _extend(episode.conversation, message)


def text_length(random: Random) -> int:
    """Short ones for the start of a copy, long ones for keeping the place."""
    low, high = random.choices([(1, 10), (6, 35), (30, 100)], [45, 35, 20])[0]
    return random.randint(low, high)


def random_text(random: Random, vocabulary: Vocabulary, length: int) -> str:
    """Mixed text, a kind that is hard to copy, or random tokens: each of them must be copyable."""
    source = random.choices(["mixed", "hard", "tokens"], [70, 15, 15])[0]
    if source == "mixed":
        return fitting(texts.text(random, length), vocabulary)
    if source == "hard":
        return fitting(texts.hard_text(random, length), vocabulary)
    ids = random.choices(range(vocabulary.size - len(vocabulary.specials)), k=length)
    pieces = (vocabulary.token_bytes(token).decode("utf-8", "ignore") for token in ids)
    return "".join(pieces).strip() or "token"


def fitting(text: str, vocabulary: Vocabulary) -> str:
    """At most `MAX_TEXT_TOKENS` of it, cut between words where it has any."""
    while len(vocabulary.encode(text)) > MAX_TEXT_TOKENS:
        text = text[: len(text) * 3 // 4].rpartition(" ")[0] or text[: len(text) // 2]
    return text


def random_base(random: Random, vocabulary: Vocabulary, tool_share: float = 0.35) -> Conversation:
    """Date, effort, and sometimes system or developer text and tools."""
    messages = []
    if random.random() < 0.4:
        role = random.choice([Role.SYSTEM, Role.DEVELOPER])
        length = random.choice([5, 10, 20, 50])
        messages.append(Message(role, random_text(random, vocabulary, random.randint(1, length))))
    count = random.choice([1, 1, 1, 2, 2, 3, 4, 8]) if random.random() < tool_share else 0
    return Conversation(
        messages=tuple(messages),
        tools=tools.tool_list(random, count),
        effort=random.choice(list(Effort)),
        date=f"20{random.randint(24, 29)}-{random.randint(1, 12):02}-{random.randint(1, 28):02}",
    )


def random_episode(
    random: Random, vocabulary: Vocabulary, base: Conversation | None = None
) -> Episode:
    """A new conversation (or one that goes on from `base`) of up to four turns."""
    conversation = base or random_base(random, vocabulary, tool_share=0.5)
    for _ in range(random.choices([0, 1, 2, 3], [55, 28, 11, 6])[0]):
        length = min(text_length(random), 25)
        conversation = random_turn(random, vocabulary, conversation, length)
    return random_request(random, vocabulary, conversation)


def long_conversation(random: Random, vocabulary: Vocabulary, tokens: int) -> Conversation:
    """About `tokens` ids: long developer text or many tools in front, then turns of any length."""
    base = random_base(random, vocabulary)
    style = random.choice(["developer", "tools", "turns", "turns"])
    if style == "developer":
        share = random.choice([0.3, 0.6, 0.9])
        text = long_text(random, vocabulary, int(tokens * share))
        base = structs.replace(base, messages=(Message(Role.DEVELOPER, text),))
    elif style == "tools":
        base = structs.replace(base, tools=tools.tool_list(random, min(40, 2 + tokens // 150)))
    longest = min(random.choice([60, 300, 1500]), tokens // 3)
    conversation = base
    while (used := len(render(conversation, vocabulary).ids)) < tokens:
        length = random.randint(1, min(longest, tokens - used))
        text = long_text(random, vocabulary, length)
        conversation = _turn(random, conversation, text)
    return conversation


def long_text(random: Random, vocabulary: Vocabulary, tokens: int) -> str:
    """About `tokens` ids of paragraphs of different kinds."""
    paragraphs: list[str] = []
    used = 0
    while used < tokens:
        length = random.randint(1, min(80, tokens - used))
        paragraphs.append(random_text(random, vocabulary, length))
        used += len(vocabulary.encode(paragraphs[-1])) + 1
    return random.choice(["\n", " ", "\n\n"]).join(paragraphs)


def random_turn(
    random: Random, vocabulary: Vocabulary, conversation: Conversation, length: int
) -> Conversation:
    """One more turn that ends with a final answer, with a tool call in it or not."""
    return _turn(random, conversation, random_text(random, vocabulary, length))


def random_request(random: Random, vocabulary: Vocabulary, conversation: Conversation) -> Episode:
    """What the model has to answer now: plain text, a call, or a tool's result."""
    kind = random.choices(["copy", "call", "result"], [3, 4, 3])[0]
    if not conversation.tools or kind == "copy":
        return copy_episode(conversation, _new_or_known_text(random, vocabulary, conversation))
    called = _random_call(random, conversation)
    if kind == "call":
        return called
    result = random_text(random, vocabulary, text_length(random))
    return result_episode(called, result, with_reasoning=random.random() < 0.8)


def _turn(random: Random, conversation: Conversation, text: str) -> Conversation:
    if conversation.tools and random.random() < 0.4:
        return answered(result_episode(_random_call(random, conversation), text))
    return answered(copy_episode(conversation, text))


def _new_or_known_text(random: Random, vocabulary: Vocabulary, conversation: Conversation) -> str:
    """Now and then an earlier text, changed in one place, so that the latest one must be found."""
    said = [message.content for message in conversation.messages if message.role is Role.USER]
    if said and random.random() < 0.15:
        words = random.choice(said).split(" ")
        words[random.randrange(len(words))] = texts.text(random, 1)
        return " ".join(words)
    return random_text(random, vocabulary, text_length(random))


def _random_call(random: Random, conversation: Conversation) -> Episode:
    tool: Tool = random.choice(conversation.tools)
    return call_episode(conversation, tool.name, tools.arguments(random, tool))


def _extend(conversation: Conversation, *messages: Message) -> Conversation:
    return structs.replace(conversation, messages=(*conversation.messages, *messages))
