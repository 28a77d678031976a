"""The check of a provider: what it asks, what it says, and what the server makes of it."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.command_line import Verger
from tests.fakes import FakeTime, settle
from tests.fault_provider import FaultProvider, fault_provider
from tests.gateway.clouds import SHORT, played_by
from verger.gateway import cloud as rules
from verger.gateway.backends.cloud import CloudBackend
from verger.gateway.cloud import Cloud
from verger.gateway.provider_check import CHECK_S, TINY_TOKENS, Check, check_provider
from verger.gateway.providers import Provider

pytestmark = pytest.mark.anyio


async def checked(provider: Provider) -> Check:
    backend = CloudBackend(SHORT)
    try:
        return await check_provider(backend, provider, budget_s=2.0)
    finally:
        await backend.close()


def only(server: FaultProvider, folder: Path, play: str, kind: str = "openrouter") -> Provider:
    provider = played_by(server, folder, "p", [], kind)
    return replace(provider, models={"m": play})


async def test_a_good_provider_is_asked_for_a_few_tokens(tmp_path: Path) -> None:
    async with fault_provider() as server:
        check = await checked(only(server, tmp_path, "correct"))
    assert check == Check(provider="p", kind="openrouter", model="correct", is_usable=True)
    (exchange,) = server.exchanges
    assert exchange.body["max_tokens"] == TINY_TOKENS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("play", "problem", "is_final"),
    [
        ("402", "HTTP 402: no; replace the key in", True),
        ("404", "does it have the model 404, and its API at http://127.0.0.1", True),
        ("400", "HTTP 400: unknown field", True),
        ("500", "HTTP 500: no", False),
        ("no-response", "did not answer in time; is http://127.0.0.1", False),
        ("html-in-200", "answered with something that is no event stream", False),
        ("cut-late", "broke the connection off", False),
    ],
)
async def test_what_is_wrong_and_what_to_do(
    play: str, problem: str, is_final: bool, tmp_path: Path
) -> None:
    async with fault_provider() as server:
        check = await checked(only(server, tmp_path, play))
    assert not check.is_usable
    assert check.problem is not None
    assert problem in check.problem
    assert check.is_final is is_final


async def test_a_refused_key_is_found_without_asking_for_an_answer(tmp_path: Path) -> None:
    async with fault_provider() as server:
        check = await checked(replace(only(server, tmp_path, "correct"), key="sk-wrong"))
        assert server.exchanges == []
    assert check.is_final
    assert check.problem is not None
    assert str(tmp_path / "key") in check.problem
    assert "sk-wrong" not in check.problem


async def test_a_model_that_is_not_there_is_named_with_its_nearest(tmp_path: Path) -> None:
    async with fault_provider() as server:
        check = await checked(only(server, tmp_path, "404.corect"))
    assert check.problem is not None
    assert "it has no model 404.corect; its nearest are" in check.problem


async def test_a_provider_with_a_problem_is_not_asked_at_all(tmp_path: Path) -> None:
    async with fault_provider() as server:
        check = await checked(replace(only(server, tmp_path, "correct"), problem="no key"))
        assert server.exchanges == []
    assert (check.problem, check.is_final) == ("no key", True)


async def test_who_cannot_be_reached_is_checked_again_ever_more_rarely(tmp_path: Path) -> None:
    time = FakeTime()
    async with fault_provider() as server:
        provider = only(server, tmp_path, "500")
        cloud = Cloud(
            [provider],
            make_backend=lambda: CloudBackend(SHORT),
            monotonic_s=time.clock,
            sleep=time.sleep,
        )
        cloud.start()
        pauses_s = []
        for _ in range(6):
            pauses_s.append(await time.sleeps_s.get())
            await time.advance(pauses_s[-1])
        await cloud.close()
    assert pauses_s == [60, 120, 240, 480, 600, 600]
    assert pauses_s[0] == rules.FIRST_RECHECK_S
    assert pauses_s[-1] == rules.MAX_RECHECK_S
    assert not cloud.is_available(provider)


async def test_what_needs_a_repair_is_not_checked_again(tmp_path: Path) -> None:
    async with fault_provider() as server:
        provider = only(server, tmp_path, "402")
        cloud = Cloud([provider], make_backend=lambda: CloudBackend(SHORT))
        cloud.start()
        await cloud.wait_checked()
        await cloud.close()
        assert len(server.exchanges) == 1
    assert not cloud.is_available(provider)


async def test_a_server_without_providers_asks_nobody() -> None:
    def refuse() -> CloudBackend:
        pytest.fail("no provider, no connections")

    cloud = Cloud(make_backend=refuse)
    cloud.start()
    await settle()
    await cloud.close()


def config_of(home: Path, url: str, play: str) -> None:
    home.mkdir(exist_ok=True)
    (home / "secrets").mkdir(exist_ok=True)
    key = home / "secrets" / "p"
    key.write_text("sk-of-the-tests", encoding="ascii")
    key.chmod(0o600)
    (home / "config.toml").write_text(
        f'[[providers]]\nname = "p"\nbase_url = "{url}"\nkey_file = "secrets/p"\n'
        f'models = {{ m = "{play}" }}\nprice = {{ input_usd = 1, output_usd = 4 }}\n',
        encoding="utf-8",
    )


@pytest.mark.parametrize(("play", "code"), [("correct", 0), ("402", 3)])
async def test_the_command_says_it_and_exits_accordingly(
    play: str, code: int, verger_home: Path, verger: Verger
) -> None:
    async with fault_provider() as server:
        config_of(verger_home, server.url, play)
        text = await asyncio.to_thread(verger, "providers", "check")
        machine = await asyncio.to_thread(verger, "providers", "check", "--json")
    assert text.status == machine.status == code
    told = json.loads(machine.out)
    assert told["schema_version"] == 1
    assert told["providers"][0]["is_usable"] is (code == 0)
    expected = "p (compatible): answers as correct" if code == 0 else "p (compatible): unusable: "
    assert text.out.startswith(expected)


def test_the_command_without_providers_says_how_to_have_some(verger: Verger) -> None:
    done = verger("providers", "check")
    assert done.status == 0
    assert "add a [[providers]] table" in done.out


def test_a_check_is_bounded() -> None:
    assert CHECK_S <= 30
