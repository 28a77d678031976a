"""A right chat answer, in one piece and in chunks, and what may go wrong with it.

Read by the tests of those who judge answers: each mutation changes a deep copy of `COMPLETION` or
`CHUNKS`, and the text is what the tests' validator says of it.
"""

import json
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]
Mutation = Callable[[Any], object]

TOOL: Json = {"type": "function", "function": {"name": "f"}}
REQUEST: Json = {"model": "m", "messages": [], "logprobs": True, "top_logprobs": 1, "tools": [TOOL]}
STREAM_REQUEST = {**REQUEST, "stream": True, "stream_options": {"include_usage": True}}
HEAD = {"id": "chatcmpl-1", "created": 1, "model": "m", "system_fingerprint": "fp"}
TOKENS = [
    {
        "token": token,
        "bytes": list(token.encode()),
        "logprob": -0.5,
        "top_logprobs": [{"token": "x", "bytes": [120], "logprob": -0.5}],
    }
    for token in ("he", "llo")
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
USAGE = {
    "prompt_tokens": 10,
    "completion_tokens": 7,
    "total_tokens": 17,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
    "served_by": "local",
    "reason": "waits",
    "queue_ms": 5,
}
MESSAGE = {
    "role": "assistant",
    "content": "hello",
    "refusal": None,
    "reasoning": "hmm",
    "tool_calls": [CALL],
}
COMPLETION: Json = {
    **HEAD,
    "object": "chat.completion",
    "choices": [
        {
            "index": 0,
            "message": MESSAGE,
            "logprobs": {"content": TOKENS, "refusal": None},
            "finish_reason": "tool_calls",
        }
    ],
    "usage": USAGE,
}


def chunk(delta: Json, logprobs: Json | None = None, finish_reason: str | None = None) -> Json:
    choice = {
        "index": 0,
        "delta": delta,
        "logprobs": logprobs and {"content": [logprobs], "refusal": None},
        "finish_reason": finish_reason,
    }
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice], "usage": None}


CHUNKS: list[Json] = [
    chunk({"role": "assistant", "content": ""}),
    chunk({}),
    chunk({"reasoning": "hmm"}),
    chunk({"content": "he"}, TOKENS[0]),
    chunk({"content": "llo"}, TOKENS[1]),
    chunk(
        {
            "tool_calls": [
                {"index": 0, **CALL, "function": {"name": "f", "arguments": '{"a'}},
            ]
        }
    ),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '":1}'}}]}),
    chunk({}, finish_reason="tool_calls"),
    {**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE},
]
ROLE, _, REASONING, CONTENT, CONTENT_2, OPENING, ARGUMENTS, FINISH, LAST = range(len(CHUNKS))


def streamed(chunks: list[Json], end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + end


COMPLETION_MUTATIONS: list[tuple[Mutation, str]] = [
    (lambda c: c.pop("id"), "id: Field required"),
    (lambda c: c.update(created="1"), "created: "),
    (lambda c: c.update(object="completion"), "object: "),
    (lambda c: c.update(extra=1), "extra: extra field"),
    (lambda c: c.pop("usage"), "usage: missing"),
    (lambda c: c["usage"].update(total_tokens=16), "not the sum"),
    (lambda c: c["usage"].update(queue_ms=-1), "who answered, and why"),
    (lambda c: c["usage"].update(reason=""), "who answered, and why"),
    (lambda c: c["usage"].update(seconds=1), "usage.seconds: extra field"),
    (lambda c: c["usage"]["prompt_tokens_details"].update(cached_tokens=11), "cached than sent"),
    (lambda c: c["usage"]["completion_tokens_details"].update(reasoning_tokens=8), "of reasoning"),
    (lambda c: c["choices"][0].update(index=1), "choices: "),
    (lambda c: c["choices"].append(c["choices"][0]), "choices: "),
    (lambda c: c["choices"][0].update(finish_reason="stop"), "stop with a call"),
    (lambda c: c["choices"][0].update(finish_reason="eos"), "finish_reason: "),
    (lambda c: c["choices"][0].pop("logprobs"), "logprobs: missing field"),
    (
        lambda c: c["choices"][0].update(logprobs=None, finish_reason="stop"),
        "asked for and not there",
    ),
    (lambda c: c["choices"][0]["message"].pop("refusal"), "message.refusal: missing field"),
    (lambda c: c["choices"][0]["message"].update(role="user"), "message.role: "),
    (lambda c: c["choices"][0]["message"].update(thinking=""), "message.thinking: extra field"),
    (lambda c: c["choices"][0]["message"].pop("tool_calls"), "tool_calls without a call"),
    (lambda c: c["choices"][0]["message"]["tool_calls"].append(CALL), "repeated id"),
    (lambda c: c["choices"][0]["message"]["tool_calls"][0].pop("type"), "tool_calls.0"),
    (lambda c: c["choices"][0]["message"]["tool_calls"][0].update(index=0), "extra field"),
    (lambda c: c["choices"][0]["logprobs"]["content"].pop(), "the tokens spell 'he'"),
    (lambda c: c["choices"][0]["logprobs"]["content"][0].update(logprob=0.1), "logprob: 0.1"),
    (lambda c: c["choices"][0]["logprobs"]["content"][0].update(token="x"), "its bytes spell"),
    (lambda c: c["choices"][0]["logprobs"]["content"][0].pop("bytes"), "bytes: missing field"),
    (
        lambda c: c["choices"][0]["logprobs"]["content"][0].update(
            top_logprobs=TOKENS[0]["top_logprobs"] * 2
        ),
        "more than were asked for",
    ),
    (
        lambda c: c["choices"][0]["logprobs"]["content"][0].update(
            top_logprobs=[{"token": "x", "bytes": [120], "logprob": p} for p in (-2.0, -1.0)]
        ),
        "not the most likely first",
    ),
]


def delta_of(chunks: list[Json], position: int) -> Json:
    delta: Json = chunks[position]["choices"][0]["delta"]
    return delta


STREAM_MUTATIONS: list[tuple[Mutation, str]] = [
    (lambda c: c[CONTENT].update(id="chatcmpl-2"), "has changed"),
    (lambda c: c[CONTENT].update(created=2), "has changed"),
    (lambda c: c[CONTENT].update(model="n"), "has changed"),
    (lambda c: c[CONTENT].pop("system_fingerprint"), "has changed"),
    (lambda c: c[CONTENT].pop("created"), "created: Field required"),
    (lambda c: c[CONTENT].update(queue=1), "queue: extra field"),
    (lambda c: c[CONTENT]["choices"][0].pop("finish_reason"), "finish_reason: missing field"),
    (lambda c: c[CONTENT].pop("usage"), "exactly when it is asked for"),
    (lambda c: c[CONTENT].update(usage=USAGE), "in a chunk of its own"),
    (lambda c: c.pop(LAST), "usage: asked for and not there"),
    (lambda c: c.insert(FINISH, c.pop(LAST)), "after the usage"),
    (lambda c: c.append(c[LAST]), "after the usage"),
    (lambda c: c.pop(ROLE), "role: "),
    (lambda c: c.insert(1, c[ROLE]), "role: "),
    (lambda c: c.insert(1, c.pop(ROLE)), "role: "),
    (lambda c: delta_of(c, REASONING).update(reasoning_content="hmm"), "extra field"),
    (lambda c: delta_of(c, REASONING).update(content=""), "an empty piece"),
    (lambda c: delta_of(c, REASONING).update(tool_calls=[]), "an empty piece"),
    (lambda c: c.pop(FINISH), "finish_reason: missing"),
    (lambda c: c.insert(CONTENT, c.pop(FINISH)), "after its finish_reason"),
    (lambda c: c.insert(FINISH, c[FINISH]), "after its finish_reason"),
    (lambda c: c[FINISH]["choices"][0].update(finish_reason="stop"), "stop with a call"),
    (lambda c: c[CONTENT]["choices"][0].update(index=1), "role: "),
    (lambda c: c[CONTENT]["choices"][0].update(logprobs=None), "the tokens spell 'llo'"),
    (lambda c: delta_of(c, CONTENT).update(content="ho"), "the content is 'hollo'"),
    (lambda c: delta_of(c, OPENING)["tool_calls"][0].pop("id"), "has id, type and name"),
    (lambda c: delta_of(c, OPENING)["tool_calls"][0].pop("type"), "has id, type and name"),
    (lambda c: delta_of(c, OPENING)["tool_calls"][0]["function"].pop("name"), "id, type and name"),
    (lambda c: delta_of(c, OPENING)["tool_calls"][0].pop("index"), "index: Field required"),
    (lambda c: delta_of(c, OPENING)["tool_calls"][0].update(index=1), "count from 0"),
    (lambda c: delta_of(c, ARGUMENTS)["tool_calls"][0].update(id="call_1"), "and nothing else"),
    (lambda c: delta_of(c, ARGUMENTS)["tool_calls"][0].update(index=1), "has id, type and name"),
    (lambda c: delta_of(c, ARGUMENTS)["tool_calls"][0].update(index=2), "count from 0"),
]
