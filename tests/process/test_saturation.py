"""Forty requests at once to one row of nano, and a provider that counts what it is asked for.

A real `verger serve` with its configuration, keys and ledger on disk. Who is late leaves, who may
not stays; every answer is right, and the ledger agrees with the provider to the last micro-dollar.
"""

import asyncio
import itertools
import json
import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fault_plays import Exchange
from tests.fault_provider import FaultProvider, fault_provider
from tests.keys import bearer, make_key
from tests.providers import key_file
from verger.gateway.principal import Priority, RoutePolicy

pytestmark = [pytest.mark.anyio, pytest.mark.process]

WAIT_S = 120.0
REQUESTS = 10
"""Of each key."""
MODEL = "copier"
INPUT_USD, OUTPUT_USD = 2, 3
ROAMING: dict[str, Any] = {"route": RoutePolicy.ANY, "monthly_budget_usd": 50.0}
KEYS: dict[str, dict[str, Any]] = {
    "home": {"route": RoutePolicy.LOCAL_ONLY},
    "batch": {"priority": Priority.BATCH, **ROAMING},
    "left": ROAMING,
    "right": ROAMING,
}
INTERACTIVE = ("home", "left", "right")
THINGS = (
    "apple",
    "river",
    "garden",
    "window",
    "morning",
    "letter",
    "train",
    "music",
    "table",
    "road",
)
WORDS = {"home": "green", "batch": "quiet", "left": "open", "right": "old", "warm": "warm"}
AHEAD = 4
"""How far one key may be ahead of another that waits: what the engine holds beside its row, the
first who comes, and answers that are not equally long."""
CONFIG = """
[spill]
enabled = true
ttft_objective_s = 0.2
monthly_budget_usd = 100.0

[[providers]]
name = "double"
kind = "compatible"
no_training = true
base_url = "{url}"
key_file = "{key}"
models = {{ nano = "{model}" }}
price = {{ input_usd = {input_usd}, output_usd = {output_usd} }}
"""


@dataclass
class Answered:
    """One request, from its client's side."""

    key: str
    thing: str
    is_streamed: bool
    text: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    request_id: str = ""

    @property
    def prompt(self) -> str:
        return f"The {self.thing} is {WORDS[self.key]}."

    @property
    def is_local(self) -> bool:
        return bool(self.usage["served_by"] == "local")


@dataclass
class Counted:
    """What the provider has been asked for, and has charged."""

    server: FaultProvider
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def micro_usd(self) -> int:
        return self.prompt_tokens * INPUT_USD + self.completion_tokens * OUTPUT_USD

    async def copy(self, to: Exchange) -> None:
        """As nano: it repeats what it is told, a word at a time."""
        words = f"You said: {to.body['messages'][-1]['content']}".split(" ")
        await to.head()
        await to.say(words[0], *(f" {word}" for word in words[1:]))
        await to.chunk(finish="stop")
        prompt_tokens = len(str(to.body["messages"]))
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += len(words)
        await to.usage(prompt_tokens=prompt_tokens, completion_tokens=len(words))
        await to.done()


@asynccontextmanager
async def counting_provider() -> AsyncIterator[Counted]:
    async with fault_provider({}) as server:
        counted = Counted(server)
        server.plays = {MODEL: counted.copy}
        yield counted


@dataclass
class Served:
    http: httpx.AsyncClient
    keys: dict[str, str]
    database: Path

    async def ask(self, asked: Answered) -> None:
        body = {
            "model": "nano",
            "messages": [{"role": "user", "content": asked.prompt}],
            "temperature": 0,
        }
        headers = bearer(self.keys[asked.key])
        if not asked.is_streamed:
            response = await self.http.post("/chat/completions", json=body, headers=headers)
            assert response.status_code == 200, response.text
            answer = response.json()
            asked.text = answer["choices"][0]["message"]["content"]
            asked.usage = answer["usage"]
        else:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            stream = self.http.stream("POST", "/chat/completions", json=body, headers=headers)
            async with stream as response:
                assert response.status_code == 200
                await self._read(response, asked)
        asked.request_id = response.headers["x-request-id"]

    async def _read(self, response: httpx.Response, asked: Answered) -> None:
        is_whole = False
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                is_whole = True
            elif line.startswith("data: "):
                self._take(json.loads(line[6:]), asked)
        assert is_whole

    def _take(self, chunk: dict[str, Any], asked: Answered) -> None:
        assert "error" not in chunk, chunk
        asked.usage = chunk["usage"] or {}
        asked.text += "".join(c["delta"].get("content", "") for c in chunk["choices"])

    async def status(self) -> dict[str, Any]:
        response = await self.http.get("/status", headers=bearer(self.keys["warm"]))
        return dict(response.json())

    def rows(self) -> list[dict[str, Any]]:
        with sqlite3.connect(self.database) as reading:
            reading.row_factory = sqlite3.Row
            assert reading.execute("SELECT count(*) FROM reservations").fetchone()[0] == 0
            return [dict(row) for row in reading.execute("SELECT * FROM ledger")]


@asynccontextmanager
async def serving(folder: Path, provider: Counted) -> AsyncIterator[Served]:
    """With one row, its speed known and its provider checked; drained at the end."""
    home = folder / "home"
    home.mkdir()
    database = home / "verger.db"
    keys = {name: make_key(database, name, **fields) for name, fields in KEYS.items()}
    keys["warm"] = make_key(database, "warm")
    (home / "config.toml").write_text(
        CONFIG.format(
            url=provider.server.url,
            key=key_file(folder),
            model=MODEL,
            input_usd=INPUT_USD,
            output_usd=OUTPUT_USD,
        )
    )
    command = ["-P", "-m", "verger.cli.main", "serve", "--model", "nano", "--port", "0"]
    async with running([sys.executable, *command, "--max-rows", "1"], home) as url:
        limits = httpx.Limits(max_connections=2 * len(KEYS) * REQUESTS)
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_S, limits=limits) as http:
            served = Served(http, keys, database)
            await warm_up(served)
            yield served


@asynccontextmanager
async def running(command: Sequence[str], home: Path) -> AsyncIterator[str]:
    """The URL, once the server and its provider are ready; at the end SIGTERM, which is exit 0."""
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, "VERGER_HOME": str(home)}, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    missing = {"event=listening", "event=ready", "event=provider_ready"}
    url, reading = "", None
    try:
        while missing:
            line = (await process.stderr.readline()).decode()
            assert line, "the server has ended"
            missing -= set(line.split())
            url = line.partition("url=")[2].strip() or url
        reading = asyncio.create_task(process.stderr.read())
        yield url
        process.terminate()
        await reading
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.gather(process.wait(), *filter(None, [reading]))


async def warm_up(served: Served) -> None:
    """Until it is known how fast the engine is: it says so once a second, while it is busy."""
    while (await served.status())["admission"]["prompt_tokens_per_s"] is None:
        warming = [Answered("warm", thing, is_streamed=False) for thing in THINGS]
        await asyncio.gather(*map(served.ask, warming))


async def test_forty_requests_at_once_are_answered_here_or_there_and_accounted_for(
    tmp_path: Path,
) -> None:
    asked = [
        Answered(key, thing, is_streamed=number % 2 == 0)
        for number, thing in enumerate(THINGS)
        for key in KEYS
    ]
    async with asyncio.timeout(WAIT_S), counting_provider() as provider:
        async with serving(tmp_path, provider) as served:
            await asyncio.gather(*map(served.ask, asked))
            spilled_by_status = (await served.status())["admission"]["spilled"]
        rows = {row["request_id"]: row for row in served.rows() if row["key_id"] != "warm"}
    (check,) = [rows.pop(id) for id, row in list(rows.items()) if row["key_id"] is None]

    assert all(one.text == f"You said: {one.prompt}" for one in asked)
    assert {one.request_id for one in asked} == set(rows)
    spilled = [one for one in asked if not one.is_local]
    print(Counter((one.key, one.usage["served_by"], one.usage["reason"]) for one in asked))
    assert len(spilled) == spilled_by_status
    assert len(spilled) >= REQUESTS // 2, "one row cannot do that in time"
    assert {one.key for one in spilled} <= {"left", "right"}
    assert {(one.usage["served_by"], one.usage["reason"]) for one in spilled} == {
        ("cloud:double", "saturated")
    }
    prompts = Counter(x.body["messages"][-1]["content"] for x in provider.server.exchanges)
    assert prompts == Counter(["Say hi.", *(one.prompt for one in spilled)])
    assert_fair([row for row in rows.values() if row["route"] == "local"])
    assert_accounted([check, *(rows[one.request_id] for one in spilled)], provider)
    assert_reported(served.database.parent, provider)
    for one in asked:
        row = rows[one.request_id]
        assert row["key_id"] == one.key
        assert row["output_tokens"] == one.usage["completion_tokens"]
        assert row["cost_micro_usd"] == round(1e6 * one.usage.get("cost_usd", 0))


def assert_fair(rows: list[dict[str, Any]]) -> None:
    """Nobody who waits is left behind: when a key of the same class gets its nth answer, no other
    has had many more; and those of the batch class begin once the others have."""
    order = [row["key_id"] for row in sorted(rows, key=lambda row: row["unix_ms"] + row["ttft_ms"])]
    print(" ".join(order))
    last = max(place for place, key in enumerate(order) if key in INTERACTIVE)
    assert order[:last].count("batch") <= AHEAD, order
    for key, other in itertools.permutations(INTERACTIVE, 2):
        places = [place for place, name in enumerate(order) if name == key]
        for had, place in enumerate(places):
            assert order[:place].count(other) <= had + AHEAD, (key, other, order)


def assert_accounted(rows: list[dict[str, Any]], provider: Counted) -> None:
    """By the ledger's rows as by the provider's own count."""
    assert {(row["route"], row["provider"]) for row in rows} == {("cloud", "double")}
    assert len(rows) == len(provider.server.exchanges)
    assert sum(r["uncached_tokens"] + r["cached_tokens"] for r in rows) == provider.prompt_tokens
    assert sum(row["output_tokens"] for row in rows) == provider.completion_tokens
    assert sum(row["cost_micro_usd"] for row in rows) == provider.micro_usd


def assert_reported(home: Path, provider: Counted) -> None:
    """And so does `verger usage`."""
    command = [sys.executable, "-P", "-m", "verger.cli.main", "usage", "--by", "provider", "--json"]
    variables = {**os.environ, "VERGER_HOME": str(home)}
    report = json.loads(subprocess.run(command, env=variables, check=True, stdout=-1).stdout)
    (row,) = [row for row in report["rows"] if row["name"] == "double"]
    assert row["requests"] == len(provider.server.exchanges)
    assert row["output_tokens"] == provider.completion_tokens
    assert round(1e6 * row["cash_usd"]) == round(1e6 * report["cash_usd"]) == provider.micro_usd
