"""Who makes a request: what its key says, or nobody in particular.

Put into the scope by `authentication`, read by endpoints. A request can ask for less than its key
allows: to wait for others, and to stay here. Must not know how a key is checked.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from verger.errors import InvalidRequest

TENANT = "office"
"""Of everybody who is not given another; whoever has the same tenant shares cached prefixes."""
SCOPE_KEY = "verger.principal"
ROUTE_HEADER = "x-verger-route"
"""Of a request: it may narrow what its key allows, and never widen it."""

Wish = TypeVar("Wish", bound=StrEnum)


class Priority(StrEnum):
    """Whether somebody waits for the answers; a key's class. The first one asks for most."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class RoutePolicy(StrEnum):
    """Where a key's requests may be served. The first one asks for most."""

    ANY = "any"
    PREFER_LOCAL = "prefer-local"
    LOCAL_ONLY = "local-only"


@dataclass(frozen=True, slots=True)
class Principal:
    """For the length of one request: `priority` and `route` are what it asked to narrow them to."""

    key_id: str
    """The key's public prefix; empty for whoever needs none."""
    name: str
    tenant: str
    is_admin: bool
    priority: Priority
    route: RoutePolicy
    max_parallel: int | None = None
    """Requests at once, and rows; None: no limit, and half of the rows."""
    budget_usd: float = 0.0
    """The most that its requests may cost at cloud providers in a calendar month."""


ANONYMOUS = Principal(
    key_id="",
    name="anonymous",
    tenant=TENANT,
    is_admin=True,
    priority=Priority.INTERACTIVE,
    route=RoutePolicy.LOCAL_ONLY,
)
"""Whoever asks a server that only its own machine can reach and that asks for no key."""


def principal_of(scope: MutableMapping[str, Any]) -> Principal:
    """Who makes the request that is being served."""
    principal: Principal = scope[SCOPE_KEY]
    return principal


def narrowed(principal: Principal, headers: Mapping[str, str]) -> Principal:
    """As the request's headers wish; what the key does not allow they do not widen."""
    return replace(
        principal,
        priority=_narrower(principal.priority, headers, "x-verger-priority"),
        route=_narrower(principal.route, headers, ROUTE_HEADER),
    )


def _narrower(allowed: Wish, headers: Mapping[str, str], name: str) -> Wish:
    asked = headers.get(name)
    if asked is None:
        return allowed
    wishes = list(type(allowed))
    if asked not in wishes:
        raise InvalidRequest(f"{name} must be one of {', '.join(wishes)}.")
    return wishes[max(wishes.index(allowed), wishes.index(type(allowed)(asked)))]
