"""Who may come in: one layer around everything but the health routes. What it does not know, it
refuses.

Wrapped around the routes by `app`, inside of `edge`; asks the `key_ring`. Must not know what a
route does: it puts the principal into the scope, and holds the key's permit for as long as the
route works, however that ends. Keys are taken from headers only, never from the URL.

    Authorization: Bearer KEY     OpenAI's clients
    x-api-key: KEY                Anthropic's
    Authorization: Basic *:KEY    browsers, and for GET only: they also send it when another site
                                  has made them, and a GET changes nothing
"""

import base64
import binascii
from collections import OrderedDict
from collections.abc import Callable
from math import ceil

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from verger.errors import AuthenticationFailed, RateLimited
from verger.gateway.edge import PROBES, error_response, record_of
from verger.gateway.key_ring import HeldKey, KeyRing
from verger.gateway.principal import SCOPE_KEY, narrowed
from verger.gateway.sliding_window import SlidingWindow

MAX_WRONG_KEYS = 10
"""From one address within 60 seconds; a right key is let in all the same, so that nobody is locked
out by a neighbour behind the same proxy. What keeps keys from being guessed are their 256 bits."""
MAX_ADDRESSES = 1_024
"""Whose wrong keys are counted; the one that was longest without any is forgotten."""
POLICY_VIOLATION = 1008
"""The code with which a web socket is refused."""

_ASK_FOR_KEY = "Whoever runs this server makes one with: verger keys add NAME"


class Authentication:
    """Pure ASGI."""

    def __init__(self, app: ASGIApp, keys: KeyRing, clock: Callable[[], float]) -> None:
        self._app = app
        self._keys = keys
        self._clock = clock
        self._wrong_keys = WrongKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
        if scope["type"] == "lifespan" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            held = self._holder(scope)
        except AuthenticationFailed as error:
            record_of(scope).error = error.code
            challenge = {"www-authenticate": _challenge(scope)}
            await error_response(error, challenge)(scope, receive, send)
            return
        await self._admit(held, scope, receive, send)

    async def _admit(
        self, held: HeldKey | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Whoever needs no key has no limits either."""
        principal = self._keys.anonymous if held is None else held.key.principal
        scope[SCOPE_KEY] = narrowed(principal, Headers(scope=scope))
        if held is None:
            await self._app(scope, receive, send)
            return
        held.admit(self._clock())
        try:
            await self._app(scope, receive, send)
        finally:
            held.release()

    def _holder(self, scope: Scope) -> HeldKey | None:
        """The key of the request, None where none is needed; raises AuthenticationFailed."""
        self._keys.refresh()
        if not self._keys.needs_key:
            return None
        record_of(scope).client = address = _address(scope)
        secret = _presented_key(scope)
        if not secret:
            raise AuthenticationFailed(
                "An API key is needed here: send it as `Authorization: Bearer vg-...`, or as your "
                f"client's api_key. {_ASK_FOR_KEY}"
            )
        held = self._keys.find(secret)
        if held is None:
            self._wrong_keys.note(address, self._clock())
            raise AuthenticationFailed(
                f"This API key is not known here, or it was revoked. {_ASK_FOR_KEY}"
            )
        record_of(scope).key = held.key.name
        if self._keys.has_expired(held):
            raise AuthenticationFailed(f"The key {held.key.name} has expired. {_ASK_FOR_KEY}")
        return held


class WrongKeys:
    """How many came from whom lately."""

    def __init__(self) -> None:
        self._windows: OrderedDict[str, SlidingWindow] = OrderedDict()

    def note(self, address: str, now_s: float) -> None:
        """One more; raises RateLimited if it is too many."""
        window = self._windows.setdefault(address, SlidingWindow(MAX_WRONG_KEYS))
        self._windows.move_to_end(address)
        if len(self._windows) > MAX_ADDRESSES:
            self._windows.popitem(last=False)
        if wait_s := window.wait_s(now_s):
            raise RateLimited(
                f"Too many wrong API keys came from {address}. {_ASK_FOR_KEY}",
                retry_after_s=ceil(wait_s),
            )
        window.note(now_s)


def _presented_key(scope: Scope) -> str | None:
    headers = Headers(scope=scope)
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    match scheme.lower():
        case "bearer":
            return credentials.strip()
        case "basic" if scope["method"] == "GET":
            return _password(credentials)
    return headers.get("x-api-key")


def _password(credentials: str) -> str:
    """Of HTTP Basic (RFC 7617); empty if it is malformed."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _challenge(scope: Scope) -> str:
    """A browser is told to ask its user; others are not, or they would ask in vain."""
    is_browser = scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")
    return 'Basic realm="Verger", charset="UTF-8"' if is_browser else 'Bearer realm="Verger"'


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""
