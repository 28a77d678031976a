"""kill -9 of a real server while it spends: what was spent is known, and is within the budget."""

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.fault_plays import ANSWER, PROMPT_TOKENS
from tests.fault_provider import FaultProvider, fault_provider
from tests.keys import bearer, make_key
from tests.process.serving import Served, serving
from tests.providers import key_file
from verger.gateway.ledger_store import INTERRUPTED, LedgerStore, Spending
from verger.gateway.principal import RoutePolicy

pytestmark = [pytest.mark.process, pytest.mark.anyio]

BUDGET_USD, IN_FLIGHT, MAX_TRIES = 0.01, 8, 2_000
CONFIG = """
[spill]
monthly_budget_usd = 1
[[providers]]
name = "p"
kind = "compatible"
base_url = "{url}"
key_file = "{key_file}"
models = {{ "correct" = "correct", "stall-late" = "stall-late" }}
price = {{ input_usd = 1, output_usd = 4 }}
"""
COST = PROMPT_TOKENS + 4 * len(ANSWER)

Ask = Callable[[str], Awaitable[httpx.Response]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_what_was_spent_when_it_was_killed_is_known(tmp_path: Path) -> None:
    async with fault_provider() as provider:
        config = CONFIG.format(url=provider.url, key_file=key_file(tmp_path))
        with serving(tmp_path / "served", config) as served:
            key = make_key(
                served.database, "ada", route=RoutePolicy.ANY, monthly_budget_usd=BUDGET_USD
            )
            answered = await _spend_until_killed(served, provider, key)
    spent, interrupted = _after_a_restart(served.database)
    assert interrupted == IN_FLIGHT
    # The last of them may not have been settled, and then counts at its worst.
    assert answered * COST <= spent.key_micro_usd <= BUDGET_USD * 1e6
    tokens = sum(exchange.tokens for exchange in provider.exchanges[1:])
    assert spent.key_micro_usd >= 4 * tokens, "the provider has counted more than the ledger"


async def _spend_until_killed(served: Served, provider: FaultProvider, key: str) -> int:
    """How many answers were complete when it was killed, in the middle of IN_FLIGHT others."""
    async with httpx.AsyncClient(headers=bearer(key), timeout=60) as http:

        async def ask(model: str) -> httpx.Response:
            messages = [{"role": "user", "content": "hi"}]
            body = {"model": f"p/{model}", "messages": messages, "max_tokens": 20}
            return await http.post(f"{served.url}/chat/completions", json=body)

        await _until_checked(ask)
        answered = 1 + len([response for _ in range(9) if (response := await ask("correct"))])
        stalling = [asyncio.create_task(ask("stall-late")) for _ in range(IN_FLIGHT)]
        while len(provider.of("stall-late")) < IN_FLIGHT:
            await asyncio.wait(stalling, timeout=0.01)
        served.process.kill()
        await asyncio.gather(*stalling, return_exceptions=True)
    return answered


async def _until_checked(ask: Ask) -> None:
    for _ in range(MAX_TRIES):
        if (await ask("correct")).status_code == 200:
            return
    raise AssertionError("the provider has not passed its check")


def _after_a_restart(database: Path) -> tuple[Spending, int]:
    """Of the key; and how many calls were under way."""
    store = LedgerStore(database)
    spent = store.spending("ada", "p", round(time.time() * 1000))
    store.close()
    with closing(sqlite3.connect(database)) as reading:
        question = "SELECT count(*) FROM ledger WHERE key_id = 'ada' AND finish = ?"
        return spent, int(reading.execute(question, (INTERRUPTED,)).fetchone()[0])
