"""What a cloud provider does at its worst, and at its best: the plays of `fault_provider`.

Each play writes one answer, byte by byte, to a request that has been read.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

ANSWER = ("The", " orchard", " is", " open.")
TEXT = "".join(ANSWER)
PROMPT_TOKENS = 7
USAGE = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": len(ANSWER), "cost": 0.000125}
GIANT_BYTES = 3 * 1024 * 1024
DRIP_S = 0.02


class Gone(Exception):
    """The client has closed its connection."""


@dataclass
class Exchange:
    """One request, and the bytes of its answer in the hands of a play."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    tokens: int = 0
    """Sent so far, by the provider's own count."""
    is_over: bool = False
    """The answer is complete as HTTP has it, and the connection can be used again."""
    is_left: bool = False

    @property
    def model(self) -> str:
        return str(self.body.get("model", ""))

    async def head(
        self, status: int = 200, kind: str = "text/event-stream", **headers: str
    ) -> None:
        """The head of a chunked answer."""
        lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw("\r\n".join([*lines, "", ""]).encode())

    async def raw(self, sent: bytes) -> None:
        if self.writer.is_closing() or self.reader.at_eof():
            raise Gone
        self.writer.write(sent)
        await self.writer.drain()

    async def bytes(self, sent: bytes) -> None:
        """One chunk of HTTP's."""
        await self.raw(f"{len(sent):x}\r\n".encode() + sent + b"\r\n")

    async def data(self, data: str) -> None:
        await self.bytes(f"data: {data}\n\n".encode())

    async def chunk(self, finish: str | None = None, **delta: Any) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        await self.data(json.dumps({"id": "x", "model": "theirs", "choices": [choice]}))

    async def say(self, *texts: str) -> None:
        for text in texts:
            self.tokens += 1
            await self.chunk(content=text)

    async def usage(self, **usage: Any) -> None:
        await self.data(json.dumps({"choices": [], "usage": usage or USAGE}))

    async def done(self) -> None:
        await self.data("[DONE]")
        await self.end()

    async def end(self) -> None:
        """A clean end, as far as HTTP is concerned."""
        await self.raw(b"0\r\n\r\n")
        self.is_over = True

    async def refuse(self, status: int, body: str, **headers: str) -> None:
        await self.head(status, "application/json", **headers)
        await self.bytes(body.encode())
        await self.end()

    def cut(self) -> None:
        """No clean end: the connection is reset."""
        self.writer.transport.abort()

    async def hang(self) -> None:
        """Until the client has had enough."""
        if not await self.reader.read(1):
            raise Gone

    async def until_gone(self, frame: Callable[[], Awaitable[None]]) -> None:
        """The same over and over."""
        while True:
            await frame()
            await asyncio.sleep(DRIP_S)


Play = Callable[[Exchange], Awaitable[None]]


async def correct(to: Exchange) -> None:
    await to.head()
    await to.chunk(role="assistant", content="")
    await to.say(*ANSWER)
    await to.chunk(finish="stop")
    await to.usage()
    await to.done()


async def error(to: Exchange) -> None:
    await to.data('{"error": {"code": 502, "message": "upstream is down"}}')
    await to.done()


async def bad_json(to: Exchange) -> None:
    await to.data('{"choices": [{"delta": {"content": "Th')
    await to.done()


async def cut(to: Exchange) -> None:
    to.cut()


async def clean_end(to: Exchange) -> None:
    await to.end()


async def hang(to: Exchange) -> None:
    await to.hang()


async def giant_event(to: Exchange) -> None:
    for _ in range(GIANT_BYTES // 65_536):
        await to.bytes(b"x" * 65_536)
    await to.hang()


async def slow_drip(to: Exchange) -> None:
    """An event whose end never comes, one byte at a time: bytes are no life."""
    await to.bytes(b'data: {"choices": [{"delta": {"content": "')
    await to.until_gone(lambda: to.bytes(b"x"))


async def comment_flood(to: Exchange) -> None:
    await to.until_gone(lambda: to.bytes(b": still working\n\n" * 100))


async def empty_deltas(to: Exchange) -> None:
    await to.until_gone(lambda: to.chunk(content=""))


async def choice_of_nobody(to: Exchange) -> None:
    await to.data('{"choices": [{"index": 7, "delta": {"content": "x"}}]}')
    await to.done()


IN_STREAM: dict[str, Play] = {
    "cut": cut,
    "clean-end": clean_end,
    "stall": hang,
    "slow-drip": slow_drip,
    "comment-flood": comment_flood,
    "empty-deltas": empty_deltas,
    "bad-json": bad_json,
    "error-in-200": error,
    "giant-event": giant_event,
    "choice-of-nobody": choice_of_nobody,
}
"""What happens after the head; before anything was said, and as NAME-late after it."""


def _early(play: Play) -> Play:
    async def play_early(to: Exchange) -> None:
        await to.head()
        await to.chunk(role="assistant", content="")
        await play(to)

    return play_early


def _late(play: Play) -> Play:
    async def play_late(to: Exchange) -> None:
        await to.head()
        await to.say(*ANSWER[:2])
        await play(to)

    return play_late


def _refusal(status: int, message: str = "no", **headers: str) -> Play:
    body = json.dumps({"error": {"message": message, "type": "x", "code": None}})
    return lambda to: to.refuse(status, body, **headers)


async def no_response(to: Exchange) -> None:
    await to.hang()


async def headers_then_silence(to: Exchange) -> None:
    await to.head()
    await to.hang()


async def cut_before_headers(to: Exchange) -> None:
    to.cut()


async def half_a_head(to: Exchange) -> None:
    await to.raw(b"HTTP/1.1 200 OK\r\ncontent-ty")
    to.cut()


async def no_http(to: Exchange) -> None:
    await to.raw(b"SSH-2.0-OpenSSH_9.9\r\n")
    to.cut()


async def html(to: Exchange) -> None:
    await to.head(kind="text/html")
    await to.bytes(b"<html>Log in to the hotel's Wi-Fi</html>")
    await to.end()


async def error_body_in_200(to: Exchange) -> None:
    await to.refuse(200, '{"error": {"message": "no capacity", "code": 503}}')


async def error_in_array(to: Exchange) -> None:
    """As Gemini has it."""
    await to.refuse(400, '[{"error": {"code": 400, "message": "Unknown name \\"x\\""}}]')


AT_THE_HEAD: dict[str, Play] = {
    "no-response": no_response,
    "headers-then-silence": headers_then_silence,
    "cut-before-headers": cut_before_headers,
    "half-a-head": half_a_head,
    "no-http": no_http,
    "html-in-200": html,
    "error-body-in-200": error_body_in_200,
    "error-in-array": error_in_array,
    "redirect": _refusal(307, location="http://127.0.0.1:1/"),
    "400": _refusal(400, "unknown field"),
    "401": _refusal(401),
    "402": _refusal(402),
    "403": _refusal(403),
    "404": _refusal(404),
    "context-length": _refusal(400, "This model's maximum context length is 8 tokens"),
    "422": _refusal(422),
    "429": _refusal(429),
    "429-retry-5": _refusal(429, retry_after="5"),
    "429-retry-300": _refusal(429, retry_after="300"),
    "500": _refusal(500),
    "503": _refusal(503, retry_after="300"),
}


async def refused_temperature(to: Exchange) -> None:
    if "temperature" in to.body:
        await _refusal(400, "Unsupported value: 'temperature' must be 1")(to)
    else:
        await correct(to)


async def busy_for_a_moment(to: Exchange) -> None:
    await to.refuse(429, "{}", retry_after="0.05")


async def no_done(to: Exchange) -> None:
    """The connection stays open."""
    await to.head()
    await to.say(*ANSWER)
    await to.chunk(finish="stop")
    await to.usage()
    await to.hang()


async def no_done_then_cut(to: Exchange) -> None:
    await to.head()
    await to.say(*ANSWER)
    await to.chunk(finish="stop")
    to.cut()


async def no_usage(to: Exchange) -> None:
    await to.head()
    await to.say(*ANSWER)
    await to.chunk(finish="stop")
    await to.done()


async def duplicate_usage(to: Exchange) -> None:
    """With every chunk, growing, and once more at the end."""
    await to.head()
    for count, text in enumerate(ANSWER, 1):
        to.tokens += 1
        choice = {"index": 0, "delta": {"content": text}}
        usage = {**USAGE, "completion_tokens": count}
        await to.data(json.dumps({"choices": [choice], "usage": usage}))
    await to.chunk(finish="stop")
    await to.usage()
    await to.usage()
    await to.done()


async def odd_reads(to: Exchange) -> None:
    """Events split across reads, CR LF, comments, names: all of it allowed."""
    await to.head()
    said = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ANSWER]
    events = [*said, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
    stream = ": hello\r\n\r\n" + "".join(
        f"event: message\r\ndata: {json.dumps(event)}\r\n\r\n" for event in events
    )
    to.tokens += len(ANSWER)
    for at in range(0, len(stream), 7):
        await to.bytes(stream[at : at + 7].encode())
    await to.usage()
    await to.done()


async def reasoning(to: Exchange) -> None:
    await to.head()
    await to.chunk(reasoning_content="hm")
    await to.say(*ANSWER)
    await to.chunk(finish="stop")
    await to.usage()
    await to.done()


async def tool_calls(to: Exchange) -> None:
    """As Gemini streams them: no index, `stop`, and the signature last."""
    call = {"id": "", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    signed = {"extra_content": {"google": {"thought_signature": "signed"}}}
    await to.head()
    await to.chunk(tool_calls=[call])
    await to.chunk(tool_calls=[signed])
    await to.chunk(finish="stop")
    await to.usage()
    await to.done()


async def endless(to: Exchange) -> None:
    await to.head()
    await to.until_gone(lambda: to.say("x"))


CORRECT: dict[str, Play] = {
    "correct": correct,
    "no-done": no_done,
    "no-done-then-cut": no_done_then_cut,
    "no-usage": no_usage,
    "duplicate-usage": duplicate_usage,
    "odd-reads": odd_reads,
}
"""All of these are whole answers, and say TEXT."""

PLAYS: dict[str, Play] = {
    **{name: _early(play) for name, play in IN_STREAM.items()},
    **{f"{name}-late": _late(play) for name, play in IN_STREAM.items()},
    **AT_THE_HEAD,
    **CORRECT,
    "refused-temperature": refused_temperature,
    "busy-for-a-moment": busy_for_a_moment,
    "reasoning": reasoning,
    "tool-calls": tool_calls,
    "endless": endless,
}
