"""Who is let in, as whom, how often, and what the others are told."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.gateway.harness import Gateway, PlayedEngine, chat_body, ready_gateway
from tests.gateway.test_routes import error_of
from tests.gateway.test_streams import FINAL, Events
from tests.keys import bearer, make_key, revoke
from verger.errors import RateLimited
from verger.gateway.authentication import MAX_ADDRESSES, MAX_WRONG_KEYS, WrongKeys
from verger.gateway.principal import Priority
from verger.messages import BACKGROUND, BATCH, INTERACTIVE, Submit

pytestmark = pytest.mark.anyio

BASIC = 'Basic realm="Verger", charset="UTF-8"'
BEARER = 'Bearer realm="Verger"'
LONG = "The orchard is open until the evening."
ANSWER = (
    f"<|channel|>analysis<|message|>hmm<|end|><|start|>assistant"
    f"<|channel|>final<|message|>{LONG}<|return|>"
)


@asynccontextmanager
async def keyed_gateway(
    folder: Path, **fields: Any
) -> AsyncIterator[tuple[Gateway, PlayedEngine, str]]:
    """A ready gateway with one key, ada's, and that key."""
    secret = make_key(folder / "verger.db", "ada", **fields)
    async with ready_gateway(folder, database_file=folder / "verger.db") as (gateway, engine):
        yield gateway, engine, secret


async def models(gateway: Gateway, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gateway.http.get("/v1/models", headers=named)


async def ask(
    gateway: Gateway, engine: PlayedEngine, headers: dict[str, str], text: str = ANSWER
) -> Submit:
    """What was submitted for a request that is answered."""
    asking = asyncio.create_task(
        gateway.http.post("/v1/chat/completions", json=chat_body(), headers=headers)
    )
    submit = await engine.answer(text)
    assert (await asking).status_code == 200
    return submit


def basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'anybody:{password}'.encode()).decode()}"


async def test_a_key_is_taken_from_each_of_its_headers(tmp_path: Path) -> None:
    async with keyed_gateway(tmp_path) as (gateway, _, secret):
        for headers in (
            {"authorization": f"Bearer {secret}"},
            {"authorization": f"bearer  {secret}"},
            {"authorization": basic(secret)},
            {"x_api_key": secret},
        ):
            assert (await models(gateway, **headers)).status_code == 200
        assert (await gateway.http.get(f"/v1/models?key={secret}")).status_code == 401


async def test_basic_is_good_for_get_only(tmp_path: Path) -> None:
    async with keyed_gateway(tmp_path) as (gateway, engine, secret):
        headers = {"authorization": basic(secret)}
        for method in ("POST", "HEAD", "DELETE"):
            response = await gateway.http.request(method, "/v1/models", headers=headers)
            assert response.status_code == 401
        assert engine.submits.empty()


@pytest.mark.slow
@pytest.mark.parametrize(
    "authorization",
    ["Basic", "Basic !", "Basic /w==", "Basic YQ==", "Bearer", "vg-x", "Digest a=b"],
)
async def test_what_is_malformed_is_no_key(tmp_path: Path, authorization: str) -> None:
    async with keyed_gateway(tmp_path) as (gateway, _, _secret):
        refused = await models(gateway, authorization=authorization)
        assert (refused.status_code, error_of(refused)["code"]) == (401, "invalid_api_key")


async def test_a_refusal_says_what_to_do(tmp_path: Path) -> None:
    async with keyed_gateway(tmp_path, expires_unix_s=int(time.time())) as (gateway, _, secret):
        missing = await models(gateway)
        wrong = await models(gateway, x_api_key="sk-foreign")
        expired = await models(gateway, x_api_key=secret)

    for refused, message in (
        (missing, "An API key is needed here: send it as `Authorization: Bearer vg-...`"),
        (wrong, "not known here, or it was revoked"),
        (expired, "The key ada has expired."),
    ):
        error = error_of(refused)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == BEARER
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert message in error["message"]
        assert error["message"].endswith("makes one with: verger keys add NAME")


async def test_only_a_browser_is_told_to_ask_its_user(tmp_path: Path) -> None:
    html = {"accept": "text/html,*/*;q=0.8"}
    async with keyed_gateway(tmp_path) as (gateway, _, _secret):
        for method, headers, challenge in (
            ("GET", html, BASIC),
            ("POST", html, BEARER),
            ("GET", {"accept": "*/*"}, BEARER),
        ):
            refused = await gateway.http.request(method, "/connect", headers=headers)
            assert refused.headers["www-authenticate"] == challenge


async def test_without_any_key_the_machine_itself_is_let_in(tmp_path: Path) -> None:
    """Until the first is made, while it runs; then nobody is let in without one, for good."""
    file = tmp_path / "verger.db"
    async with ready_gateway(tmp_path, database_file=file) as (gateway, engine):
        assert (await models(gateway, authorization="Bearer unused")).status_code == 200
        submit = await ask(gateway, engine, {})
        assert (submit.cache_salt, submit.priority) == ("office", INTERACTIVE)
        assert (await gateway.http.get("/v1/status")).json()["needs_key"] is False

        secret = make_key(file, "ada")
        assert (await models(gateway)).status_code == 401
        assert (await models(gateway, x_api_key=secret)).status_code == 200
        revoke(file, "ada")
        for headers in ({}, {"x_api_key": secret}):
            assert (await models(gateway, **headers)).status_code == 401
        assert (await gateway.http.get("/livez")).status_code == 200


async def test_beyond_this_machine_nobody_is_let_in_without_a_key(tmp_path: Path) -> None:
    async with ready_gateway(tmp_path, host="0.0.0.0") as (gateway, _):
        assert (await models(gateway)).status_code == 401
    async with ready_gateway(tmp_path, host="0.0.0.0", is_insecure=True) as (gateway, _):
        assert (await models(gateway)).status_code == 200


async def test_told_to_be_insecure_it_looks_at_no_key(tmp_path: Path) -> None:
    make_key(tmp_path / "verger.db", "ada", tenant="lab", rpm=1)
    file = tmp_path / "verger.db"
    async with ready_gateway(tmp_path, database_file=file, is_insecure=True) as (gateway, _):
        for _ in range(2):
            assert (await models(gateway, authorization="Bearer unused")).status_code == 200


async def test_a_key_that_cannot_be_checked_is_not_let_in(tmp_path: Path) -> None:
    async with keyed_gateway(tmp_path) as (gateway, _, secret):
        (tmp_path / "verger.db").unlink()
        (tmp_path / "verger.db").mkdir()
        refused = await models(gateway, x_api_key=secret)
        assert (refused.status_code, error_of(refused)["code"]) == (503, "keys_unavailable")
        assert (await gateway.http.get("/readyz")).status_code == 200


async def test_wrong_keys_are_counted_and_the_right_one_is_let_in_all_the_same(
    tmp_path: Path,
) -> None:
    async with keyed_gateway(tmp_path) as (gateway, _, secret):
        for _ in range(MAX_WRONG_KEYS):
            assert (await models(gateway, x_api_key="sk-foreign")).status_code == 401
        limited = await models(gateway, x_api_key="sk-foreign")
        assert (limited.status_code, error_of(limited)["code"]) == (429, "rate_limited")
        assert 0 < int(limited.headers["retry-after"]) <= 60
        assert (await models(gateway)).status_code == 401
        assert (await models(gateway, x_api_key=secret)).status_code == 200


def test_wrong_keys_are_counted_per_address_and_minute() -> None:
    wrong = WrongKeys()
    for _ in range(MAX_WRONG_KEYS):
        wrong.note("a", 0.0)
    wrong.note("b", 0.0)
    for now_s, retry_after_s in ((0.0, 60), (59.5, 1)):
        with pytest.raises(RateLimited) as refused:
            wrong.note("a", now_s)
        assert refused.value.retry_after_s == retry_after_s
    wrong.note("a", 60.0)


@pytest.mark.parametrize(("beyond", "is_known"), [(-1, True), (0, False)])
def test_so_many_addresses_are_known_and_no_more(beyond: int, is_known: bool) -> None:
    wrong = WrongKeys()
    for _ in range(MAX_WRONG_KEYS):
        wrong.note("a", 0.0)
    for number in range(MAX_ADDRESSES + beyond):
        wrong.note(f"b{number}", 0.0)
    if is_known:
        with pytest.raises(RateLimited):
            wrong.note("a", 0.0)
    else:
        wrong.note("a", 0.0)


async def test_rpm_is_the_keys_own(tmp_path: Path) -> None:
    async with keyed_gateway(tmp_path, rpm=2) as (gateway, _, secret):
        bob = make_key(tmp_path / "verger.db", "bob", rpm=1)
        for _ in range(2):
            assert (await models(gateway, x_api_key=secret)).status_code == 200
        limited = await models(gateway, x_api_key=secret)
        error = error_of(limited)
        assert (limited.status_code, error["type"]) == (429, "rate_limit_error")
        assert "The key ada may make 2 requests a minute" in error["message"]
        assert 0 < int(limited.headers["retry-after"]) <= 60
        assert (await models(gateway, x_api_key=bob)).status_code == 200


async def test_max_parallel_counts_streams_until_their_end(tmp_path: Path) -> None:
    async with keyed_gateway(tmp_path, max_parallel=1) as (gateway, engine, secret):
        body = chat_body(stream=True)
        async with gateway.http.stream(
            "POST", "/v1/chat/completions", json=body, headers=bearer(secret)
        ) as response:
            submit = await engine.submits.get()
            limited = await models(gateway, x_api_key=secret)
            assert (limited.status_code, error_of(limited)["code"]) == (429, "rate_limited")
            assert int(limited.headers["retry-after"]) > 0
            engine.say(submit, FINAL + "hello<|return|>")
            engine.finish(submit)
            await Events(response).rest()
        assert (await models(gateway, x_api_key=secret)).status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "asked", "expected"),
    [
        (Priority.INTERACTIVE, None, INTERACTIVE),
        (Priority.INTERACTIVE, "interactive", INTERACTIVE),
        (Priority.INTERACTIVE, "batch", BATCH),
        (Priority.BATCH, None, BATCH),
        (Priority.BATCH, "interactive", BATCH),
    ],
)
async def test_a_request_may_lower_its_priority_and_never_raise_it(
    tmp_path: Path, key: Priority, asked: str | None, expected: int
) -> None:
    async with keyed_gateway(tmp_path, priority=key) as (gateway, engine, secret):
        wish = {"x-verger-priority": asked} if asked else {}
        assert (await ask(gateway, engine, bearer(secret) | wish)).priority == expected


async def test_an_unknown_priority_is_refused_by_name(tmp_path: Path) -> None:
    async with ready_gateway(tmp_path) as (gateway, _):
        refused = await models(gateway, x_verger_priority="urgent")
        assert refused.status_code == 400
        assert "x-verger-priority must be one of interactive, batch" in error_of(refused)["message"]


async def test_an_unknown_route_is_refused_by_name(tmp_path: Path) -> None:
    async with ready_gateway(tmp_path) as (gateway, _):
        refused = await models(gateway, x_verger_route="cloud")
        assert refused.status_code == 400
        known = "any, prefer-local, local-only"
        assert f"x-verger-route must be one of {known}" in error_of(refused)["message"]


async def test_a_tenant_is_the_salt_of_all_that_is_computed_for_it(tmp_path: Path) -> None:
    async with keyed_gateway(tmp_path, tenant="lab") as (gateway, engine, secret):
        colleague = make_key(tmp_path / "verger.db", "bob", tenant="lab")
        stranger = make_key(tmp_path / "verger.db", "eve")
        for key, tenant in ((secret, "lab"), (colleague, "lab"), (stranger, "office")):
            submit = await ask(gateway, engine, bearer(key))
            refill = await engine.refills.get()
            assert (submit.cache_salt, refill.cache_salt) == (tenant, tenant)
            assert refill.priority == BACKGROUND


@pytest.mark.slow
async def test_the_date_of_a_conversation_is_pinned_per_tenant(tmp_path: Path) -> None:
    """One tenant cannot find out on which day another began the same conversation."""
    async with keyed_gateway(tmp_path, tenant="lab") as (gateway, engine, secret):
        eve = make_key(tmp_path / "verger.db", "eve")
        gateway.service.unix_s = lambda: 1_000_000_000.0
        first = await ask(gateway, engine, bearer(secret))
        gateway.service.unix_s = lambda: 1_100_000_000.0
        assert (await ask(gateway, engine, bearer(secret))).prompt == first.prompt
        assert (await ask(gateway, engine, bearer(eve))).prompt != first.prompt


async def test_the_log_line_names_the_key_and_never_shows_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with keyed_gateway(tmp_path, rpm=1) as (gateway, _, secret):
        for key in (secret, secret, "sk-foreign", secret[:-1]):
            await models(gateway, x_api_key=key)
    lines = [line for line in caplog.messages if "event=request" in line]

    assert "status=200 key=ada client=127.0.0.1" in lines[0]
    assert "status=429 error=rate_limited key=ada client=127.0.0.1" in lines[1]
    for line in lines[2:]:
        assert "status=401 error=invalid_api_key client=127.0.0.1 elapsed_ms" in line
    assert secret[12:-1] not in caplog.text
    assert "sk-foreign" not in caplog.text


async def test_only_an_admin_sees_what_others_do(tmp_path: Path) -> None:
    async with keyed_gateway(tmp_path) as (gateway, engine, secret):
        boss = make_key(tmp_path / "verger.db", "boss", is_admin=True, tenant="lab")
        await ask(gateway, engine, bearer(secret))
        own = (await gateway.http.get("/v1/status", headers=bearer(secret))).json()
        all_of_them = (await gateway.http.get("/v1/status", headers=bearer(boss))).json()

    ada = {"name": "ada", "tenant": "office", "running": 0, "requests": 2}
    assert own["needs_key"] is True
    assert own["keys"] == [ada | {"running": 1}]
    assert sorted(all_of_them["keys"], key=lambda key: str(key["name"])) == [
        ada,
        {"name": "boss", "tenant": "lab", "running": 1, "requests": 1},
    ]
