"""Requests to a running gateway, and the rows that the ledger has of them afterwards."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from tests.gateway.harness import (
    MODEL_ID,
    Gateway,
    PlayedEngine,
    chat_body,
    ready_gateway,
    tokens_of,
)
from tests.ledgers import NOVEMBER_MS
from tests.prices import MINI, price
from verger.costs.prices import Offer, Snapshot
from verger.errors import BudgetExhausted, DatabaseError, LedgerError, LedgerUnavailable
from verger.gateway.edge import error_response
from verger.gateway.server import run

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]
ANSWER = "<|channel|>analysis<|message|>hmm<|end|><|start|>assistant<|channel|>final<|message|>hi"


@pytest.fixture
async def accounted(tmp_path: Path) -> AsyncIterator[Served]:
    prices = Snapshot((Offer("acme", MODEL_ID, price(1.0, 10.0)),))
    file = tmp_path / "verger.db"
    async with ready_gateway(tmp_path, database_file=file, prices=prices, machine=MINI) as pair:
        yield pair


def read(file: Path) -> list[dict[str, Any]]:
    reading = sqlite3.connect(file)
    reading.row_factory = sqlite3.Row
    found = [dict(row) for row in reading.execute("SELECT * FROM ledger ORDER BY unix_ms")]
    reading.close()
    return found


async def rows(gateway: Gateway) -> list[dict[str, Any]]:
    """All rows, once what was handed over is written."""
    await gateway.service.accounts.ledger.spending(None, "", NOVEMBER_MS)
    file = gateway.service.settings.database_file
    assert file is not None
    return read(file)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answered_request_is_a_row(stream: bool, accounted: Served) -> None:
    gateway, engine = accounted
    asking = asyncio.create_task(gateway.chat(model="gpt-4o", stream=stream))
    submit = await engine.submits.get()
    engine.say(submit, ANSWER + "<|return|>")
    engine.finish(submit, cached_tokens=16)
    response = await asking

    (row,) = await rows(gateway)
    prompt, output = len(submit.prompt), len(tokens_of(ANSWER + "<|return|>"))
    assert row["request_id"] == response.headers["x-request-id"]
    assert (row["model_asked"], row["model"], row["route"]) == ("gpt-4o", MODEL_ID, "local")
    assert (row["finish"], row["reason"]) == ("stop", "unmeasured")
    assert (row["uncached_tokens"], row["cached_tokens"]) == (prompt - 16, 16)
    assert (row["output_tokens"], row["reasoning_tokens"]) == (output, 3)
    assert (row["cost_micro_usd"], row["baseline_micro_usd"]) == (0, prompt + 10 * output)
    assert row["gpu_ms"] == round(1000 * ((prompt - 16) / 1200 + output / 120))
    assert 0 <= row["ttft_ms"] <= row["wall_ms"]
    assert "hi" not in [value for value in row.values() if isinstance(value, str)]


@pytest.mark.slow
async def test_a_client_that_leaves_has_used_what_was_generated(tmp_path: Path) -> None:
    file = tmp_path / "verger.db"
    async with ready_gateway(tmp_path, database_file=file) as (gateway, engine):
        path, body = "/v1/chat/completions", chat_body(stream=True)
        async with gateway.http.stream("POST", path, json=body) as response:
            submit = await engine.submits.get()
            engine.say(submit, ANSWER)
            async for line in response.aiter_lines():
                if '"hi"' in line:
                    break
        assert await engine.cancels.get() == submit.request_id

    (row,) = read(file)
    assert row["finish"] == "client_gone"
    assert row["output_tokens"] == len(tokens_of(ANSWER))


async def test_an_engine_that_dies_avoids_nobodys_price(accounted: Served) -> None:
    gateway, engine = accounted
    asking = asyncio.create_task(gateway.chat())
    await engine.submits.get()
    engine.die()
    assert (await asking).status_code == 503

    (row,) = await rows(gateway)
    assert (row["finish"], row["baseline_micro_usd"]) == ("engine_unavailable", None)


async def test_what_nobody_worked_on_is_no_row(accounted: Served) -> None:
    gateway, _ = accounted
    assert (await gateway.http.get("/v1/models")).status_code == 200
    assert (await gateway.chat(model="unknown")).status_code == 404
    assert (await gateway.chat(messages=[])).status_code == 400
    assert await rows(gateway) == []


@pytest.mark.slow
async def test_what_was_accounted_for_survives_the_server(tmp_path: Path) -> None:
    file = tmp_path / "verger.db"
    for _ in range(2):
        async with ready_gateway(tmp_path, database_file=file) as (gateway, engine):
            asking = asyncio.create_task(gateway.chat())
            await engine.answer(ANSWER + "<|return|>")
            await asking
    assert len(read(file)) == 2


async def test_a_ledger_that_cannot_be_opened_keeps_the_server_from_starting(
    accounted: Served, tmp_path: Path
) -> None:
    settings = accounted[0].service.settings
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database" * 100)
    with pytest.raises((DatabaseError, LedgerError), match="broken.db"):
        run(replace(settings, database_file=broken, port=0))


def test_a_client_is_told_whether_to_try_again() -> None:
    exhausted: Response = error_response(BudgetExhausted("spent"))
    assert (exhausted.status_code, exhausted.headers["x-should-retry"]) == (402, "false")
    assert "retry-after" not in exhausted.headers
    unavailable = error_response(LedgerUnavailable("full disk"))
    assert unavailable.headers["retry-after"] == "2"
    assert "x-should-retry" not in unavailable.headers
