"""A greedy key and a modest one at a real server with a real engine process: who waits for whom.

Steps are counted, not seconds: in every step a stream that runs gets one token, so what the greedy
streams were sent between two moments says how many steps passed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fakes import FakeLan, write_model_folder
from tests.keys import bearer, make_key
from verger.gateway.advertising import Advertising
from verger.gateway.server import GatewayServer, build_service, listen
from verger.gateway.settings import ServerSettings

pytestmark = [pytest.mark.anyio, pytest.mark.process]

WAIT_S = 60.0
MAX_ROWS = 4
GREEDY_REQUESTS = 100
FINAL = "<|channel|>final<|message|>"
BRIEF = "I am brief."
BRIEF_STEPS = len("c final m") + len(BRIEF) + 1
"""A byte is a token: the header, the words, the end."""
MESSENGER_STEPS = 12
"""While a request is on its way to the engine, and its end on its way back."""
SCRIPT = f"""
[[reply]]
match = 'greedy (\\d+)'
text = '{FINAL}{"w " * 20}'
step_s = 0.005
[[reply]]
match = 'modest'
text = '{FINAL}{BRIEF}'
step_s = 0.005
"""


@dataclass
class Office:
    """The server, and what each stream has been sent."""

    http: httpx.AsyncClient
    keys: dict[str, str]
    """Name → secret."""
    started: list[str] = field(default_factory=list)
    """In the order of first words."""
    ended: list[str] = field(default_factory=list)
    words: dict[str, int] = field(default_factory=dict)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def ask(self, key: str, text: str) -> None:
        """Read a stream to its end."""
        body = {"messages": [{"role": "user", "content": text}], "model": "fake", "stream": True}
        url, headers = "/v1/chat/completions", bearer(self.keys[key])
        async with self.http.stream("POST", url, json=body, headers=headers) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if '"content":"' in line and '"content":""' not in line:
                    await self._note(text)
        self.ended.append(text)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(is_so)

    def greedy_words(self) -> int:
        return sum(count for text, count in self.words.items() if text.startswith("greedy"))

    async def queued(self) -> int:
        status: dict[str, Any] = (
            await self.http.get("/v1/status", headers=bearer(self.keys["modest"]))
        ).json()
        queued: int = status["rows"]["queued"]
        return queued

    async def _note(self, text: str) -> None:
        async with self._changed:
            if text not in self.words:
                self.started.append(text)
            self.words[text] = self.words.get(text, 0) + 1
            self._changed.notify_all()


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    script = tmp_path / "script.toml"
    script.write_text(SCRIPT)
    database = tmp_path / "verger.db"
    keys = {name: make_key(database, name) for name in ("greedy", "modest", "a", "b")}
    settings = ServerSettings(
        model_id="fake",
        model_folder=write_model_folder(tmp_path / "model"),
        context_tokens=20_000,
        port=0,
        max_rows=MAX_ROWS,
        database_file=database,
        fake_script=script,
    )
    async with asyncio.timeout(WAIT_S), serving(settings) as url:
        limits = httpx.Limits(max_connections=GREEDY_REQUESTS + 10)
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_S, limits=limits) as http:
            yield Office(http, keys)


@asynccontextmanager
async def serving(settings: ServerSettings) -> AsyncIterator[str]:
    service = build_service(settings)
    lan = FakeLan()
    server = GatewayServer(service, Advertising(service, make=lan.make, choose=lan.choose))
    with listen(settings.host, settings.port) as listener:
        running = asyncio.create_task(server.serve([listener]))
        await service.engine.wait_ready(WAIT_S)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await running


async def test_a_modest_key_hardly_feels_a_greedy_one(office: Office) -> None:
    """The greedy key has half of the rows; the kept one is there when the other comes."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(GREEDY_REQUESTS):
            tasks.create_task(office.ask("greedy", f"greedy {number}"))
        await office.until(lambda: office.greedy_words() >= 10)
        assert await office.queued() > GREEDY_REQUESTS // 2
        for number in range(3):
            before = office.greedy_words()
            await tasks.create_task(office.ask("modest", f"modest {number}"))
            steps = (office.greedy_words() - before) / (MAX_ROWS // 2)
            print(f"answered in {steps:.0f} steps, of which {BRIEF_STEPS} are its own")
            assert steps <= BRIEF_STEPS + MESSENGER_STEPS
        assert await office.queued() > 0, "the greedy key is still waiting"

    greedy = [text for text in office.started if text.startswith("greedy")]
    assert len(office.ended) == GREEDY_REQUESTS + 3, "all are answered"
    assert office.started.index("modest 2") < len(greedy) // 2


async def test_two_greedy_keys_take_turns(office: Office) -> None:
    """The one that comes later is served as often as the other from then on."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(office.ask("a", f"greedy {number}"))
        await office.until(lambda: office.greedy_words() >= 10)
        for number in range(100, 106):
            tasks.create_task(office.ask("b", f"greedy {number}"))

    late = [place for place, text in enumerate(office.started) if int(text.split()[1]) >= 100]
    assert len(late) == 6
    assert late[-1] - late[0] <= 2 * len(late) + 2, office.started
