"""A gateway on a real port of loopback, whose engine is played by the test, frame by frame.

Every reply passes the shared validator, whichever client asked.
"""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from msgspec.structs import replace

from tests.fakes import FakeEngine, FakeLan, byte_tokenizer, write_model_folder
from tests.traffic import Traffic, WatchedApp
from verger.formats.dates import PinnedDates
from verger.formats.vocabulary import Vocabulary
from verger.gateway.advertising import Advertising
from verger.gateway.app import create_app
from verger.gateway.cloud import Cloud
from verger.gateway.engine_client import EngineClient
from verger.gateway.engine_process import EngineProcess
from verger.gateway.principal import Principal
from verger.gateway.server import GatewayServer, listen
from verger.gateway.service import Service
from verger.gateway.settings import ServerSettings
from verger.gateway.tls import tls_context
from verger.gateway.weights import AreThere
from verger.messages import (
    BACKGROUND,
    PROTOCOL_VERSION,
    Cancel,
    Drain,
    Finished,
    FinishReason,
    Found,
    FromEngine,
    Hello,
    Logprob,
    LookUp,
    Ready,
    RowTokens,
    Submit,
    ToEngine,
    Tokens,
)

CONTEXT_TOKENS = 4_096
MAX_ROWS = 4
MODEL_ID = "test-model"
TOKENIZER = byte_tokenizer()


def tokens_of(text: str) -> list[int]:
    """The ids of Harmony text in which specials are written out."""
    ids: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    return ids


def choices_of(submit: Submit) -> list[Submit]:
    """What a submission with forks asks for, one by one."""
    request_ids = (submit.request_id, *submit.forks)
    return [replace(submit, request_id=request_id, forks=[]) for request_id in request_ids]


@dataclass
class PlayedEngine:
    """The engine's end of the socket. Submits and cancels arrive in queues.

    What is only computed in the background arrives in a queue of its own and is finished at once,
    unless the test says otherwise.
    """

    fake: FakeEngine
    submits: asyncio.Queue[Submit] = field(default_factory=asyncio.Queue)
    refills: asyncio.Queue[Submit] = field(default_factory=asyncio.Queue)
    finishes_refills: bool = True
    answers_look_ups: bool = True
    """Whether it says at once that nothing is cached."""
    cancels: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    greeted: asyncio.Event = field(default_factory=asyncio.Event)
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    sampled: dict[int, int] = field(default_factory=dict)
    """Tokens said so far, per request that is not finished."""

    def send(self, *frames: FromEngine) -> None:
        self.fake.send(*frames)

    def say(self, submit: Submit, text: str, logprobs: Sequence[Logprob] = ()) -> None:
        """One step that samples all of the text."""
        ids = tokens_of(text)
        self.sampled[submit.request_id] += len(ids)
        self.send(Tokens([RowTokens(submit.request_id, ids, list(logprobs))]))

    def finish(
        self,
        submit: Submit,
        reason: FinishReason = FinishReason.STOP,
        cached_tokens: int = 0,
    ) -> None:
        sampled = self.sampled.pop(submit.request_id)
        self.send(Finished(submit.request_id, reason, len(submit.prompt), sampled, cached_tokens))
        if self.draining.is_set() and not self.sampled:
            self.fake.exit()

    async def answer(self, text: str, reason: FinishReason = FinishReason.STOP) -> Submit:
        """Take the next request, say the text token by token, and finish."""
        submit = await self.submits.get()
        for token_id in tokens_of(text):
            self.send(Tokens([RowTokens(submit.request_id, [token_id])]))
            self.sampled[submit.request_id] += 1
        self.finish(submit, reason)
        return submit

    def finish_refill(self, submit: Submit, cached_tokens: int = 0) -> None:
        """The whole prompt of a background request is computed."""
        prompt_tokens = len(submit.prompt)
        self.send(Finished(submit.request_id, FinishReason.LENGTH, prompt_tokens, 0, cached_tokens))

    def die(self) -> None:
        """As by `kill -9`."""
        self.fake.exit(-9)

    async def play(self) -> None:
        """Greet, then sort what arrives, until the gateway closes."""
        try:
            assert isinstance(await self.fake.receive(), Hello)
            self.greeted.set()
            while not (self.draining.is_set() and not self.sampled):
                self._take(await self.fake.receive())
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.fake.exit()

    def _take(self, frame: ToEngine) -> None:
        match frame:
            case Submit() if frame.priority == BACKGROUND:
                self.refills.put_nowait(frame)
                if self.finishes_refills:
                    self.finish_refill(frame)
            case Submit():
                self.sampled |= dict.fromkeys((frame.request_id, *frame.forks), 0)
                self.submits.put_nowait(frame)
            case LookUp() if self.answers_look_ups:
                self.send(Found(frame.lookup_id, 0, 0))
            case Cancel(request_id=request_id):
                self.sampled.pop(request_id, None)
                self.cancels.put_nowait(request_id)
            case Drain():
                self.draining.set()

    def become_ready(self, context_tokens: int = CONTEXT_TOKENS) -> None:
        ids = TOKENIZER.get_vocab_size()
        ready = Ready(PROTOCOL_VERSION, MODEL_ID, ids, context_tokens, MAX_ROWS, "fake", 0)
        self.send(ready)


@dataclass
class Gateway:
    """A running gateway, and what a test needs to talk to both of its sides."""

    url: str
    port: int
    service: Service
    server: GatewayServer
    http: httpx.AsyncClient
    engines: asyncio.Queue[PlayedEngine]
    serving: asyncio.Task[None]
    traffic: Traffic

    async def next_engine(self) -> PlayedEngine:
        """The engine that was started last; it has not said Ready yet."""
        return await self.engines.get()

    async def chat(self, **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/chat/completions", json=chat_body(**fields))


def raw_chat(**fields: Any) -> bytes:
    """A chat request, byte by byte."""
    body = json.dumps(chat_body(**fields)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: [::1]\r\ncontent-length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL_ID, "messages": [{"role": "user", "content": "hi"}], **fields}


@asynccontextmanager
async def running_gateway(
    folder: Path,
    lan: FakeLan | None = None,
    cloud: Cloud | None = None,
    principal: Principal | None = None,
    trust: ssl.SSLContext | bool = True,
    are_weights_there: AreThere = lambda: False,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """Serve until the block is left; its engines wait in `engines` for the test to play them.

    Requests without a key are `principal`'s; `trust` is what its HTTP client believes of
    certificates.
    """
    served = ServerSettings(
        model_id=MODEL_ID,
        model_folder=write_model_folder(folder / "model"),
        context_tokens=CONTEXT_TOKENS,
        **{"port": 0, "drain_s": 5.0, "aliases": {"gpt-4o": MODEL_ID}, **settings},
    )
    engines: asyncio.Queue[PlayedEngine] = asyncio.Queue()
    async with asyncio.TaskGroup() as tasks:
        service = _service(served, engines, tasks)
        service.cloud = cloud or service.cloud
        service.keys.anonymous = principal or service.keys.anonymous
        lan = lan or FakeLan()
        advertising = Advertising(service, make=lan.make, choose=lan.choose)
        server, traffic = GatewayServer(service, advertising, are_weights_there), Traffic()
        server.config.app = WatchedApp(create_app(service), traffic)
        with listen(served.host, served.port) as listener:
            port = listener.getsockname()[1]
            url = f"{'https' if served.tls else 'http'}://127.0.0.1:{port}"
            serving = tasks.create_task(server.serve([listener]))
            async with httpx.AsyncClient(base_url=url, timeout=30, verify=trust) as http:
                yield Gateway(url, port, service, server, http, engines, serving, traffic)
            server.should_exit = True
            await serving
    traffic.assert_valid()


@asynccontextmanager
async def ready_gateway(
    folder: Path,
    lan: FakeLan | None = None,
    cloud: Cloud | None = None,
    principal: Principal | None = None,
    **settings: Any,
) -> AsyncIterator[tuple[Gateway, PlayedEngine]]:
    """A gateway whose first engine is ready."""
    async with running_gateway(folder, lan, cloud, principal, **settings) as gateway:
        engine = await gateway.next_engine()
        engine.become_ready()
        await gateway.service.engine.wait_ready(30)
        yield gateway, engine


def _service(
    settings: ServerSettings, engines: asyncio.Queue[PlayedEngine], tasks: asyncio.TaskGroup
) -> Service:
    async def spawn(command: Sequence[str]) -> EngineProcess:
        ours, theirs = socket.socketpair()
        played = PlayedEngine(FakeEngine(*await asyncio.open_unix_connection(sock=theirs)))
        tasks.create_task(played.play())
        engines.put_nowait(played)
        return EngineProcess(played.fake, *await asyncio.open_unix_connection(sock=ours))

    vocabulary = Vocabulary.from_file_bytes(settings.tokenizer_file.read_bytes())
    hello = Hello(PROTOCOL_VERSION, vocabulary.special("<|message|>"))
    engine = EngineClient(["played"], hello, spawn=spawn, no_weights=settings.no_weights)
    tls = None if settings.tls is None else tls_context(settings.tls)
    return Service(settings, vocabulary, engine, PinnedDates(), tls=tls)
