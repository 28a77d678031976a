"""What a client of any server sends, and what it makes of the answer, however it is delimited."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from verger.bench import client
from verger.bench.chat import Answer, AnswerParts, Options, Target, ask_chat, body_of
from verger.bench.client import Endpoint, get, parse_url
from verger.bench.reader import Event, ReadError
from verger.bench.trace import TOOLS
from verger.formats.conversation import Conversation, Effort, Message, Role, ToolCall

USAGE = {
    "prompt_tokens": 70,
    "completion_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 64},
}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
T = TypeVar("T")


def delta(**fields: object) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": fields}]}).encode()


def calling(**fields: object) -> bytes:
    return delta(tool_calls=[fields])


def end(usage: object = USAGE) -> bytes:
    return json.dumps({"choices": [], "usage": usage}).encode()


def answer_of(*events: bytes) -> Answer:
    parts = AnswerParts()
    for number, data in enumerate(events):
        parts.feed(Event(float(number), data))
    return parts.answer(sent_s=-2.0, ended_s=99.0)


def sse(*events: bytes) -> bytes:
    return b"".join(b"data: " + data + b"\n\n" for data in (*events, b"[DONE]"))


def against(response: bytes, ask: Callable[[Endpoint], Awaitable[T]]) -> tuple[T, bytes]:
    """Ask a server that says just this and closes; also returns what it was asked."""
    asked = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(response)
        await writer.drain()
        writer.close()

    async def scenario() -> T:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            return await ask(Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], "/v1"))

    return asyncio.run(scenario()), bytes(asked)


async def hello(endpoint: Endpoint) -> Answer:
    conversation = Conversation((Message(Role.USER, "hi"),))
    return await ask_chat(Target(endpoint, "m", "secret"), conversation, Options(9), 20.0)


def test_pieces_add_up_to_the_message_that_goes_back() -> None:
    answer = answer_of(
        delta(role="assistant", content=""),
        delta(reasoning="I "),
        delta(reasoning_content="look."),
        delta(content="Let me see."),
        calling(index=0, id="call_1", type="function", function={"name": "look", "arguments": ""}),
        calling(index=0, function={"arguments": '{"a":'}),
        calling(index=0, function={"arguments": "1}"}),
        end(),
    )
    assert answer.message == Message(
        Role.ASSISTANT,
        "Let me see.",
        reasoning="I look.",
        tool_calls=(ToolCall("call_1", "look", '{"a":1}'),),
    )
    assert (answer.prompt_tokens, answer.cached_tokens, answer.ttft_s) == (70, 64, 3.0)


def test_a_heartbeat_is_no_text() -> None:
    parts = AnswerParts()
    came = [
        parts.feed(Event(1.0, data)) for data in (delta(), delta(content=""), delta(content="a"))
    ]
    assert came == [False, False, True]
    assert parts.text_s == [1.0]


def test_a_call_may_come_whole_and_without_index_or_id() -> None:
    """As mlx_lm.server sends it."""
    answer = answer_of(
        calling(function={"name": "a", "arguments": "{}"}),
        calling(function={"name": "b", "arguments": "{}"}),
        end({"prompt_tokens": 1, "completion_tokens": 1}),
    )
    assert [(call.id, call.name) for call in answer.message.tool_calls] == [
        ("call_0", "a"),
        ("call_1", "b"),
    ]
    assert answer.cached_tokens == 0


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([delta(content="a")], "no usage"),
        ([end()], "no text"),
        ([b'{"error": {"message": "The engine stopped."}}'], "The engine stopped"),
        ([calling(index=5, function={})], "index 5"),
    ],
)
def test_half_an_answer_is_a_failure(events: list[bytes], message: str) -> None:
    with pytest.raises(ReadError, match=message):
        answer_of(*events)


def test_the_body_says_everything_that_the_prompt_depends_on() -> None:
    call = ToolCall("call_1", "read_page", '{"line":1}')
    messages = (
        Message(Role.SYSTEM, "Be brief."),
        Message(Role.USER, "read"),
        Message(Role.ASSISTANT, reasoning="I read.", tool_calls=(call,)),
        Message(Role.TOOL, "once upon", tool_call_id="call_1"),
    )
    body = json.loads(
        body_of(Conversation(messages, TOOLS, Effort.LOW), "m", Options(7, {"5": -100.0}))
    )
    assert body["messages"][1:] == [
        {"role": "user", "content": "read"},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "I read.",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "read_page", "arguments": '{"line":1}'},
                }
            ],
        },
        {"role": "tool", "content": "once upon", "tool_call_id": "call_1"},
    ]
    assert [tool["function"]["name"] for tool in body["tools"]] == [tool.name for tool in TOOLS]
    assert (body["reasoning_effort"], body["max_tokens"], body["logit_bias"]) == (
        "low",
        7,
        {"5": -100.0},
    )


def test_the_body_names_nothing_that_is_not_wanted() -> None:
    body = json.loads(body_of(Conversation((Message(Role.USER, "hi"),)), "m", Options(7)))
    assert not {"tools", "reasoning_effort", "logit_bias"} & body.keys()


def test_a_chunked_answer_is_read_to_its_end() -> None:
    stream = sse(delta(content="hel"), delta(content="lo"), end())
    parts = [stream[:11], stream[11:40], stream[40:]]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    answer, asked = against(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, hello)
    assert answer.message.content == "hello"
    assert asked.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"\r\nauthorization: Bearer secret\r\n" in asked


def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    """As Python's own http.server sends it; with CRLF and comments between events."""
    stream = b": keepalive\r\n\r\n" + sse(delta(content="hello"), end()).replace(b"\n", b"\r\n")
    answer, _ = against(HEAD.replace(b"1.1", b"1.0") + b"\r\n" + stream, hello)
    assert answer.message.content == "hello"


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nfull", "503: full"),
        (HEAD + b"\r\n" + b"data: " + delta(content="a") + b"\n\n", r"ended before \[DONE\]"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nff\r\ndata", "connection failed"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n: \r\n", "connection failed"),
        (HEAD + b"content-length: 9\r\n\r\n: \n", "connection failed"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", "not HTTP"),
        (b"SSH-2.0\r\n", "no response"),
        (b"", "no response"),
    ],
)
def test_whatever_else_a_server_says_is_a_failure(response: bytes, message: str) -> None:
    with pytest.raises(ReadError, match=message):
        against(response, hello)


def test_an_event_has_a_longest_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_LINE_BYTES", 200)
    with pytest.raises(ReadError, match="more than 200 bytes"):
        against(HEAD + b"\r\ndata: " + b"x" * 1000, hello)


def test_a_route_that_is_not_there_has_no_body() -> None:
    async def ask(endpoint: Endpoint) -> bytes | None:
        return await get(endpoint, "/status", "", 20.0)

    assert against(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}", ask)[0] is None
    assert against(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", ask)[0] == b"{}"


def test_addresses() -> None:
    assert parse_url("http://localhost:8374/v1/") == Endpoint("localhost", 8374, "/v1")
    assert parse_url("https://example.org") == Endpoint("example.org", 443, "", is_tls=True)
    assert parse_url("http://localhost:8374/v1").url == "http://localhost:8374/v1"


@pytest.mark.parametrize("url", ["localhost:8374", "ftp://a/v1", "http://", "http://a:99999/v1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse_url(url)
