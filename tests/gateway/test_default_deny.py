"""Without a right key every route and method is a 401, the health routes apart: those that there
are, those that will be, and those that there are not."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Message, Scope

from tests.fakes import byte_tokenizer
from tests.keys import make_key, revoke
from verger.formats.dates import PinnedDates
from verger.formats.vocabulary import Vocabulary
from verger.gateway.app import create_app
from verger.gateway.engine_client import EngineClient
from verger.gateway.service import Service
from verger.gateway.settings import ServerSettings
from verger.messages import PROTOCOL_VERSION, Hello

pytestmark = pytest.mark.anyio

OPEN = {"/livez", "/readyz", "/v1/health"}
METHODS = "GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT VERGER get".split()
UNKNOWN = (
    "",
    "*",
    "/",
    "//livez",
    "/livez/",
    "/LIVEZ",
    "/livez/../v1/status",
    "/v1/health/x",
    "/v1/status;/livez",
    "/v1/status?/livez",
    "/v1/status/livez",
    "/v1/models/livez",
    "/metrics",
    "/connect",
    "/docs",
    "/openapi.json",
    "/favicon.ico",
    "/nowhere",
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """With keys: one in use, one revoked and one that has expired."""
    file = tmp_path / "verger.db"
    make_key(file, "ada")
    vocabulary = Vocabulary.from_file_bytes(byte_tokenizer().to_str().encode())
    engine = EngineClient(["never started"], Hello(PROTOCOL_VERSION, 0))
    settings = ServerSettings("m", tmp_path, context_tokens=1, database_file=file)
    service = Service(settings, vocabulary, engine, PinnedDates())
    yield service
    service.keys.close()


def paths_of(routes: list[BaseRoute], before: str = "") -> Iterator[str]:
    """Every path that is routed, its parameters filled in."""
    for route in routes:
        path = before + re.sub(r"\{[^}]*\}", "x", getattr(route, "path", "/nameless"))
        yield path
        if isinstance(route, Mount):
            yield f"{path}/anything"
            yield from paths_of(list(route.routes), path)


def headers_without_a_key(file: Path) -> list[tuple[bytes, bytes]]:
    """All the ways of not having one."""
    right = make_key(file, "bob")
    revoked = make_key(file, "revoked")
    revoke(file, "revoked")
    expired = make_key(file, "expired", expires_unix_s=1)
    wrong = ["vg-00000000-" + "x" * 43, right[:11], right[:-1], right[:-1] + "~", revoked, expired]
    credentials = [(b"authorization", f"Bearer {key}".encode()) for key in wrong]
    credentials += [(b"x-api-key", key.encode()) for key in wrong]
    return [
        *credentials,
        (b"accept", b"text/html"),
        (b"authorization", b"Basic OnZnLXg="),
        (b"authorization", b"Bearer \xff\xfe"),
        (b"cookie", f"key={right}".encode()),
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-original-url", b"/livez"),
        (b"x-http-method-override", b"GET"),
    ]


async def answer_to(app: ASGIApp, scope: Scope) -> Message:
    """The first message that comes back."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]


def scope_of(
    kind: str, method: str, path: str, client: str, *headers: tuple[bytes, bytes]
) -> Scope:
    return {
        "type": kind,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"key=vg-",
        "headers": [(b"host", b"127.0.0.1:8374"), *headers],
        "client": (client, 50_000),
        "server": ("127.0.0.1", 8374),
        "scheme": "http",
        "http_version": "1.1",
        "state": {},
        "extensions": {},
    }


async def test_every_route_and_method_wants_a_key(service: Service, tmp_path: Path) -> None:
    app = create_app(service)
    paths = sorted({*paths_of(app.routes), *UNKNOWN} - OPEN)
    assert len(paths) > len(UNKNOWN)
    without: list[tuple[tuple[bytes, bytes], ...]] = [()]
    without += [(header,) for header in headers_without_a_key(tmp_path / "verger.db")]
    # Each from an address of its own: wrong keys are counted.
    addresses = itertools.count()
    for path, method, headers in itertools.product(paths, METHODS, without):
        client = f"address {next(addresses)}"
        start = await answer_to(app, scope_of("http", method, path, client, *headers))
        what = (method, path, headers)
        assert (start["type"], start["status"]) == ("http.response.start", 401), what
        assert b"www-authenticate" in dict(start["headers"]), what


async def test_every_web_socket_is_refused(service: Service) -> None:
    app = create_app(service)
    for path in {*paths_of(app.routes), *UNKNOWN}:
        answer = await answer_to(app, scope_of("websocket", "GET", path, "a"))
        assert answer == {"type": "websocket.close", "code": 1008}


async def test_only_the_health_routes_are_open(service: Service) -> None:
    app = create_app(service)
    for path in OPEN:
        for method in METHODS:
            start = await answer_to(app, scope_of("http", method, path, "a"))
            expected = {200, 503} if method in ("GET", "HEAD") else {405}
            assert start["status"] in expected, (method, path)
    assert set(paths_of(app.routes)) > OPEN


async def test_with_a_key_they_are_what_they_are(service: Service, tmp_path: Path) -> None:
    """So the 401s above come from the key alone."""
    app = create_app(service)
    key = f"Bearer {make_key(tmp_path / 'verger.db', 'eve')}".encode()
    for path, status in (("/v1/models", 200), ("/v1/status", 200), ("/nowhere", 404)):
        scope = scope_of("http", "GET", path, "a", (b"authorization", key))
        assert (await answer_to(app, scope))["status"] == status
