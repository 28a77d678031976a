"""What answers from cloud providers cost: rows of the ledger, budgets, and what is never asked."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fault_plays import ANSWER, PROMPT_TOKENS
from tests.fault_provider import FaultProvider, fault_provider
from tests.gateway.clouds import ALLOWED, PRICE, SHORT, cloud_gateway, played_by
from tests.gateway.harness import Gateway, chat_body, running_gateway
from tests.gateway.test_accounts import read, rows
from verger.gateway.backends.cloud import CloudBackend
from verger.gateway.backends.upstream_body import MAX_ANSWER_TOKENS
from verger.gateway.cloud import Cloud
from verger.gateway.principal import Principal

pytestmark = pytest.mark.anyio

PLAYS = ["correct", "no-usage", "endless", "no-response", "cut", "cut-late", "500", "400"]


@asynccontextmanager
async def served(
    folder: Path,
    principal: Principal = ALLOWED,
    names: tuple[str, ...] = ("first", "second"),
    **settings: Any,
) -> AsyncIterator[tuple[Gateway, FaultProvider]]:
    async with fault_provider() as server:
        providers = [played_by(server, folder, name, PLAYS, kind="deepinfra") for name in names]
        file = {"database_file": folder / "verger.db"}
        async with cloud_gateway(folder, providers, principal, **file, **settings) as gateway:
            yield gateway, server


async def answers(gateway: Gateway) -> list[dict[str, Any]]:
    """The rows, but for those of the checks at the start."""
    return [row for row in await rows(gateway) if row["reason"] != "provider-check"]


def budget(gateway: Gateway, micro_usd: int) -> None:
    """Of whoever asks."""
    gateway.service.keys.anonymous = replace(ALLOWED, budget_usd=micro_usd / 1e6)


def cost(prompt_tokens: int, output_tokens: int) -> int:
    return round(prompt_tokens * PRICE.input_usd + output_tokens * PRICE.output_usd)


async def test_an_answer_is_a_row_with_its_provider_and_its_cost(tmp_path: Path) -> None:
    async with served(tmp_path) as (gateway, _):
        response = await gateway.chat(model="second/correct")
        (row,) = await answers(gateway)
    assert row["request_id"] == response.headers["x-request-id"]
    assert (row["route"], row["provider"], row["reason"]) == ("cloud", "second", "named-model")
    assert (row["model_asked"], row["model"]) == ("second/correct", "correct")
    assert (row["uncached_tokens"], row["output_tokens"]) == (PROMPT_TOKENS, len(ANSWER))
    assert row["cost_micro_usd"] == cost(PROMPT_TOKENS, len(ANSWER))
    assert row["cost_micro_usd"] == round(response.json()["usage"]["cost_usd"] * 1e6)
    assert (row["price_id"], row["finish"]) == ("configured", "stop")


async def test_the_check_at_the_start_is_a_row_too(tmp_path: Path) -> None:
    async with served(tmp_path, names=("first",)) as (gateway, _):
        (row,) = await rows(gateway)
    assert (row["provider"], row["reason"]) == ("first", "provider-check")
    assert row["cost_micro_usd"] > 0


async def test_only_the_attempt_that_answered_costs_something(tmp_path: Path) -> None:
    """The first provider fails twice, and is never heard of again."""
    async with fault_provider() as server:
        bad = played_by(server, tmp_path, "bad", {"m": "500"}, kind="compatible")
        good = played_by(server, tmp_path, "good", {"m": "correct"}, kind="compatible")
        file = tmp_path / "verger.db"
        async with cloud_gateway(tmp_path, [bad, good], database_file=file) as gateway:
            assert (await gateway.chat(model="cloud/m")).status_code == 200
            (row,) = await answers(gateway)
    assert len(server.of("500")) == 2
    assert (row["provider"], row["model"], row["attempt"]) == ("good", "m", 3)


@pytest.mark.slow
@pytest.mark.parametrize("play", ["cut", "500", "400"])
async def test_what_failed_before_anything_came_is_given_back(play: str, tmp_path: Path) -> None:
    async with served(tmp_path, names=("first",)) as (gateway, _):
        before = await gateway.service.accounts.ledger.spending(None, "first", _now_ms(gateway))
        assert (await gateway.chat(model=f"first/{play}")).status_code in (400, 503)
        after = await gateway.service.accounts.ledger.spending(None, "first", _now_ms(gateway))
    assert before == after


async def test_what_broke_off_costs_what_came_of_it(tmp_path: Path) -> None:
    async with served(tmp_path) as (gateway, _):
        assert (await gateway.chat(model="first/cut-late")).status_code == 502
        (row,) = await answers(gateway)
    assert row["finish"] == "upstream_interrupted"
    assert row["output_tokens"] > 0
    assert row["cost_micro_usd"] == cost(row["uncached_tokens"], row["output_tokens"])


async def test_a_client_that_leaves_pays_for_what_came(tmp_path: Path) -> None:
    async with served(tmp_path) as (gateway, server):
        path, body = "/v1/chat/completions", chat_body(model="first/endless", stream=True)
        async with gateway.http.stream("POST", path, json=body) as response:
            async for line in response.aiter_lines():
                if '"content"' in line:
                    break
        await asyncio.wait_for(server.left.get(), 10)
    (row,) = [row for row in read(tmp_path / "verger.db") if row["reason"] == "named-model"]
    assert row["finish"] == "client_gone"
    assert row["output_tokens"] > 0
    assert row["cost_micro_usd"] == cost(row["uncached_tokens"], row["output_tokens"])


@pytest.mark.slow
async def test_a_client_that_leaves_early_pays_for_its_prompt(tmp_path: Path) -> None:
    async with served(tmp_path) as (gateway, server):
        body = chat_body(model="first/no-response")
        with pytest.raises(httpx.ReadTimeout):
            await gateway.http.post("/v1/chat/completions", json=body, timeout=0.3)
        await asyncio.wait_for(server.left.get(), 10)
    (row,) = [row for row in read(tmp_path / "verger.db") if row["reason"] == "named-model"]
    assert row["cost_micro_usd"] == cost(row["uncached_tokens"], 0) > 0


async def test_a_budget_covers_the_worst_case_or_nothing_is_asked(tmp_path: Path) -> None:
    """At the bound, and one millionth of a dollar below it."""
    async with served(tmp_path, names=("first",)) as (gateway, server):
        usage = (await gateway.chat(model="first/no-usage")).json()["usage"]
        spent = cost(usage["prompt_tokens"], usage["completion_tokens"])
        # What the check has cost is booked for nobody, as is what nobody's key asks.
        checked = sum(row["cost_micro_usd"] for row in await rows(gateway)) - spent
        worst = cost(usage["prompt_tokens"], 100)
        asked = len(server.exchanges)

        budget(gateway, checked + spent + worst - 1)
        refused = await gateway.chat(model="first/no-usage", max_tokens=50, n=2)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (402, "false")
        assert refused.json()["error"]["code"] == "budget_exhausted"
        assert len(server.exchanges) == asked
        assert refused.json()["error"]["type"] == "insufficient_quota"

        budget(gateway, checked + spent + worst)
        assert (await gateway.chat(model="first/500", max_tokens=100)).status_code == 503
        assert len(server.exchanges) > asked


async def test_many_at_once_spend_no_more_than_the_budget_and_what_the_provider_counts(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, names=("first",)) as (gateway, server):
        probe = (await gateway.chat(model="first/no-usage")).json()["usage"]
        spent = sum(row["cost_micro_usd"] for row in await rows(gateway))
        limit = spent + 2 * cost(probe["prompt_tokens"], 10)
        budget(gateway, limit)
        before = {row["request_id"] for row in await rows(gateway)}
        server.exchanges.clear()

        asking = [gateway.chat(model="first/correct", max_tokens=10) for _ in range(40)]
        statuses = [response.status_code for response in await asyncio.gather(*asking)]
        answered = [row for row in await rows(gateway) if row["request_id"] not in before]
        total = spent + sum(row["cost_micro_usd"] for row in answered)

    assert set(statuses) == {200, 402}
    assert statuses.count(200) == len(answered) == len(server.exchanges) >= 2
    assert sum(row["output_tokens"] for row in answered) == sum(
        exchange.tokens for exchange in server.exchanges
    )
    assert total <= limit


async def test_a_missing_limit_is_set_before_it_is_reserved(tmp_path: Path) -> None:
    async with served(tmp_path, names=("first",)) as (gateway, server):
        await gateway.chat(model="first/correct")
        assert server.exchanges[-1].body["max_tokens"] == MAX_ANSWER_TOKENS
        budget(gateway, cost(0, MAX_ANSWER_TOKENS))
        assert (await gateway.chat(model="first/correct")).status_code == 402


async def test_a_stream_that_cannot_be_paid_has_its_true_status(tmp_path: Path) -> None:
    async with served(tmp_path) as (gateway, _):
        budget(gateway, 0)
        assert (await gateway.chat(model="first/correct", stream=True)).status_code == 402


async def test_without_a_budget_of_all_nobody_is_asked_for_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That is the default; not even the check is made, and the log says what is missing."""
    async with fault_provider() as server:
        provider = played_by(server, tmp_path, "first", PLAYS)
        unpaid = asyncio.Event()

        async def until_the_next_check(seconds: float) -> None:
            unpaid.set()
            await asyncio.Event().wait()

        cloud = Cloud(
            [provider], make_backend=lambda: CloudBackend(SHORT), sleep=until_the_next_check
        )
        async with running_gateway(tmp_path, None, cloud, ALLOWED) as gateway:
            await gateway.http.get("/livez")
            await asyncio.wait_for(unpaid.wait(), 10)
            response = await gateway.chat(model="first/correct")
        assert response.status_code == 503
        assert "the whole server" in response.json()["error"]["message"]
        assert "see [spill] monthly_budget_usd in config.toml" in caplog.text
        assert server.exchanges == []


async def test_a_provider_beyond_its_own_budget_is_left_for_the_next(tmp_path: Path) -> None:
    async with fault_provider() as server:
        small = played_by(server, tmp_path, "small", PLAYS, monthly_budget_usd=0.001)
        other = played_by(server, tmp_path, "other", PLAYS)
        async with cloud_gateway(tmp_path, [small, other]) as gateway:
            response = await gateway.chat(model="cloud/correct")
            assert response.headers["x-verger-served-by"] == "cloud:other"
            refused = await gateway.chat(model="small/correct")
    assert refused.status_code == 402
    assert "the provider small" in refused.json()["error"]["message"]


def _now_ms(gateway: Gateway) -> int:
    return round(gateway.service.unix_s() * 1000)
