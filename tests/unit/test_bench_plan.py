"""Scenarios as they are written, and prompts as both sides get them."""

import json
from random import Random

import pytest

from tests.harmony_text import byte_vocabulary, harmony_text
from verger.bench.plan import LONG_PROMPT_TOKENS, MAX_STREAMS, parse_scenario
from verger.bench.prompts import Question, text_of


def test_a_number_means_equal_streams() -> None:
    scenario = parse_scenario("16")
    assert scenario.instructions_tokens == [0] * 16
    assert (scenario.name, scenario.target_ratio, scenario.bare_prefill_rows) == ("16", 0.85, 16)


def test_plus_one_means_a_long_one_beside_them() -> None:
    scenario = parse_scenario("15+1")
    assert scenario.instructions_tokens == [LONG_PROMPT_TOKENS, *[0] * 15]
    assert (scenario.target_ratio, scenario.bare_prefill_rows) == (1.3, 1)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "15+", "15+2", "+1", f"{MAX_STREAMS + 1}"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^" + text.replace("+", r"\+") + "$"):
        parse_scenario(text)


@pytest.mark.parametrize("tokens", [0, 1, 40, 4000])
def test_a_text_has_the_tokens_that_were_asked_for(tokens: int) -> None:
    """Less than the cheapest word may be missing: here " a", two bytes and so two tokens."""
    text = text_of(tokens, byte_vocabulary(), Random(1))
    assert tokens - 2 < len(byte_vocabulary().encode(text)) <= tokens


def test_texts_follow_from_the_seed() -> None:
    texts = [text_of(60, byte_vocabulary(), Random(seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_the_prompt_holds_what_the_body_says() -> None:
    question = Question("nano", text=" over the sea", max_tokens=9, instructions="Be brief.")
    body = json.loads(question.body())
    prompt = harmony_text(
        question.prompt_ids(byte_vocabulary(), date="2026-11-23"), byte_vocabulary()
    )
    assert [message["content"] for message in body["messages"]] == ["Be brief.", " over the sea"]
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, 9, True)
    assert "Current date: 2026-11-23" in prompt
    assert prompt.endswith("Be brief.<|end|><|start|>user<|message|> over the sea<|end|>"
                           "<|start|>assistant")  # fmt: skip
