"""Fakes shared by the tests: time, a tokenizer, a runner without a model, an engine in-process."""

import asyncio
import heapq
import itertools
import socket
from collections import deque
from collections.abc import Sequence
from ipaddress import ip_interface
from pathlib import Path

import msgspec
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from verger.engine.fake_kv import FakeKV
from verger.engine.steps import (
    MAX_LAUNCHED_STEPS,
    Close,
    Edit,
    KVGeometry,
    Memory,
    Open,
    Plan,
    Running,
    Sampled,
    Stored,
)
from verger.errors import LanError
from verger.gateway.engine_process import EngineProcess
from verger.lan.advertise import Backend
from verger.lan.interfaces import Interface
from verger.lan.records import Advert
from verger.messages import PROTOCOL_VERSION, FromEngine, Hello, Ready, Submit, ToEngine

HARMONY_SPECIALS = (
    "<|startoftext|>",
    "<|endoftext|>",
    "<|return|>",
    "<|constrain|>",
    "<|channel|>",
    "<|start|>",
    "<|end|>",
    "<|message|>",
    "<|call|>",
)

READY = Ready(
    version=PROTOCOL_VERSION,
    model_id="fake",
    vocabulary_size=300,
    context_tokens=1000,
    max_rows=16,
    device="fake",
    load_s=0.0,
)


ECHO_KV = KVGeometry(token_bytes=32, sliding_token_bytes=8, window=16, max_rows=16)


def byte_tokenizer() -> Tokenizer:
    """A vocabulary of the 256 bytes, then Harmony's specials from id 256 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(HARMONY_SPECIALS))
    return tokenizer


def special_id(name: str) -> int:
    """The id of a special token in `byte_tokenizer`'s vocabulary."""
    return len(pre_tokenizers.ByteLevel.alphabet()) + HARMONY_SPECIALS.index(name)


def write_model_folder(folder: Path) -> Path:
    """A model folder with all that a fake engine needs: a tokenizer.json."""
    folder.mkdir(exist_ok=True)
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


class FakeTime:
    """A clock that only `advance` moves, and the sleep that belongs to it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.sleeps_s: asyncio.Queue[float] = asyncio.Queue(maxsize=10_000)
        """How long each sleep is, for tests that wait for a certain one."""
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def clock(self) -> float:
        """Seconds since the fake began."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Return once `advance` has passed the time."""
        self.sleeps_s.put_nowait(seconds)
        wake = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._order), wake))
        await wake

    async def advance(self, seconds: float) -> None:
        """Wake the sleepers whose time comes, one after the other, and let each act."""
        end_s = self.now_s + seconds
        while self._sleepers and self._sleepers[0][0] <= end_s:
            self.now_s, _, wake = heapq.heappop(self._sleepers)
            if not wake.done():
                wake.set_result(None)
            await settle()
        self.now_s = end_s


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


class EchoRunner:
    """Implements `steps.Runner`: every row says its prompt over and over. Checks the contract."""

    def __init__(
        self, context_tokens: int = 1000, kv: KVGeometry = ECHO_KV, free_bytes: int = 1 << 30
    ) -> None:
        self.context_tokens = context_tokens
        self.vocabulary_size = 1000
        self.device = "echo"
        self.fingerprint = "echo"
        self.step_s = 0.0
        self.kv = kv
        self.free_bytes = free_bytes
        self.held = FakeKV(kv)
        self.open_rows: dict[int, Submit] = {}
        self.plans: list[Plan] = []
        self._last_ids: dict[int, int] = {}
        self._said: dict[int, int] = {}
        self._launched: deque[list[Sampled]] = deque()

    def apply(self, edit: Edit) -> None:
        self.held.apply(edit)
        match edit:
            case Open(submit=submit):
                self.open_rows[submit.request_id] = submit
                self._said[submit.request_id] = submit.resumed_tokens
            case Close(request_id=request_id):
                del self.open_rows[request_id]

    def launch(self, plan: Plan) -> None:
        assert len(self._launched) < MAX_LAUNCHED_STEPS
        assert not plan.is_empty
        self.plans.append(plan)
        sampled = []
        for request_id in plan.decodes:
            self.held.feed(request_id, self._last_ids[request_id])
            assert self.held.computed_tokens(request_id) < self.context_tokens
            sampled.append(self._sample(request_id))
        for prefill in plan.prefills:
            sampled += [self._sample(request_id) for request_id in self.held.compute(prefill)]
        self._launched.append(sampled)

    def collect(self) -> list[Sampled]:
        return self._launched.popleft()

    def export(self, source: Stored | Running, window_id: int | None) -> bytes:
        return self.held.export(source, window_id)

    def memory(self) -> Memory:
        return Memory(self.held.kv_bytes, self.held.kv_bytes, self.held.kv_bytes)

    def _sample(self, request_id: int) -> Sampled:
        submit = self.open_rows[request_id]
        asked = submit.prompt[: len(submit.prompt) - submit.resumed_tokens]
        token_id = asked[self._said[request_id] % len(asked)]
        self._said[request_id] += 1
        self._last_ids[request_id] = token_id
        return Sampled(request_id, token_id)


class FakeEngine:
    """The engine's end of a socket, played by a test; `spawn` makes it look like a process."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = 4711
        self.returncode: int | None = None
        self._reader = reader
        self._writer = writer
        self._exited = asyncio.Event()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)

    async def receive(self) -> ToEngine:
        """The gateway's next frame."""
        length = int.from_bytes(await self._reader.readexactly(4), "little")
        return self._decoder.decode(await self._reader.readexactly(length))

    def send(self, *frames: FromEngine) -> None:
        """Frames to the gateway."""
        for frame in frames:
            payload = msgspec.msgpack.encode(frame)
            self.send_bytes(len(payload).to_bytes(4, "little") + payload)

    def send_bytes(self, piece: bytes) -> None:
        """Anything at all to the gateway."""
        self._writer.write(piece)

    def exit(self, returncode: int = 0) -> None:
        """End as a process does: the socket closes, the code can be waited for."""
        if self.returncode is None:
            self.returncode = returncode
            self._writer.close()
            self._exited.set()

    def kill(self) -> None:
        """What the gateway does to an engine that it no longer wants."""
        self.exit(-9)

    async def wait(self) -> int:
        """The exit code."""
        await self._exited.wait()
        assert self.returncode is not None
        return self.returncode


class FakeEngines:
    """Stands in for `engine_process.spawn`: each start makes a FakeEngine for the test to play."""

    def __init__(self) -> None:
        self.commands: list[Sequence[str]] = []
        self.engines: list[FakeEngine] = []
        self._started: asyncio.Queue[FakeEngine] = asyncio.Queue(maxsize=100)

    async def spawn(self, command: Sequence[str]) -> EngineProcess:
        """An engine process whose child is a FakeEngine."""
        self.commands.append(command)
        ours, theirs = socket.socketpair()
        engine = FakeEngine(*await asyncio.open_unix_connection(sock=theirs))
        self.engines.append(engine)
        self._started.put_nowait(engine)
        return EngineProcess(engine, *await asyncio.open_unix_connection(sock=ours))

    async def next(self) -> FakeEngine:
        """The next engine that was started, its Hello already read."""
        engine = await self._started.get()
        assert isinstance(await engine.receive(), Hello)
        return engine

    def exit_all(self) -> None:
        """End every engine that still runs."""
        for engine in self.engines:
            engine.exit()

    async def next_ready(self, ready: Ready = READY) -> FakeEngine:
        """The next engine, which says that it is ready."""
        engine = await self.next()
        engine.send(ready)
        return engine


LAN = Interface("en0", 4, (ip_interface("192.168.1.20/24"),))
LOOPBACK = Interface("lo0", 1, (ip_interface("127.0.0.1/8"),))


class FakeLan:
    """A network to advertise on, and its only advertiser; every call is written down."""

    def __init__(self) -> None:
        self.interfaces: tuple[Interface, ...] = (LAN,)
        self.calls: list[tuple[str, Advert | None]] = []
        self.addresses: Sequence[str] = ()
        self.failure: Exception | None = None
        """What registering and updating fail with."""
        self.new_name = "office-mini-2"
        """What the next registration is called."""
        self.name = ""
        """What the advertised server is called now."""

    def choose(self, named: Sequence[str]) -> tuple[Interface, ...]:
        """Stands in for `choose_interfaces`."""
        if not self.interfaces:
            raise LanError("no interface")
        return self.interfaces

    def make(
        self, backend: Backend, interfaces: Sequence[Interface], addresses: Sequence[str]
    ) -> "FakeLan":
        """Stands in for `make_advertiser`."""
        self.addresses = addresses
        return self

    async def start(self, advert: Advert) -> str:
        """As an Advertiser."""
        self._call("start", advert)
        self.name = self.new_name
        return self.name

    async def update(self, advert: Advert) -> None:
        """As an Advertiser."""
        self._call("update", advert)

    async def stop(self) -> None:
        """As an Advertiser."""
        self.calls.append(("stop", None))
        self.name = ""

    @property
    def verbs(self) -> list[str]:
        """What was called."""
        return [verb for verb, _ in self.calls]

    def _call(self, verb: str, advert: Advert) -> None:
        self.calls.append((verb, advert))
        if self.failure is not None:
            raise self.failure
