"""Odd bytes on a socket never cost more than their own request: no 5xx, no traceback, no hang."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gateway.harness import Gateway, PlayedEngine
from tests.gateway.test_connection import all_of, connected

pytestmark = pytest.mark.anyio

Served = tuple[Gateway, PlayedEngine]

bounded = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"QUERY"]
PATHS = [
    b"/livez",
    b"/readyz",
    b"/v1/models",
    b"/v1/models/",
    b"/v1/chat/completions",
    b"/v1/status",
]
visible = st.binary(max_size=30)
a_path = st.one_of(
    st.sampled_from(PATHS),
    st.tuples(st.sampled_from([b"/", b"/v1/models/", b"http://x/", b"//", b"*"]), visible).map(
        b"".join
    ),
    st.text(max_size=12)
    .map(lambda text: "".join(f"%{b:02x}" for b in text.encode("utf-16")).encode())
    .map(lambda escaped: b"/v1/models/" + escaped),
)
a_name = st.one_of(
    st.sampled_from(
        [b"host", b"origin", b"accept", b"cookie", b"expect", b"connection", b"transfer-encoding"]
        + [b"access-control-request-method", b"access-control-request-headers", b"content-length"]
        + [b"authorization", b"x-api-key", b"content-type", b"upgrade", b"x-forwarded-for"]
    ),
    visible,
)
headers = st.lists(
    st.tuples(a_name, st.one_of(visible, st.sampled_from([b"upgrade", b"chunked", b"0", b"2"]))),
    max_size=6,
)
some_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture
async def impatient(served: Served) -> AsyncIterator[Gateway]:
    """Soon cuts off who has not said all; afterwards it must be as it was before."""
    gateway, _ = served
    with pytest.MonkeyPatch.context() as patches:
        for name in ("HEAD_TIMEOUT_S", "MESSAGE_TIMEOUT_S", "KEEP_ALIVE_S", "CLOSE_S"):
            patches.setattr(f"verger.gateway.connection.{name}", 0.02)
        patches.setattr(gateway.server.config, "timeout_keep_alive", 0.02)
        yield gateway
    assert (await gateway.http.get("/livez")).status_code == 200


async def assert_harmless(gateway: Gateway, sent: bytes) -> None:
    """Whatever comes back, if anything, is a refusal or an answer, and the connection ends."""
    async with connected(gateway) as (reader, writer):
        writer.write(sent)
        reply = await asyncio.wait_for(all_of(reader), 20)
    if reply:
        assert int(reply.split(b" ", 2)[1]) < 500, reply


@pytest.mark.slow
@bounded
@given(sent=st.binary(max_size=400))
async def test_bytes_that_are_no_request(impatient: Gateway, sent: bytes) -> None:
    await assert_harmless(impatient, sent)


@pytest.mark.slow
@bounded
@given(method=st.sampled_from(METHODS), path=a_path, headers=headers, body=visible)
async def test_requests_with_odd_paths_and_headers(
    impatient: Gateway, method: bytes, path: bytes, headers: list[tuple[bytes, bytes]], body: bytes
) -> None:
    lines = [b"%s: %s\r\n" % header for header in [(b"host", b"localhost"), *headers]]
    await assert_harmless(
        impatient, method + b" " + path + b" HTTP/1.1\r\n" + b"".join(lines) + b"\r\n" + body
    )


@pytest.mark.slow
@bounded
@given(content=st.one_of(visible, some_json.map(lambda value: json.dumps(value).encode())))
async def test_odd_bodies(impatient: Gateway, content: bytes) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
    await assert_harmless(impatient, head % len(content) + content)
