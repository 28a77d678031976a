"""GET /connect through a real socket."""

import pytest

from tests.gateway.harness import MODEL_ID, Gateway, PlayedEngine

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]


async def test_the_page_names_the_address_under_which_it_was_reached(served: Served) -> None:
    gateway, _ = served
    page = await gateway.http.get("/connect")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert page.headers["cache-control"] == "no-store"
    assert f"{gateway.url}/v1" in page.text
    assert MODEL_ID in page.text
    assert "4,096 tokens" in page.text


async def test_another_host_header_is_another_address(served: Served) -> None:
    gateway, _ = served
    page = await gateway.http.get("/connect", headers={"host": "verger.local"})
    assert "http://verger.local/v1" in page.text
    assert gateway.url not in page.text


@pytest.mark.parametrize("host", ["a'b", "<script>", "a b", "a:99999", "user@a", "a/b"])
async def test_a_host_header_that_names_no_host_is_refused(served: Served, host: str) -> None:
    gateway, _ = served
    refused = await gateway.http.get("/connect", headers={"host": host})
    assert refused.status_code == 403
    assert refused.headers["content-type"] == "application/json"
