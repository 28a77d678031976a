"""SIGHUP and the providers: others from now on, and whoever was refused gets another chance."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fault_provider import fault_provider
from tests.gateway.clouds import cloud_gateway, played_by
from tests.gateway.harness import Gateway
from tests.gateway.offices import ask, busy_office
from verger.config import load_config, reloaded
from verger.gateway.fresh_settings import FreshSettings, settings_part
from verger.gateway.principal import RoutePolicy
from verger.gateway.routing import Limits

pytestmark = pytest.mark.anyio

PLAYS = ["correct", "stall-late", "401"]


def reload(gateway: Gateway, *providers: Any) -> None:
    """As the signal does."""
    settings = replace(gateway.service.settings, providers=providers)
    settings_part(gateway.service, lambda: FreshSettings(settings))()()


async def test_providers_come_and_go_without_a_restart(tmp_path: Path) -> None:
    async with fault_provider() as server:
        old = played_by(server, tmp_path, "old", PLAYS)
        new = played_by(server, tmp_path, "new", PLAYS)
        async with cloud_gateway(tmp_path, [old]) as gateway:
            assert (await gateway.chat(model="new/correct")).status_code == 404
            reload(gateway, new)
            await gateway.service.cloud.wait_checked()
            assert (await gateway.chat(model="new/correct")).status_code == 200
            assert (await gateway.chat(model="old/correct")).status_code == 404


async def test_a_server_without_providers_can_get_one(tmp_path: Path) -> None:
    async with fault_provider() as server:
        async with cloud_gateway(tmp_path, []) as gateway:
            reload(gateway, played_by(server, tmp_path, "first", PLAYS))
            await gateway.service.cloud.wait_checked()
            assert (await gateway.chat(model="first/correct")).status_code == 200


async def test_who_was_refused_is_asked_again_and_who_is_proven_is_used_meanwhile(
    tmp_path: Path,
) -> None:
    async with fault_provider() as server:
        good = played_by(server, tmp_path, "good", PLAYS)
        bad = replace(good, name="bad", key="sk-wrong")
        async with cloud_gateway(tmp_path, [bad, good]) as gateway:
            cloud = gateway.service.cloud
            assert "replace the key" in cloud.problem_of(bad)
            mended = replace(good, name="bad")
            reload(gateway, mended, good)
            assert cloud.is_available(good)
            assert cloud.problem_of(mended) == "it has not been checked yet"
            await cloud.wait_checked()
            assert cloud.is_available(mended)


async def test_a_model_whose_key_was_refused_is_tried_again(tmp_path: Path) -> None:
    async with fault_provider() as server:
        provider = played_by(server, tmp_path, "first", PLAYS)
        async with cloud_gateway(tmp_path, [provider]) as gateway:
            for asked in (1, 1):
                assert (await gateway.chat(model="first/401")).status_code == 503
                assert len(server.of("401")) == asked
            reload(gateway, provider)
            await gateway.chat(model="first/401")
            assert len(server.of("401")) == 2


@pytest.mark.slow
async def test_an_answer_that_has_begun_goes_on(tmp_path: Path) -> None:
    async with fault_provider() as server:
        provider = played_by(server, tmp_path, "first", PLAYS)
        async with cloud_gateway(tmp_path, [provider]) as gateway:
            asking = asyncio.create_task(gateway.chat(model="first/stall-late"))
            while not server.of("stall-late"):
                await asyncio.wait({asking}, timeout=0.01)
            reload(gateway)
            # It stalls in the middle, which its own deadline ends: nobody else has.
            assert (await asking).json()["error"]["code"] == "upstream_interrupted"


async def test_the_objective_and_the_longest_wait_are_taken_over(tmp_path: Path) -> None:
    async with busy_office(tmp_path, route=RoutePolicy.ANY, limits=Limits(900, 900)) as office:
        service = office.gateway.service
        providers = service.cloud.providers
        settings = replace(service.settings, limits=Limits(1, 900), providers=providers)
        settings_part(service, lambda: FreshSettings(settings))()()
        await service.cloud.wait_checked()
        reply = await ask(office.gateway, stream=False)
        status = (await office.gateway.http.get("/v1/status")).json()
    reply.assert_served("cloud:first", "saturated")
    assert status["admission"]["ttft_objective_s"] == 1


def test_providers_and_budgets_need_no_restart(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("", encoding="utf-8")
    running = load_config(environ={}, file=file)
    table = "[[providers]]\nname = 'x'\nmodels = {a = 'b'}\n"
    file.write_text(f"{table}[spill]\nmonthly_budget_usd = 5", encoding="utf-8")
    taken, needs_restart = reloaded(running, load_config(environ={}, file=file))
    assert ([one.name for one in taken.providers], needs_restart) == (["x"], ())
    assert taken.spill.monthly_budget_usd == 5
    removed, needs_restart = reloaded(taken, running)
    assert (removed.providers, needs_restart) == ((), ())
