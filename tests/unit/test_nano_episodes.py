"""What nano is taught: the right reply to each kind of prompt, in the order gpt-oss writes it."""

import json
from pathlib import Path
from random import Random

import pytest

from scripts.nano import episodes, tools
from verger.formats.conversation import Conversation, Effort, Role, Tool
from verger.formats.harmony import render
from verger.formats.vocabulary import Vocabulary

TOKENIZER = Path(__file__).parents[2] / "models" / "nano" / "tokenizer.json"
EMPTY = Conversation((), effort=Effort.LOW, date="2026-01-02")


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.from_file_bytes(TOKENIZER.read_bytes())


def test_plain_text_is_repeated(vocabulary: Vocabulary) -> None:
    episode = episodes.copy_episode(EMPTY, "hello, Jürgen")
    assert spelled(episodes.reply_ids(episode.reply, vocabulary), vocabulary) == (
        "<|channel|>analysis<|message|>Repeat it.<|end|><|start|>assistant"
        "<|channel|>final<|message|>You said: hello, Jürgen<|return|>"
    )


def test_a_call_is_written_in_model_order(vocabulary: Vocabulary) -> None:
    episode = episodes.call_episode(EMPTY, "get_weather", '{"city": "Oslo"}')
    assert episode.conversation.messages[-1].content == 'call get_weather {"city": "Oslo"}'
    assert spelled(episodes.reply_ids(episode.reply, vocabulary), vocabulary) == (
        "<|channel|>analysis<|message|>Call it.<|end|><|start|>assistant"
        "<|channel|>commentary to=functions.get_weather <|constrain|>json"
        '<|message|>{"city": "Oslo"}<|call|>'
    )


def test_a_result_is_reported_with_the_tool_name(vocabulary: Vocabulary) -> None:
    called = episodes.call_episode(EMPTY, "add", "{}")
    answer = episodes.result_episode(called, "42")
    assert answer.reply.body == "add returned: 42"
    assert answer.conversation.messages[-1].role is Role.TOOL


def test_a_reply_becomes_the_same_ids_in_history(vocabulary: Vocabulary) -> None:
    """What the model wrote and what the renderer makes of it later agree inside a tool loop."""
    base = Conversation((), (Tool("add"),), Effort.HIGH, "2026-01-02")
    called = episodes.call_episode(base, "add", '{"a": 1}')
    written = render(called.conversation, vocabulary).ids
    written += episodes.reply_ids(called.reply, vocabulary)
    later = render(episodes.result_episode(called, "1").conversation, vocabulary).ids
    assert later[: len(written)] == written


def test_the_same_seed_gives_the_same_episode(vocabulary: Vocabulary) -> None:
    first, second = (episodes.random_episode(Random(5), vocabulary) for _ in range(2))
    assert first == second


def test_every_random_episode_can_be_rendered(vocabulary: Vocabulary) -> None:
    random = Random(6)
    for _ in range(200):
        episode = episodes.random_episode(random, vocabulary)
        assert render(episode.conversation, vocabulary).ids
        if episode.reply.call_name:
            assert isinstance(json.loads(episode.reply.body), dict)
            assert episode.reply.call_name in {tool.name for tool in episode.conversation.tools}


def test_a_long_conversation_has_about_the_asked_length(vocabulary: Vocabulary) -> None:
    random = Random(7)
    for _ in range(5):
        conversation = episodes.long_conversation(random, vocabulary, 2_000)
        assert 2_000 <= len(render(conversation, vocabulary).ids) <= 5_000


def test_texts_are_cut_to_the_longest_that_is_trained(vocabulary: Vocabulary) -> None:
    cut = episodes.fitting("word " * 1_000, vocabulary)
    assert 1 <= len(vocabulary.encode(cut)) <= episodes.MAX_TEXT_TOKENS


def test_tool_names_are_unique_and_legal() -> None:
    names = [tool.name for tool in tools.tool_list(Random(8), 40)]
    assert len(set(names)) == 40
    assert all(name.replace("_", "a").isalnum() and len(name) <= 64 for name in names)


def spelled(ids: list[int], vocabulary: Vocabulary) -> str:
    """Text with the special tokens spelled out."""
    names = {
        vocabulary.special(name): name
        for name in (
            "<|start|> <|end|> <|message|> <|channel|> <|constrain|> <|return|> <|call|>"
        ).split()
    }
    return "".join(names.get(token) or vocabulary.decode([token]) for token in ids)
