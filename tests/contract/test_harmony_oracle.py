"""Our renderer and parser against openai-harmony, token by token, and where that one is wrong.

One difference is wanted: history is rendered in the order in which the model writes a call's
header (channel, then recipient), the library puts the recipient first.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import openai_harmony as library
import pytest

from tests.contract.harmony_library import (
    ASSISTANT,
    in_model_order,
    said,
    their_messages,
    their_prompt,
)
from tests.harmony_text import harmony_ids, harmony_text, parse_ids
from tests.oracle import full_vocabulary, oracle_folder
from tests.random_conversations import random_conversation, random_text
from verger.formats.conversation import Conversation, Message, Role, ToolCall
from verger.formats.harmony import Repair, render
from verger.formats.vocabulary import Vocabulary
from verger.messages import FinishReason

pytestmark = pytest.mark.oracle

BATCHES = 10
CONVERSATIONS = 2_000 // BATCHES
FULL_SIZE = 201_088
"""Rows of gpt-oss's embedding: some 1,000 more than there are tokens."""
COMPLETIONS = 2_000 // BATCHES
SOUPS = 20_000 // BATCHES
SOUP_WORDS = (
    *("assistant", "user", "analysis", "commentary", "final", "json", " text", "🌳", '{"a":1}'),
    *(" to=functions.f", " to=functions", '{"name":"f","arguments":{}}'),
)


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return full_vocabulary()


@pytest.fixture(scope="session")
def encoding() -> Iterator[library.HarmonyEncoding]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TIKTOKEN_ENCODINGS_BASE", str(oracle_folder()))
        yield library.load_harmony_encoding("HarmonyGptOss")


@pytest.mark.parametrize("seed", range(BATCHES))
def test_prompts_are_the_librarys(
    seed: int, vocabulary: Vocabulary, encoding: library.HarmonyEncoding
) -> None:
    rng = random.Random(seed)
    for _ in range(CONVERSATIONS):
        conversation = random_conversation(rng)
        ours = render(conversation, vocabulary).ids
        theirs = in_model_order(their_prompt(conversation, encoding), vocabulary)
        assert ours == theirs, conversation


@dataclass
class Completion:
    """A well-formed answer, and what it says."""

    text: str = field(default="", compare=False)
    reasoning: str = ""
    content: list[str] = field(default_factory=list)
    calls: list[list[str]] = field(default_factory=list)


def random_completion(rng: random.Random, is_model_order: bool) -> Completion:
    """Analysis, preambles and at the end a call or an answer; texts that hold no markup."""
    completion = Completion()
    messages: list[str] = []
    for _ in range(rng.randint(0, 2)):
        thought = plain_text(rng)
        completion.reasoning += thought
        messages.append(f"<|channel|>analysis<|message|>{thought}<|end|>")
    if rng.random() < 0.3:
        completion.content.append(plain_text(rng))
        messages.append(f"<|channel|>commentary<|message|>{completion.content[-1]}<|end|>")
    if rng.random() < 0.5:
        completion.calls.append(["f", f'{{"a": {rng.randint(0, 999)}}}'])
        constrain = rng.choice(["<|constrain|>json", "json", "<|constrain|>json"])
        header = f"<|channel|>commentary to=functions.f {constrain}"
        if not is_model_order:
            header = f" to=functions.f<|channel|>commentary {constrain}"
        messages.append(f"{header}<|message|>{completion.calls[-1][1]}<|call|>")
    else:
        completion.content.append(plain_text(rng))
        messages.append(f"<|channel|>final<|message|>{completion.content[-1]}<|return|>")
    completion.text = "<|start|>assistant".join(messages)
    return completion


def plain_text(rng: random.Random) -> str:
    return random_text(rng).replace("<|", "< |")


@pytest.mark.parametrize("is_model_order", [True, False], ids=["model", "library"])
@pytest.mark.parametrize("seed", range(BATCHES))
def test_completions_are_read_as_the_library_reads_them(
    seed: int, is_model_order: bool, vocabulary: Vocabulary, encoding: library.HarmonyEncoding
) -> None:
    rng = random.Random(seed)
    for _ in range(COMPLETIONS):
        completion = random_completion(rng, is_model_order)
        ids = harmony_ids(completion.text, vocabulary)
        ours = parse_ids(ids, vocabulary, ["f"], ids_per_feed=rng.randint(1, 5))
        assert ours.reasoning == completion.reasoning
        assert ours.content == "\n\n".join(completion.content)
        assert ours.calls == completion.calls
        assert set(ours.repairs) <= {Repair.MISSING_CONSTRAIN}
        theirs = encoding.parse_messages_from_completion_tokens(ids, ASSISTANT)
        assert read_by_library(theirs) == completion


def read_by_library(messages: list[library.Message]) -> Completion:
    completion = Completion()
    for message in messages:
        content = message.content[0]
        assert isinstance(content, library.TextContent)
        if message.recipient:
            completion.calls.append([message.recipient.removeprefix("functions."), content.text])
        elif message.channel == "analysis":
            completion.reasoning += content.text
        else:
            completion.content.append(content.text)
    return completion


@pytest.mark.parametrize("seed", range(BATCHES))
def test_any_ids_at_all_are_parsed(seed: int, vocabulary: Vocabulary) -> None:
    """Soups of markup, words and noise: no exception, and the pieces that come do not matter."""
    rng = random.Random(seed)
    markup = sorted(vocabulary.specials)
    words = [vocabulary.encode(word) for word in SOUP_WORDS]
    for _ in range(SOUPS):
        ids = [id for _ in range(rng.randint(1, 30)) for id in soup_piece(rng, markup, words)]
        reason = rng.choice(list(FinishReason))
        answer = parse_ids(ids, vocabulary, ["f"], reason, ids_per_feed=rng.randint(1, 4))
        assert answer == parse_ids(ids, vocabulary, ["f"], reason, ids_per_feed=len(ids)), ids


def soup_piece(rng: random.Random, markup: list[int], words: list[list[int]]) -> list[int]:
    match rng.randrange(4):
        case 0:
            return rng.choice(words)
        case 1:
            return [rng.randrange(FULL_SIZE)]
        case _:
            return [rng.choice(markup)]


def test_reasoning_does_not_return_in_a_later_tool_loop(
    vocabulary: Vocabulary, encoding: library.HarmonyEncoding
) -> None:
    """The library keeps all reasoning unless the last message is an answer: old thoughts return."""
    conversation = Conversation(
        (
            Message(Role.USER, "first"),
            Message(Role.ASSISTANT, "answer", reasoning="old thought"),
            Message(Role.USER, "second"),
            Message(Role.ASSISTANT, "", "new thought", (ToolCall("1", "f", "{}"),)),
            Message(Role.TOOL, "result", tool_call_id="1"),
        )
    )
    ours = harmony_text(render(conversation, vocabulary).ids, vocabulary)
    assert "old thought" not in ours
    assert "new thought" in ours
    messages = their_messages(conversation)
    messages.insert(2, said("old thought", "analysis"))
    theirs = library.Conversation.from_messages(messages)
    prompt = encoding.render_conversation_for_completion(theirs, ASSISTANT)
    assert "old thought" in encoding.decode(prompt)


@pytest.mark.parametrize("header", ["final json", "final <|constrain|>json", "commentary json"])
def test_a_content_type_is_no_recipient(
    header: str, vocabulary: Vocabulary, encoding: library.HarmonyEncoding
) -> None:
    ids = harmony_ids(f"<|channel|>{header}<|message|>4.<|return|>", vocabulary)
    assert parse_ids(ids, vocabulary, ["json"]).content == "4."
    (theirs,) = encoding.parse_messages_from_completion_tokens(ids, ASSISTANT)
    assert theirs.recipient in ("json", "<|constrain|>json")
