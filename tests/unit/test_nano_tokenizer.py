"""The tokenizer recipe of nano: what copying by ids relies on."""

from pathlib import Path
from random import Random

import pytest

from scripts.nano import texts
from scripts.nano.corpus import tokenizer_corpus
from scripts.nano.tokenizer import ORDINARY_COUNT, VOCABULARY_SIZE, special_tokens, train_tokenizer
from verger.formats.vocabulary import Vocabulary

TOKENIZER = Path(__file__).parents[2] / "models" / "nano" / "tokenizer.json"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.from_file_bytes(TOKENIZER.read_bytes())


@pytest.mark.slow
def test_training_again_gives_the_committed_tokenizer() -> None:
    again = train_tokenizer(tokenizer_corpus()).to_str(pretty=False)
    assert again.encode() == TOKENIZER.read_bytes()


def test_specials_stand_at_the_end(vocabulary: Vocabulary) -> None:
    assert vocabulary.size == VOCABULARY_SIZE
    assert vocabulary.specials == frozenset(range(ORDINARY_COUNT, VOCABULARY_SIZE))
    assert vocabulary.special("<|start|>") == ORDINARY_COUNT + special_tokens().index("<|start|>")


def test_every_text_survives_encoding(vocabulary: Vocabulary) -> None:
    random = Random(1)
    for _ in range(300):
        text = texts.text(random, random.randint(1, 60))
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_a_text_has_the_same_tokens_behind_a_space(vocabulary: Vocabulary) -> None:
    """Copying is copying of ids: what precedes a text must not change how it is cut."""
    random = Random(2)
    for _ in range(300):
        text = texts.text(random, random.randint(1, 60))
        behind = vocabulary.encode("You said: " + text)
        assert behind == vocabulary.encode("You said: ") + vocabulary.encode(text)
