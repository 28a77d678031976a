"""What web pages of other origins may do, with and without `cors_origins`."""

from collections.abc import AsyncIterator, Mapping

import httpx
import pytest

from tests.gateway.harness import Gateway, PlayedEngine, chat_body, ready_gateway
from tests.gateway.test_streams import FINAL
from verger.errors import ConfigError
from verger.gateway.cors import origin_list

Served = tuple[Gateway, PlayedEngine]

CHAT = "/v1/chat/completions"
FRIEND = "https://tools.office.example"
STRANGER = "https://evil.example"
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-os",
}


@pytest.fixture(scope="module")
async def open_to_friend(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Served]:
    """A server that `FRIEND`'s pages may use."""
    folder = tmp_path_factory.mktemp("cors")
    async with ready_gateway(folder, cors_origins=(FRIEND,)) as pair:
        yield pair


def cors_headers(response: httpx.Response) -> Mapping[str, str]:
    return {k: v for k, v in response.headers.items() if k.startswith("access-control-")}


@pytest.mark.anyio
async def test_without_configuration_no_page_may_read_or_ask(served: Served) -> None:
    gateway, engine = served
    read = await gateway.http.get("/v1/models", headers={"origin": STRANGER})
    asked = await gateway.http.options(CHAT, headers={"origin": STRANGER, **PREFLIGHT})

    assert read.status_code == 200
    assert asked.status_code == 405
    assert not cors_headers(read)
    assert not cors_headers(asked)
    assert "vary" not in read.headers
    assert engine.submits.empty()


@pytest.mark.anyio
@pytest.mark.parametrize("origin", [STRANGER, "null", "", "https://127.0.0.1.evil.example"])
@pytest.mark.parametrize("kind", ["text/plain", "application/json"])
async def test_a_post_that_a_browser_sends_unasked_is_refused(
    served: Served, origin: str, kind: str
) -> None:
    gateway, engine = served
    headers = {"origin": origin, "content-type": kind}
    response = await gateway.http.post(CHAT, json=chat_body(), headers=headers)

    assert (response.status_code, response.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "cors_origins" in response.json()["error"]["message"]
    assert engine.submits.empty()


@pytest.mark.anyio
async def test_our_own_pages_may_post(served: Served) -> None:
    """Also behind something that does the TLS: the scheme differs, the host does not."""
    gateway, _ = served
    for scheme in ("http", "https"):
        origin = f"{scheme}://127.0.0.1:{gateway.port}"
        response = await gateway.http.post(CHAT, content=b"{", headers={"origin": origin})
        assert response.status_code == 400
    other_port = {"origin": f"http://127.0.0.1:{gateway.port + 1}"}
    refused = await gateway.http.post(CHAT, content=b"{", headers=other_port)
    assert refused.status_code == 403


@pytest.mark.anyio
async def test_a_named_origin_is_told_what_it_may_do(open_to_friend: Served) -> None:
    gateway, engine = open_to_friend
    response = await gateway.http.options(CHAT, headers={"origin": FRIEND, **PREFLIGHT})

    assert (response.status_code, response.content) == (204, b"")
    assert cors_headers(response) == {
        "access-control-allow-origin": FRIEND,
        "access-control-expose-headers": "*",
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": PREFLIGHT["access-control-request-headers"],
        "access-control-max-age": "600",
    }
    assert response.headers["vary"] == "Origin"
    assert engine.submits.empty()


@pytest.mark.anyio
async def test_a_named_origin_reads_answers_streams_and_errors(open_to_friend: Served) -> None:
    gateway, engine = open_to_friend
    body = chat_body(stream=True)
    async with gateway.http.stream("POST", CHAT, json=body, headers={"origin": FRIEND}) as streamed:
        await engine.answer(FINAL + "hi<|return|>")
        await streamed.aread()
    refused = await gateway.http.post(CHAT, content=b"{", headers={"origin": FRIEND})
    missing = await gateway.http.get("/nothing", headers={"origin": FRIEND})

    assert (refused.status_code, missing.status_code) == (400, 404)
    for response in (streamed, refused, missing):
        assert response.headers["access-control-allow-origin"] == FRIEND
        assert response.headers["access-control-expose-headers"] == "*"
        assert "access-control-allow-credentials" not in response.headers


@pytest.mark.anyio
async def test_naming_one_origin_opens_to_no_other(open_to_friend: Served) -> None:
    gateway, engine = open_to_friend
    for origin in (STRANGER, "null", f"{FRIEND}:8443", FRIEND.replace("https", "http"), "*"):
        asked = await gateway.http.options(CHAT, headers={"origin": origin, **PREFLIGHT})
        posted = await gateway.http.post(CHAT, json=chat_body(), headers={"origin": origin})
        assert (asked.status_code, posted.status_code) == (405, 403)
        assert not cors_headers(asked)
        assert not cors_headers(posted)
        assert asked.headers["vary"] == "Origin"
    assert engine.submits.empty()


@pytest.mark.anyio
async def test_a_preflight_that_asks_for_odd_headers_gets_none(open_to_friend: Served) -> None:
    gateway, _ = open_to_friend
    odd = {"origin": FRIEND, **PREFLIGHT, "access-control-request-headers": "a;\xff"}
    headers = [(key.encode(), value.encode("latin-1")) for key, value in odd.items()]
    response = await gateway.http.options(CHAT, headers=headers)

    assert response.status_code == 204
    assert response.headers["access-control-allow-headers"] == ""


@pytest.mark.anyio
async def test_options_without_a_preflights_header_is_an_ordinary_request(
    open_to_friend: Served,
) -> None:
    gateway, _ = open_to_friend
    response = await gateway.http.options(CHAT, headers={"origin": FRIEND})
    assert response.status_code == 405


def test_origins_are_read_as_browsers_write_them() -> None:
    assert origin_list("") == ()
    assert origin_list(
        "HTTPS://Tools.Office.example:443, http://10.0.0.1:3000,http://[::1]:80"
    ) == (
        "https://tools.office.example",
        "http://10.0.0.1:3000",
        "http://[::1]",
    )


@pytest.mark.parametrize(
    "text", ["*", "null", "tools.office.example", "https://*.example", "https://x/", "ftp://x"]
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.cors_origins: .* is not an origin"):
        origin_list(text)
