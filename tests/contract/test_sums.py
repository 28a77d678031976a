"""Each kind of answer twice, in one piece and in chunks: both are valid, and the chunks add up."""

from typing import Any

import httpx2
import pytest

from tests.chat_answers import same_answer, same_usage
from tests.contract.live import MODEL_ID, Live
from tests.traffic import WatchedTransport
from verger.bench.stream_rules import assembled

pytestmark = pytest.mark.process

TOOLS = {"tools": [{"type": "function", "function": {"name": "weather"}}]}
LOGPROBS = {"logprobs": True, "top_logprobs": 2}

ASKED: list[dict[str, Any]] = [
    {"content": "say 'é 🍏'"},
    {"content": "say one two three", **LOGPROBS},
    {"content": "say one two three", **LOGPROBS, "n": 8},
    {"content": "say one two three", **LOGPROBS, "stop": ["wo t", "ee"]},
    {"content": "say one two three", "n": 2, "stop": "o"},
    {"content": "weather in Paris?", **TOOLS},
    {"content": "weather in Paris?", **TOOLS, **LOGPROBS, "n": 2},
    {"content": "weather in Paris?"},
    {"content": "weather in Paris?", **TOOLS, "max_tokens": 30},
    {"content": "twofold", **TOOLS},
    {"content": "no JSON", **TOOLS},
    {"content": "preamble", **LOGPROBS},
    {"content": "preamble", **LOGPROBS, "stop": "re"},
    {"content": "silent", **LOGPROBS},
    {"content": "formless", **LOGPROBS},
    *({"content": "apple", **LOGPROBS, "max_tokens": tokens} for tokens in range(1, 16)),
]


@pytest.mark.parametrize("fields", ASKED)
def test_chunks_add_up_to_the_answer_in_one_piece(live: Live, fields: dict[str, Any]) -> None:
    message = {"role": "user", "content": fields["content"]}
    asked = {key: value for key, value in fields.items() if key != "content"}
    asked = {"model": MODEL_ID, "messages": [message], **asked}
    streaming = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    with httpx2.Client(base_url=live.url, transport=WatchedTransport(live.traffic)) as http:
        whole = http.post("/chat/completions", json=asked).json()
        streamed = http.post("/chat/completions", json=streaming).text

    summed = assembled(streaming, streamed)
    assert same_answer(summed, whole)
    assert same_usage(summed["usage"], whole["usage"])
