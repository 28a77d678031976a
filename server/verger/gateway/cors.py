"""What web pages of other origins may do: nothing, unless `[server] cors_origins` names them.

Wrapped around authentication by `app`, because a browser asks for permission (the preflight)
without a key. Must not know the routes.

    no Origin, or our own       not from another site's page: passes
    an origin that is named     its preflight is answered here; else passes, and the page may read
    any other origin, reading   passes without CORS headers: the browser keeps the answer to itself
    any other origin, POST …    403: a browser sends a "simple" POST without asking, which would
                                reach a server that asks for no key

Credentials are never allowed: a page sends its key in a header of its own. Source: the Fetch
standard, "CORS protocol".
"""

import re
from collections.abc import Callable, Collection

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from verger.errors import ConfigError, OriginNotAllowed
from verger.gateway.edge import record_of

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
ALLOWED_METHODS = "GET, POST"
PREFLIGHT_AGE_S = 600

_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[0-9a-z_.-]+)(:[0-9]{1,5})?")
_HEADER_NAMES = re.compile(r"[0-9A-Za-z_, -]*")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Cors:
    """Pure ASGI; `origins` is asked at every request, since SIGHUP may change them."""

    def __init__(self, app: ASGIApp, origins: Callable[[], Collection[str]]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers, origins = Headers(scope=scope), self._origins()
            # The record's headers also reach the replies that errors become, outside of this layer.
            reply_headers = record_of(scope).reply_headers
            if origins:
                reply_headers.append((b"vary", b"Origin"))
            origin = headers.get("origin")
            if origin is not None and origin in origins:
                reply_headers += [
                    (b"access-control-allow-origin", origin.encode()),
                    (b"access-control-expose-headers", b"*"),
                ]
                if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                    await _preflight(headers)(scope, receive, send)
                    return
            elif origin is not None and scope["method"] not in SAFE_METHODS:
                _refuse_foreign(origin, headers)
        await self._app(scope, receive, send)


def origin_list(text: str) -> tuple[str, ...]:
    """The origins of `[server] cors_origins`, as browsers write them; raises ConfigError."""
    return tuple(_origin(entry.strip()) for entry in text.split(",") if entry.strip())


def _origin(entry: str) -> str:
    parsed = _ORIGIN.fullmatch(entry.lower())
    if parsed is None:
        raise ConfigError(
            f"server.cors_origins: {entry!r} is not an origin; write each as https://HOST or "
            "https://HOST:PORT, separated by commas (* is not possible: name the origins)"
        )
    scheme, host, port = parsed.groups(default="")
    return f"{scheme}://{host}" + ("" if port == _DEFAULT_PORTS[scheme] else port)


def _refuse_foreign(origin: str, headers: Headers) -> None:
    """Our own pages send an Origin too: its host is the Host, which has been checked before.

    The scheme is not compared: something in front of this server may have done its TLS.
    """
    if origin.lower().partition("://")[2] != headers.get("host", "").lower():
        raise OriginNotAllowed(
            "Web pages of other origins may not use this server. To allow one, add its origin to "
            "cors_origins in the section [server] of the server's config.toml."
        )


def _preflight(headers: Headers) -> Response:
    wanted = headers.get("access-control-request-headers", "")
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": ALLOWED_METHODS,
            "access-control-allow-headers": wanted if _HEADER_NAMES.fullmatch(wanted) else "",
            "access-control-max-age": str(PREFLIGHT_AGE_S),
        },
    )
